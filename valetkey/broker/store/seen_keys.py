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
from collections.abc import Callable, Iterable
from typing import Any, Final

from cachetools import LRUCache, TTLCache
from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.core.rate_limit import RateLimit
from valetkey.broker.store.coalesce import Coalesced
from valetkey.broker.store.database import Database, in_parts
from valetkey.broker.store.schema import SEEN_KEYS
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError

# Much longer than anything lives that a key of before an incident could be shown with.
KEPT: Final = 90 * 86_400.0
_REFRESH: Final = 86_400.0
_CAPACITY: Final = 50_000
# Digest, issuer, subject, and whether it counts against the subject if it is new.
_Key = tuple[bytes, str, str, bool]


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
        # A fleet that starts, or that comes from a replica that ended, shows thousands at once.
        self._found = Coalesced(self._find_all)
        self._kept = Coalesced(self._keep_all)

    async def since(self, issuer: str, subject: str, key: str) -> float:
        """When this subject first showed this key (now, if it never did). Notes nothing.

        Raises `StoreError`.
        """
        digest = _digest(issuer, subject, key)
        for memory in (self._noted, self._shown):
            known = memory.get(digest)
            if known is not None:
                return float(known)
        first = await self._found.find(digest)
        return self._shown.setdefault(digest, self._clock() if first is None else first)

    async def note(self, issuer: str, subject: str, key: str, *, limited: bool) -> float:
        """The same, and note it. ``limited``: one more new key counts against the subject.

        Raises `CallerError` (``actor.too_many_keys``) and `StoreError`.
        """
        digest = _digest(issuer, subject, key)
        known = self._noted.get(digest)
        if known is not None:
            return float(known)
        first = await self._kept.find((digest, issuer, subject, limited))
        if first is None:
            raise CallerError(codes.ACTOR_TOO_MANY_KEYS, f"workload {subject} of {issuer}")
        # Another replica may have noted it as younger, which had not seen it when this one had.
        first = self._noted[digest] = min(first, self._shown.pop(digest, first))
        return first

    async def sweep(self) -> None:
        """Forget keys that have not been shown for long."""
        old = delete(SEEN_KEYS).where(SEEN_KEYS.c.last_seen < self._clock() - KEPT)
        async with self._database.write() as connection:
            await connection.execute(old)

    async def _find_all(self, digests: list[bytes]) -> dict[bytes, float]:
        found: dict[bytes, float] = {}
        async with self._database.read() as connection:
            for some in in_parts(digests):
                query = select(SEEN_KEYS.c.id, SEEN_KEYS.c.first_seen)
                found |= _firsts(await connection.execute(query.where(SEEN_KEYS.c.id.in_(some))))
        return found

    async def _keep_all(self, shown: list[_Key]) -> dict[_Key, float]:
        """Refresh those that are there, store those that may be new; the others are left out."""
        kept: dict[bytes, float] = {}
        async with self._database.write() as connection:
            for some in in_parts(sorted(shown)):  # in one order, so that replicas never deadlock
                digests = [key[0] for key in some]
                known = await self._refresh(connection, digests)
                new = {
                    digest
                    for digest, issuer, subject, limited in some
                    if digest not in known and not (limited and self._new.take((issuer, subject)))
                }
                kept |= known
                if new:
                    kept |= await self._insert(connection, sorted(new))
        return {key: kept[key[0]] for key in shown if key[0] in kept}

    async def _refresh(
        self, connection: AsyncConnection, digests: list[bytes]
    ) -> dict[bytes, float]:
        columns = SEEN_KEYS.c
        # SQLite, which knows no FOR UPDATE, has one writer at a time anyway.
        query = select(columns.id, columns.first_seen).where(columns.id.in_(digests))
        found = _firsts(await connection.execute(query.order_by(columns.id).with_for_update()))
        if found:
            used = update(SEEN_KEYS).where(columns.id.in_(sorted(found)))
            await connection.execute(used.values(last_seen=self._clock()))
        return found

    async def _insert(
        self, connection: AsyncConnection, digests: list[bytes]
    ) -> dict[bytes, float]:
        now, columns = self._clock(), SEEN_KEYS.c
        rows = [
            {"id": digest, "first_seen": self._shown.get(digest, now), "last_seen": now}
            for digest in digests
        ]
        # Another replica may have noted one meanwhile.
        seen = self._database.insert(SEEN_KEYS).values(rows)
        seen = seen.on_conflict_do_update(index_elements=[columns.id], set_={"last_seen": now})
        return _firsts(await connection.execute(seen.returning(columns.id, columns.first_seen)))


def _firsts(rows: Iterable[Any]) -> dict[bytes, float]:
    return {bytes(digest): float(first) for digest, first in rows}


def _digest(issuer: str, subject: str, key: str) -> bytes:
    text = f"{len(issuer)}:{issuer}{len(subject)}:{subject}{key}"
    return hashlib.sha256(text.encode()).digest()
