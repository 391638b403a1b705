"""Storing batches: one batch is one transaction, and one batch is stored at a time.

Invariants:

- What `Writer.store` returns as acknowledged is committed.
- A batch that contradicts the record leaves no trace but the row that says so.
- Rows of events are only ever added.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import bindparam, delete, func, insert, select, text, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.collector.core import links
from valetkey.collector.core.batch import Batch, Contradiction, Received
from valetkey.collector.core.coverage import Coverage, Hole, TooManyHoles, runs
from valetkey.collector.core.links import Break, Link
from valetkey.collector.store.database import Database
from valetkey.collector.store.schema import (
    BOOTS,
    BREAKS,
    CONFLICTS,
    DECLARATIONS,
    EVENTS,
    GAPS,
    HOLES,
    SOURCES,
)
from valetkey.contracts import codes, events
from valetkey.contracts.errors import CallerError, PolicyError


@dataclass(frozen=True, slots=True)
class Identity:
    """Who delivers: issuer and subject of a verified workload token."""

    issuer: str
    subject: str


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a batch."""

    boot: str
    acked: int
    stored: int
    duplicates: int
    gaps_opened: int
    gaps_closed: int
    breaks: int


@dataclass(slots=True)
class _Boot:
    """One boot inside a transaction."""

    id: int
    coverage: Coverage
    gaps_before: frozenset[int]
    head_seq: int


class _Conflict(Exception):  # noqa: N818 - control flow inside this module only
    def __init__(self, seq: int, kept: str, refused: str) -> None:
        super().__init__(seq)
        self.seq = seq
        self.hashes = (kept, refused)


# Lists go in as one JSON parameter: SQLite caps the number of parameters at 32,766.
_SEQUENCES: Final = select(text("value")).select_from(func.json_each(bindparam("sequences")))
_HASHES: Final = select(EVENTS.c.seq, EVENTS.c.hash).where(
    EVENTS.c.boot_id == bindparam("boot"), EVENTS.c.seq.in_(_SEQUENCES)
)
_LINKS: Final = select(EVENTS.c.seq, EVENTS.c.hash, EVENTS.c.raw).where(
    EVENTS.c.boot_id == bindparam("boot"), EVENTS.c.seq.in_(_SEQUENCES)
)


class Writer:
    """The one writer of a database."""

    def __init__(self, database: Database) -> None:
        self._engine = database.writer
        self._turn = asyncio.Lock()

    async def store(self, batch: Batch, identity: Identity, *, now: int) -> Stored:
        """Store a batch at ``now`` (ms).

        Raises `PolicyError` for a source of somebody else, `CallerError` (``audit.conflict``)
        for other bytes under a known id.
        """
        async with self._turn:
            try:
                async with self._engine.begin() as connection:
                    return await _store(connection, batch, identity, now)
            except _Conflict as conflict:
                await self._record(batch, identity, conflict.seq, conflict.hashes, now)
                raise CallerError(codes.AUDIT_CONFLICT, f"{batch.boot}-{conflict.seq}") from None

    async def contradiction(self, found: Contradiction, identity: Identity, *, now: int) -> None:
        """Put on record that a batch contradicted itself. Raises as `store` does."""
        async with self._turn:
            await self._record(found.batch, identity, found.seq, found.hashes, now)

    async def _record(
        self, batch: Batch, identity: Identity, seq: int, hashes: tuple[str, str], now: int
    ) -> None:
        async with self._engine.begin() as connection:
            await _source_id(connection, batch.source, identity, now)
            statement = upsert(CONFLICTS).values(
                source=batch.source,
                boot=batch.boot,
                seq=seq,
                kept_hash=hashes[0],
                refused_hash=hashes[1],
                issuer=identity.issuer,
                subject=identity.subject,
                first_seen=now,
                last_seen=now,
                times=1,
            )
            await connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["source", "boot", "seq", "refused_hash"],
                    set_={"last_seen": now, "times": CONFLICTS.c.times + 1},
                )
            )


