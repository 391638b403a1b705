"""AuthZEN over HTTP: who may ask, bodies read strictly, answers with the request's identifier."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web

from valetkey.broker.authzen_settings import EnforcementPointSettings
from valetkey.broker.core.rate_limit import RateLimit, whole_seconds
from valetkey.broker.trust.admins import Admins, bearer
from valetkey.broker.trust.clients import ClientAuthenticator
from valetkey.contracts import codes, problem
from valetkey.contracts.codes import Code
from valetkey.contracts.errors import CallerError, ValetkeyError
from valetkey.contracts.jose import TokenInvalid, parse
from valetkey.contracts.service import Handler, problem_response

T = TypeVar("T")
_REQUEST_ID: Final = "X-Request-ID"
_REQUEST_ID_FORM: Final = re.compile(r"[\x21-\x7e]{1,256}")


class BodyInvalid(CallerError):  # noqa: N818 - reads as what it is
    """A body that is no question; the reason is told."""

    def __init__(self, reason: str) -> None:
        super().__init__(codes.SERVICE_BAD_REQUEST, reason)


class EnforcementPoints:
    """Authenticates those that settings name. ``issuer`` is the broker's own URL."""

    def __init__(
        self,
        clients: ClientAuthenticator,
        admins: Admins,
        points: Iterable[EnforcementPointSettings],
        limit: RateLimit,
        *,
        issuer: str,
    ) -> None:
        self._clients = clients
        self._admins = admins
        self._workloads = {
            (point.issuer, point.subject): point for point in points if point.use == "workload"
        }
        self._administrators = {
            (point.issuer, point.subject) for point in points if point.use == "admin"
        }
        self._limit = limit
        self._issuer = issuer

    def guard(self, handler: Callable[[web.Request], Awaitable[web.Response]]) -> Handler:
        """``handler``, for those points only; every answer carries the identifier that was sent."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            proofs = request.headers.getall("DPoP", ())
            try:
                response = await self._answer(request, handler)
            except BodyInvalid as error:
                response = _told(error.code, error.reason)
            except ValetkeyError as error:
                response = _refused(error.code)
                nonce = self._clients.nonce(proofs, error.code)
                if nonce:
                    response.headers["DPoP-Nonce"] = nonce
            identifier = request.headers.get(_REQUEST_ID, "")
            if _REQUEST_ID_FORM.fullmatch(identifier):
                response.headers[_REQUEST_ID] = identifier
            return response

        return guarded

    async def _answer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.Response]]
    ) -> web.Response:
        identifiers = request.headers.getall(_REQUEST_ID, ())
        if len(identifiers) > 1 or not all(map(_REQUEST_ID_FORM.fullmatch, identifiers)):
            raise BodyInvalid(f"{_REQUEST_ID}: at most 256 printable characters, once")
        who = await self._authenticate(request)
        wait = self._limit.take(who)
        if wait:
            return problem_response(
                codes.SERVICE_RATE_LIMITED, headers={"Retry-After": str(whole_seconds(wait))}
            )
        return await handler(request)

    async def _authenticate(self, request: web.Request) -> tuple[str, str]:
        compact = bearer(request)
        try:
            claimed = parse(compact).unverified_issuer
        except TokenInvalid as error:
            raise CallerError(codes.SERVICE_UNAUTHENTICATED, str(error)) from error
        # The issuer that the token claims only chooses the rules to verify it by.
        if any(issuer == claimed for issuer, _ in self._administrators):
            admin = await self._admins.authenticate(request)
            who, known = (admin.issuer, admin.subject), self._administrators
            if who not in known:
                raise CallerError(codes.SERVICE_UNAUTHENTICATED, "no enforcement point")
            return who
        client = await self._clients.authenticate_bearer(
            compact,
            request.headers.getall("DPoP", ()),
            method=request.method,
            url=self._issuer + request.path,
            unbound=self._may_be_unbound,
        )
        claims = client.assertion.claims
        who = (claims.issuer, claims.subject)
        if who not in self._workloads:
            raise CallerError(codes.SERVICE_UNAUTHENTICATED, "no enforcement point")
        return who

    def _may_be_unbound(self, issuer: str, subject: str) -> bool:
        point = self._workloads.get((issuer, subject))
        return point is not None and point.bearer


def _refused(code: Code) -> web.Response:
    """401 for whoever did not authenticate, whatever was wrong (Authorization API 1.0, errors)."""
    if code.family not in {"actor", "dpop"} and code is not codes.SERVICE_UNAUTHENTICATED:
        return problem_response(code)
    challenge = f'DPoP error="{code.oauth}", algs="ES256"' if code.family == "dpop" else "Bearer"
    response = problem_response(code, headers={"WWW-Authenticate": challenge})
    response.set_status(401)
    return response


def _told(code: Code, reason: str) -> web.Response:
    return web.Response(
        status=code.status,
        body=problem.render(code, reason=reason),
        headers={"Cache-Control": "no-store"},
        content_type=problem.CONTENT_TYPE,
    )


async def read_question(request: web.Request, kind: type[T]) -> T:
    """The body as one ``kind``; unknown members are ignored, as the specification demands.

    Raises `BodyInvalid` or `CallerError`.
    """
    if request.content_type != "application/json":
        raise CallerError(codes.SERVICE_MEDIA_TYPE, "the body must be application/json")
    try:
        body = await request.read()
        # I-JSON: a name twice in an object has no one meaning (RFC 7493 §2.3).
        document = json.loads(body.decode(), object_pairs_hook=_once, parse_constant=_no_number)
        return msgspec.convert(document, kind)
    except web.HTTPRequestEntityTooLarge as error:
        raise CallerError(codes.SERVICE_TOO_LARGE, "body over the cap") from error
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise BodyInvalid(str(error)) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name occurs twice in an object")
    return members


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")
