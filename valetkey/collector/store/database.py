"""The record's database: an SQLite file beside one collector, or PostgreSQL beneath many.

It is migrated before it is used. Both take the same schema, and the same statements except for
what `store.dialects` names. What is the same of both:

- A write is one transaction; once `Database.write` returns, it survives power loss.
- Readers never block a writer, and can't write at all.

SQLite: one connection writes, in threads, and its transactions begin with BEGIN IMMEDIATE, so that
what they read can't change before they commit (synchronous=FULL, WAL). PostgreSQL: collectors write
side by side, and what must not happen at the same time is locked where it is done (`store.writer`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final, Protocol, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from valetkey.contracts import codes
from valetkey.contracts.errors import AuditError
from valetkey.sql import postgres

T = TypeVar("T")

_MIGRATIONS: Final = Path(__file__).parent / "migrations"

FAILED: Final = (SQLAlchemyError, *postgres.LOST)
"""What a database raises that does not do what it is asked to."""


class Database(Protocol):
    """A migrated database."""

    @property
    def reader(self) -> AsyncEngine:
        """What questions are answered from."""

    @property
    def shared(self) -> bool:
        """Whether others may write to it at the same time."""

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Do ``work`` in one transaction. Raises what it does, and `FAILED`."""

    def held(self, lock: int) -> AbstractAsyncContextManager[bool]:
        """Hold a lock that all collectors know; ``False`` where another does. Raises `FAILED`.

        A server may end it unasked: nothing may hang on it alone.
        """

    async def close(self) -> None:
        """Let go of all connections."""


def unavailable(error: Exception) -> AuditError:
    """503. The driver's own text may quote parameters, so only its kind goes on."""
    kind = type(getattr(error, "orig", None) or error).__name__
    return AuditError(codes.SERVICE_UNAVAILABLE, f"the database refuses: {kind}")


async def answers(database: Database, *, within: float = 2.0) -> bool:
    """Whether the database is there now. SQLite's driver can't be left in the middle of asking."""
    try:
        async with (
            asyncio.timeout(within if database.shared else None),
            database.reader.connect() as connection,
        ):
            await connection.exec_driver_sql("SELECT 1")
    except FAILED:
        return False
    return True


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
