"""Storing batches: one batch is one transaction.

SQLite stores one at a time. With PostgreSQL collectors store side by side: who has a source's row
is the only one to store for that source, also where its sidecar sends the same again to another
collector; and events get their cursors in the order in which they are committed (`_take_order`).

Invariants:

- What `Writer.store` returns as acknowledged is committed.
- A batch that contradicts the record leaves no trace but the row that says so.
- Rows of events are only ever added, and none appears before one that could be read already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, insert, select, text, update
from sqlalchemy.dialects import sqlite

from valetkey.collector.core import links
from valetkey.collector.core.batch import Batch, Contradiction, Received
from valetkey.collector.core.coverage import Coverage, Hole, TooManyHoles, runs
from valetkey.collector.core.links import Break, Link
from valetkey.collector.store.database import FAILED, Database, unavailable
from valetkey.collector.store.dialects import is_postgres, listed, members, upsert
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


_SEQUENCES: Final = members("sequences")
_HASHES: Final = select(EVENTS.c.seq, EVENTS.c.hash).where(
    EVENTS.c.boot_id == bindparam("boot"), EVENTS.c.seq.in_(_SEQUENCES)
)
_LINKS: Final = select(EVENTS.c.seq, EVENTS.c.hash, EVENTS.c.raw).where(
    EVENTS.c.boot_id == bindparam("boot"), EVENTS.c.seq.in_(_SEQUENCES)
)
_FIELDS: Final = tuple(column.name for column in EVENTS.c if column.name != "cursor")
_INSERT: Final = str(
    insert(EVENTS).values(dict.fromkeys(_FIELDS)).compile(dialect=sqlite.dialect())
)
# Any number that is ours and not the broker's: who holds it gives out cursors.
_ORDER_LOCK: Final = 0x76616C72


class Writer:
    """Stores what arrives in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def store(self, batch: Batch, identity: Identity, *, now: int) -> Stored:
        """Store a batch at ``now`` (ms).

        Raises `PolicyError` for a source of somebody else, `CallerError` (``audit.conflict``)
        for other bytes under a known id, `AuditError` when the database fails.
        """
        try:
            try:
                return await self._database.write(
                    partial(_store, batch=batch, identity=identity, now=now)
                )
            except _Conflict as conflict:
                await self._put_on_record(batch, identity, conflict.seq, conflict.hashes, now)
                raise CallerError(codes.AUDIT_CONFLICT, f"{batch.boot}-{conflict.seq}") from None
        except FAILED as error:
            raise unavailable(error) from error

    async def contradiction(self, found: Contradiction, identity: Identity, *, now: int) -> None:
        """Put on record that a batch contradicted itself. Raises as `store` does."""
        try:
            await self._put_on_record(found.batch, identity, found.seq, found.hashes, now)
        except FAILED as error:
            raise unavailable(error) from error

    async def _put_on_record(
        self, batch: Batch, identity: Identity, seq: int, hashes: tuple[str, str], now: int
    ) -> None:
        def work(connection: Connection) -> None:
            _source_id(connection, batch.source, identity, now)
            statement = upsert(connection, CONFLICTS).values(
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
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["source", "boot", "seq", "refused_hash"],
                    set_={"last_seen": now, "times": CONFLICTS.c.times + 1},
                )
            )

        await self._database.write(work)


def _store(connection: Connection, batch: Batch, identity: Identity, now: int) -> Stored:
    source_id = _source_id(connection, batch.source, identity, now)
    boots = {batch.boot: _boot(connection, source_id, batch.boot, now)}
    boot = boots[batch.boot]
    new = _unknown(connection, boot, batch.events)
    breaks = _check_links(connection, boot, new)
    try:
        for arrived in runs(event.seq for event in new):
            boot.coverage.add(arrived)
        for event in new:
            _heed(connection, source_id, boots, event, batch.boot, now)
    except TooManyHoles as error:
        raise CallerError(
            codes.AUDIT_BATCH_INVALID, "the boot would have too many holes"
        ) from error
    _update_boot(connection, boot, new, now)
    opened = closed = 0
    for touched in boots.values():
        gaps = _save_coverage(connection, touched, now)
        opened, closed = opened + gaps[0], closed + gaps[1]
    found = _insert_breaks(connection, boot, breaks, now)
    _insert_events(connection, boot, new, now)  # last: others wait for the order from here on
    duplicates = len(batch.events) - len(new) + batch.repeated
    return Stored(batch.boot, boot.coverage.acked, len(new), duplicates, opened, closed, found)


