"""Bytes in, and what comes of them: a refusal with its code, or exact bytes at the upstream.

Each row of `tests.support.wire_cases` goes over real sockets into a real sidecar: whole, byte by
byte, and cut in two at every position. However the bytes arrive, the outcomes are the same, the
upstream gets the same bytes, and nothing comes behind the last outcome.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import trustme

from tests.support.recording import TIMEOUT, Recording, Request
from tests.support.sidecar import LOOPBACK, Answer, Client, Sidecar, World, target, whole
from tests.support.wire_cases import (
    CASES,
    MAX_FIELDS,
    MAX_HEAD,
    OPENED,
    PASSED,
    Case,
    Sent,
)
from valetkey.contracts import codes, events

pytest_plugins = ["tests.support.wire_fixtures"]

STATUS = {code.name: code.status for code in codes.all_codes()}
AT_ONCE = 128
"""How many connections a row has open at a time."""
ALONE = 0.003
"""Seconds that the first part of a row has for itself: the sidecar needs far less."""
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
LISTENERS = {"reverse": 0, "shared": 1, "forward": 2, "tunnel": 2, "plain": 2}


@dataclass
class Table:
    """The sidecar with a listener for each way in, and the upstreams behind it."""

    sidecar: Sidecar
    plain: Recording
    secure: Recording
    trust: ssl.SSLContext

    def raw(self, case: Case) -> bytes:
        return case.at(self.plain.port, self.secure.port)

    def upstream(self, case: Case) -> Recording:
        return self.secure if case.entry == "tunnel" else self.plain

    def open(self, case: Case) -> Client:
        sock = socket.socket()
        sock.settimeout(TIMEOUT)
        sock.connect(("127.0.0.1", self.sidecar.ports[LISTENERS[case.entry]]))
        client = Client(sock)
        if case.entry in {"tunnel", "plain"}:
            where = f"localhost:{self.secure.port}"
            if case.entry == "plain":
                where = f"127.0.0.1:{self.plain.port}"
            client.send(f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n\r\n".encode())
            assert client.until(b"\r\n\r\n") == ESTABLISHED
        if case.entry == "tunnel":
            client.sock = self.trust.wrap_socket(sock, server_hostname="localhost")
        return client


@pytest.fixture(scope="module")
def table(
    wire_world: World, session_upstream: Recording, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Table]:
    directory = tmp_path_factory.mktemp("table")
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(directory / "upstream.pem"))
    everywhere = [*LOOPBACK, "::1/128"]
    with Recording(context=context) as secure:
        made = wire_world.sidecar(
            "table",
            {
                "up": target(
                    session_upstream.url, prefix="/up", hosts=["up.example"], pass_headers=PASSED
                ),
                "named": target(
                    f"http://localhost:{session_upstream.port}", allow_networks=everywhere
                ),
                "secure": target(
                    f"https://localhost:{secure.port}",
                    ca_file=str(directory / "upstream.pem"),
                    allow_networks=everywhere,
                ),
            },
            routes=[
                *map(whole, ("up", "named", "secure")),
                whole("up", id="strict", match={"methods": ["GET"], "path": "/strict/{x}"}),
            ],
            listeners=[
                {"bind": "127.0.0.1:0", "target": "up"},
                {"bind": "127.0.0.1:0"},
                {"bind": "127.0.0.1:0", "mode": "forward"},
            ],
            interception={"certificate_file": str(directory / "trust.pem")},
            limits={"head_size": f"{MAX_HEAD}B", "headers": MAX_FIELDS},
        )
        trust = ssl.create_default_context(cafile=str(directory / "trust.pem"))
        yield Table(made, session_upstream, secure, trust)
        assert made.defects() == []
        made.stop()


@pytest.fixture(autouse=True)
def _nothing_left(table: Table) -> Iterator[None]:
    for upstream in (table.plain, table.secure):
        upstream.forget()
        upstream.clear()
    yield
    for upstream in (table.plain, table.secure):
        upstream.clear()


def finish(client: Client, case: Case) -> list[str]:
    """What each answer said: a code, or nothing where it is the upstream's. No more may come."""
    said: list[str] = []
    closes = False
    with client:
        for outcome in case.then:
            if outcome == OPENED:
                assert client.until(b"\r\n\r\n") == ESTABLISHED
                return [*said, OPENED]
            answer = client.answer()
            check_answer(answer)
            said.append(answer.code)
            closes = answer.closes
        if not closes or case.entry == "tunnel":
            end(client)
        # A refusal may cross bytes that the sidecar then throws away: its end is then a reset.
        with contextlib.suppress(ConnectionResetError):
            assert client.rest() == b"", "an answer that no request was for"
    return said


