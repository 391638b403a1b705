"""Since when a subject shows a key, so that one from before an incident is known as such.

A key is noted before the first token is bound to it, and a key that is in use is remembered: its
row is refreshed daily and forgotten only `KEPT` seconds after its last use. The common case asks
nobody: what was noted lately is in memory.

Proof keys cost nothing to make: they are noted only with an exchange that is granted, and no more
new ones of a subject than a limit allows. Who is refused leaves nothing but a place in a bounded
memory. (An attacker can make a key of after the incident as well; what a refused one was, matters
to nobody.) Keys that somebody vouches for, by a certificate or a key set, are noted when they are
shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from cachetools import LRUCache, TTLCache
from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.core.rate_limit import RateLimit
from valetkey.broker.store.database import Database
from valetkey.broker.store.schema import SEEN_KEYS
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError

# Much longer than anything lives that a key of before an incident could be shown with.
KEPT: Final = 90 * 86_400.0
_REFRESH: Final = 86_400.0
_CAPACITY: Final = 50_000


class SeenKeys:
    """``clock`` gives seconds since the epoch, ``timer`` those that only grow.

    ``new`` is how many new proof keys each subject may be noted with.
    """

    def __init__(
        self,
        database: Database,
        new: RateLimit,
        *,
        clock: Callable[[], float],
        timer: Callable[[], float],
    ) -> None:
        self._database = database
        self._new = new
        self._clock = clock
        self._noted: TTLCache[bytes, float] = TTLCache(_CAPACITY, ttl=_REFRESH, timer=timer)
        # Shown, and not noted from here: when it was first seen.
        self._shown: LRUCache[bytes, float] = LRUCache(_CAPACITY)

    async def since(self, issuer: str, subject: str, key: str) -> float:
        """When this subject first showed this key (now, if it never did). Notes nothing.

        Raises `StoreError`.
        """
        digest = _digest(issuer, subject, key)
        for memory in (self._noted, self._shown):
            known = memory.get(digest)
            if known is not None:
                return float(known)
        query = select(SEEN_KEYS.c.first_seen).where(SEEN_KEYS.c.id == digest)
        async with self._database.read() as connection:
            first = (await connection.execute(query)).scalar()
        return self._shown.setdefault(digest, self._clock() if first is None else float(first))

    async def note(self, issuer: str, subject: str, key: str, *, limited: bool) -> float:
        """The same, and note it. ``limited``: one more new key counts against the subject.

        Raises `CallerError` (``actor.too_many_keys``) and `StoreError`.
        """
        digest = _digest(issuer, subject, key)
        known = self._noted.get(digest)
        if known is not None:
            return float(known)
        async with self._database.write() as connection:
            first = await self._refresh(connection, digest)
            if first is None:
                if limited and self._new.take((issuer, subject)):
                    raise CallerError(codes.ACTOR_TOO_MANY_KEYS, f"workload {subject} of {issuer}")
                first = await self._insert(connection, digest)
        # Another replica may have noted it as younger, which had not seen it when this one had.
        first = self._noted[digest] = min(first, self._shown.pop(digest, first))
        return first

    async def sweep(self) -> None:
        """Forget keys that have not been shown for long."""
        old = delete(SEEN_KEYS).where(SEEN_KEYS.c.last_seen < self._clock() - KEPT)
        async with self._database.write() as connection:
            await connection.execute(old)

    async def _refresh(self, connection: AsyncConnection, digest: bytes) -> float | None:
        used = update(SEEN_KEYS).where(SEEN_KEYS.c.id == digest).values(last_seen=self._clock())
        first = (await connection.execute(used.returning(SEEN_KEYS.c.first_seen))).scalar()
        return None if first is None else float(first)

    async def _insert(self, connection: AsyncConnection, digest: bytes) -> float:
        now = self._clock()
        first = self._shown.get(digest, now)
        seen = self._database.insert(SEEN_KEYS).values(id=digest, first_seen=first, last_seen=now)
        # Another replica may have noted it meanwhile.
        seen = seen.on_conflict_do_update(
            index_elements=[SEEN_KEYS.c.id], set_={"last_seen": now}
        ).returning(SEEN_KEYS.c.first_seen)
        return float((await connection.execute(seen)).scalar_one())


def _digest(issuer: str, subject: str, key: str) -> bytes:
    text = f"{len(issuer)}:{issuer}{len(subject)}:{subject}{key}"
    return hashlib.sha256(text.encode()).digest()