def _source_id(connection: Connection, source: str, identity: Identity, now: int) -> int:
    """The source's key; bound to the identity at first sight, and to that one only.

    Until the transaction ends nobody else gets so far for this source.
    """
    query = select(SOURCES).where(SOURCES.c.source == source).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None:
        values = {"source": source, "issuer": identity.issuer, "subject": identity.subject}
        first = upsert(connection, SOURCES).values(**values, first_seen=now)
        connection.execute(first.on_conflict_do_nothing(index_elements=["source"]))
        row = connection.execute(query).one()
    if (row.issuer, row.subject) != (identity.issuer, identity.subject):
        raise PolicyError(
            codes.AUDIT_SOURCE_TAKEN,
            f"{source} is written by {row.subject}, not {identity.subject}",
        )
    return int(row.id)


def _boot(connection: Connection, source_id: int, boot: str, now: int) -> _Boot:
    query = select(BOOTS).where(BOOTS.c.source_id == source_id, BOOTS.c.boot == boot)
    row = (connection.execute(query)).one_or_none()
    if row is None:
        values = {"source_id": source_id, "boot": boot, "first_seen": now, "last_seen": now}
        done = connection.execute(insert(BOOTS).values(**values))
        return _Boot(_key(done.inserted_primary_key), Coverage(), frozenset(), 0)
    holes = connection.execute(
        select(HOLES.c.first, HOLES.c.last, HOLES.c.gap_id)
        .where(HOLES.c.boot_id == row.id)
        .order_by(HOLES.c.first)
    )
    coverage = Coverage(row.high, [Hole(*hole) for hole in holes])
    return _Boot(row.id, coverage, coverage.gaps, row.head_seq)


def _unknown(connection: Connection, boot: _Boot, received: Sequence[Received]) -> list[Received]:
    """The events that are not stored yet. Raises `_Conflict`."""
    old = [event.seq for event in received if event.seq <= boot.head_seq]
    if not old:
        return list(received)
    rows = connection.execute(_HASHES, {"boot": boot.id, "sequences": listed(old)})
    known: dict[int, str] = {row.seq: row.hash for row in rows}
    new = []
    for event in received:
        kept = known.get(event.seq)
        if kept is None:
            new.append(event)
        elif kept != event.hash:
            raise _Conflict(event.seq, kept, event.hash)
    return new


def _check_links(connection: Connection, boot: _Boot, new: Sequence[Received]) -> list[Break]:
    near = links.neighbours(event.seq for event in new)
    rows = connection.execute(_LINKS, {"boot": boot.id, "sequences": listed(near)})
    stored: Mapping[int, Link] = {
        row.seq: Link(row.seq, row.hash, events.read(row.raw).prevhash) for row in rows
    }
    return links.check(new, stored)


def _insert_events(connection: Connection, boot: _Boot, new: Sequence[Received], now: int) -> None:
    if not new:
        return
    # In the order of the schema's columns.
    rows = [
        (
            boot.id,
            event.seq,
            event.hash,
            now,
            event.columns.type,
            event.columns.workload,
            event.columns.route,
            event.columns.target,
            event.columns.decision,
            event.columns.code,
            event.columns.answers,
            event.raw,
            event.columns.time,
            event.columns.jti,
            event.columns.txn,
            event.columns.approval,
            event.columns.more,
        )
        for event in new
    ]
    if is_postgres(connection):
        _take_order(connection)
        named = [dict(zip(_FIELDS, map(_storable, row), strict=True)) for row in rows]
        connection.execute(insert(EVENTS), named)
        return
    # Straight to the driver: the detour through named parameters costs as much as the insert.
    connection.exec_driver_sql(_INSERT, rows)


