from __future__ import annotations

import asyncio
import importlib
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from tests.support.chain import Chain
from tests.support.collector import ON_BOTH
from tests.support.ports import free_port
from valetkey.collector.core.columns import extract
from valetkey.collector.store.database import migrate
from valetkey.collector.store.schema import METADATA
from valetkey.collector.store.server import open_server
from valetkey.collector.store.sqlite import open_file
from valetkey.contracts import events
from valetkey.contracts.errors import ConfigError
from valetkey.sql.postgres import unlimited
from valetkey.sql.settings import PostgresSettings

MIGRATIONS = "valetkey.collector.store.migrations.versions"


def test_the_migrations_make_the_schema(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path / 'a.db'}", poolclass=NullPool)
    with engine.connect() as connection:
        migrate(connection, "head")
        assert _differences(connection, without="ix_events_cursor") == []
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


def _differences(connection, without):
    """What a migration would have to change; autogenerate takes every index for every dialect's."""

    def compared(_object, name, *_more):
        return name != without

    context = MigrationContext.configure(connection, opts={"include_object": compared})
    return compare_metadata(context, METADATA)


_DRAWN = text("SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'")


def test_the_migrations_make_the_schema_in_postgresql(postgres):
    """Up, down and up again; as the schema draws it, with the conditions of its indexes."""

    def up_and_down(connection):
        for _ in range(2):
            migrate(connection, "head")
            assert _differences(connection, without="ix_events_more") == []
            made = connection.execute(_DRAWN).fetchall()
            migrate(connection, "base")
            left = connection.execute(
                text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            )
            assert {row.tablename for row in left} == {"alembic_version"}
        return dict(made)

    def drawn(connection):
        METADATA.create_all(connection)
        return dict(connection.execute(_DRAWN).fetchall())

    made = asyncio.run(_in_postgresql(postgres.database(), up_and_down))
    del made["alembic_version_pkc"]
    assert "ix_events_cursor" in made
    assert made == asyncio.run(_in_postgresql(postgres.database(), drawn))


async def _in_postgresql(url, work):
    engine = unlimited(make_url(url), PostgresSettings())
    async with engine.begin() as connection:
        done = await connection.run_sync(work)
    await engine.dispose()
    return done


def test_collectors_that_start_together_migrate_once(postgres):
    url = make_url(postgres.database())
    with ThreadPoolExecutor() as pool:
        opened = list(pool.map(lambda _: open_server(url, PostgresSettings()), range(4)))
    assert all(database.shared for database in opened)


def test_a_server_that_is_not_there(postgres):
    nowhere = make_url(f"postgresql+asyncpg://valetkey@127.0.0.1:{free_port()}/none")
    there = make_url(postgres.database())
    for url in (nowhere, there.set(database="none"), there.update_query_dict({"nonsense": "1"})):
        with pytest.raises(ConfigError, match="can't be opened or migrated"):
            open_server(url, PostgresSettings())


@pytest.fixture
def writer(tmp_path):
    opened = open_file(tmp_path / "events.db")
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
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "0003"


def test_what_is_on_record_is_filled_in_when_the_schema_grows(tmp_path, monkeypatch):
    """From a database of the version before, in batches that do not come out even; and back."""
    chain = Chain()
    chain.boot_event()
    chain.calls(5)
    chain.outcome(
        chain.decision(),
        unmapped={"decision": f"{chain.boot}-12", "credentials": [{"jti": "tok-2"}, 7]},
    )
    chain.outcome(
        chain.decision(action_id=2, unmapped={"approval": "apr_1"}),
        unmapped={"decision": f"{chain.boot}-14", "stream": {"jti": "tok-3"}},
    )
    chain.add(events.TYPE_HEARTBEAT, {}, time="soon")
    raws = [*chain.events, b"no event", b'{"data": 7, "time": 7}']
    engine = create_engine(f"sqlite:///{tmp_path / 'events.db'}", poolclass=NullPool)
    with engine.begin() as connection:
        migrate(connection, "0001")
        connection.execute(
            text("INSERT INTO sources VALUES (1, :source, 'i', 's', 0)"), {"source": chain.source}
        )
        connection.execute(
            text(
                "INSERT INTO boots (id, source_id, boot, first_seen, last_seen) VALUES (1, 1, 'b', 0, 0)"
            )
        )
        old = text(
            "INSERT INTO events (boot_id, seq, hash, received, type, workload, route, target,"
            " decision, code, answers, raw) VALUES (1, :seq, '', 0, '', '', '', '', '', '', 0, :raw)"
        )
        connection.execute(old, [{"seq": seq, "raw": raw} for seq, raw in enumerate(raws, 1)])
    monkeypatch.setattr(importlib.import_module(f"{MIGRATIONS}.0002_calls"), "_BATCH", 4)
    kept = text("SELECT time, jti, txn, approval, more FROM events ORDER BY cursor")
    with engine.begin() as connection:
        migrate(connection, "head")
        rows = [tuple(row) for row in connection.execute(kept)]
        for raw, row in zip(chain.events, rows, strict=False):
            event = events.read(raw)
            found = extract(event.type, event.boot, event.time, events.data_of(event))
            assert row == (found.time, found.jti, found.txn, found.approval, found.more)
        assert {row[1:] for row in rows} == {
            ("", "", "", ""),
            ("tok-1", "txn-1", "", ""),
            ("", "", "", "\njti tok-2\n"),
            ("", "", "apr_1", ""),
            ("", "", "", "\njti tok-3\n"),
        }
        assert rows[-2:] == [(0, "", "", "", "")] * 2
    with engine.begin() as connection:
        migrate(connection, "0001")
        names = connection.execute(text("SELECT name FROM pragma_table_info('events')")).scalars()
        assert {"time", "jti", "txn", "approval", "more", "raw"} & set(names) == {"raw"}
        assert connection.scalar(text("SELECT count(*) FROM events")) == len(raws)


@ON_BOTH
async def test_readers_can_not_write(database):
    async with database.reader.connect() as connection:
        with pytest.raises(DBAPIError, match=r"readonly|read-only"):
            await connection.execute(text("DELETE FROM events"))


def test_a_writing_transaction_takes_the_lock_when_it_begins(writer, tmp_path):
    with writer.begin() as connection:
        connection.execute(text("SELECT 1"))
        other = sqlite3.connect(tmp_path / "events.db", timeout=0, isolation_level=None)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()


def test_the_file_is_for_its_owner_alone(tmp_path):
    open_file(tmp_path / "events.db")
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
        open_file(file)
