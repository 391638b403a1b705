"""The record in a file: one connection that writes, in threads, and a few that read.

A transaction runs in one thread from begin to commit. Through an asynchronous driver it took 60
hops between threads, and 2.5 times the processor time for a batch of 20.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from valetkey.collector.store.database import migrate
from valetkey.contracts.errors import ConfigError

T = TypeVar("T")

_READERS: Final = 4


class FileDatabase:
    """`Database` over one file. `open_file` makes it."""

    shared = False

    def __init__(self, file: Path) -> None:
        self.writer: Engine = create_engine(f"sqlite:///{file}", pool_size=1, max_overflow=0)
        self.reader: AsyncEngine = create_async_engine(
            f"sqlite+aiosqlite:///{file}", pool_size=_READERS, max_overflow=0
        )
        self._turn = asyncio.Lock()
        _begin_with(self.writer, "BEGIN IMMEDIATE")
        _begin_with(self.reader.sync_engine, "BEGIN")
        event.listen(self.reader.sync_engine, "connect", _query_only)

    async def write(self, work: Callable[[Connection], T]) -> T:
        async with self._turn:
            return await asyncio.to_thread(self._write_now, work)

    @asynccontextmanager
    async def held(self, lock: int) -> AsyncIterator[bool]:  # noqa: ARG002 - nobody else is there
        yield True

    def _write_now(self, work: Callable[[Connection], T]) -> T:
        with self.writer.begin() as connection:
            return work(connection)

    async def close(self) -> None:
        await self.reader.dispose()
        # Its last connection checkpoints the log into the file.
        await asyncio.to_thread(self.writer.dispose)


def open_file(file: Path) -> FileDatabase:
    """Create and migrate the file. Raises `ConfigError`. Blocks: call it before the loop runs."""
    try:
        # The record names who did what: for the collector's own user alone.
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
        engine = create_engine(f"sqlite:///{file}", poolclass=NullPool)
        _begin_with(engine, "BEGIN IMMEDIATE")
        with engine.begin() as connection:
            migrate(connection, "head")
    except (DatabaseError, CommandError, OSError) as error:
        raise ConfigError(
            f"database {file}: can't be opened or migrated ({type(error).__name__})"
        ) from error
    return FileDatabase(file)


def _durable(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA busy_timeout=5000")
        cursor.execute("PRAGMA foreign_keys=ON")
    finally:
        cursor.close()


def _query_only(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA query_only=ON")
    finally:
        cursor.close()


def _begin_with(engine: Engine, statement: str) -> None:
    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        _durable(connection, record)

    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(statement)

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin)
