"""Upgrade games on the wire: nobody gets a tunnel by saying so, and nothing is smuggled by one.

The workload here is a raw socket and so is the target: what each is told is what is compared.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

import pytest

from tests.support.recording import OK, Recording, Wire
from tests.support.sidecar import Client, Sidecar, World, target, whole
from tests.support.waiting import until_sync
from valetkey.contracts.events import TYPE_DECISION, TYPE_OUTCOME
from valetkey.proxy.core.websocket import accept_key

pytest_plugins = ["tests.support.wire_fixtures"]

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 §1.3, with its answer
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
SOON = 15.0


@pytest.fixture(scope="module")
def sidecar(wire_world: World, session_upstream: Recording) -> Iterator[Sidecar]:
    url = session_upstream.url
    made = wire_world.sidecar(
        "upgrade",
        {"up": target(url), "plain": target(url, prefix="/plain")},
        routes=[
            {**whole("up"), "upgrade": ["websocket", "spdy/3.1"]},
            whole("plain"),
        ],
        listeners=[{"bind": "127.0.0.1:0", "target": "up"}, {"bind": "127.0.0.1:0"}],
        timeouts={"stall": "1s", "first_byte": "2s"},
    )
    yield made
    assert made.defects() == []
    made.stop()


def test_the_key_of_the_rfc() -> None:
    assert accept_key(KEY.encode()) == ACCEPT.encode()


def ask(*lines: str, start: str = "GET /a HTTP/1.1", without: str = "", body: str = "") -> bytes:
    """A good handshake, with these lines besides, and without those of that name."""
    usual = [
        "Host: h", "Connection: Upgrade", "Upgrade: websocket", f"Sec-WebSocket-Key: {KEY}",
        "Sec-WebSocket-Version: 13",
    ]  # fmt: skip
    kept = [line for line in usual if not without or not line.startswith(without)]
    return ("\r\n".join([start, *kept, *lines, "", ""]) + body).encode("latin-1")


def switching(
    *lines: str, without: str = "", start: str = "HTTP/1.1 101 Switching Protocols"
) -> bytes:
    usual = ["Connection: Upgrade", "Upgrade: websocket", f"Sec-WebSocket-Accept: {ACCEPT}"]
    kept = [line for line in usual if not without or not line.startswith(without)]
    return "\r\n".join([start, *kept, *lines, "", ""]).encode("latin-1")


# --- requests -------------------------------------------------------------------------------------

DENIED = "request.upgrade_denied"
INVALID = "request.upgrade_invalid"
LISTED = "request.connection_header"

REFUSED: list[tuple[str, bytes, str]] = [
    ("no key", ask(without="Sec-WebSocket-Key"), INVALID),
    ("two keys", ask(f"Sec-WebSocket-Key: {KEY}"), INVALID),
    ("a second key with _", ask(f"Sec_WebSocket_Key: {KEY}"), INVALID),
    ("key of 15 bytes", ask("Sec-WebSocket-Key: " + "A" * 20, without="Sec-WebSocket-Key"), INVALID),
    ("key of 17 bytes", ask("Sec-WebSocket-Key: " + "A" * 23 + "=", without="Sec-WebSocket-Key"), INVALID),
    ("key without padding", ask("Sec-WebSocket-Key: " + "A" * 22, without="Sec-WebSocket-Key"), INVALID),
    ("key in base64url", ask("Sec-WebSocket-Key: " + "-" * 22 + "==", without="Sec-WebSocket-Key"), INVALID),
    ("empty key", ask("Sec-WebSocket-Key:", without="Sec-WebSocket-Key"), INVALID),
    ("two keys in one field", ask(f"Sec-WebSocket-Key: {KEY}, {KEY}", without="Sec-WebSocket-Key"), INVALID),
    ("no version", ask(without="Sec-WebSocket-Version"), INVALID),
    ("version 777", ask("Sec-WebSocket-Version: 777", without="Sec-WebSocket-Version"), INVALID),
    ("version 8", ask("Sec-WebSocket-Version: 8", without="Sec-WebSocket-Version"), INVALID),
    ("two versions", ask("Sec-WebSocket-Version: 13"), INVALID),
    ("versions as a list", ask("Sec-WebSocket-Version: 13, 8", without="Sec-WebSocket-Version"), INVALID),
    ("POST", ask(start="POST /a HTTP/1.1"), INVALID),
    ("a length", ask("Content-Length: 5", body="hello"), INVALID),
    ("a chunked body", ask("Transfer-Encoding: chunked", body="0\r\n\r\n"), INVALID),
    ("an endless body", ask("Transfer-Encoding: chunked"), INVALID),
    ("subprotocol with a space", ask("Sec-WebSocket-Protocol: a b"), INVALID),
    ("empty subprotocol", ask("Sec-WebSocket-Protocol: a,,b"), INVALID),
    ("subprotocol twice", ask("Sec-WebSocket-Protocol: a", "Sec-WebSocket-Protocol: b, a"), INVALID),
    ("two protocols", ask("Upgrade: websocket, spdy/3.1", without="Upgrade"), DENIED),
    ("the same protocol twice", ask("Upgrade: websocket, websocket", without="Upgrade"), DENIED),
    ("two Upgrade fields", ask("Upgrade: spdy/3.1"), DENIED),
    ("two equal Upgrade fields", ask("Upgrade: websocket"), DENIED),
    ("h2c first", ask("Upgrade: h2c, websocket", without="Upgrade"), DENIED),
    ("h2c behind", ask("Upgrade: websocket, h2c", without="Upgrade"), DENIED),
    ("h2c in a field of its own", ask("Upgrade: h2c"), DENIED),
    ("h2c with a version", ask("Upgrade: h2c/2", without="Upgrade"), DENIED),
    ("TLS", ask("Upgrade: TLS/1.2", without="Upgrade"), DENIED),
    ("another version of a listed one", ask("Upgrade: spdy/3", without="Upgrade"), DENIED),
    ("a listed one with a version", ask("Upgrade: websocket/13", without="Upgrade"), DENIED),
    ("a comma behind", ask("Upgrade: websocket,", without="Upgrade"), DENIED),
    ("in quotes", ask('Upgrade: "websocket"', without="Upgrade"), DENIED),
    ("Connection names the key", ask("Connection: Sec-WebSocket-Key"), LISTED),
    ("Connection names the subprotocol", ask("Connection: Upgrade, sec_websocket_protocol", without="Connection"), LISTED),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "raw", "code"),
    REFUSED,
    ids=[case[0] for case in REFUSED],
)
def test_requests_that_are_refused(
    name: str, raw: bytes, code: str, sidecar: Sidecar, upstream: Recording
) -> None:
    for cuts in ((), range(1, len(raw), 7)):
        with sidecar.open() as client:
            client.slowly(raw, *cuts)
            answer = client.answer()
            assert (answer.code, answer.status) == (code, 403 if code == DENIED else 400), name
            # Who asks wrongly may go on in any protocol: nothing behind it is read.
            assert answer.closes == (code != DENIED)
    assert upstream.requests == []
    assert upstream.wires == []


def test_a_route_that_lists_nothing_allows_nothing(sidecar: Sidecar, upstream: Recording) -> None:
    raw = ask(start="GET /plain/a HTTP/1.1")
    assert sidecar.ask(raw, 1).code == DENIED
    assert upstream.requests == []


IGNORED: list[tuple[str, bytes]] = [
    ("no Connection option", ask(without="Connection")),
    ("HTTP/1.0", ask(start="GET /a HTTP/1.0")),
    ("HTTP/1.0 with a list", ask("Upgrade: h2c, x", start="GET /a HTTP/1.0")),
    ("h2c alone", ask("Upgrade: h2c", without="Upgrade")),
    ("H2C alone", ask("Upgrade: H2C", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA", without="Upgrade")),
    ("an empty Upgrade", ask("Upgrade:", without="Upgrade")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "raw"), IGNORED, ids=[case[0] for case in IGNORED])
def test_upgrades_that_are_ignored(
    name: str, raw: bytes, sidecar: Sidecar, upstream: Recording
) -> None:
    """RFC 9110 §7.8: the call is an ordinary one, and nothing of the handshake goes on."""
    assert sidecar.ask(raw).body == b"ok"
    [request] = upstream.requests
    for field in ("upgrade", "connection", "http2-settings", "sec-websocket-key",
                  "sec-websocket-version"):  # fmt: skip
        assert request.values(field) == [], name


def test_what_a_target_gets(sidecar: Sidecar, upstream: Recording) -> None:
    """The handshake is written anew; the credential is in it, and no other."""
    raw = ask(
        "Origin: https://app.example",
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
        "Sec-WebSocket-Extensions: x-other",
        "Sec-WebSocket-Protocol: v4.channel.k8s.io",
        "Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.dG9r, v5.channel.k8s.io",
        "Sec-WebSocket-Accept: forged",
        "Authorization: Bearer stolen",
        "Connection: Upgrade, Keep-Alive, X-Hop",
        "X-Hop: 1",
        without="Connection",
    )
    answer = switching("Sec-WebSocket-Protocol: v5.channel.k8s.io", "X-Own: 1")
    upstream.replies(answer, then="close")
    with sidecar.open() as client:
        client.send(raw)
        head = client.until(b"\r\n\r\n")
        client.rest()
    assert sorted(head.lower().split(b"\r\n")[1:-2]) == [
        b"connection: upgrade",
        b"sec-websocket-accept: " + ACCEPT.lower().encode(),
        b"sec-websocket-protocol: v5.channel.k8s.io",
        b"upgrade: websocket",
        b"via: 1.1 valetkey",
        b"x-own: 1",
    ]
    [request] = upstream.requests
    assert request.line == b"GET /a HTTP/1.1"
    assert sorted(field.lower() for field in request.fields) == sorted(
        [
            b"host: " + upstream.url.removeprefix("http://").encode(),
            b"via: 1.1 valetkey",
            b"origin: https://app.example",
            b"connection: upgrade",
            b"upgrade: websocket",
            b"sec-websocket-key: " + KEY.lower().encode(),
            b"sec-websocket-version: 13",
            b"sec-websocket-protocol: v4.channel.k8s.io, v5.channel.k8s.io",
            b"sec-websocket-extensions: permessage-deflate; client_max_window_bits, x-other",
            b"authorization: bearer",
        ]
    )
    decision = sidecar.events(TYPE_DECISION)[-1]["data"]
    assert decision["unmapped"]["protocol"] == "websocket"
    assert set(decision["unmapped"]["dropped"]) == {"authorization", "sec-websocket-protocol"}


# --- answers --------------------------------------------------------------------------------------

BAD_ANSWERS: list[tuple[str, bytes]] = [
    ("no accept", switching(without="Sec-WebSocket-Accept")),
    ("a wrong accept", switching("Sec-WebSocket-Accept: " + "A" * 27 + "=", without="Sec-WebSocket-Accept")),
    ("the key for the accept", switching(f"Sec-WebSocket-Accept: {KEY}", without="Sec-WebSocket-Accept")),
    ("accept in another case", switching(f"Sec-WebSocket-Accept: {ACCEPT.lower()}", without="Sec-WebSocket-Accept")),
    ("two accepts", switching(f"Sec-WebSocket-Accept: {ACCEPT}")),
    ("no Upgrade", switching(without="Upgrade")),
    ("no Connection", switching(without="Connection")),
    ("Connection without the option", switching("Connection: keep-alive", without="Connection")),
    ("another protocol", switching("Upgrade: spdy/3.1", without="Upgrade")),
    ("h2c", switching("Upgrade: h2c", without="Upgrade")),
    ("two protocols", switching("Upgrade: spdy/3.1")),
    ("a length", switching("Content-Length: 0")),
    ("a length with a body", switching("Content-Length: 5") + b"hello"),
    ("chunks", switching("Transfer-Encoding: chunked") + b"0\r\n\r\n"),
    ("HTTP/1.0", switching(start="HTTP/1.0 101 Switching Protocols")),
    ("a subprotocol that was not offered", switching("Sec-WebSocket-Protocol: other")),
    ("the credential that was not offered", switching("Sec-WebSocket-Protocol: bearer.x")),
    ("two subprotocols", switching("Sec-WebSocket-Protocol: mine", "Sec-WebSocket-Protocol: mine")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "raw"), BAD_ANSWERS, ids=[case[0] for case in BAD_ANSWERS])
def test_answers_that_make_no_tunnel(
    name: str, raw: bytes, sidecar: Sidecar, upstream: Recording
) -> None:
    ended = threading.Event()

    def answer(wire: Wire) -> None:
        wire.request()
        wire.send(raw)
        if wire.ended(SOON):
            ended.set()

    upstream.script(answer)
    with sidecar.open() as client:
        client.send(ask("Sec-WebSocket-Protocol: mine, bearer.x"))
        assert client.answer().code == "target.bad_response", name
        assert ended.wait(SOON)
        client.send(b"GET /b HTTP/1.1\r\nHost: h\r\n\r\n")  # and it is still HTTP
        assert client.answer().body == b"ok"
    assert [request.line for request in upstream.requests] == [b"GET /b HTTP/1.1"]


def test_a_switch_that_nobody_asked_for(sidecar: Sidecar, upstream: Recording) -> None:
    upstream.replies(switching())
    assert sidecar.ask(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n").code == "target.bad_response"
    upstream.replies(switching())
    raw = ask(without="Connection")  # ignored, and so not asked for
    assert sidecar.ask(raw).code == "target.bad_response"


ORDINARY: list[tuple[str, bytes, bytes]] = [
    ("200", OK, b"ok"),
    ("200 that looks like a switch", OK.replace(b"\r\n", b"\r\nConnection: upgrade\r\nUpgrade: websocket\r\n", 1), b"ok"),
    ("chunks", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", b"ok"),
    ("426", b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n", b""),
    ("403", b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", b"no"),
    ("behind an interim one", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, b"ok"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "raw", "body"), ORDINARY, ids=[case[0] for case in ORDINARY])
def test_any_other_answer_is_an_ordinary_one(
    name: str, raw: bytes, body: bytes, sidecar: Sidecar, upstream: Recording
) -> None:
    """What is pipelined behind is HTTP then, decided on by itself, over another connection."""
    ended = threading.Event()

    def answer(wire: Wire) -> None:
        wire.request()
        wire.send(raw)
        if wire.ended(SOON):
            ended.set()

    upstream.script(answer)
    with sidecar.open() as client:
        client.send(ask() + b"GET /b HTTP/1.1\r\nHost: h\r\n\r\n")
        if b" 103 " in raw:
            assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 103 ")
        got = client.answer()
        assert (got.body, got.closes, got.values("upgrade")) == (body, False, []), name
        assert client.answer().body == b"ok"
    assert ended.wait(SOON)
    [request] = upstream.requests
    assert request.line == b"GET /b HTTP/1.1"
    assert request.values("upgrade") == []


def test_a_refused_credential_is_renewed_for_a_handshake_too(
    sidecar: Sidecar, upstream: Recording
) -> None:
    upstream.replies(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
    upstream.replies(switching(), then="close")
    with sidecar.open() as client:
        client.send(ask())
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        client.rest()
    first, second = upstream.requests
    assert first.values("authorization") != second.values("authorization")
    assert first.values("sec-websocket-key") == second.values("sec-websocket-key") == [KEY]


# --- the tunnel -----------------------------------------------------------------------------------


class Ends:
    """Both ends of a tunnel: what the sidecar's client holds, and what its target holds."""

    def __init__(
        self, sidecar: Sidecar, upstream: Recording, raw: bytes = b"", answer: bytes = b""
    ) -> None:
        self.target: Wire
        ready, self._over = threading.Event(), threading.Event()

        def script(wire: Wire) -> None:
            wire.request()
            wire.send(answer or switching())
            self.target = wire
            ready.set()
            self._over.wait(30)

        upstream.script(script)
        self.workload: Client = sidecar.open()
        self.workload.send(raw or ask())
        assert ready.wait(SOON)
        assert self.workload.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        self.workload.close()
        self.target.close()