async def _store(connection: AsyncConnection, batch: Batch, identity: Identity, now: int) -> Stored:
    source_id = await _source_id(connection, batch.source, identity, now)
    boots = {batch.boot: await _boot(connection, source_id, batch.boot, now)}
    boot = boots[batch.boot]
    new = await _unknown(connection, boot, batch.events)
    breaks = await _check_links(connection, boot, new)
    await _insert_events(connection, boot, new, now)
    try:
        for arrived in runs(event.seq for event in new):
            boot.coverage.add(arrived)
        for event in new:
            await _heed(connection, source_id, boots, event, batch.boot, now)
    except TooManyHoles as error:
        raise CallerError(
            codes.AUDIT_BATCH_INVALID, "the boot would have too many holes"
        ) from error
    await _update_boot(connection, boot, new, now)
    opened = closed = 0
    for touched in boots.values():
        gaps = await _save_coverage(connection, touched, now)
        opened, closed = opened + gaps[0], closed + gaps[1]
    found = await _insert_breaks(connection, boot, breaks, now)
    duplicates = len(batch.events) - len(new) + batch.repeated
    return Stored(batch.boot, boot.coverage.acked, len(new), duplicates, opened, closed, found)


async def _source_id(connection: AsyncConnection, source: str, identity: Identity, now: int) -> int:
    """The source's key; bound to the identity at first sight, and to that one only."""
    query = select(SOURCES).where(SOURCES.c.source == source)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        values = {"source": source, "issuer": identity.issuer, "subject": identity.subject}
        done = await connection.execute(insert(SOURCES).values(**values, first_seen=now))
        return _key(done.inserted_primary_key)
    if (row.issuer, row.subject) != (identity.issuer, identity.subject):
        raise PolicyError(
            codes.AUDIT_SOURCE_TAKEN,
            f"{source} is written by {row.subject}, not {identity.subject}",
        )
    return int(row.id)


async def _boot(connection: AsyncConnection, source_id: int, boot: str, now: int) -> _Boot:
    query = select(BOOTS).where(BOOTS.c.source_id == source_id, BOOTS.c.boot == boot)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        values = {"source_id": source_id, "boot": boot, "first_seen": now, "last_seen": now}
        done = await connection.execute(insert(BOOTS).values(**values))
        return _Boot(_key(done.inserted_primary_key), Coverage(), frozenset(), 0)
    holes = await connection.execute(
        select(HOLES.c.first, HOLES.c.last, HOLES.c.gap_id)
        .where(HOLES.c.boot_id == row.id)
        .order_by(HOLES.c.first)
    )
    coverage = Coverage(row.high, [Hole(*hole) for hole in holes])
    return _Boot(row.id, coverage, coverage.gaps, row.head_seq)


async def _unknown(
    connection: AsyncConnection, boot: _Boot, received: Sequence[Received]
) -> list[Received]:
    """The events that are not stored yet. Raises `_Conflict`."""
    old = [event.seq for event in received if event.seq <= boot.head_seq]
    if not old:
        return list(received)
    rows = await connection.execute(_HASHES, {"boot": boot.id, "sequences": _json(old)})
    known: dict[int, str] = {row.seq: row.hash for row in rows}
    new = []
    for event in received:
        kept = known.get(event.seq)
        if kept is None:
            new.append(event)
        elif kept != event.hash:
            raise _Conflict(event.seq, kept, event.hash)
    return new


async def _check_links(
    connection: AsyncConnection, boot: _Boot, new: Sequence[Received]
) -> list[Break]:
    near = links.neighbours(event.seq for event in new)
    rows = await connection.execute(_LINKS, {"boot": boot.id, "sequences": _json(near)})
    stored: Mapping[int, Link] = {
        row.seq: Link(row.seq, row.hash, events.read(row.raw).prevhash) for row in rows
    }
    return links.check([Link(event.seq, event.hash, event.prevhash) for event in new], stored)


async def _insert_events(
    connection: AsyncConnection, boot: _Boot, new: Sequence[Received], now: int
) -> None:
    if not new:
        return
    rows = [
        {
            "boot_id": boot.id,
            "seq": event.seq,
            "hash": event.hash,
            "received": now,
            "type": event.columns.type,
            "workload": event.columns.workload,
            "route": event.columns.route,
            "target": event.columns.target,
            "decision": event.columns.decision,
            "code": event.columns.code,
            "answers": event.columns.answers,
            "raw": event.raw,
        }
        for event in new
    ]
    await connection.execute(insert(EVENTS), rows)


