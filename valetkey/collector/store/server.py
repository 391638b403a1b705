"""The record in PostgreSQL, which any number of collectors share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from alembic.util import CommandError
from sqlalchemy import URL, Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from valetkey.collector.store.database import FAILED, migrate
from valetkey.contracts.errors import ConfigError
from valetkey.sql import postgres
from valetkey.sql.settings import PostgresSettings

T = TypeVar("T")

# Any number that is ours and not the broker's: who holds it migrates, the others wait.
_MIGRATION_LOCK: Final = 0x76616C71
# Who reads takes no connection from who writes.
_READERS: Final = 4


class ServerDatabase:
    """`Database` over a pool that writes and one that reads. `open_server` makes it."""

    shared = True

    def __init__(self, url: URL, limits: PostgresSettings) -> None:
        self.writer: AsyncEngine = postgres.pooled(url, limits)
        self.reader: AsyncEngine = postgres.pooled(url, limits, size=_READERS, read_only=True)

    async def write(self, work: Callable[[Connection], T]) -> T:
        async with self.writer.begin() as connection:
            return await connection.run_sync(work)

    @asynccontextmanager
    async def held(self, lock: int) -> AsyncIterator[bool]:
        async with self.writer.begin() as connection:
            taken = text("SELECT pg_try_advisory_xact_lock(:lock)")
            yield bool(await connection.scalar(taken, {"lock": lock}))

    async def close(self) -> None:
        await self.reader.dispose()
        await self.writer.dispose()


def open_server(url: URL, limits: PostgresSettings) -> ServerDatabase:
    """Migrate the database. Raises `ConfigError`. Blocks: call it before the loop runs."""
    try:
        asyncio.run(_migrate(url, limits))
        return ServerDatabase(url, limits)
    except (*FAILED, CommandError, TypeError, ValueError) as error:
        # The last two: the URL's query says something that the driver does not understand.
        raise ConfigError(
            f"database {url.database}: can't be opened or migrated ({type(error).__name__})"
        ) from error


async def _migrate(url: URL, limits: PostgresSettings) -> None:
    engine = postgres.unlimited(url, limits)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_migrate_locked)
    finally:
        await engine.dispose()


def _migrate_locked(connection: Connection) -> None:
    """Collectors start together: one migrates, the others find it done."""
    lock = text("SELECT pg_advisory_xact_lock(:lock)")
    connection.execute(lock, {"lock": _MIGRATION_LOCK})
    migrate(connection, "head")
