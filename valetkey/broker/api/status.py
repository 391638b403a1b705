"""``/status/{list}``: a signed list of which tokens still count (draft-ietf-oauth-status-list §5).

Public, as the JWK Set is: it tells of bits, not of tokens. A list is made anew at most once a
second for however many ask, from the same facts that introspection answers from.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from typing import Final

from aiohttp import web
from cachetools import TTLCache

from valetkey.broker.core.status_list import packed
from valetkey.broker.issuers.jwt import OwnToken
from valetkey.broker.issuers.keyring import KeyRing
from valetkey.broker.issuers.signer import Signer
from valetkey.broker.store.statuses import Entry, Statuses
from valetkey.broker.trust.standing import Standings
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.contracts.jose import VerifiedClaims

PREFIX: Final = "/status/"
TYP: Final = "statuslist+jwt"  # §5.1
MEDIA_TYPE: Final = "application/statuslist+jwt"  # §8.1
# How long a verifier may keep a list, and when it must not use it any more, seconds.
TTL: Final = 10
LIFETIME: Final = 60
_FRESH: Final = 1.0
_MISSED: Final = 5.0
_MADE: Final = 1000
# Anybody may ask for any list: whoever makes ids up must not take the database from those who work.
_AT_ONCE: Final = 2
_WAITING: Final = 64
_ID: Final = re.compile(r"[A-Za-z0-9_-]{16}")


class StatusEndpoint:
    """``issuer`` is the broker's identifier, beneath which the lists are."""

    def __init__(
        self,
        statuses: Statuses,
        standings: Standings,
        ring: KeyRing,
        *,
        issuer: str,
        clock: Callable[[], float],
    ) -> None:
        self._statuses = statuses
        self._standings = standings
        self._signer = Signer(ring, TYP)
        self._issuer = issuer
        self._clock = clock
        self._made: TTLCache[str, str] = TTLCache(_MADE, _FRESH, timer=time.monotonic)
        self._missed: TTLCache[str, bool] = TTLCache(_MADE, _MISSED, timer=time.monotonic)
        self._making: dict[str, asyncio.Task[str]] = {}
        self._building = asyncio.Semaphore(_AT_ONCE)

    async def handle(self, request: web.Request) -> web.Response:
        list_ = request.match_info["list"]
        if not _ID.fullmatch(list_):
            raise CallerError(codes.SERVICE_NOT_FOUND, "no list has such an id")
        self._standings.require_current()
        token = self._made.get(list_)
        if token is None:
            making = self._making.get(list_)
            if making is None:
                if list_ in self._missed:
                    raise _no_such_list()
                if len(self._making) >= _WAITING:
                    raise CallerError(codes.SERVICE_UNAVAILABLE, "too many lists are being made")
                making = asyncio.create_task(self._make(list_))
                self._making[list_] = making
                making.add_done_callback(lambda task: self._ended(list_, task))
            token = await asyncio.shield(making)
        # §8.1: 406 is for other encodings of the same list; there is one here.
        return web.Response(
            text=token, content_type=MEDIA_TYPE, headers={"Cache-Control": f"max-age={TTL}"}
        )

    def _ended(self, list_: str, task: asyncio.Task[str]) -> None:
        del self._making[list_]
        if not task.cancelled():
            task.exception()  # told to all who wait; where they have left, to nobody

    async def _make(self, list_: str) -> str:
        async with self._building:
            entries = await self._statuses.entries(list_)
            if not entries:
                self._missed[list_] = True
                raise _no_such_list()
            invalid = await asyncio.to_thread(self._invalid, entries)
        now = int(self._clock())
        token = self._signer.sign(
            {
                "sub": self._issuer + PREFIX + list_,
                "iss": self._issuer,
                "iat": now,
                "exp": now + LIFETIME,
                "ttl": TTL,
                "status_list": {"bits": 1, "lst": packed(invalid)},
            }
        )
        self._made[list_] = token
        return token

    def _invalid(self, entries: Sequence[Entry]) -> list[int]:
        return [entry.index for entry in entries if not self._stands(entry)]

    def _stands(self, entry: Entry) -> bool:
        claims = entry.claims
        token = OwnToken.of(
            VerifiedClaims(claims["iss"], claims["sub"], claims, {"kid": entry.kid})
        )
        return self._standings.stands(token, lambda: (entry.hashed,))


def _no_such_list() -> CallerError:
    return CallerError(codes.SERVICE_NOT_FOUND, "no token has a place in such a list")
