"""``POST /v1/alerts/github``: what GitHub's secret scanning found (`incidents.github`)."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from valetkey.broker.api.admin import answer
from valetkey.broker.incidents.github import AlertDesk, AlertInvalid, PinnedKeys, read_alerts
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError

PATH: Final = "/v1/alerts/github"
# "Your endpoint should be able to handle requests with a large number of matches."
_MAX_BODY: Final = 1 << 20


class GithubAlertsEndpoint:
    """The signature is over the raw body, so nothing is parsed before it holds."""

    def __init__(self, keys: PinnedKeys, desk: AlertDesk) -> None:
        self._keys = keys
        self._desk = desk

    async def handle(self, request: web.Request) -> web.Response:
        identifier = _one(request, "Github-Public-Key-Identifier")
        signature = _one(request, "Github-Public-Key-Signature")
        body = await _read(request)
        try:
            self._keys.verify(body, identifier=identifier, signature=signature)
        except AlertInvalid as error:
            raise CallerError(codes.SERVICE_UNAUTHENTICATED, str(error)) from error
        try:
            alerts = read_alerts(body)
        except AlertInvalid as error:
            raise CallerError(codes.SERVICE_BAD_REQUEST, str(error)) from error
        return answer(await self._desk.take(alerts))


def _one(request: web.Request, name: str) -> str:
    values = request.headers.getall(name, ())
    if len(values) != 1:
        raise CallerError(codes.SERVICE_UNAUTHENTICATED, f"not exactly one {name}")
    return values[0]


async def _read(request: web.Request) -> bytes:
    """The body, which may be larger than what other endpoints take."""
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > _MAX_BODY:
            raise CallerError(codes.SERVICE_TOO_LARGE, "body over the cap")
    return bytes(body)
