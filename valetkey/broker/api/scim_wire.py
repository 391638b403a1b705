"""SCIM over HTTP (RFC 7644 §3): reading messages, answering, and errors in its own form."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web
from pydantic import ValidationError
from scim2_models import (
    BaseModel,
    Context,
    Error,
    ForbiddenException,
    PayloadTooLargeException,
    PreconditionFailedException,
    Resource,
    ResponseParameters,
    SCIMException,
    UnauthorizedException,
)

from valetkey.broker.core.scim import DIALECTS
from valetkey.contracts import codes
from valetkey.contracts.errors import ValetkeyError
from valetkey.contracts.logs import Log
from valetkey.contracts.service import Handler

PREFIX: Final = "/scim/v2"
MEDIA_TYPE: Final = "application/scim+json"  # RFC 7644 §8.1
_READ: Final = frozenset({MEDIA_TYPE, "application/json"})  # RFC 7644 §3.1 knows both
# A group of ten thousand members, each with its $ref, in one message.
MAX_BODY: Final = 2 * 1024 * 1024
_MAX_ETAG: Final = 1024
_HELP: Final = "For further information visit"

T = TypeVar("T", bound=BaseModel)


async def read_object(request: web.Request) -> dict[str, Any]:
    """The body as a JSON object. Raises `SCIMException`."""
    if request.content_type not in _READ:
        raise _failure(415, f"the body must be {MEDIA_TYPE}")
    try:
        body = await request.clone(client_max_size=MAX_BODY).read()
        return msgspec.json.decode(body, type=dict[str, Any])
    except web.HTTPRequestEntityTooLarge as error:
        raise PayloadTooLargeException(detail=f"more than {MAX_BODY} bytes") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _failure(400, "the body is no JSON object", "invalidSyntax") from error


async def validated(kind: type[T], document: Mapping[str, Any], context: Context) -> T:
    """The document as a message or resource, as the client sent it. Raises `SCIMException`.

    In a thread: a message may be megabytes long.
    """
    if not document.get("schemas") and context is not Context.SEARCH_REQUEST:
        raise _failure(400, "schemas is missing", "invalidSyntax")  # RFC 7643 §3

    def validate() -> T:
        return kind.model_validate(document, scim_ctx=context, scim_policy=DIALECTS)

    try:
        return await asyncio.to_thread(validate)
    except ValidationError as error:
        raise first_of(error) from error


def first_of(error: ValidationError) -> SCIMException:
    """What is wrong, as the answer says it; the value itself is not repeated."""
    return SCIMException.from_error(Error.from_validation_errors(error)[0])


def answered(
    resource: Resource[Any],
    asked: ResponseParameters[Any],
    *,
    context: Context,
    status: int = 200,
) -> web.Response:
    """A resource with its ``ETag`` and, for a new one, its ``Location`` (RFC 7644 §3.3, §3.14)."""
    headers: dict[str, str] = {}
    meta = resource.meta
    if meta is not None and meta.version and meta.location:
        headers = {"ETag": meta.version, "Content-Location": meta.location}
        if status == HTTPStatus.CREATED:
            headers["Location"] = meta.location
    return message(
        resource.model_dump(scim_ctx=context, response_parameters=asked),
        status=status,
        headers=headers,
    )


def message(
    document: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode(document),
        headers={"Cache-Control": "no-store", **(headers or {})},
        content_type=MEDIA_TYPE,
    )


def refused(error: SCIMException, headers: Mapping[str, str] | None = None) -> web.Response:
    """RFC 7644 §3.12."""
    told = error.to_error()
    told.detail = (told.detail or "").partition(_HELP)[0].strip()
    return message(told.model_dump(), status=told.status or 400, headers=headers)


def answering_errors(handler: Handler) -> Handler:
    """``handler``, with whatever it raises or refuses in the form that SCIM clients read."""
    log = Log("broker.scim")

    async def answering(request: web.Request) -> web.StreamResponse:
        try:
            answer = await handler(request)
        except SCIMException as error:
            log.info("scim_refused", code=error.scim_type or str(error.status), path=request.path)
            return refused(error)
        except ValetkeyError as error:
            log.info("scim_refused", code=error.code.name, reason=error.reason, path=request.path)
            return refused(told(error.code.status, error.code.help))
        if answer.status >= 400 and answer.content_type != MEDIA_TYPE:
            # The guard's own answers: not authenticated, too often.
            headers = {
                name: answer.headers[name]
                for name in ("WWW-Authenticate", "Retry-After")
                if name in answer.headers
            }
            code = (
                codes.SERVICE_RATE_LIMITED
                if answer.status == 429
                else codes.SERVICE_UNAUTHENTICATED
            )
            return refused(told(answer.status, code.help), headers)
        return answer

    return answering


def if_match(request: web.Request, version: str) -> None:
    """RFC 7644 §3.14. Raises `SCIMException` (412) where the client saw another version."""
    wanted = request.headers.get("If-Match")
    if wanted is not None and not _names(wanted, version):
        raise PreconditionFailedException


def none_match(request: web.Request, version: str) -> bool:
    """Whether the client has this version already (RFC 7644 §3.14)."""
    held = request.headers.get("If-None-Match")
    return held is not None and _names(held, version)


def _names(header: str, version: str) -> bool:
    """Our versions are weak, and only compared by whether they are the same (RFC 9110 §8.8.3.2)."""
    if len(header) > _MAX_ETAG:
        return False
    opaque = version.removeprefix("W/")
    return header.strip() == "*" or any(
        entry.strip().removeprefix("W/") == opaque for entry in header.split(",")
    )


def told(status: int, detail: str) -> SCIMException:
    """The error of that HTTP status."""
    kind = {401: UnauthorizedException, 403: ForbiddenException, 413: PayloadTooLargeException}
    return kind[status](detail=detail) if status in kind else _failure(status, detail)


def _failure(status: int, detail: str, scim_type: str | None = None) -> SCIMException:
    return SCIMException.from_error(Error(status=status, scim_type=scim_type, detail=detail))
