"""Migrations up and down on both databases, the schema they make, and what is refused."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

from tests.support.postgres import Postgres
from valetkey.broker.store.database import Database, StoreError, migrate
from valetkey.broker.store.schema import METADATA
from valetkey.contracts.errors import ConfigError

TABLES = set(METADATA.tables)


def _tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


def _up_and_down(connection: Connection) -> None:
    assert _tables(connection) == {*TABLES, "alembic_version"}
    assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    migrate(connection, "base")
    assert _tables(connection) == {"alembic_version"}
    migrate(connection, "head")
    assert _tables(connection) == {*TABLES, "alembic_version"}


async def test_up_makes_what_the_schema_says_and_down_removes_it(database: Database) -> None:
    async with database.engine.connect() as connection:
        await connection.run_sync(_up_and_down)


async def test_up_is_repeatable_and_keeps_what_is_there(database_url: str) -> None:
    first = await Database.open(database_url)
    async with first.write() as connection:
        await connection.execute(text("INSERT INTO revocations VALUES ('jti', 'a', 1, 2, NULL)"))
    await first.close()
    second = await Database.open(database_url)
    async with second.read() as connection:
        count = (await connection.execute(text("SELECT count(*) FROM revocations"))).scalar_one()
    assert count == 1
    await second.close()


async def test_replicas_that_start_together_migrate_once(postgres: Postgres) -> None:
    url = postgres.database()
    opened = await asyncio.gather(*(Database.open(url) for _ in range(4)))
    assert all([await database.answers() for database in opened])
    for database in opened:
        await database.close()


async def test_a_transaction_that_fails_has_changed_nothing(database: Database) -> None:
    row = text("INSERT INTO revocations VALUES ('jti', 'a', 1, 2, NULL)")

    async def twice() -> None:
        async with database.write() as connection:
            await connection.execute(row)
            await connection.execute(row)

    with pytest.raises(StoreError, match="IntegrityError"):
        await twice()
    async with database.read() as connection:
        count = (await connection.execute(text("SELECT count(*) FROM revocations"))).scalar_one()
    assert count == 0


async def test_who_writes_holds_no_reader_up(database: Database) -> None:
    async with database.write() as writer:
        await writer.execute(text("INSERT INTO revocations VALUES ('jti', 'a', 1, 2, NULL)"))
        async with database.read() as reader:
            count = (await reader.execute(text("SELECT count(*) FROM revocations"))).scalar_one()
        assert count == 0


async def test_an_acknowledged_write_survives_power_loss(tmp_path: Path) -> None:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}")
    async with database.read() as connection:
        mode = (await connection.execute(text("PRAGMA journal_mode"))).scalar_one()
        level = (await connection.execute(text("PRAGMA synchronous"))).scalar_one()
    assert (mode, level) == ("wal", 2)
    await database.close()


@pytest.mark.parametrize(
    ("name", "url", "message"),
    [
        ("no url", "broker.db", "not an SQLAlchemy URL"),
        ("another database", "mysql+aiomysql://localhost/x", "must be sqlite"),
        ("another driver", "postgresql+psycopg://localhost/x", "must be sqlite"),
        ("no name", "postgresql+asyncpg://localhost", "must be sqlite"),
        ("nobody there", "postgresql+asyncpg://u@127.0.0.1:1/x", "can't be opened"),
        ("blocking driver", "sqlite:///x.db", "must be sqlite"),
        ("in memory", "sqlite+aiosqlite://", "must be sqlite"),
        ("in memory by name", "sqlite+aiosqlite:///:memory:", "must be sqlite"),
        ("no directory", "sqlite+aiosqlite:////nonexistent/x.db", "can't be opened"),
    ],
)
async def test_databases_that_are_refused(name: str, url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        await Database.open(url)


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(ConfigError, match="DatabaseError"):
        await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}")


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'x.db'}"
    await (await Database.open(url)).close()
    connection = sqlite3.connect(tmp_path / "x.db")
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(ConfigError, match="CommandError"):
        await Database.open(url)


async def test_what_waits_for_a_commit_happens_after_it_and_without_one_never(
    database: Database,
) -> None:
    done: list[str] = []
    async with database.write() as connection:
        database.after_commit(connection, lambda: done.append("committed"))
        assert done == []
    assert done == ["committed"]

    async def undone() -> None:
        async with database.write() as connection:
            database.after_commit(connection, lambda: done.append("never"))
            raise ValueError("undone")

    with pytest.raises(ValueError, match="undone"):
        await undone()
    async with database.write():
        pass
    assert done == ["committed"]
