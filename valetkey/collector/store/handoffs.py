"""The outbox: the record itself, and up to where it has been handed on.

Events get their cursors in the order of commits (`store.writer`), so one number says what is in the
stream and what is not; no event is written twice to be handed on. What was published and not noted
is found again in the stream (`sinks.handoff`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Select, func, select, update

from valetkey.collector.core.batch import Batch
from valetkey.collector.store.database import Database
from valetkey.collector.store.dialects import upsert
from valetkey.collector.store.schema import BOOTS, EVENTS, HANDOFFS, SOURCES
from valetkey.contracts import events

# Any number that is ours: who holds it hands on, the others wait.
_LOCK: Final = 0x76616C73


class Waiting(msgspec.Struct, frozen=True, gc=False):
    """An event to hand on. ``received`` is when it was stored, ms since the epoch."""

    cursor: int
    source: str
    boot: str
    seq: int
    type: str
    decision: str
    received: int
    raw: bytes

    @property
    def id(self) -> str:
        return events.event_id(self.boot, self.seq)


@dataclass(frozen=True, slots=True)
class Position:
    """All events up to ``cursor`` are in the stream, whose last message then was ``sequence``."""

    cursor: int = 0
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is not in the stream yet. ``oldest``: ms since the epoch, 0 where there is nothing."""

    events: int
    oldest: int


class Handoffs:
    """The outbox of one stream. Every method raises `store.database.FAILED`."""

    def __init__(self, database: Database, stream: str) -> None:
        self._database = database
        self._stream = stream

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[bool]:
        """Be the one who hands on; ``False`` while another collector is.

        It saves work. That nothing is twice in the stream is the stream's own doing: who lost
        the turn without noticing is refused, since the stream has gone on.
        """
        async with self._database.held(_LOCK) as ours:
            yield ours

    async def position(self) -> Position:
        statement = select(HANDOFFS.c.cursor, HANDOFFS.c.sequence).where(
            HANDOFFS.c.stream == self._stream
        )
        rows = await self._rows(statement)
        return Position(*rows[0]) if rows else Position()

    async def page(self, after: int, limit: int) -> list[Waiting]:
        """The next events behind a cursor."""
        statement = (
            select(
                EVENTS.c.cursor,
                SOURCES.c.source,
                BOOTS.c.boot,
                EVENTS.c.seq,
                EVENTS.c.type,
                EVENTS.c.decision,
                EVENTS.c.received,
                EVENTS.c.raw,
            )
            .join(BOOTS, BOOTS.c.id == EVENTS.c.boot_id)
            .join(SOURCES, SOURCES.c.id == BOOTS.c.source_id)
            .where(EVENTS.c.cursor > after)
            .order_by(EVENTS.c.cursor)
            .limit(limit)
        )
        return [Waiting(*row) for row in await self._rows(statement)]

    async def note(self, before: Position, now: Position, *, at: int) -> bool:
        """Move on, at ``at`` (ms); ``False`` where another collector did."""

        def work(connection: Connection) -> bool:
            values = {"cursor": now.cursor, "sequence": now.sequence, "updated": at}
            first = upsert(connection, HANDOFFS).values(stream=self._stream, **values)
            inserted = connection.execute(
                first.on_conflict_do_nothing(index_elements=["stream"])
            ).rowcount
            moved = update(HANDOFFS).where(
                HANDOFFS.c.stream == self._stream,
                HANDOFFS.c.cursor == before.cursor,
                HANDOFFS.c.sequence == before.sequence,
            )
            return bool(inserted or connection.execute(moved.values(**values)).rowcount)

        return await self._database.write(work)

    async def find(self, raw: bytes) -> int | None:
        """The cursor of exactly this event; ``None`` where it is not on record."""
        try:
            event = events.read(raw)
        except events.EventInvalid:
            return None
        statement = _placed(event.source, event.boot).where(
            EVENTS.c.seq == event.seq, EVENTS.c.hash == events.digest(raw)
        )
        rows = await self._rows(statement.with_only_columns(EVENTS.c.cursor))
        return int(rows[0][0]) if rows else None

    async def last_of(self, batch: Batch) -> int:
        """The highest cursor of a stored batch."""
        between = EVENTS.c.seq.between(batch.events[0].seq, batch.events[-1].seq)
        statement = _placed(batch.source, batch.boot).where(between)
        rows = await self._rows(statement.with_only_columns(func.max(EVENTS.c.cursor)))
        return int(rows[0][0] or 0)

    async def backlog(self, after: int) -> Backlog:
        """What lies behind a cursor, by its end: keys that were never used count as well."""
        newest = select(func.max(EVENTS.c.cursor)).scalar_subquery()
        first = (
            select(EVENTS.c.received)
            .where(EVENTS.c.cursor > after)
            .order_by(EVENTS.c.cursor)
            .limit(1)
            .scalar_subquery()
        )
        last, oldest = (await self._rows(select(newest, first)))[0]
        return Backlog(max(0, (last or 0) - after), oldest or 0)

    async def _rows(self, statement: Select[Any]) -> list[Any]:
        async with self._database.reader.connect() as connection:
            return list((await connection.execute(statement)).all())


def _placed(source: str, boot: str) -> Select[Any]:
    return (
        select(EVENTS.c.cursor)
        .join(BOOTS, BOOTS.c.id == EVENTS.c.boot_id)
        .join(SOURCES, SOURCES.c.id == BOOTS.c.source_id)
        .where(SOURCES.c.source == source, BOOTS.c.boot == boot)
    )
