"""Signals in the database: appended in the transaction that they tell of, read in its order.

Invariants:

- A signal is published in the transaction that makes it true: both are there, or neither.
- Numbers are given in the order of the commits (the lock of `store.changes` is taken first), so a
  stream that has all up to ``n`` has missed nothing before it.
- Signals are kept for `KEPT` seconds: longer than a token can live, so that whoever has been away
  for longer than that holds nothing that one of them ended.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import delete, exists, func, insert, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.core.feed import Audience, Progress, Published, progress
from valetkey.broker.store.changes import Changes, Handler
from valetkey.broker.store.database import Database
from valetkey.broker.store.schema import FEED_STREAMS, SIGNAL_ACKS, SIGNALS
from valetkey.broker.store.streams import stream_of
from valetkey.contracts.signals import Event, Signal, StreamUpdated, Verification

# Twice the longest life of a token (`settings.MAX_TTL`); streams that are away for as long end.
KEPT: Final = 7200.0
_TOPIC: Final = "signals"
# How many streams are read at once where one is enough, if it is concerned; nearly all are.
_LOOKED_AT: Final = 50
_REMEMBERED: Final = 4096


class Containment(NamedTuple):
    """``complete``: all streams have it; ``at`` is when the last one did, if there was any."""

    complete: bool
    at: float | None


class Signals:
    """``clock`` gives seconds since the epoch, ``random_id`` at least 128 bits as URL-safe text."""

    def __init__(
        self,
        database: Database,
        changes: Changes,
        audience: Audience,
        *,
        clock: Callable[[], float],
        random_id: Callable[[], str],
    ) -> None:
        self._database = database
        self._changes = changes
        self._clock = clock
        self._random_id = random_id
        self.audience = audience
        self._known: OrderedDict[str, None] = OrderedDict()
        changes.subscribe(_TOPIC, self._note)

    async def _note(self, jti: str) -> None:
        self._known[jti] = None
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def has_reached(self, jti: str) -> bool:
        """Whether all that was published up to this signal is in force at this replica."""
        return jti in self._known and not self._changes.applying

    async def reach(self, jti: str) -> None:
        """Be no further behind than who was told of this signal. Raises `StoreError`.

        A sidecar that has put a signal into force must not be given, by a replica that has not
        heard yet, what that signal ended. An id that is no signal's is one that it has not heard
        of: it catches up once (a sidecar that begins afresh can't name what it missed).
        """
        if self.has_reached(jti):
            return
        await self._changes.catch_up()
        await self._note(jti)

    def on_publish(self, handler: Handler) -> None:
        """Have ``handler`` called at every replica once something was published."""
        self._changes.subscribe(_TOPIC, handler)

    async def publish(self, connection: AsyncConnection, signal: Signal) -> str:
        """Tell every stream. From inside the transaction that makes it true; gives its ``jti``."""
        (jti,) = await self._append(connection, [signal], "")
        return jti

    async def publish_all(self, connection: AsyncConnection, signals: Sequence[Signal]) -> None:
        """Tell every stream of all of these, in this order."""
        await self._append(connection, signals, "")

    async def publish_to(
        self, connection: AsyncConnection, event: Verification | StreamUpdated
    ) -> str:
        """Tell one stream of itself."""
        (jti,) = await self._append(connection, [event], event.stream)
        return jti

    async def _append(
        self, connection: AsyncConnection, events: Sequence[Event], stream: str
    ) -> list[str]:
        jtis = [self._random_id() for _ in events]
        # First of all: it takes the lock that makes the order of numbers that of the commits.
        await self._changes.publish_all(connection, _TOPIC, jtis)
        now = self._clock()
        rows = [
            {**_columns(event), "jti": jti, "stream": stream, "published_at": now}
            for event, jti in zip(events, jtis, strict=True)
        ]
        if rows:
            await connection.execute(insert(SIGNALS), rows)
        return jtis

    async def head(self) -> int:
        """The number of the newest signal; 0 before the first."""
        async with self._database.read() as connection:
            return (await connection.execute(select(func.max(SIGNALS.c.seq)))).scalar() or 0

    async def after(self, seq: int, *, limit: int) -> list[Published]:
        """What was published behind ``seq``, in order."""
        query = select(SIGNALS).where(SIGNALS.c.seq > seq).order_by(SIGNALS.c.seq).limit(limit)
        async with self._database.read() as connection:
            return [_published(row) for row in (await connection.execute(query)).mappings()]

    async def by_jti(self, jtis: Iterable[str]) -> list[Published]:
        """Those that are (still) there."""
        query = select(SIGNALS).where(SIGNALS.c.jti.in_(list(jtis)))
        async with self._database.read() as connection:
            return [_published(row) for row in (await connection.execute(query)).mappings()]

    async def newest(self, limit: int) -> list[Published]:
        """The last ones, in order."""
        query = select(SIGNALS).order_by(SIGNALS.c.seq.desc()).limit(limit)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [_published(row) for row in reversed(rows)]

    async def progress(self, txn: str) -> list[Progress]:
        """How far every stream is with what was published under ``txn``."""
        async with self._database.read() as connection:
            told = await self._told(connection, txn)
            if not told:
                return []
            seqs = [one.seq for one in told]
            ack_query = select(SIGNAL_ACKS).where(SIGNAL_ACKS.c.seq.in_(seqs))
            acks = {(row.seq, row.stream): row.at for row in await connection.execute(ack_query)}
            stream_query = (
                select(FEED_STREAMS)
                .where(FEED_STREAMS.c.start < seqs[-1])
                .order_by(FEED_STREAMS.c.id)
            )
            rows = (await connection.execute(stream_query)).mappings()
            return progress(told, [stream_of(row) for row in rows], acks, self.audience)

    async def containment(self, txn: str) -> Containment:
        """Whether every stream has what was published under ``txn``, and since when.

        For whoever looks again and again: as long as one has not, that one is all that is read.
        """
        async with self._database.read() as connection:
            told = await self._told(connection, txn)
            for one in told:
                if await self._is_awaited(connection, one):
                    return Containment(complete=False, at=None)
            seqs = [one.seq for one in told]
            last = select(func.max(SIGNAL_ACKS.c.at)).where(SIGNAL_ACKS.c.seq.in_(seqs))
            return Containment(complete=True, at=(await connection.execute(last)).scalar())

    async def _is_awaited(self, connection: AsyncConnection, published: Published) -> bool:
        """Whether a stream that is concerned has not acknowledged it."""
        columns = FEED_STREAMS.c
        acked = exists().where(
            SIGNAL_ACKS.c.seq == published.seq, SIGNAL_ACKS.c.stream == columns.id
        )
        query = select(FEED_STREAMS).where(columns.start < published.seq, ~acked)
        owners = self.audience.owners(published)
        if owners is not None:
            query = query.where(tuple_(columns.owner_issuer, columns.owner_subject).in_(owners))
        query = query.order_by(columns.id).limit(_LOOKED_AT)
        seen = ""
        while True:
            found = await connection.execute(query.where(columns.id > seen))
            streams = [stream_of(row) for row in found.mappings()]
            if any(self.audience.concerns(published, stream) for stream in streams):
                return True
            if len(streams) < _LOOKED_AT:
                return False
            seen = streams[-1].id

    @staticmethod
    async def _told(connection: AsyncConnection, txn: str) -> list[Published]:
        query = select(SIGNALS).where(SIGNALS.c.txn == txn).order_by(SIGNALS.c.seq)
        return [_published(row) for row in (await connection.execute(query)).mappings()]

    async def sweep(self) -> int:
        """Forget what is older than `KEPT`; gives the highest number that is gone.

        Streams that had not come so far must begin anew (`store.streams`).
        """
        old = SIGNALS.c.published_at < self._clock() - KEPT
        async with self._database.write() as connection:
            # Up to the newest old one: clocks of replicas differ a little, the order does not.
            gone = (await connection.execute(select(func.max(SIGNALS.c.seq)).where(old))).scalar()
            if gone is None:
                return 0
            await connection.execute(delete(SIGNALS).where(SIGNALS.c.seq <= gone))
            await connection.execute(delete(SIGNAL_ACKS).where(SIGNAL_ACKS.c.seq <= gone))
            return int(gone)

    async def acknowledge(self, acks: Iterable[tuple[int, str, float]]) -> None:
        """Note when streams acknowledged signals with a ``txn``: (seq, stream, time)."""
        rows = [{"seq": seq, "stream": stream, "at": at} for seq, stream, at in acks]
        if not rows:
            return
        noted = self._database.insert(SIGNAL_ACKS).on_conflict_do_nothing()
        async with self._database.write() as connection:
            await connection.execute(noted, rows)


def _columns(event: Event) -> dict[str, Any]:
    match event:
        case Signal():
            return msgspec.structs.asdict(event)
        case Verification():
            kind, value, reason = "verification", event.state, ""
        case StreamUpdated():
            kind, value, reason = "stream-updated", event.status, event.reason
    blank: dict[str, Any] = {"issuer": "", "txn": "", "epoch": 0, "at": 0.0}
    return {"kind": kind, "value": value, "reason": reason, **blank}


def _published(row: Any) -> Published:
    event: Event
    if row["kind"] == "verification":
        event = Verification(row["stream"], row["value"])
    elif row["kind"] == "stream-updated":
        event = StreamUpdated(row["stream"], row["value"], row["reason"])
    else:
        event = msgspec.convert({name: row[name] for name in Signal.__struct_fields__}, Signal)
    return Published(row["seq"], row["jti"], event, row["published_at"], row["stream"])
