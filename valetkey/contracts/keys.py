"""What tokens of an issuer are verified with: fetched once, kept, fetched again in time.

Unknown ``kid`` leads to one refetch, at most every `REFETCH_COOLDOWN`; a failed or empty answer
keeps the old keys (RFC 7517 pitfalls). They are fetched again when they are older than
`REFRESH_AFTER`, so that withdrawn keys stop counting.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

from valetkey.contracts.fetch import FetchFailed
from valetkey.contracts.jose import TokenInvalid
from valetkey.contracts.logs import Log

REFETCH_COOLDOWN: Final = 10.0
# Keys this old are fetched again: one that the issuer withdrew must not count until we restart.
REFRESH_AFTER: Final = 300.0

T = TypeVar("T")


class KeysUnavailable(TokenInvalid):
    """The issuer's keys, or newer ones, can't be had now: it says nothing of the token."""


class KeySource(Generic[T]):
    """The current keys of one issuer. ``issuer`` names it in the log.

    ``read`` gets the document (it may raise `OSError`, `FetchFailed`, `TokenInvalid`), ``parse``
    makes the keys of it (it may raise `TokenInvalid`).
    """

    def __init__(
        self, issuer: str, read: Callable[[], Awaitable[bytes]], parse: Callable[[bytes], T]
    ) -> None:
        self._issuer = issuer
        self._read = read
        self._parse = parse
        self._keys: T | None = None
        self._fetched_at = float("-inf")
        self._read_at = float("-inf")
        self._fresh_until = float("-inf")
        self._fetching = asyncio.Lock()
        self._log = Log("issuer")

    async def current(self) -> T:
        """The keys, fetched if there are none or they are old. Raises `KeysUnavailable`."""
        keys = self._keys
        if keys is None or time.monotonic() >= self._fresh_until:
            keys = await self._refetch(keys)
        if keys is None:
            raise KeysUnavailable("the issuer's keys are not available")
        return keys

    async def newer(self, seen: T) -> T | None:
        """Other keys than ``seen``, if a fetch (at most one per cooldown) brings some."""
        keys = await self._refetch(seen)
        return None if keys is seen else keys

    def is_newer_than(self, moment: float) -> bool:
        """Whether a fetch that began after ``moment`` (`time.monotonic`) brought the keys.

        Only then is a ``kid`` that they lack none of the issuer's: an older set, one that the
        cooldown or a failed fetch kept, may just not have it yet.
        """
        return self._read_at >= moment

    async def _refetch(self, seen: T | None) -> T | None:
        async with self._fetching:
            if self._keys is not seen:  # somebody else fetched while we waited
                return self._keys
            if time.monotonic() - self._fetched_at < REFETCH_COOLDOWN:
                return self._keys
            self._fetched_at = began = time.monotonic()
            try:
                self._keys = self._parse(await self._read())
                self._read_at = began
                self._fresh_until = time.monotonic() + REFRESH_AFTER
            except (OSError, FetchFailed, TokenInvalid) as error:
                self._log.warning(
                    "jwks_unavailable",
                    issuer=self._issuer,
                    error_type=type(error).__name__,
                    reason=error if not isinstance(error, OSError) else error.strerror or "",
                )
            return self._keys
