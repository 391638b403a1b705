"""The database: one engine, migrated before anything else uses it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from valetkey.contracts import codes
from valetkey.contracts.errors import ConfigError, ValetkeyError

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_DRIVER: Final = "sqlite+aiosqlite"


class StoreError(ValetkeyError):
    """The database did not take a write: nothing that depends on it may be answered with yes."""

    def __init__(self, error: SQLAlchemyError) -> None:
        # The database's own message may quote the row; its type says enough.
        super().__init__(codes.SERVICE_UNAVAILABLE, f"database: {type(error).__name__}")


async def open_database(url: str) -> AsyncEngine:
    """Connect and migrate to the newest schema. Raises `ConfigError`."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigError("database is not an SQLAlchemy URL") from error
    if parsed.drivername != _DRIVER or not parsed.database or parsed.database == ":memory:":
        # In memory, a restart would bring revoked tokens back to life.
        raise ConfigError(f"database must be {_DRIVER}:///FILE")
    try:
        return await asyncio.to_thread(_open, parsed)
    except (DatabaseError, CommandError, OSError) as error:
        # The database's own message may quote what it read; its type says enough.
        raise ConfigError(
            f"database {parsed.database}: can't be opened or migrated ({type(error).__name__})"
        ) from error


def _open(url: URL) -> AsyncEngine:
    # Alembic reads its scripts from files and runs once: a thread and the plain driver fit it.
    engine = create_engine(url.set(drivername="sqlite"))
    event.listen(engine, "connect", _pragmas)
    try:
        with engine.connect() as connection:
            migrate(connection, "head")
    finally:
        engine.dispose()
    serving = create_async_engine(url)
    event.listen(serving.sync_engine, "connect", _pragmas)
    return serving


def migrate(connection: Connection, revision: str) -> None:
    """Bring the schema up or down to ``revision`` (``head``, ``base`` or an id)."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    if revision == "base":
        command.downgrade(config, revision)
    else:
        command.upgrade(config, revision)
    connection.commit()


def _pragmas(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA journal_mode=WAL")
        # FULL: a revocation that was acknowledged survives power loss.
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA busy_timeout=5000")
    finally:
        cursor.close()
