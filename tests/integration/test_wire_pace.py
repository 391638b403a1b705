"""Bodies that trickle: cut off after a while. Bodies that are slow, but move: not."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from tests.support.recording import OK, Ended, Recording, Wire
from tests.support.sidecar import Client, Sidecar, World, target, whole
from valetkey.contracts.events import TYPE_OUTCOME

pytest_plugins = ["tests.support.wire_fixtures"]

# The sweep looks at deadlines four times a second. A machine that is busy may keep a test from its
# turn for a good part of a second: what moves does so ten times before it would count as stalled.
STALL, SOON = 1.0, 12.0
KIB = 1 << 10


@pytest.fixture(scope="module")
def thimble() -> Iterator[Recording]:
    """An upstream that takes in little at a time, so that what it reads is seen soon."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * KIB)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    with Recording(listener=listener) as recording:
        yield recording


@pytest.fixture(scope="module")
def sidecar(
    wire_world: World, session_upstream: Recording, thimble: Recording
) -> Iterator[Sidecar]:
    url = session_upstream.url
    made = wire_world.sidecar(
        "pace",
        {
            "usual": target(url, prefix="/usual"),
            "any": target(url, prefix="/any"),
            "fast": target(url, prefix="/fast"),
            "thimble": target(thimble.url, prefix="/thimble"),
        },
        routes=[
            whole("thimble"),
            whole("usual"),
            whole("any", limits={"body_rate": "0B"}),
            whole("fast", limits={"body_rate": "1MiB"}),
        ],
        listeners=[
            {"bind": "127.0.0.1:0"},
            {"bind": f"unix:{wire_world.directory}/pace.sock"},
        ],
        limits={"body_rate": "1KiB"},
        timeouts={"stall": f"{STALL}s", "idle": "1s", "first_byte": "3s"},
    )
    yield made
    assert made.defects() == []
    made.stop()


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: h", *lines, "", ""]).encode()


def hits(sidecar: Sidecar, limit: str) -> float:
    return sidecar.metric(f'valetkey_limit_hits_total{{limit="{limit}"}}')


def trickle(send: Callable[[bytes], None], over: Callable[[], bool], piece: bytes = b"x") -> float:
    """A piece each tenth of a second, until it is over or for too long. How long it took."""
    begun = time.monotonic()
    while time.monotonic() - begun < SOON and not over():
        try:
            send(piece)
        except OSError:
            break
        time.sleep(0.1)
    return time.monotonic() - begun


def answered(client: Client) -> Callable[[], bool]:
    """Whether an answer is there."""

    def there() -> bool:
        client.sock.settimeout(0.001)
        try:
            return bool(client.peek())
        except TimeoutError:
            return False
        finally:
            client.sock.settimeout(SOON)

    return there


# --- request bodies -------------------------------------------------------------------------------

FRAMINGS = [
    ("sized", "Content-Length: 1000000", b"x"),
    ("chunked", "Transfer-Encoding: chunked", b"1\r\nx\r\n"),
]


@pytest.mark.parametrize(("name", "line", "piece"), FRAMINGS, ids=["sized", "chunked"])
def test_a_request_body_that_trickles_is_refused(
    name: str, line: str, piece: bytes, sidecar: Sidecar, upstream: Recording
) -> None:
    before = hits(sidecar, "limits.body_rate")
    upstream.script(lambda wire: (wire.until(b"\r\n\r\n"), wire.ended(SOON)))
    with sidecar.open() as client:
        client.send(head("/usual/a", line))
        assert trickle(client.send, answered(client), piece) < SOON
        answer = client.answer()
        assert (answer.code, answer.status, answer.closes) == ("request.timeout", 408, True)
    assert hits(sidecar, "limits.body_rate") == before + 1


def test_one_that_stalls_is_told_apart(sidecar: Sidecar, upstream: Recording) -> None:
    before = hits(sidecar, "timeouts.stall")
    upstream.script(lambda wire: (wire.until(b"\r\n\r\n"), wire.ended(SOON)))
    with sidecar.open() as client:
        client.send(head("/usual/a", "Content-Length: 10") + b"hello")
        assert client.answer().code == "request.timeout"
    assert hits(sidecar, "timeouts.stall") == before + 1


