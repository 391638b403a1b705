"""``valetkey audit tail``: what one token did, in which time, in a database and in a spool."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from contextlib import closing

import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from tests.support.chain import Chain, decision_data, outcome_data
from tests.support.enforcement import Stand
from tests.unit.cli.audit.test_spool import write
from valetkey.cli.main import main
from valetkey.collector.store.database import migrate
from valetkey.contracts import events
from valetkey.contracts.jose import b64url
from valetkey.contracts.times import rfc3339
from valetkey.proxy.core.credential import Succession
from valetkey.proxy.streams import Watch

BOOT = "00000000000000a1"


@pytest.fixture
def chain() -> Chain:
    """1 boot; 2–3 and 4–5 of tok-1; 6–7 of tok-2, ended by tok-3; 8 refused for apr_1; 9–10 now."""
    made = Chain(boot=BOOT)
    made.boot_event()
    made.calls(2)
    late = {"time": "2026-10-31T23:59:59.999Z"}
    decision = made.add(events.TYPE_DECISION, decision_data(unmapped={"jti": "tok-2"}), **late)
    sent = [{"jti": "tok-2", "txn": "txn-2"}, {"jti": "tok-3", "txn": "txn-3"}]
    answer = {"decision": decision, "credentials": sent}
    made.add(events.TYPE_OUTCOME, outcome_data(decision, unmapped=answer), **late)
    refused = {"code": "approval.required", "approval": "apr_1"}
    made.decision(action_id=2, unmapped=refused)
    now = {"time": rfc3339(time.time() - 60)}
    decision = made.add(events.TYPE_DECISION, decision_data(unmapped={"jti": "tok-4"}), **now)
    made.add(events.TYPE_OUTCOME, outcome_data(decision), **now)
    return made


@pytest.fixture(params=["db", "spool"])
def record(request, chain, store, tmp_path):
    """The options that name it."""
    if request.param == "db":
        return "--db", store(chain)
    write(tmp_path / "spool", chain)
    return "--spool", tmp_path / "spool"


FOUND = {
    ("--jti", "tok-1"): {"2": "3", "4": "5"},
    ("--jti", "tok-2"): {"6": "7"},
    ("--jti", "tok-3"): {"6": "7"},
    ("--txn", "txn-3"): {"6": "7"},
    ("--jti", "tok-3", "--type", events.TYPE_OUTCOME): {"7": None},
    ("--jti", "tok-2", "--type", events.TYPE_OUTCOME): {"7": None},
    ("--jti", "tok-1", "--txn", "txn-3"): {},
    ("--jti", "nobody"): {},
    ("--approval", "apr_1"): {"8": None},
    ("--until", "2026-11-01T00:00:00Z"): {"6": "7"},
    ("--since", "2026-11-01T01:00:00+01:00", "--until", "2026-11-01T00:00:00.001Z"): {
        "2": "3", "4": "5", "8": None,
    },
    ("--since", "2h"): {"9": "10"},
    ("--since", "30s"): {},
    ("--since", "1d", "--until", "30s"): {"9": "10"},
    ("--jti", "tok-1", "--limit", "1"): {"4": "5"},
    ("--all",): {"2": "3", "4": "5", "6": "7", "8": None, "9": "10"},
    ("--all", "--jti", "tok-1"): {"2": "3", "4": "5"},
}  # fmt: skip


@pytest.mark.parametrize(("options", "found"), FOUND.items(), ids=map(" ".join, FOUND))
def test_what_is_found(audit, record, options, found):
    result = audit("tail", *record, "--json", *options)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert {
        line["event"]["sequence"]: line["outcome"] and line["outcome"]["sequence"] for line in lines
    } == found


def test_as_a_table(audit, record):
    rows = audit("tail", *record, "--jti", "tok-3").stdout.splitlines()
    assert [row.split()[0] for row in rows] == ["time", "23:59:59.999"]


@pytest.mark.parametrize("options", [("--all",), ("--since", "2026-10-01T00:00:00Z")])
def test_where_times_may_be_of_several_days_the_day_is_shown(audit, record, options):
    rows = audit("tail", *record, *options).stdout
    days = re.findall(r"^(2026-\d\d-\d\d) [0-9:.]{12} ", rows, re.MULTILINE)
    assert days[:3] == ["2026-11-01", "2026-11-01", "2026-10-31"]
    assert len(days) == 5


def test_that_there_are_more_is_said(audit, record):
    said = audit("tail", *record, "--jti", "tok-1", "--limit", "1", "--json").stderr
    assert said == "these are the last 1: --all shows every one\n"
    assert audit("tail", *record, "--jti", "tok-1", "--limit", "3").stderr == ""
    assert audit("tail", *record, "--limit", "1").stderr == ""


def token(**claims) -> str:
    parts = ({"alg": "ES256", "typ": "at+jwt"}, claims)
    return ".".join(b64url(json.dumps(part).encode()) for part in parts) + ".c2lnbmF0dXJl"


def test_by_the_token_itself(audit, record, tmp_path):
    file = tmp_path / "leaked.txt"
    file.write_text(token(jti="tok-3") + "\n")
    found = audit("tail", *record, "--json", "--token-from", file).stdout
    assert [json.loads(line)["event"]["sequence"] for line in found.splitlines()] == ["6"]
    arguments = ["audit", "tail", *map(str, record), "--json", "--token-from", "-"]
    assert CliRunner().invoke(main, arguments, input=token(jti="tok-3")).stdout == found


WRONG = {
    "no token": (b"hello", "not a token (JWT)"),
    "no text": (b"\xff\xfe", "not a token (JWT)"),
    "no id": (token(sub="a").encode(), "the token has no jti"),
    "an odd id": (token(jti=7).encode(), "the token has no jti"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_token(audit, record, tmp_path, content, message):
    file = tmp_path / "leaked.txt"
    file.write_bytes(content)
    result = audit("tail", *record, "--token-from", file)
    assert result.exit_code == 2
    assert message in result.stderr


USAGE = {
    ("--since", "yesterday"): "'yesterday' is neither a time as in 2026-11-29T20:00:00Z nor",
    ("--since", "2026-11-01T00:00:00"): "is neither a time",
    ("--since", "2h30"): "is neither a time",
    ("--since", "999999999999d"): "is neither a time",
    ("--until", ""): "is neither a time",
    ("--all", "--limit", "3"): "--all and --limit exclude each other",
    ("--follow", "--until", "1h"): "--follow goes with neither --spool nor --until",
    ("--jti", "a", "--token-from", "/dev/null"): "say the same",
}


@pytest.mark.parametrize(("options", "message"), USAGE.items(), ids=map(" ".join, USAGE))
def test_usage(audit, record, options, message):
    result = audit("tail", *record, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_spool_is_not_followed(audit, tmp_path):
    result = audit("tail", "--spool", tmp_path, "--follow")
    assert result.exit_code == 2
    assert "--follow goes with neither" in result.stderr


def test_what_a_sidecar_writes_of_several_credentials_is_found_by_each(audit, tmp_path):
    """Its own recorder and spool: what went out after the first one, and what a stream had last."""
    stand = Stand(tmp_path)
    stand.credential(jti="first", txn="txn-a")
    connection, target = stand.open(), stand.target()
    connection.data_received(b"GET /api/x HTTP/1.1\r\nHost: h\r\n\r\n")
    stand.turn.run()
    call = connection.call
    call.succession = Succession(call.permit.credential)
    call.succession.note(stand.cached(), 1)
    stand.credential(jti="second", txn="txn-b", approval="apr_9")
    call.succession.note(stand.cached(), 2)
    stand.credential(jti="last", txn="txn-c")
    call.watch = Watch(stand.cached(), 0.0)
    call.watch.checks = 3
    target.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    stand.events()
    stand.close()
    for name in (
        ("--jti", "first"), ("--jti", "second"), ("--jti", "last"),
        ("--txn", "txn-a"), ("--txn", "txn-b"), ("--approval", "apr_9"),
    ):  # fmt: skip
        found = audit("tail", "--spool", tmp_path / "spool", "--json", *name).stdout
        assert json.loads(found)["event"]["data"]["unmapped"]["jti"] == "first", name
        assert json.loads(found)["outcome"] is not None, name
    assert audit("tail", "--spool", tmp_path / "spool", "--json", "--jti", "fir").stdout == ""


def test_what_of_a_spool_was_delivered_is_not_there(audit, tmp_path, chain):
    write(tmp_path / "spool", chain, first=7)
    found = audit("tail", "--spool", tmp_path / "spool", "--jti", "tok-3", "--json")
    assert (found.exit_code, found.stdout) == (0, "")
    options = ("--jti", "tok-3", "--json", "--type", events.TYPE_OUTCOME)
    found = audit("tail", "--spool", tmp_path / "spool", *options)
    assert json.loads(found.stdout)["event"]["sequence"] == "7"


def test_what_of_a_spool_can_not_be_read_is_said(audit, tmp_path, chain):
    write(tmp_path / "spool", chain)
    path = sorted((tmp_path / "spool").iterdir())[1]
    content = bytearray(path.read_bytes())
    content[content.index(b"tok-1")] ^= 1
    path.write_bytes(content)
    result = audit("tail", "--spool", tmp_path / "spool", "--all")
    assert result.exit_code == 0
    assert result.stderr == "1 events can't be read: `valetkey audit verify` names them\n"


@pytest.fixture
def older(store, chain):
    """A copy that was kept from a version that had no such columns."""
    file = store(chain)
    engine = create_engine(f"sqlite:///{file}", poolclass=NullPool)
    with engine.begin() as connection:
        migrate(connection, "0001")
    return file


@pytest.mark.parametrize("option", [("--jti", "tok-1"), ("--since", "2h")])
def test_an_older_database_says_so(audit, older, option):
    result = audit("tail", "--db", older, *option)
    assert result.exit_code == 2
    assert f"is of an older version, which can't be asked by {option[0][2:]}" in result.stderr


def test_an_older_database_is_shown_and_verified_as_before(audit, older):
    assert len(audit("tail", "--db", older, "--json").stdout.splitlines()) == 5
    assert audit("verify", "--db", older).exit_code == 0
    with closing(sqlite3.connect(older)) as connection, connection:
        connection.execute("UPDATE events SET workload = 'another' WHERE seq = 2")
    result = audit("verify", "--db", older)
    assert result.exit_code == 1
    assert "event 2: the columns stored beside the event differ" in result.stdout


def test_hiding_what_a_token_did_does_not_hold(audit, store, chain):
    file = store(chain)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE events SET more = '' WHERE seq = 7")
    result = audit("verify", "--db", file)
    assert result.exit_code == 1
    assert "event 7: the columns stored beside the event differ" in result.stdout