@pytest.fixture
def ends(sidecar: Sidecar, upstream: Recording) -> Iterator[Ends]:
    with Ends(sidecar, upstream) as made:
        yield made


def outcome(sidecar: Sidecar) -> dict[str, Any]:
    """Of the call that was decided on last, waiting for it."""
    call = sidecar.events(TYPE_DECISION)[-1]["id"]

    def ended() -> list[dict[str, Any]]:
        said = [event["data"]["unmapped"] for event in sidecar.events(TYPE_OUTCOME)]
        return [each for each in said if each["decision"] == call]

    (found,) = until_sync(ended, "the outcome", SOON)
    return found


def test_anything_goes_both_ways(sidecar: Sidecar, ends: Ends) -> None:
    pieces = (b"\x00\xff\r\n\r\nGET / HTTP/1.1\r\n\r\n", b"x" * 300_000)
    for data in pieces:
        ends.workload.send(data)
        assert ends.target.exactly(len(data)) == data
        ends.target.send(data)
        assert ends.workload.exactly(len(data)) == data
    ends.workload.close()
    assert ends.target.ended(SOON)
    ends.target.close()
    ended = outcome(sidecar)
    size = sum(map(len, pieces))
    assert (ended["outcome"], ended["sent"], ended["received"]) == ("completed", size, size)
    assert ended["stream"] == {"kind": "websocket", "rechecks": 0}


