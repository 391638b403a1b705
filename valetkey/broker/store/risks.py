"""How risky others say that subjects are: in the database for all replicas, in memory to be read.

Invariants:

- Each word counts until its own end, and each transmitter has one about each kind of principal (the
  user, its device, its session): a later one takes its place, one about something earlier does not.
- A subject's level is the highest of all words that count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.core.incidents import Party
from valetkey.broker.core.risk import UNRATED, Risk, highest, rank
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database
from valetkey.broker.store.schema import CHANGES, SUBJECT_RISKS

_TOPIC: Final = "risk"
_MAX_KEY: Final = int(getattr(CHANGES.c.key.type, "length", 0))
_C: Final = SUBJECT_RISKS.c


class _Word(NamedTuple):
    level: Risk
    until: float


class Risks:
    """``clock`` gives seconds since the epoch."""

    def __init__(self, database: Database, changes: Changes, *, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._changes = changes
        self._words: dict[tuple[str, str], tuple[_Word, ...]] = {}
        changes.subscribe(_TOPIC, self._changed)

    async def load(self) -> None:
        """Read them all. Called before the first request."""
        query = select(_C.issuer, _C.subject, _C.level, _C.expires_at)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        words: dict[tuple[str, str], tuple[_Word, ...]] = {}
        for issuer, subject, level, until in rows:
            words[issuer, subject] = (*words.get((issuer, subject), ()), _Word(level, until))
        self._words = words

    def of(self, issuer: str, subject: str) -> Risk:
        """The subject's level as far as this replica knows it. Asks nobody."""
        words = self._words.get((issuer, subject)) if self._words else None
        if words is None:
            return UNRATED
        now = self._clock()
        return highest(*(word.level for word in words if word.until > now))

    async def rate(
        self,
        connection: AsyncConnection,
        party: Party,
        level: Risk,
        *,
        source: str,
        principal: str,
        at: float,
        until: float,
    ) -> bool:
        """Keep what ``source`` said of something ``at`` that time; whether that raises the level.

        Times are in seconds since the epoch. Within a transaction of the caller's, who lets
        `Changes.catch_up` run after it.
        """
        await self._database.take_turn(connection)
        now = self._clock()
        query = select(_C.source, _C.principal, _C.level, _C.seen_at, _C.expires_at)
        query = query.where(_C.issuer == party.issuer, _C.subject == party.subject)
        rows = (await connection.execute(query)).all()
        others = [row for row in rows if (row.source, row.principal) != (source, principal)]
        mine = next(
            (row for row in rows if (row.source, row.principal) == (source, principal)), None
        )
        if mine is not None and (mine.seen_at, rank(mine.level)) > (at, rank(level)):
            return False
        word = {"level": level, "seen_at": at, "expires_at": until}
        new = self._database.insert(SUBJECT_RISKS).values(
            source=source, issuer=party.issuer, subject=party.subject, principal=principal, **word
        )
        await connection.execute(
            new.on_conflict_do_update(
                index_elements=[_C.issuer, _C.subject, _C.source, _C.principal], set_=word
            )
        )
        key = f"{party.issuer}\n{party.subject}"
        # One that is too long to be named in a change has all of them read again.
        await self._changes.publish(connection, _TOPIC, key if len(key) <= _MAX_KEY else "")
        before = highest(*(row.level for row in rows if row.expires_at > now))
        after = [row.level for row in others if row.expires_at > now]
        return until > now and rank(highest(level, *after)) > rank(before)

    async def sweep(self) -> None:
        """Forget what no longer counts. Raises `StoreError`."""
        now = self._clock()
        async with self._database.write() as connection:
            await connection.execute(delete(SUBJECT_RISKS).where(_C.expires_at <= now))
        for who, words in list(self._words.items()):
            if all(word.until <= now for word in words):
                del self._words[who]

    async def _changed(self, key: str) -> None:
        if not key:
            await self.load()
            return
        issuer, _, subject = key.partition("\n")
        query = select(_C.level, _C.expires_at).where(_C.issuer == issuer, _C.subject == subject)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        self._words.pop((issuer, subject), None)
        if rows:
            self._words[issuer, subject] = tuple(_Word(*row) for row in rows)
