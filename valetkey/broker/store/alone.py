"""A broker's database for a command that runs where no broker does.

With SQLite another process that has the file open is refused, with PostgreSQL any other session
of the database: a broker that ran on would go on from what it knew before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

import asyncpg
from sqlalchemy import Connection, Table, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.store.database import READ, StoreError, make_engine
from valetkey.contracts.codes import CommandCode
from valetkey.contracts.errors import ConfigError
from valetkey.sql.settings import PostgresSettings


class Reasons(NamedTuple):
    """The codes of one command."""

    no_database: CommandCode
    in_use: CommandCode
    database: CommandCode


class Refused(ConfigError):  # noqa: N818 - reads as what it is
    """Nothing was changed. ``code`` says why, the message about what."""

    def __init__(self, code: CommandCode, message: str) -> None:
        super().__init__(f"{code.name}: {message}; nothing was changed")
        self.code = code


@asynccontextmanager
async def connected(
    url: str, limits: PostgresSettings, reasons: Reasons, *, read: bool
) -> AsyncIterator[AsyncConnection]:
    """A connection to the database that is there. Raises `ConfigError`, of these `Refused`."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigError("database is not an SQLAlchemy URL") from error
    engine = make_engine(parsed, limits)
    there = engine.dialect.name != "sqlite" or Path(parsed.database or "").is_file()  # noqa: ASYNC240 - before there is anything to wait for
    if not there:
        await engine.dispose()  # to open it would make it
        raise Refused(reasons.no_database, f"{parsed.database}: there is no such file")
    try:
        with refusing(reasons, parsed.database):
            async with engine.connect() as connection:
                if read:
                    await connection.execution_options(**{READ: True})
                yield connection
    finally:
        await engine.dispose()


class refusing:  # noqa: N801 - a context manager, as `suppress`
    """Errors of the database, as `Refused`."""

    def __init__(self, reasons: Reasons, name: str | None) -> None:
        self._reasons = reasons
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, StoreError):
            error = error.error
        if isinstance(error, OperationalError) and "locked" in str(error.orig):
            raise Refused(self._reasons.in_use, _IN_USE) from error
        if isinstance(error, SQLAlchemyError | OSError | asyncpg.PostgresError):
            # The database's own message may quote a row; its type says enough.
            kind = type(error).__name__
            message = f"database {self._name} can't be used ({kind})"
            raise Refused(self._reasons.database, message) from error


_IN_USE: Final = "the database is in use: stop every broker, and end what else has it open"


async def alone(connection: AsyncConnection, reasons: Reasons, tables: Iterable[Table]) -> None:
    """Begin the transaction, with nobody else in the database. Raises `Refused`.

    A broker that starts meanwhile waits for ``tables`` until it is over.
    """
    if connection.dialect.name == "sqlite":
        await connection.run_sync(_lock_file)
        return
    await _nobody_else(connection, reasons)
    if names := ", ".join(table.name for table in tables):
        await connection.execute(text(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE"))
    await _nobody_else(connection, reasons)


def _lock_file(connection: Connection) -> None:
    """A connection to a database in WAL mode holds a lock on the file for as long as it is open.

    Idle or not; so the exclusive one is only had where there is no other (sqlite.org/wal.html).
    """
    cursor = connection.connection.cursor()
    try:
        # secure_delete: what is replaced does not stay in pages that are free.
        for pragma in ("busy_timeout=1000", "secure_delete=ON", "locking_mode=EXCLUSIVE"):
            cursor.execute(f"PRAGMA {pragma}")
    finally:
        cursor.close()


async def _nobody_else(connection: AsyncConnection, reasons: Reasons) -> None:
    others = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND usesysid IS NOT NULL AND pid <> pg_backend_pid()"
    )
    if sessions := (await connection.execute(others)).scalar_one():
        raise Refused(reasons.in_use, f"{_IN_USE} (other sessions: {sessions})")
