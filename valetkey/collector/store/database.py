"""The database file: migrated first, then one connection that writes and a few that read.

A transaction that writes begins with BEGIN IMMEDIATE, so what it reads can't change before it
commits, and commits with synchronous=FULL: once `commit` returns, the events survive power loss.
Readers never block the writer (WAL) and can't write at all (``query_only``).
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from valetkey.contracts.errors import ConfigError

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_READERS: Final = 4


class Database:
    """The engines of one file: ``writer`` for threads, ``reader`` for the event loop.

    `open_database` makes it.
    """

    def __init__(self, file: Path) -> None:
        self.writer: Engine = create_engine(f"sqlite:///{file}", pool_size=1, max_overflow=0)
        self.reader: AsyncEngine = create_async_engine(
            f"sqlite+aiosqlite:///{file}", pool_size=_READERS, max_overflow=0
        )
        _begin_with(self.writer, "BEGIN IMMEDIATE")
        _begin_with(self.reader.sync_engine, "BEGIN")
        event.listen(self.reader.sync_engine, "connect", _query_only)

    async def close(self) -> None:
        await self.reader.dispose()
        # Its last connection checkpoints the log into the file.
        await asyncio.to_thread(self.writer.dispose)


def open_database(file: Path) -> Database:
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
    return Database(file)


def migrate(connection: Connection, revision: str) -> None:
    """Bring the schema up or down to ``revision`` (``head``, ``base`` or an id).

    All of it in the transaction that the caller has begun and commits: a start that is killed in
    between has changed nothing.
    """
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    there = MigrationContext.configure(connection).get_current_revision()
    script = ScriptDirectory.from_config(config)
    passed = [each.revision for each in script.iterate_revisions(there, "base")] if there else []
    if revision in {"base", *passed}:
        command.downgrade(config, revision)
    else:
        command.upgrade(config, revision)


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