async def _heed(
    connection: AsyncConnection,
    source_id: int,
    boots: dict[str, _Boot],
    event: Received,
    boot: str,
    now: int,
) -> None:
    """Follow what an event says about events that are missing."""
    if event.previous is not None:
        about = await _known_boot(connection, source_id, boots, event.previous.boot, now)
        about.coverage.expect(event.previous.seq)
    stated = event.declaration
    if stated is None:
        return
    about = await _known_boot(connection, source_id, boots, stated.boot, now)
    if stated.range is not None:
        about.coverage.declare(stated.range)
    await connection.execute(
        insert(DECLARATIONS).values(
            boot_id=about.id,
            first=stated.range.first if stated.range else 0,
            last=stated.range.last if stated.range else 0,
            lost=stated.lost,
            reason=stated.reason,
            event=events.event_id(boot, event.seq),
            seen=now,
        )
    )


async def _known_boot(
    connection: AsyncConnection, source_id: int, boots: dict[str, _Boot], boot: str, now: int
) -> _Boot:
    if boot not in boots:
        boots[boot] = await _boot(connection, source_id, boot, now)
    return boots[boot]


async def _update_boot(
    connection: AsyncConnection, boot: _Boot, new: Sequence[Received], now: int
) -> None:
    if not new:
        return
    values: dict[str, Any] = {"count": BOOTS.c.count + len(new), "last_seen": now}
    if new[-1].seq > boot.head_seq:
        values |= {
            "head_seq": new[-1].seq,
            "head_hash": new[-1].hash,
            "last_time": new[-1].time,
        }
    await connection.execute(update(BOOTS).where(BOOTS.c.id == boot.id).values(**values))


async def _save_coverage(connection: AsyncConnection, boot: _Boot, now: int) -> tuple[int, int]:
    """Write holes and gaps; how many gaps were opened and how many are over."""
    coverage = boot.coverage
    await connection.execute(
        update(BOOTS).where(BOOTS.c.id == boot.id).values(high=coverage.high, acked=coverage.acked)
    )
    if not coverage.opened and not boot.gaps_before:
        return 0, 0
    open_now = coverage.gaps
    keys = {gap: gap for gap in boot.gaps_before}
    for gap in coverage.opened:
        values = {"boot_id": boot.id, "first": gap.first, "last": gap.last, "opened": now}
        done = await connection.execute(insert(GAPS).values(**values))
        keys[gap.gap] = _key(done.inserted_primary_key)
    for gap_key, lost in coverage.given_up.items():
        await connection.execute(
            update(GAPS).where(GAPS.c.id == keys[gap_key]).values(lost=GAPS.c.lost + lost)
        )
    ended = [row for gap_key, row in keys.items() if gap_key not in open_now]
    if ended:
        await connection.execute(update(GAPS).where(GAPS.c.id.in_(ended)).values(closed=now))
    await connection.execute(delete(HOLES).where(HOLES.c.boot_id == boot.id))
    if coverage.holes:
        await connection.execute(
            insert(HOLES),
            [
                {
                    "boot_id": boot.id,
                    "first": hole.first,
                    "last": hole.last,
                    "gap_id": keys[hole.gap],
                }
                for hole in coverage.holes
            ],
        )
    return len(coverage.opened), len(ended)


async def _insert_breaks(
    connection: AsyncConnection, boot: _Boot, breaks: Iterable[Break], now: int
) -> int:
    found = 0
    for broken in breaks:
        statement = upsert(BREAKS).values(
            boot_id=boot.id, seq=broken.seq, reason=broken.reason, seen=now
        )
        found += (await connection.execute(statement.on_conflict_do_nothing())).rowcount
    return found


def _json(sequences: Sequence[int]) -> str:
    return msgspec.json.encode(sequences).decode()


def _key(inserted: Any) -> int:
    assert inserted is not None
    return int(inserted[0])
