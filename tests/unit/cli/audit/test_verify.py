from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from tests.support.chain import Chain
from valetkey.contracts import events


def edit(file, statement, *values):
    with closing(sqlite3.connect(file)) as connection, connection:
        assert connection.execute(statement, values).rowcount > 0


def test_a_whole_record_holds(audit, store, two_boots):
    result = audit("verify", "--db", store(*two_boots))
    assert result.exit_code == 0, result.output
    assert "the record holds: 8 events of 2 boots" in result.output
    rows = [line.split() for line in result.output.splitlines()[1:3]]
    assert rows == [
        ["agent-0", "00000000000000a1", "5", "1", "5", "0", "0", "0", "00000000000000b2", "holds"],
        ["agent-0", "00000000000000b2", "3", "1", "3", "0", "0", "0", "-", "holds"],
    ]


def test_an_empty_record_holds(audit, store):
    assert audit("verify", "--db", store()).exit_code == 0


@pytest.mark.parametrize("seq", [1, 2, 3])
def test_one_byte_changed_in_the_file_fails_and_is_named(audit, store, two_boots, seq):
    """In the bytes of the file itself, as an editor of the disk would do it."""
    file = store(*two_boots)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    raw = two_boots[1].events[seq - 1]
    content = bytearray(file.read_bytes())
    # The last bytes of a long event may lie on an overflow page: its beginning is in one piece.
    at = content.index(raw[:200]) + 150
    content[at] ^= 1
    file.write_bytes(content)
    result = audit("verify", "--db", file)
    assert result.exit_code == 1
    assert f"boot 00000000000000b2 event {seq}: " in result.output
    assert "the record does not hold" in result.output


TAMPERED = {
    "bytes": (
        "UPDATE events SET raw = CAST(replace(CAST(raw AS TEXT), ':read', ':rEad') AS BLOB)",
        "event 2: the event's bytes differ from the hash stored with them",
    ),
    "bytes as a text": (
        "UPDATE events SET raw = replace(CAST(raw AS TEXT), 'tickets:read', 'x') WHERE seq = 2",
        "event 2: the event's bytes differ from the hash stored with them",
    ),
    "a hash": (
        "UPDATE events SET hash = replace(hash, 'a', 'b') WHERE seq = 3",
        "event 3: the event's bytes differ from the hash stored with them",
    ),
    "a column": (
        "UPDATE events SET decision = 'allowed ' WHERE seq = 2",
        "event 2: the columns stored beside the event differ from the event",
    ),
    "an event taken out": (
        "DELETE FROM events WHERE seq = 2",
        "event 2: events 2 to 2 are missing",
    ),
    "the last event taken out": (
        "DELETE FROM events WHERE cursor = (SELECT max(cursor) FROM events)",
        "event 3: the last event is not the one that the collector stored last",
    ),
    "a boot taken out": (
        "DELETE FROM boots WHERE boot = '00000000000000a1'",
        "belongs to a row of boots that is not there",
    ),
    "an event of another number": (
        "UPDATE events SET seq = 9 WHERE seq = 3",
        "sequence jumps",
    ),
    "the stored head": (
        "UPDATE boots SET head_seq = head_seq + 1",
        "the last event is not the one that the collector stored last",
    ),
}


@pytest.mark.parametrize(("statement", "message"), TAMPERED.values(), ids=TAMPERED)
def test_an_edited_database(audit, store, two_boots, statement, message):
    file = store(*two_boots)
    edit(file, statement)
    result = audit("verify", "--db", file)
    assert result.exit_code == 1, result.output
    assert message in result.output


def test_a_torn_database_file(audit, store):
    file = store(Chain().calls(200))
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(file.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xff" * 4096
    file.write_bytes(content)
    result = audit("verify", "--db", file)
    assert result.exit_code == 1, result.output
    assert "damaged" in result.output or "can't be read to the end" in result.output


def test_gaps(audit, store):
    made = Chain().calls(3)
    file = store(Chain(events=made.events[:2] + made.events[4:]))
    result = audit("verify", "--db", file)
    assert result.exit_code == 1
    assert "events 3 to 4 are missing" in result.output
    made.gap(made.boot, 3, 4)
    store(Chain(events=made.events[6:]))
    result = audit("verify", "--db", file)
    assert result.exit_code == 0, result.output
    assert "2 were declared lost by their sidecar" in result.output


def test_a_refused_conflict_is_a_note(audit, store, two_boots):
    file = store(*two_boots)
    edit(
        file,
        "INSERT INTO conflicts (source, boot, seq, kept_hash, refused_hash, issuer, subject,"
        " first_seen, last_seen, times) VALUES ('s', 'b', 1, 'x', 'y', 'i', 's', 0, 0, 3)",
    )
    result = audit("verify", "--db", file)
    assert result.exit_code == 0
    assert "note: 3 times other bytes were offered" in result.output


def test_a_decision_without_outcome_is_reported(audit, store):
    made = Chain().calls(1)
    made.decision()
    result = audit("verify", "--db", store(made))
    assert result.exit_code == 0
    assert result.output.splitlines()[1].split()[-3:] == ["1", "-", "holds"]


def test_many_problems_are_cut(audit, store):
    made = Chain().calls(60)
    file = store(made)
    edit(file, "UPDATE events SET hash = 'x'")
    result = audit("verify", "--db", file)
    assert "… and 70 more" in result.output
    assert events.SOURCE_PREFIX in result.output


USAGE = {
    "nothing named": ((), "give one of --db, --collector and --spool"),
    "a collector without token": (("--collector", "http://127.0.0.1:1"), "needs --token-file"),
    "a file that is not there": (("--db", "/nowhere"), "does not exist"),
    "an unknown option": (("--database", "/nowhere"), "No such option"),
    "a spool and more": (
        ("--spool", "/", "--db", "/etc/hostname"),
        "give one of --db, --collector and --spool",
    ),
    "a token for a file": (("--db", "/etc/hostname", "--token-file", "/etc/hostname"), "are for"),
    "no database": (("--db", "/etc/hostname"), "is not a collector's database"),
}


@pytest.mark.parametrize(("options", "message"), USAGE.values(), ids=USAGE)
def test_usage(audit, options, message):
    result = audit("verify", *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_another_programs_database(audit, tmp_path):
    with closing(sqlite3.connect(tmp_path / "x.db")) as connection:
        connection.execute("CREATE TABLE t (x)")
    result = audit("tail", "--db", tmp_path / "x.db")
    assert result.exit_code == 2
    assert "is not a collector's database" in result.stderr
