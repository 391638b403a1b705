from __future__ import annotations

import sqlite3

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from valetkey.collector.store.database import migrate, open_database
from valetkey.collector.store.schema import METADATA
from valetkey.contracts.errors import ConfigError


def test_the_migrations_make_the_schema(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path / 'a.db'}", poolclass=NullPool)
    with engine.connect() as connection:
        migrate(connection, "head")
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
        made = dict(connection.execute(text("SELECT name, sql FROM sqlite_master")).fetchall())
        migrate(connection, "base")
        left = connection.execute(text("SELECT name FROM sqlite_master WHERE type='table'"))
        assert {row.name for row in left} <= {"alembic_version", "sqlite_sequence"}
    plain = create_engine(f"sqlite:///{tmp_path / 'b.db'}", poolclass=NullPool)
    METADATA.create_all(plain)
    with plain.connect() as connection:
        drawn = dict(connection.execute(text("SELECT name, sql FROM sqlite_master")).fetchall())
    # What autogenerate does not compare: conditions of partial indexes, AUTOINCREMENT.
    indexes = {name: sql for name, sql in drawn.items() if name.startswith("ix_")}
    assert indexes
    assert {name: made[name] for name in indexes} == indexes
    assert "AUTOINCREMENT" in made["events"]


@pytest.fixture
def writer(tmp_path):
    opened = open_database(tmp_path / "events.db")
    yield opened.writer
    opened.writer.dispose()


def test_pragmas(writer):
    with writer.connect() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA synchronous")) == 2  # FULL
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1


def test_a_migration_that_is_cut_has_changed_nothing(writer):
    with writer.connect() as connection:
        transaction = connection.begin()
        migrate(connection, "base")
        transaction.rollback()
        assert connection.scalar(text("SELECT count(*) FROM events")) == 0
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "0001"


async def test_readers_can_not_write(database):
    async with database.reader.connect() as connection:
        with pytest.raises(OperationalError, match="readonly"):
            await connection.execute(text("DELETE FROM events"))


def test_a_writing_transaction_takes_the_lock_when_it_begins(writer, tmp_path):
    with writer.begin() as connection:
        connection.execute(text("SELECT 1"))
        other = sqlite3.connect(tmp_path / "events.db", timeout=0, isolation_level=None)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()


def test_the_file_is_for_its_owner_alone(tmp_path):
    open_database(tmp_path / "events.db")
    assert (tmp_path / "events.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["directory", "no database", "no such place"])
def test_a_file_that_can_not_be_used(tmp_path, kind):
    file = tmp_path / "x"
    if kind == "directory":
        file.mkdir()
    elif kind == "no database":
        file.write_bytes(b"something else entirely, and longer than a header" * 20)
    else:
        file = file / "y"
    with pytest.raises(ConfigError, match="can't be opened or migrated"):
        open_database(file)
