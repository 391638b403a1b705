from __future__ import annotations

import importlib
import sqlite3

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from tests.support.chain import Chain
from valetkey.collector.core.columns import extract
from valetkey.collector.store.database import migrate, open_database
from valetkey.collector.store.schema import METADATA
from valetkey.contracts import events
from valetkey.contracts.errors import ConfigError

MIGRATIONS = "valetkey.collector.store.migrations.versions"


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
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "0002"


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
