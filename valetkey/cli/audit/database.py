"""The record in a collector's database file, opened read-only, with or without a collector."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import Connection, Row, Select, create_engine, event, func, select
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import NullPool

from valetkey.cli.audit.record import (
    BootEntry,
    Found,
    RecordDamaged,
    RecordUnavailable,
    pages,
    warnings_of,
)
from valetkey.collector.core.columns import Columns
from valetkey.collector.core.filters import OF_CALL, Filters
from valetkey.collector.core.verification import Entry, Known
from valetkey.collector.store import queries
from valetkey.collector.store.queries import MAX_PAGE
from valetkey.collector.store.schema import BOOTS, CONFLICTS, EVENTS, SOURCES

_MOST_DAMAGE: Final = 20
_COLUMNS: Final = frozenset(Columns.__struct_fields__)


class DatabaseRecord:
    """`Record` over a file.

    `boots`, `chain`, `damage` and `conflicts` see one state of the file (one transaction);
    `newest` and `after` go on to the current one.
    """

    def __init__(self, file: Path) -> None:
        uri = f"file:{quote(str(file.absolute()))}?mode=ro"

        def connect() -> sqlite3.Connection:
            return sqlite3.connect(uri, uri=True, isolation_level=None)

        engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)
        event.listen(engine, "begin", _begin)
        self._file = file
        self._connection: Connection = engine.connect()
        try:
            self._connection.execute(select(func.count()).select_from(SOURCES)).scalar()
            # A copy that was kept may be older than this program: what it has is read.
            found = self._connection.exec_driver_sql("SELECT name FROM pragma_table_info('events')")
            there = set(found.scalars())
        except DatabaseError as error:
            self._connection.close()
            raise RecordUnavailable(
                f"{file} is not a collector's database: {error.orig}"
            ) from error

        self._columns = [column for column in EVENTS.c if column.name in there]

    def newest(self, filters: Mapping[str, str], limit: int) -> list[Found]:
        self._refresh()
        rows = list(self._rows(queries.newest(self._filters(filters), limit=limit)))
        return self._with_outcomes(rows[::-1])

    def after(self, filters: Mapping[str, str], cursor: int, limit: int) -> list[Found]:
        self._refresh()
        statement = queries.page(self._filters(filters), after=cursor, limit=limit)
        return self._with_outcomes(list(self._rows(statement)))

    def every(self, filters: Mapping[str, str]) -> Iterator[list[Found]]:
        return pages(self, filters)

    def warnings(self) -> list[str]:
        return warnings_of(self.boots())

    def boots(self) -> list[BootEntry]:
        found: list[BootEntry] = []
        after = 0
        while rows := list(self._rows(queries.sources(after=after, limit=MAX_PAGE))):
            found += [
                BootEntry(
                    row.source,
                    row.boot,
                    Known(row._mapping["count"], row.head_seq, row.head_hash),
                    row.gaps,
                    row.breaks,
                )
                for row in rows
            ]
            after = rows[-1].id
        return found

    def chain(self, boot: BootEntry) -> Iterator[Entry]:
        key = (
            select(BOOTS.c.id)
            .join(SOURCES, SOURCES.c.id == BOOTS.c.source_id)
            .where(SOURCES.c.source == boot.source, BOOTS.c.boot == boot.boot)
            .scalar_subquery()
        )
        statement = select(*self._columns).where(EVENTS.c.boot_id == key).order_by(EVENTS.c.seq)
        for row in self._rows(statement):
            kept = {name: value for name, value in row._mapping.items() if name in _COLUMNS}
            yield Entry(row.seq, _bytes(row.raw), hash=row.hash, columns=kept)

    def damage(self) -> list[str]:
        found = [
            f"the database file is damaged: {row[0]}"
            for row in self._pragma(f"PRAGMA integrity_check({_MOST_DAMAGE})")
            if row[0] != "ok"
        ]
        found += [
            f"row {row[1]} of {row[0]} belongs to a row of {row[2]} that is not there"
            for row in self._pragma("PRAGMA foreign_key_check")[:_MOST_DAMAGE]
        ]
        return found

    def conflicts(self) -> int:
        total = select(func.coalesce(func.sum(CONFLICTS.c.times), 0))
        return int(next(self._rows(total))[0])

    def close(self) -> None:
        self._connection.close()

    def _filters(self, filters: Mapping[str, str]) -> Filters:
        missing = {*OF_CALL, "since", "until"} & filters.keys()
        if missing and len(self._columns) < len(EVENTS.c):
            raise RecordUnavailable(
                f"{self._file} is of an older version, which can't be asked by {min(missing)}: "
                "let a collector of this version open it (or a copy of it) once"
            )
        return Filters(**filters)

    def _refresh(self) -> None:
        self._connection.rollback()

    def _with_outcomes(self, rows: list[Row[Any]]) -> list[Found]:
        outcomes: dict[int, bytes] = {}
        for outcome in self._rows(queries.outcomes([row.cursor for row in rows])):
            outcomes.setdefault(outcome.cursor, outcome.raw)
        return [
            Found(
                row.cursor,
                row.source,
                row.received,
                _bytes(row.raw),
                outcomes.get(row.cursor),
            )
            for row in rows
        ]

    def _rows(self, statement: Select[Any]) -> Iterator[Row[Any]]:
        try:
            yield from self._connection.execute(statement.execution_options(yield_per=MAX_PAGE))
        except (DatabaseError, UnicodeDecodeError) as error:
            raise RecordDamaged(_reason(self._file, error)) from error

    def _pragma(self, statement: str) -> list[Any]:
        try:
            return list(self._connection.exec_driver_sql(statement))
        except DatabaseError as error:
            raise RecordDamaged(_reason(self._file, error)) from error


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _reason(file: Path, error: Exception) -> str:
    return f"{file} can't be read to the end: {getattr(error, 'orig', None) or error}"


def _bytes(raw: object) -> bytes:
    """The column as bytes: SQLite lets anybody who edits the file store a text there."""
    return raw if isinstance(raw, bytes) else str(raw).encode()
