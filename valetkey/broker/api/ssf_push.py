"""``POST /v1/ssf/push/NAME``: security events that a transmitter pushes (RFC 8935)."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import Final

from aiohttp import web

from valetkey.broker.api.wire import json_answer
from valetkey.broker.incidents.transmitters import Intake, Transmitter, read_secret
from valetkey.broker.trust.admins import bearer
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.contracts.logs import Log
from valetkey.contracts.sets import MEDIA_TYPE, SetRefused

PATH: Final = "/v1/ssf/push/{transmitter}"


class PushEndpoint:
    """For the transmitters that push."""

    def __init__(self, transmitters: Iterable[Transmitter], intake: Intake) -> None:
        self._transmitters = {one.name: one for one in transmitters}
        self._intake = intake
        self._log = Log("broker.transmitters")

    async def handle(self, request: web.Request) -> web.Response:
        transmitter = self._transmitters.get(request.match_info["transmitter"])
        if transmitter is None:
            raise CallerError(codes.SERVICE_NOT_FOUND, "no such transmitter")
        try:
            await self._authenticate(request, transmitter)
            await self._intake.take(transmitter, await _set_of(request))
        except SetRefused as error:
            self._log.warning(
                "event_refused", key=transmitter.name, error=error.err, reason=error.description
            )
            # RFC 8935 §2.3
            answer = json_answer({"err": error.err, "description": error.description}, status=400)
            answer.headers["Content-Language"] = "en"
            return answer
        return web.Response(status=202)  # RFC 8935 §2.2

    @staticmethod
    async def _authenticate(request: web.Request, transmitter: Transmitter) -> None:
        settings = transmitter.settings.push
        assert settings is not None
        try:
            shown = bearer(request)
            expected = await read_secret(settings.token_file)
        except CallerError as error:
            raise SetRefused("authentication_failed", error.reason) from error
        except (OSError, UnicodeDecodeError) as error:
            raise CallerError(codes.SERVICE_UNAVAILABLE, "token_file can't be read") from error
        if not expected or not hmac.compare_digest(shown.encode(), expected.encode()):
            raise SetRefused("authentication_failed", "not the transmitter's token")


async def _set_of(request: web.Request) -> str:
    if request.content_type != MEDIA_TYPE:  # RFC 8935 §2.1
        raise SetRefused("invalid_request", f"the media type is not {MEDIA_TYPE}")
    try:
        return (await request.read()).decode("ascii").strip()
    except web.HTTPRequestEntityTooLarge as error:
        raise CallerError(codes.SERVICE_TOO_LARGE, "body over the cap") from error
    except UnicodeDecodeError as error:
        raise SetRefused("invalid_request", "not a compact JWS") from error