def _take_order(connection: Connection) -> None:
    """Wait until nobody else adds events, to the end of the transaction.

    PostgreSQL gives out keys in an order in which it does not commit: a reader that goes on behind
    the last cursor that it saw would pass over events that appear late.
    """
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ORDER_LOCK})


def _storable(value: object) -> object:
    """Text as PostgreSQL takes it, which has no U+0000. The event's bytes stay as they are."""
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


def _heed(
    connection: Connection,
    source_id: int,
    boots: dict[str, _Boot],
    event: Received,
    boot: str,
    now: int,
) -> None:
    """Follow what an event says about events that are missing."""
    if event.previous is not None:
        about = _known_boot(connection, source_id, boots, event.previous.boot, now)
        about.coverage.expect(event.previous.seq)
    stated = event.declaration
    if stated is None:
        return
    about = _known_boot(connection, source_id, boots, stated.boot, now)
    if stated.range is not None:
        about.coverage.declare(stated.range)
    connection.execute(
        insert(DECLARATIONS).values(
            boot_id=about.id,
            first=stated.range.first if stated.range else 0,
            last=stated.range.last if stated.range else 0,
            lost=stated.lost,
            reason=_storable(stated.reason),
            event=events.event_id(boot, event.seq),
            seen=now,
        )
    )


def _known_boot(
    connection: Connection, source_id: int, boots: dict[str, _Boot], boot: str, now: int
) -> _Boot:
    if boot not in boots:
        boots[boot] = _boot(connection, source_id, boot, now)
    return boots[boot]


def _update_boot(connection: Connection, boot: _Boot, new: Sequence[Received], now: int) -> None:
    if not new:
        return
    values: dict[str, Any] = {"count": BOOTS.c.count + len(new), "last_seen": now}
    if new[-1].seq > boot.head_seq:
        values |= {
            "head_seq": new[-1].seq,
            "head_hash": new[-1].hash,
            "last_time": new[-1].time,
        }
    connection.execute(update(BOOTS).where(BOOTS.c.id == boot.id).values(**values))


def _save_coverage(connection: Connection, boot: _Boot, now: int) -> tuple[int, int]:
    """Write holes and gaps; how many gaps were opened and how many are over."""
    coverage = boot.coverage
    connection.execute(
        update(BOOTS).where(BOOTS.c.id == boot.id).values(high=coverage.high, acked=coverage.acked)
    )
    if not coverage.opened and not boot.gaps_before:
        return 0, 0
    open_now = coverage.gaps
    keys = {gap: gap for gap in boot.gaps_before}
    for gap in coverage.opened:
        values = {"boot_id": boot.id, "first": gap.first, "last": gap.last, "opened": now}
        done = connection.execute(insert(GAPS).values(**values))
        keys[gap.gap] = _key(done.inserted_primary_key)
    for gap_key, lost in coverage.given_up.items():
        connection.execute(
            update(GAPS).where(GAPS.c.id == keys[gap_key]).values(lost=GAPS.c.lost + lost)
        )
    ended = [row for gap_key, row in keys.items() if gap_key not in open_now]
    if ended:
        connection.execute(update(GAPS).where(GAPS.c.id.in_(ended)).values(closed=now))
    connection.execute(delete(HOLES).where(HOLES.c.boot_id == boot.id))
    if coverage.holes:
        connection.execute(
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


def _insert_breaks(connection: Connection, boot: _Boot, breaks: Iterable[Break], now: int) -> int:
    found = 0
    for broken in breaks:
        statement = upsert(connection, BREAKS).values(
            boot_id=boot.id, seq=broken.seq, reason=broken.reason, seen=now
        )
        found += (connection.execute(statement.on_conflict_do_nothing())).rowcount
    return found


def _key(inserted: Any) -> int:
    assert inserted is not None
    return int(inserted[0])