def test_no_credential_and_nothing_else_is_put_into_the_tunnel(ends: Ends) -> None:
    ends.workload.send(b"GET /b HTTP/1.1\r\nAuthorization: Bearer mine\r\n\r\n")
    assert (
        ends.target.until(b"\r\n\r\n") == b"GET /b HTTP/1.1\r\nAuthorization: Bearer mine\r\n\r\n"
    )


@pytest.mark.parametrize("size", [1, 100, 200_000])
def test_what_comes_before_the_switch_is_held_until_it(
    size: int, sidecar: Sidecar, upstream: Recording
) -> None:
    early = bytes(range(256)) * (size // 256 + 1)
    asked, go = threading.Event(), threading.Event()
    seen: list[bytes] = []

    def script(wire: Wire) -> None:
        wire.request()
        asked.set()
        go.wait(SOON)
        seen.append(wire._buffer)
        wire.sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            wire.peek()
        wire.sock.settimeout(SOON)
        wire.send(switching() + b"hello")
        assert wire.exactly(len(early)) == early
        wire.send(b"got it")

    upstream.script(script)
    with sidecar.open() as client:
        sender = threading.Thread(target=client.send, args=(ask() + early,), daemon=True)
        sender.start()
        assert asked.wait(SOON)
        go.set()
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        assert client.exactly(5) == b"hello"
        assert client.exactly(6) == b"got it"
        sender.join(SOON)
    assert seen == [b""]


def test_what_comes_with_the_answer_goes_on_behind_it(
    sidecar: Sidecar, upstream: Recording
) -> None:
    for cut in range(0, len(switching()) + 8, 9):
        raw = switching() + b"\x81\x05hello"

        def script(wire: Wire, raw: bytes = raw, cut: int = cut) -> None:
            wire.request()
            wire.send(raw[:cut])
            time.sleep(0.002)
            wire.send(raw[cut:])
            wire.ended(SOON)

        upstream.script(script)
        with sidecar.open() as client:
            client.send(ask())
            assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
            assert client.exactly(7) == b"\x81\x05hello"


def test_a_protocol_without_a_handshake_of_its_own(sidecar: Sidecar, upstream: Recording) -> None:
    raw = b"POST /exec HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"
    answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"
    with Ends(sidecar, upstream, raw, answer) as ends:
        ends.workload.send(b"\x80\x03")
        assert ends.target.exactly(2) == b"\x80\x03"
    assert outcome(sidecar)["stream"]["kind"] == "spdy/3.1"


@pytest.mark.parametrize("first", ["workload", "target"])
def test_one_direction_may_end_before_the_other(first: str, sidecar: Sidecar, ends: Ends) -> None:
    one, other = ends.workload, ends.target
    if first == "target":
        one, other = other, one  # type: ignore[assignment]
    one.send(b"last words")
    one.half_close()
    assert other.rest() == b"last words"
    other.send(b"answer" * 10_000)
    assert one.exactly(60_000) == b"answer" * 10_000
    other.half_close()
    assert one.ended(SOON)
    assert outcome(sidecar)["outcome"] == "completed"


def test_a_workload_that_had_ended_before_the_switch(sidecar: Sidecar, upstream: Recording) -> None:
    def script(wire: Wire) -> None:
        wire.request()
        time.sleep(0.05)
        wire.send(switching())
        assert wire.rest() == b"early"
        wire.send(b"answer")
        wire.close()

    over = upstream.script(script)
    with sidecar.open() as client:
        client.send(ask() + b"early")
        client.half_close()
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        assert client.rest() == b"answer"
    assert over.wait(SOON)
    assert upstream.failures == []


@pytest.mark.parametrize(
    ("who", "how", "ended"),
    [
        ("workload", "reset", ("client_closed", "")),
        ("target", "reset", ("cut", "target.closed")),
    ],
)
def test_a_side_that_is_lost_takes_the_other_with_it(
    who: str, how: str, ended: tuple[str, str], sidecar: Sidecar, ends: Ends
) -> None:
    lost, other = ends.workload, ends.target
    if who == "target":
        lost, other = other, lost  # type: ignore[assignment]
    lost.send(b"x")
    assert other.exactly(1) == b"x"
    lost.reset()
    with pytest.raises(ConnectionResetError):
        other.rest()
    found = outcome(sidecar)
    assert (found["outcome"], found.get("code", "")) == ended


@pytest.mark.parametrize("deaf", ["workload", "target"])
def test_a_side_that_does_not_read_stops_the_other_and_is_cut_off(
    deaf: str, sidecar: Sidecar, ends: Ends
) -> None:
    sender, reader = ends.target, ends.workload
    if deaf == "target":
        sender, reader = reader, sender  # type: ignore[assignment]
    sender.sock.settimeout(0.5)
    taken = 0
    with contextlib.suppress(TimeoutError):
        while taken < 200 << 20:
            taken += sender.sock.send(b"x" * 65536)
    assert taken < 32 << 20  # the kernel's buffers on both sides, and little here
    ended = outcome(sidecar)
    code = "request.timeout" if deaf == "workload" else "target.timeout"
    assert (ended["outcome"], ended["code"]) == ("cut", code)


def test_a_side_that_never_ends_has_a_shorter_time_once_the_other_has(
    sidecar: Sidecar, ends: Ends
) -> None:
    """Without a byte: `stall` in place of `stream`, which is an hour here."""
    ends.workload.half_close()
    ends.workload.sock.settimeout(SOON)
    with pytest.raises(ConnectionResetError):
        ends.workload.rest()
    assert outcome(sidecar)["code"] == "stream.idle"


def test_a_slow_reader_gets_it_all(sidecar: Sidecar, ends: Ends) -> None:
    data = bytes(range(256)) * (16 << 12)  # 16 MiB
    sender = threading.Thread(target=ends.target.send, args=(data,), daemon=True)
    sender.start()
    time.sleep(0.3)  # everything on the way is full
    assert ends.workload.exactly(len(data)) == data
    sender.join(SOON)
    ends.workload.send(b"still there")
    assert ends.target.exactly(11) == b"still there"


def test_nothing_of_a_tunnel_goes_back_to_the_pool(sidecar: Sidecar, upstream: Recording) -> None:
    with Ends(sidecar, upstream):
        assert sidecar.ask(b"GET /b HTTP/1.1\r\nHost: h\r\n\r\n").body == b"ok"
        assert len(upstream.wires) == 2
    deadline = time.monotonic() + SOON
    while 'valetkey_streams{kind="websocket"} 0.0' not in sidecar.metrics():
        assert time.monotonic() < deadline