def end(client: Client) -> None:
    """Say that nothing more will come."""
    if isinstance(client.sock, ssl.SSLSocket):
        try:
            client.sock = client.sock.unwrap()
        except ssl.SSLError as error:
            if error.reason == "APPLICATION_DATA_AFTER_CLOSE_NOTIFY":
                raise  # an answer that no request was for
        except OSError:
            pass  # it had closed already
    else:
        client.half_close()


def check_answer(answer: Answer) -> None:
    assert b"stolen" not in answer.head + answer.wire
    if answer.code:
        assert answer.status == STATUS[answer.code]
    else:
        assert (answer.status, answer.body) == (200, b"ok")


def play(table: Table, case: Case, cuts: list[list[int]]) -> list[list[str]]:
    """Send a case once for each list of cuts, many connections side by side."""
    raw = table.raw(case)
    said: list[list[str]] = []
    for at in range(0, len(cuts), AT_ONCE):
        batch = cuts[at : at + AT_ONCE]
        clients = [table.open(case) for _ in batch]
        for part in range(max(map(len, batch)) + 1):
            for client, places in zip(clients, batch, strict=True):
                if part <= len(places):
                    begin, end = [0, *places, len(raw)][part : part + 2]
                    with contextlib.suppress(ConnectionError):  # refused before all of it was sent
                        client.send(raw[begin:end])
            if part == 0 and len(batch[0]) == 1:
                time.sleep(ALONE)
        said += [finish(client, case) for client in clients]
    return said


def seen(request: Request, upstream: Recording) -> Sent:
    """A request as the upstream got it, without what the sidecar adds to each."""
    fields = [field.decode("latin-1") for field in request.fields]
    host, via, *rest, credential = fields
    assert host in {f"host: 127.0.0.1:{upstream.port}", f"host: localhost:{upstream.port}"}
    assert (via, credential) == ("via: 1.1 valetkey", "authorization: Bearer")
    assert b"stolen" not in request.head
    framing: tuple[str, ...] = ()
    if rest and rest[-1].startswith(("content-length: ", "transfer-encoding: ")):
        framing = (rest.pop(),)
    return Sent(request.line.decode(), tuple(rest), framing, request.body)


def same(sent: Sent) -> tuple[object, ...]:
    """What must not hang on how the bytes arrived: how a payload is cut into chunks may."""
    return sent.line, sent.fields, sent.framing, sent.payload


def how(case: Case) -> list[list[list[int]]]:
    """Whole, byte by byte, and in two at every position."""
    places = range(1, len(case.raw))
    return [[[]], [list(places)], [[place] for place in places]]


def test_what_is_on_record_is_what_the_upstreams_got(table: Table) -> None:
    """The sidecar's reading and the upstream's: methods and paths, call by call.

    It stands before those that leave so much on record that it takes seconds to read.
    """
    before = len(table.sidecar.events(events.TYPE_DECISION))
    for case in CASES:
        play(table, case, [[]])
    decided = Counter(
        (data["api"]["operation"], data["http_request"]["url"]["path"])
        for event in table.sidecar.events(events.TYPE_DECISION)[before:]
        for data in [event["data"]]
        if data["action_id"] == events.OCSF_ACTION_ALLOWED
    )
    arrived: Counter[tuple[str, str]] = Counter()
    for upstream in (table.plain, table.secure):
        for request in upstream.requests:
            method, requested, _ = request.line.decode().split(" ")
            arrived[method, requested.partition("?")[0]] += 1
    wanted = sum(isinstance(outcome, Sent) for case in CASES for outcome in case.then)
    assert arrived.total() == wanted
    # Permitted, but never whole: the upstream read no request of it.
    incomplete = sum(not case.then for case in CASES)
    assert decided == arrived + Counter({("POST", "/a"): incomplete})


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_the_outcome_is_the_same_however_the_bytes_arrive(case: Case, table: Table) -> None:
    upstream = table.upstream(case)
    expected = [outcome for outcome in case.then if isinstance(outcome, Sent)]
    said = [outcome if isinstance(outcome, str) else "" for outcome in case.then]
    for cuts in how(case):
        assert play(table, case, cuts) == [said] * len(cuts)
        arrived = [seen(request, upstream) for request in upstream.requests]
        upstream.requests.clear()
        assert Counter(map(same, arrived)) == Counter(
            {same(sent): len(cuts) * count for sent, count in Counter(expected).items()}
        )
        if cuts == [[]]:
            assert arrived == expected  # to the byte
    others = {id(table.plain): table.plain, id(table.secure): table.secure}
    del others[id(upstream)]
    assert all(not other.wires for other in others.values())


def test_the_table_is_large_and_says_each_thing_once() -> None:
    assert len(CASES) >= 250
    assert len({case.id for case in CASES}) == len(CASES)
    assert len({(case.entry, case.raw) for case in CASES}) == len(CASES)
    assert all(case.why for case in CASES)
    said = {outcome for case in CASES for outcome in case.then if isinstance(outcome, str)}
    assert said - {OPENED} <= {code.name for code in codes.all_codes()}