@pytest.mark.parametrize(
    ("path", "piece"), [("/usual/a", b"x" * 300), ("/any/a", b"x")], ids=["fast enough", "no rate"]
)
def test_a_request_body_that_is_slow_goes_through(
    path: str, piece: bytes, sidecar: Sidecar, upstream: Recording
) -> None:
    pieces = 15
    with sidecar.open() as client:
        client.send(head(path, f"Content-Length: {pieces * len(piece)}"))
        for _ in range(pieces):
            time.sleep(0.1)
            client.send(piece)
        assert client.answer().body == b"ok"
    assert upstream.requests[-1].body == piece * pieces


def test_a_pause_is_made_good_by_what_comes_after_it(sidecar: Sidecar, upstream: Recording) -> None:
    """No longer than ``stall``, and then a lot at once: as uploads from a slow source are."""
    with sidecar.open() as client:
        client.send(head("/usual/a", "Content-Length: 4096"))
        for _ in range(4):
            time.sleep(STALL * 0.5)
            client.send(b"x" * 1024)
        assert client.answer().body == b"ok"


def test_once_the_answer_has_begun_a_request_body_takes_its_time(
    sidecar: Sidecar, upstream: Recording
) -> None:
    def talk(wire: Wire) -> None:
        wire.until(b"\r\n\r\n")
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
        wire.body(b"\r\ntransfer-encoding: chunked\r\n")
        wire.send(b"0\r\n\r\n")
        wire.close()

    upstream.script(talk)
    with sidecar.open() as client:
        client.send(head("/usual/a", "Transfer-Encoding: chunked"))
        client.until(b"ok\r\n")
        for _ in range(15):
            time.sleep(0.1)
            client.send(b"1\r\nx\r\n")
        client.send(b"0\r\n\r\n")
        assert client.until(b"0\r\n\r\n")


# --- answers --------------------------------------------------------------------------------------


def answering(upstream: Recording, framing: bytes, piece: bytes, times: int) -> threading.Event:
    def run(wire: Wire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
        numbers = count()
        trickle(wire.send, lambda: next(numbers) >= times, piece)
        wire.close()

    return upstream.script(run)


def test_an_answer_of_known_length_that_trickles_is_cut(
    sidecar: Sidecar, upstream: Recording
) -> None:
    before = hits(sidecar, "limits.body_rate")
    over = answering(upstream, b"Content-Length: 1000", b"x", 100)
    with sidecar.open() as client:
        client.send(head("/usual/a", method="GET"))
        assert client.broken()
    assert over.wait(SOON)
    assert hits(sidecar, "limits.body_rate") == before + 1
    assert sidecar.events(TYPE_OUTCOME)[-1]["data"]["unmapped"]["code"] == "target.timeout"


SLOW_ANSWERS = [
    ("fast enough", "/usual/a", b"Content-Length: 4500", b"x" * 300),
    ("no rate", "/any/a", b"Content-Length: 15", b"x"),
    ("chunks: it may be a stream", "/usual/a", b"Transfer-Encoding: chunked", b"1\r\nx\r\n"),
]


@pytest.mark.parametrize(
    ("name", "path", "framing", "piece"), SLOW_ANSWERS, ids=[case[0] for case in SLOW_ANSWERS]
)
def test_an_answer_that_is_slow_goes_through(
    name: str, path: str, framing: bytes, piece: bytes, sidecar: Sidecar, upstream: Recording
) -> None:
    answering(upstream, framing, piece, 15)
    with sidecar.open() as client:
        client.send(head(path, method="GET"))
        client.until(b"\r\n\r\n")
        assert client.exactly(15 * len(piece)) == piece * 15


# --- readers --------------------------------------------------------------------------------------


def small(sidecar: Sidecar, kind: str, directory: Any) -> Client:
    """A connection that takes in little at a time, so that what is read is seen soon."""
    if kind == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(f"{directory}/pace.sock")
        client = Client(sock)
    else:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * KIB)
        sock.connect(("127.0.0.1", sidecar.port))
        client = Client(sock)
    sidecar._clients.append(client)
    return client


