"""Bytes in, and what comes of them: a refusal with its code, or exact bytes at the upstream.

Each row of `tests.support.wire_cases` goes over real sockets into a real sidecar: whole, byte by
byte, and cut in two at every position. However the bytes arrive, the outcomes are the same, the
upstream gets the same bytes, and nothing comes behind the last outcome.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.recording import TIMEOUT, Recording, Request
from tests.support.sidecar import Answer, Client, Sidecar, World, target, whole
from tests.support.wire_cases import CASES, MAX_FIELDS, MAX_HEAD, PASSED, Case, Sent
from valetkey.contracts import codes, events
from valetkey.proxy.audit.reader import read_spool

pytest_plugins = ["tests.support.wire_fixtures"]

STATUS = {code.name: code.status for code in codes.all_codes()}
AT_ONCE = 128
"""How many connections a row has open at a time."""
ALONE = 0.003
"""Seconds that the first part of a row has for itself: the sidecar needs far less."""


@dataclass
class Table:
    """The sidecar, with a listener for each way in."""

    sidecar: Sidecar
    spool: Path
    ports: dict[str, int]

    def open(self, entry: str) -> Client:
        sock = socket.socket()
        sock.settimeout(TIMEOUT)
        sock.connect(("127.0.0.1", self.ports[entry]))
        return Client(sock)


@pytest.fixture(scope="module")
def table(wire_world: World, session_upstream: Recording) -> Iterator[Table]:
    made = wire_world.sidecar(
        "table",
        {"up": target(session_upstream.url, prefix="/up", hosts=["up.example"], pass_headers=PASSED)},
        routes=[whole("up"), whole("up", id="strict", match={"methods": ["GET"], "path": "/strict/{x}"})],
        listeners=[{"bind": "127.0.0.1:0", "target": "up"}, {"bind": "127.0.0.1:0"}],
        limits={"head_size": f"{MAX_HEAD}B", "headers": MAX_FIELDS},
    )  # fmt: skip
    ports = [
        line["port"]
        for line in made.program.log()
        if line.get("event") == "listening" and line.get("listener") == "reverse"
    ]
    entries = dict(zip(("reverse", "shared"), ports, strict=True))
    yield Table(made, wire_world.directory / "table" / "spool", entries)
    assert made.defects() == []
    made.stop()


def finish(client: Client, case: Case) -> list[str]:
    """The decision codes of the answers, empty for the upstream's; then nothing more may come."""
    said: list[str] = []
    closes = False
    with client:
        for outcome in case.then:
            head_only = isinstance(outcome, Sent) and outcome.line.startswith("HEAD ")
            answer = client.answer(head_only=head_only)
            check_answer(answer)
            said.append(answer.code)
            closes = answer.closes
        if not closes:
            client.half_close()
        # A refusal may cross bytes that the sidecar then throws away: its end is then a reset.
        with contextlib.suppress(ConnectionResetError):
            assert client.rest() == b"", "an answer that no request was for"
    return said


def check_answer(answer: Answer) -> None:
    assert b"stolen" not in answer.head + answer.wire
    if answer.code:
        assert answer.status == STATUS[answer.code]
    else:
        assert (answer.status, answer.body) == (200, b"ok")


def play(table: Table, case: Case, cuts: list[list[int]]) -> list[list[str]]:
    """Send a case once for each list of cuts, many connections side by side."""
    said: list[list[str]] = []
    for at in range(0, len(cuts), AT_ONCE):
        batch = cuts[at : at + AT_ONCE]
        clients = [table.open(case.entry) for _ in batch]
        for part in range(max(map(len, batch)) + 1):
            for client, places in zip(clients, batch, strict=True):
                if part <= len(places):
                    begin, end = [0, *places, len(case.raw)][part : part + 2]
                    with contextlib.suppress(ConnectionError):  # refused before all of it was sent
                        client.send(case.raw[begin:end])
            if part == 0 and len(batch[0]) == 1:
                time.sleep(ALONE)
        said += [finish(client, case) for client in clients]
    return said


def seen(request: Request, port: int) -> Sent:
    """A request as the upstream got it, without what the sidecar adds to each."""
    fields = [field.decode("latin-1") for field in request.fields]
    assert fields[:2] == [f"host: 127.0.0.1:{port}", "via: 1.1 valetkey"]
    assert fields[-1] == "authorization: Bearer"
    assert b"stolen" not in request.head
    framed = fields[-2].startswith(("content-length: ", "transfer-encoding: "))
    end = -2 if framed else -1
    return Sent(
        request.line.decode(), tuple(fields[2:end]), tuple(fields[end:-1]), request.body
    )  # fmt: skip


def same(sent: Sent) -> tuple[object, ...]:
    """What must not hang on how the bytes arrived: how a payload is cut into chunks may."""
    return sent.line, sent.fields, sent.framing, sent.payload


def how(case: Case) -> list[list[list[int]]]:
    """Whole, byte by byte, and in two at every position."""
    places = range(1, len(case.raw))
    return [[[]], [list(places)], [[place] for place in places]]


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_the_outcome_is_the_same_however_the_bytes_arrive(
    case: Case, table: Table, upstream: Recording
) -> None:
    expected = [outcome for outcome in case.then if isinstance(outcome, Sent)]
    for cuts in how(case):
        codes_said = play(table, case, cuts)
        said = [outcome if isinstance(outcome, str) else "" for outcome in case.then]
        assert codes_said == [said] * len(cuts)
        arrived = [seen(request, upstream.port) for request in upstream.requests]
        upstream.requests.clear()
        assert Counter(map(same, arrived)) == Counter(
            {same(sent): len(cuts) * count for sent, count in Counter(expected).items()}
        )
        if cuts == [[]]:
            assert arrived == expected  # to the byte


def test_what_is_on_record_is_what_the_upstream_got(table: Table, upstream: Recording) -> None:
    """The sidecar's reading and the upstream's: methods and paths, call by call."""
    before = len(list(read_spool(table.spool)))
    for case in CASES:
        play(table, case, [[]])
    decisions = [
        data
        for record in list(read_spool(table.spool))[before:]
        if (event := json.loads(record.raw))["type"] == events.TYPE_DECISION
        for data in [event["data"]]
        if data["action_id"] == events.OCSF_ACTION_ALLOWED
    ]
    decided = [
        (data["http_request"]["http_method"], data["http_request"]["url"]["path"])
        for data in decisions
        if data["api"]["service"]["name"] == "up"
    ]
    arrived = []
    for request in upstream.requests:
        method, requested, _ = request.line.decode().split(" ")
        arrived.append((method, requested.partition("?")[0]))
    incomplete = [case for case in CASES if not case.then]
    assert len(arrived) == sum(isinstance(outcome, Sent) for case in CASES for outcome in case.then)
    # Permitted, but never whole: the upstream read no request of it.
    assert Counter(decided) == Counter(arrived) + Counter(
        {("POST", "/a"): len(decided) - len(arrived)}
    )
    assert len(decided) - len(arrived) == len(incomplete)


def test_the_table_is_large_and_says_each_thing_once() -> None:
    assert len(CASES) >= 250
    assert len({case.id for case in CASES}) == len(CASES)
    assert len({(case.entry, case.raw) for case in CASES}) == len(CASES)
    assert all(case.why for case in CASES)
    known = {code.name for code in codes.all_codes()}
    assert {outcome for case in CASES for outcome in case.then if isinstance(outcome, str)} <= known
