"""Streams of the feed in the database: whose they are, and how far they have come.

Invariants:

- A position only ever grows, whichever replica moves it.
- What an owner changes is made of the stream as it is at that moment, one change after another: an
  exclusion that came back unseen would be a revocation that its receiver never hears of.
- A stream that is not contacted for `IDLE` seconds, or whose position is older than what is kept
  of the signals, is gone. Its receiver is told so and begins anew; nothing is left out silently.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, Final, TypeVar

import msgspec
from sqlalchemy import case, delete, func, insert, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.core.feed import Stream
from valetkey.broker.store.changes import Changes, Handler
from valetkey.broker.store.coalesce import Coalesced
from valetkey.broker.store.database import Database
from valetkey.broker.store.schema import FEED_STREAMS, SIGNALS

T = TypeVar("T")

# How long a stream outlives its receiver: no shorter than any token that it could still hold.
IDLE: Final = 7200.0
_TOPIC: Final = "feed-stream"
_LISTS: Final = msgspec.json.Decoder(list[str])
_CHANGED: Final = (
    "description", "events_requested", "excluded", "status", "status_reason", "push_url",
    "push_authorization", "position",
)  # fmt: skip
# Nearly all streams ask for the same events and leave nobody out: one text is read once.
_TEXTS: Final = 64


class FeedStreams:
    """``clock`` gives seconds since the epoch."""

    def __init__(self, database: Database, changes: Changes, *, clock: Callable[[], float]) -> None:
        self._database = database
        self._changes = changes
        self._clock = clock
        self._found = Coalesced(self._find_all)
        self._created = Coalesced(self._create_all)

    def on_change(self, handler: Handler) -> None:
        """Have ``handler`` called with the id of a stream that was changed or deleted."""
        self._changes.subscribe(_TOPIC, handler)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """One transaction, in force at this replica once it is over. Raises `StoreError`."""
        async with self._database.write() as connection:
            yield connection
        await self._changes.catch_up()

    async def create(self, stream: Stream, *, most: int) -> Stream | None:
        """Store a stream that begins behind the newest signal; ``None`` if the owner has ``most``.

        Stored together with others that come at the same time: a fleet that starts brings
        thousands. Raises `StoreError`.
        """
        return await self._created.find((stream, most))

    async def _create_all(
        self, asked: list[tuple[Stream, int]]
    ) -> dict[tuple[Stream, int], Stream]:
        made: dict[tuple[Stream, int], Stream] = {}
        for some in _pieces(asked):
            async with self._database.write() as connection:
                owned = await _owned(connection, [stream for stream, _ in some])
                # In the same transaction: what is published later is behind it.
                head = (await connection.execute(select(func.max(SIGNALS.c.seq)))).scalar() or 0
                now = self._clock()
                rows = []
                for stream, most in some:
                    owner = stream.owner_issuer, stream.owner_subject
                    if owned[owner] >= most:
                        continue
                    owned[owner] += 1
                    row = _row(stream) | {
                        "start": head, "position": head, "created_at": now, "contacted_at": now,
                    }  # fmt: skip
                    rows.append({**row, "lease": "", "lease_until": 0.0})
                    made[stream, most] = stream_of(row)
                if rows:
                    await connection.execute(insert(FEED_STREAMS), rows)
        return made

    async def find(self, stream_id: str) -> Stream | None:
        """As it is now, read together with others that are looked for. Raises `StoreError`."""
        return await self._found.find(stream_id)

    async def _find_all(self, stream_ids: list[str]) -> dict[str, Stream]:
        found: dict[str, Stream] = {}
        async with self._database.read() as connection:
            for some in _pieces(stream_ids):
                query = select(FEED_STREAMS).where(FEED_STREAMS.c.id.in_(some))
                for row in (await connection.execute(query)).mappings():
                    found[row["id"]] = stream_of(row)
        return found

    async def owned_by(self, issuer: str, subject: str) -> list[Stream]:
        query = (
            select(FEED_STREAMS)
            .where(FEED_STREAMS.c.owner_issuer == issuer, FEED_STREAMS.c.owner_subject == subject)
            .order_by(FEED_STREAMS.c.created_at, FEED_STREAMS.c.id)
        )
        async with self._database.read() as connection:
            return [stream_of(row) for row in (await connection.execute(query)).mappings()]

    async def change(self, stream_id: str, change: Callable[[Stream | None], Stream]) -> Stream:
        """Store what ``change`` makes of the stream, which nobody else changes meanwhile.

        It is given ``None`` where there is none, and may move the position forward. What it raises
        leaves all as it is. Raises `StoreError`.
        """
        this = FEED_STREAMS.c.id == stream_id
        async with self.write() as connection:
            # SQLite, which knows no FOR UPDATE, has one writer at a time anyway.
            query = select(FEED_STREAMS).where(this).with_for_update()
            row = (await connection.execute(query)).mappings().first()
            stream = change(None if row is None else stream_of(row))
            changed = _row(stream)
            values = {name: changed[name] for name in _CHANGED}
            await connection.execute(update(FEED_STREAMS).where(this).values(values))
            await self._changes.publish(connection, _TOPIC, stream.id)
        return stream

    async def delete(self, stream_id: str) -> None:
        async with self.write() as connection:
            await connection.execute(delete(FEED_STREAMS).where(FEED_STREAMS.c.id == stream_id))
            await self._changes.publish(connection, _TOPIC, stream_id)

    async def advance(self, positions: Mapping[str, int]) -> None:
        """Move streams forward, and note that they were heard of."""
        by_position: dict[int, list[str]] = {}
        for stream_id, position in positions.items():
            by_position.setdefault(position, []).append(stream_id)
        columns, now = FEED_STREAMS.c, self._clock()
        async with self._database.write() as connection:
            for position, ids in sorted(by_position.items()):
                for some in _pieces(sorted(ids)):  # in one order, so that replicas never deadlock
                    forward = case((columns.position < position, position), else_=columns.position)
                    moved = update(FEED_STREAMS).where(columns.id.in_(some))
                    await connection.execute(moved.values(position=forward, contacted_at=now))

    async def pushing(self) -> list[Stream]:
        """The streams whose events are pushed."""
        query = select(FEED_STREAMS).where(FEED_STREAMS.c.push_url != "")
        async with self._database.read() as connection:
            return [stream_of(row) for row in (await connection.execute(query)).mappings()]

    async def lease(self, stream_id: str, holder: str, *, seconds: float) -> bool:
        """Whether ``holder`` is the one replica that may push this stream for now."""
        columns, now = FEED_STREAMS.c, self._clock()
        taken = (
            update(FEED_STREAMS)
            .where(
                columns.id == stream_id,
                or_(columns.lease == holder, columns.lease_until <= now),
            )
            .values(lease=holder, lease_until=now + seconds)
        )
        async with self._database.write() as connection:
            return bool((await connection.execute(taken)).rowcount)

    async def release(self, holder: str) -> None:
        """Let other replicas push what ``holder`` pushed."""
        ended = update(FEED_STREAMS).where(FEED_STREAMS.c.lease == holder)
        async with self._database.write() as connection:
            await connection.execute(ended.values(lease="", lease_until=0.0))

    async def sweep(self, gone: int) -> int:
        """End streams that nobody follows, and those that are behind ``gone``; says how many."""
        columns = FEED_STREAMS.c
        # A receiver that events are pushed to is never heard of; it ends by its position alone.
        idle = (columns.contacted_at < self._clock() - IDLE) & (columns.push_url == "")
        over = select(columns.id).where(or_(idle, columns.position < gone))
        async with self._database.write() as connection:
            ids = list((await connection.execute(over)).scalars())
            for some in _pieces(ids):
                await connection.execute(delete(FEED_STREAMS).where(columns.id.in_(some)))
            for stream_id in ids:
                await self._changes.publish(connection, _TOPIC, stream_id)
        return len(ids)


async def _owned(connection: AsyncConnection, streams: list[Stream]) -> Counter[tuple[str, str]]:
    """How many streams each of their owners has."""
    columns = FEED_STREAMS.c
    owner = columns.owner_issuer, columns.owner_subject
    owners = sorted({(stream.owner_issuer, stream.owner_subject) for stream in streams})
    query = select(*owner, func.count()).where(tuple_(*owner).in_(owners)).group_by(*owner)
    rows = await connection.execute(query)
    return Counter({(issuer, subject): count for issuer, subject, count in rows})


def _pieces(listed: list[T], size: int = 5000) -> Iterable[list[T]]:
    return (listed[begin : begin + size] for begin in range(0, len(listed), size))


def _row(stream: Stream) -> dict[str, Any]:
    return {
        "id": stream.id,
        "owner_issuer": stream.owner_issuer,
        "owner_subject": stream.owner_subject,
        "owner_key": stream.owner_key,
        "description": stream.description,
        "events_requested": msgspec.json.encode(stream.events_requested).decode(),
        "excluded": msgspec.json.encode(sorted(stream.excluded)).decode(),
        "status": stream.status,
        "status_reason": stream.status_reason,
        "push_url": stream.push_url,
        "push_authorization": stream.push_authorization,
        "start": stream.start,
        "position": stream.position,
        "created_at": stream.created_at,
        "contacted_at": stream.contacted_at,
    }


def stream_of(row: Mapping[Any, Any]) -> Stream:
    """A row of `FEED_STREAMS`."""
    return Stream(
        id=row["id"],
        owner_issuer=row["owner_issuer"],
        owner_subject=row["owner_subject"],
        owner_key=row["owner_key"],
        start=row["start"],
        position=row["position"],
        description=row["description"],
        events_requested=_list(row["events_requested"]),
        excluded=_set(row["excluded"]),
        status=row["status"],
        status_reason=row["status_reason"],
        push_url=row["push_url"],
        push_authorization=row["push_authorization"],
        created_at=row["created_at"],
        contacted_at=row["contacted_at"],
    )


@lru_cache(_TEXTS)
def _list(text: str) -> tuple[str, ...]:
    return tuple(_LISTS.decode(text))


@lru_cache(_TEXTS)
def _set(text: str) -> frozenset[str]:
    return frozenset(_LISTS.decode(text))