def sip(sock: socket.socket, seconds: float) -> int:
    """Read about 80 KiB a second, for so long. How much came; an end raises."""
    begun, got = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        data = sock.recv(4 * KIB)
        if not data:
            raise Ended
        got += len(data)
        time.sleep(0.05)
    return got


def endless(wire: Wire) -> None:
    """An answer that does not end by itself."""
    wire.request()
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
    try:
        while True:
            wire.send(b"x" * 64 * KIB)
    except OSError:
        return


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_reader_that_is_slow_is_not_cut_off(
    kind: str, sidecar: Sidecar, upstream: Recording, wire_world: World
) -> None:
    """The transport sees it take nothing for far longer than ``stall``; the kernel knows better."""
    over = upstream.script(endless)
    with small(sidecar, kind, wire_world.directory) as client:
        client.send(head("/usual/a", method="GET"))
        assert sip(client.sock, STALL * 2.5) > 100 * KIB
    assert over.wait(SOON)


def test_a_reader_that_reads_next_to_nothing_is_cut_off(
    sidecar: Sidecar, upstream: Recording, wire_world: World
) -> None:
    """Slower than this route's rate: what it takes does not buy it the time that it needs."""
    over = upstream.script(endless)
    with small(sidecar, "tcp", wire_world.directory) as client:
        client.send(head("/fast/a", method="GET"))
        with pytest.raises((Ended, ConnectionResetError)):
            sip(client.sock, SOON * 2)
    assert over.wait(SOON)


def test_the_end_of_an_answer_is_not_taken_from_a_slow_reader(
    sidecar: Sidecar, upstream: Recording, wire_world: World
) -> None:
    """The call is over and its connection idle: for longer than ``idle``, since it is not read."""
    size = 200 * KIB
    upstream.replies(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
    with small(sidecar, "tcp", wire_world.directory) as client:
        client.send(head("/usual/a", method="GET"))
        time.sleep(0.1)
        got = sip(client.sock, 2.5)
        while got < size:
            got += len(client.sock.recv(64 * KIB))
        assert client.ended(SOON)  # and now it is idle


def test_one_that_does_not_read_the_end_of_an_answer_is_let_go(
    sidecar: Sidecar, upstream: Recording, wire_world: World
) -> None:
    size = 400 * KIB
    upstream.replies(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
    with small(sidecar, "tcp", wire_world.directory) as client:
        client.send(head("/usual/a", method="GET"))
        upstream.wait_for(lambda: sidecar.metric("valetkey_connections") == 0, timeout=SOON)
        with pytest.raises((Ended, ConnectionResetError, AssertionError)):
            assert len(client.rest()) >= size


# --- targets that read slowly ---------------------------------------------------------------------


def test_a_target_that_reads_slowly_is_waited_for(sidecar: Sidecar, thimble: Recording) -> None:
    """Also for what the sidecar has taken in already, whose end is not the time for an answer."""
    size = 600 * KIB

    def slowly(wire: Wire) -> None:
        wire.until(b"\r\n\r\n")
        got = len(wire._buffer) + sip(wire.sock, STALL * 2.5)
        wire._buffer = b""
        while got < size:
            got += len(wire.sock.recv(64 * KIB))
        wire.send(OK)

    thimble.script(slowly)
    with sidecar.open() as client:
        client.send(head("/thimble/a", f"Content-Length: {size}") + b"x" * size)
        assert client.answer().body == b"ok"


def test_an_answer_that_never_begins_is_counted(sidecar: Sidecar, upstream: Recording) -> None:
    before = hits(sidecar, "timeouts.first_byte")
    upstream.script(lambda wire: (wire.request(), wire.ended(SOON * 2)))
    assert sidecar.ask(head("/usual/a", method="GET")).code == "target.timeout"
    assert hits(sidecar, "timeouts.first_byte") == before + 1
