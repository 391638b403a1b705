"""Since when a subject shows a key, so that one from before an incident is known as such.

A key is noted before the first token is bound to it, and a key that is in use is remembered: its
row is refreshed daily and forgotten only `KEPT` seconds after its last use. The common case asks
nobody: what was noted lately is in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from cachetools import TTLCache
from sqlalchemy import delete

from valetkey.broker.store.database import Database
from valetkey.broker.store.schema import SEEN_KEYS

# Much longer than anything lives that a key of before an incident could be shown with.
KEPT: Final = 90 * 86_400.0
_REFRESH: Final = 86_400.0
_CAPACITY: Final = 50_000


class SeenKeys:
    """``clock`` gives seconds since the epoch."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._known: TTLCache[bytes, float] = TTLCache(_CAPACITY, ttl=_REFRESH, timer=clock)

    async def since(self, issuer: str, subject: str, key: str) -> float:
        """When this subject first showed this key (now, if it never did). Raises `StoreError`."""
        text = f"{len(issuer)}:{issuer}{len(subject)}:{subject}{key}"
        digest = hashlib.sha256(text.encode()).digest()
        known = self._known.get(digest)
        if known is not None:
            return known
        now = self._clock()
        seen = self._database.insert(SEEN_KEYS).values(id=digest, first_seen=now, last_seen=now)
        seen = seen.on_conflict_do_update(
            index_elements=[SEEN_KEYS.c.id], set_={"last_seen": now}
        ).returning(SEEN_KEYS.c.first_seen)
        async with self._database.write() as connection:
            first = float((await connection.execute(seen)).scalar_one())
        self._known[digest] = first
        return first

    async def sweep(self) -> None:
        """Forget keys that have not been shown for long."""
        old = delete(SEEN_KEYS).where(SEEN_KEYS.c.last_seen < self._clock() - KEPT)
        async with self._database.write() as connection:
            await connection.execute(old)
