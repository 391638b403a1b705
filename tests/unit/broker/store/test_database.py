"""Migrations up and down, the schema they make, and databases that are refused."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from valetkey.broker.store.database import migrate, open_database
from valetkey.broker.store.schema import METADATA
from valetkey.contracts.errors import ConfigError

TABLES = {"signing_keys", "revocations", "used_assertions"}


def test_up_makes_what_the_schema_says_and_down_removes_it(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    try:
        with engine.connect() as connection:
            migrate(connection, "head")
            assert set(inspect(connection).get_table_names()) == {*TABLES, "alembic_version"}
            context = MigrationContext.configure(connection)
            assert compare_metadata(context, METADATA) == []
            migrate(connection, "base")
            assert set(inspect(connection).get_table_names()) == {"alembic_version"}
            migrate(connection, "head")
            assert set(inspect(connection).get_table_names()) > TABLES
    finally:
        engine.dispose()


def test_up_is_repeatable(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    try:
        with engine.connect() as connection:
            migrate(connection, "head")
            connection.execute(text("INSERT INTO revocations VALUES ('jti', 'a', 1, 2)"))
            connection.commit()
            migrate(connection, "head")
            count = connection.execute(text("SELECT count(*) FROM revocations")).scalar_one()
            assert count == 1
    finally:
        engine.dispose()


async def test_an_acknowledged_write_survives_power_loss(tmp_path: Path) -> None:
    engine = await open_database(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}")
    try:
        async with engine.connect() as connection:
            mode = (await connection.execute(text("PRAGMA journal_mode"))).scalar_one()
            level = (await connection.execute(text("PRAGMA synchronous"))).scalar_one()
        assert (mode, level) == ("wal", 2)
    finally:
        await engine.dispose()


@pytest.mark.parametrize(
    ("name", "url", "message"),
    [
        ("no url", "broker.db", "not an SQLAlchemy URL"),
        ("another driver", "postgresql+asyncpg://localhost/x", "must be sqlite"),
        ("blocking driver", "sqlite:///x.db", "must be sqlite"),
        ("in memory", "sqlite+aiosqlite://", "must be sqlite"),
        ("in memory by name", "sqlite+aiosqlite:///:memory:", "must be sqlite"),
        ("no directory", "sqlite+aiosqlite:////nonexistent/x.db", "can't be opened"),
    ],
)
async def test_databases_that_are_refused(name: str, url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        await open_database(url)


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(ConfigError, match="DatabaseError"):
        await open_database(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}")


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'x.db'}"
    await (await open_database(url)).dispose()
    connection = sqlite3.connect(tmp_path / "x.db")
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(ConfigError, match="CommandError"):
        await open_database(url)
