"""OAuth over HTTP: reading forms strictly, answering in JSON that nobody caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from aiohttp import web

from valetkey.broker.core.form import Form
from valetkey.contracts import codes
from valetkey.contracts.codes import Code
from valetkey.contracts.errors import CallerError
from valetkey.contracts.oauth import TokenError
from valetkey.contracts.signals import MAX_SIGNAL, SIGNAL_HEADER

MAX_BODY: Final = 64 * 1024
_FORM: Final = "application/x-www-form-urlencoded"
_NONCE_HEADER: Final = "DPoP-Nonce"


async def read_form(request: web.Request) -> Form:
    """The body as form fields (RFC 6749 §3.2, appendix B). Raises `CallerError`."""
    if request.content_type != _FORM or request.charset not in {None, "utf-8", "UTF-8"}:
        raise CallerError(codes.SERVICE_BAD_REQUEST, "not a urlencoded form")
    if request.query_string:  # parameters in a URL end up in logs; RFC 6749 §2.3.1
        raise CallerError(codes.SERVICE_BAD_REQUEST, "parameters in the query")
    if "Authorization" in request.headers:  # RFC 6749 §2.3: one way to authenticate
        raise CallerError(codes.SERVICE_UNAUTHENTICATED, "an Authorization header")
    try:
        body = await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise CallerError(codes.SERVICE_TOO_LARGE, "body over the cap") from error
    return Form.decode(body)


def told_of(request: web.Request) -> str:
    """The signal that the caller heard of last; empty where it names none that could be one."""
    told = request.headers.get(SIGNAL_HEADER, "")
    return told if len(told) <= MAX_SIGNAL else ""


def description(code: Code) -> str:
    """The code's help in the characters that RFC 6749 §5.2 allows: ASCII without quotes."""
    return code.help.replace("§", "section ").replace("…", "...")


def json_answer(document: object, *, nonce: str = "", status: int = 200) -> web.Response:
    """RFC 6749 §5.1: no-store. ``nonce`` goes into the ``DPoP-Nonce`` header (RFC 9449 §8.2)."""
    headers = {"Cache-Control": "no-store", "Content-Type": "application/json"}
    if nonce:
        headers[_NONCE_HEADER] = nonce
    return web.Response(status=status, body=msgspec.json.encode(document), headers=headers)


def error_answer(code: Code, *, nonce: str = "", policies: Sequence[str] = ()) -> web.Response:
    """RFC 6749 §5.2: 400, or 401 for a client that did not authenticate.

    What is no fault of the request (too large or too many for us, not ready) keeps its HTTP
    status.
    """
    error = code.oauth or "invalid_request"
    if error == "invalid_client":
        status = 401
    elif code.status in {413, 429, 500, 503}:
        status = code.status
    else:
        status = 400
    told = TokenError(error, description(code), code.name, list(policies))
    answer = json_answer(told, nonce=nonce, status=status)
    if code.retry_after is not None:
        answer.headers["Retry-After"] = str(code.retry_after)
    return answer
