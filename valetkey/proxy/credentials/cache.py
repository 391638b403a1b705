"""Credentials by key: one exchange in flight per key, for however many callers.

The contract (design.md, "Cache"):

- A credential is used until its own expiry and not a moment longer; from 80 % of its life on it
  is refreshed in the background, once. If that fails because the broker is away, the old one
  serves until it expires; if the broker says no, the old one is dropped at once.
- Only a policy's no is remembered, for a second; never the broker's absence, and nothing that
  failed is ever remembered as a yes.
- A target's 401 evicts a credential only if it is still the one in the cache.
- A credential for one call (an approval whose uses are counted) is not kept, and one of those who
  waited gets it.
- What has ended (`revoke`) is dropped at once, and an exchange that was under way meanwhile can't
  bring it back: its credential is looked at again before anybody gets it.
- Bounded, least recently used out first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from cachetools import TLRUCache, TTLCache

from valetkey.contracts import codes
from valetkey.contracts.errors import BrokerError, CallerError, PolicyError, ValetkeyError
from valetkey.contracts.logs import Log
from valetkey.proxy.core.cache_policy import REFRESH_AT, CacheKey
from valetkey.proxy.core.credential import Credential
from valetkey.proxy.core.eviction import EVERYTHING, Ended

Fetch = Callable[[], Awaitable[Credential]]
IsGood = Callable[[Credential], Awaitable[bool]]
"""Whether the broker stands by a credential."""

DENIAL_LIFETIME: Final = 1.0
_RETRY_REFRESH: Final = 1.0
_NEAR: Final = 1.0
# Once more when what came had ended on the way; whoever loses twice may as well call again.
_TRIES: Final = 2
_LOOSE: Final = 1.0


class CredentialCache:
    """The cache and its flights."""

    def __init__(self, capacity: int) -> None:
        self._entries: TLRUCache[CacheKey, Credential] = TLRUCache(
            capacity, ttu=lambda _key, credential, _now: credential.expires_at, timer=time.monotonic
        )
        self._denials: TTLCache[CacheKey, ValetkeyError] = TTLCache(
            capacity, ttl=DENIAL_LIFETIME, timer=time.monotonic
        )
        self._near: dict[int, Credential] = {}
        """What was found lately, by the identity of its key; emptied when an entry changes."""
        self._used: list[Credential] = []
        self._flights: dict[CacheKey, asyncio.Task[Credential]] = {}
        self._fetching: list[list[Ended]] = []
        """For each exchange under way, what has ended since it began."""
        self._loose: set[Credential] = set()
        """Not in the cache: for a second, until callers have taken them."""
        self._longest = float("inf")
        self._closed_for: ValetkeyError | None = None
        self._log = Log("cache")
        self.hits = 0
        self.misses = 0
        self.refreshes = 0
        self.evictions = 0
        self.revoked = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def in_flight(self) -> int:
        return len(self._flights)

    def get(self, key: CacheKey, now: float) -> Credential | None:
        """A credential that has not expired; see `refresh` for one that is past its best."""
        # The same call comes again and again, with the same key object: what that led to is taken
        # once more, for a second at most, so that what is in use also counts as used.
        credential = self._near.get(id(key))
        if credential is None or credential.key is not key or now >= credential.near_until:
            try:
                credential = self._entries[key]
            except KeyError:
                return None
            if credential.key is key:
                credential.near_until = min(credential.expires_at, now + _NEAR)
                self._near[id(key)] = credential
        self.hits += 1
        if not credential.used:
            credential.used = True
            self._used.append(credential)
        return credential

    def refresh(self, credential: Credential, now: float, fetch: Fetch) -> None:
        """Fetch a successor in the background; at most once a second while that fails."""
        credential.refresh_at = now + _RETRY_REFRESH
        if credential.key not in self._flights:
            self.refreshes += 1
            self._start(credential.key, fetch)

    async def obtain(
        self, key: CacheKey, fetch: Fetch, is_good: IsGood | None = None
    ) -> Credential:
        """A credential by exchange, shared with everybody who asks meanwhile.

        ``is_good``: see `fresh`. Raises what the exchange raised (`ValetkeyError`), to each of
        them.
        """
        self.misses += 1
        arrived = self._entries.get(key)
        if arrived is not None:
            # It came between this caller's look into the cache and now.
            return arrived
        denied = self._denials.get(key)
        if denied is not None:
            raise denied.again()
        while True:
            flight = self._flights.get(key) or self._start(key, fetch, is_good)
            # One caller that goes away must not take the others' exchange along.
            credential = await asyncio.shield(flight)
            if credential.claim():
                return credential
            # It was for one call, which is another one: each of these takes an exchange.

    def put(self, credential: Credential) -> None:
        """Use a credential for its key from now on."""
        self._entries[credential.key] = credential
        self._near.clear()

    def evict(self, credential: Credential) -> None:
        """Drop a credential that a target refused, if it is the one that is cached."""
        if self._entries.get(credential.key) is credential:
            del self._entries[credential.key]
            self._near.clear()
            self.evictions += 1

    def revoke(self, ended: Ended) -> int:
        """Drop what has ended, also from exchanges under way; says how many were cached."""
        for since in self._fetching:
            since.append(ended)
        for credential in self._loose:
            if ended(credential):
                credential.end(certain=ended.certain(credential))
        gone = [credential for credential in self._all() if ended(credential)]
        for credential in gone:
            credential.end(certain=ended.certain(credential))
            del self._entries[credential.key]
        if gone:
            self._near.clear()
            self.revoked += len(gone)
        return len(gone)

    async def fresh(self, fetch: Fetch, is_good: IsGood | None = None) -> Credential:
        """One exchange, whose credential did not end while it was on its way.

        ``is_good`` is for one that people approved, where another one would cost more than a
        question: it decides on what may have ended or not. One that is for a single call is given
        without an answer as well, and may not be sent then (`Credential.revoked`). Raises what the
        exchange raised (`ValetkeyError`).
        """
        for _ in range(_TRIES):
            self._check_open()
            ended: list[Ended] = []
            self._fetching.append(ended)
            try:
                credential = await fetch()
                stands = await self._stands_here(credential, ended, is_good)
            finally:
                self._fetching = [other for other in self._fetching if other is not ended]
            if stands:
                self.cap(credential)
                if credential.approved:
                    self._loose.add(credential)
                    asyncio.get_running_loop().call_later(_LOOSE, self._loose.discard, credential)
                return credential
            credential.end(certain=True)
        raise BrokerError(codes.BROKER_UNAVAILABLE, "what the broker gave ended on its way")

    async def _stands_here(
        self, credential: Credential, ended: list[Ended], is_good: IsGood | None
    ) -> bool:
        """Whether it stands, and may be used here; one for a single call is not lost over that."""
        try:
            stands = await _stands(credential, ended, is_good if credential.approved else None)
            if stands:
                self._check_open()
        except ValetkeyError:
            certain = any(has_ended.certain(credential) for has_ended in ended)
            if is_good is None or not credential.single_use or certain:
                raise
            credential.end(certain=False)  # to be asked about before it is sent
            return True
        return stands

    async def still_good(self, credential: Credential, is_good: IsGood) -> bool:
        """Whether one that was kept elsewhere may be used: that is for the broker to say.

        It is asked again where something has ended meanwhile. Raises what the question raised
        (`ValetkeyError`).
        """
        self._check_open()
        ended = [EVERYTHING]  # whatever has ended since it came
        self._fetching.append(ended)
        try:
            stands = await _stands(credential, ended, is_good)
        finally:
            self._fetching = [other for other in self._fetching if other is not ended]
            if any(has_ended.certain(credential) for has_ended in ended):
                credential.end(certain=True)
        self._check_open()
        self.cap(credential)
        if stands:
            credential.confirm()
        return stands

    def limit_lives(self, seconds: float) -> None:
        """From now on use no credential longer than so many seconds after it came (``inf``: any).

        What is cached keeps its shorter life when the limit is lifted.
        """
        self._longest = seconds
        for credential in self._loose:
            self.cap(credential)
        for credential in self._all():
            self.cap(credential)
            self._entries[credential.key] = credential  # the cache asks once how long it lives
        self._near.clear()

    def close_for(self, error: ValetkeyError | None) -> None:
        """Give nobody a credential, but this error, until called with ``None``."""
        self._closed_for = error
        if error is not None:
            self._entries.clear()
            self._near.clear()

    def _all(self) -> list[Credential]:
        found = (self._entries.get(key) for key in list(self._entries))
        return [credential for credential in found if credential is not None]

    def cap(self, credential: Credential) -> None:
        """Use it no longer than `limit_lives` says, wherever it is."""
        end = credential.minted_at + self._longest
        if end < credential.expires_at:
            credential.expires_at = end
            refresh = credential.minted_at + self._longest * REFRESH_AT
            credential.refresh_at = min(credential.refresh_at, refresh)

    def _check_open(self) -> None:
        if self._closed_for is not None:
            raise self._closed_for.again()

    def take_used(self) -> list[Credential]:
        """The credentials that were used since the last time this was asked."""
        used, self._used = self._used, []
        for credential in used:
            credential.used = False
        return used

    async def close(self) -> None:
        """Stop the exchanges in flight."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    def _start(
        self, key: CacheKey, fetch: Fetch, is_good: IsGood | None = None
    ) -> asyncio.Task[Credential]:
        flight = asyncio.ensure_future(self._fly(key, fetch, is_good))
        self._flights[key] = flight
        flight.add_done_callback(_seen)
        return flight

    async def _fly(self, key: CacheKey, fetch: Fetch, is_good: IsGood | None) -> Credential:
        try:
            credential = await self.fresh(fetch, is_good)
        except (PolicyError, CallerError) as error:
            self._entries.pop(key, None)
            self._near.clear()
            self._denials[key] = error
            raise
        except ValetkeyError as error:
            self._log.warning("exchange_failed", code=error.code.name, reason=error.reason)
            raise
        else:
            if not credential.single_use:
                self.put(credential)
            return credential
        finally:
            del self._flights[key]


async def _stands(credential: Credential, ended: list[Ended], is_good: IsGood | None) -> bool:
    """Whether a credential is none of what has ended, or the broker says that it stands by it."""
    while any(has_ended(credential) for has_ended in ended):
        if is_good is None or any(has_ended.certain(credential) for has_ended in ended):
            return False
        ended.clear()  # the answer will be younger than these
        if not await is_good(credential):
            return False
    return True


def _seen(flight: asyncio.Task[Credential]) -> None:
    """Mark the outcome as retrieved: a background refresh has nobody who awaits it."""
    if not flight.cancelled():
        flight.exception()
