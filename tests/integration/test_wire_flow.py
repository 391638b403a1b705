"""Back-pressure and large bodies: whoever does not read stops the sender, and memory stays flat."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Self

import psutil
import pytest

from tests.support.recording import OK, Recording, Wire
from tests.support.sidecar import Sidecar, World, lanes

pytest_plugins = ["tests.support.wire_fixtures"]

MIB = 1 << 20
PIECE = b"v" * (256 << 10)
# Socket buffers of both connections (the kernel grows them to 6 MiB and more) and the sidecar's.
IN_FLIGHT = 24 * MIB
GROWTH = 16 * MIB


@pytest.fixture(scope="module")
def sidecar(wire_world: World, session_upstream: Recording) -> Iterator[Sidecar]:
    made = wire_world.sidecar("flow", lanes(session_upstream.url, 20))
    yield made
    assert made.defects() == []
    made.stop()


@pytest.fixture
def lane(sidecar: Sidecar) -> str:
    return sidecar.lane()


def get(path: str, *lines: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: h", *lines, "", ""]).encode()


class Flow:
    """Counts what a side could send, and knows when it has stopped."""

    def __init__(self, size: int, *, chunked: bool = False) -> None:
        self.size = size
        self.sent = 0
        self.chunked = chunked

    def run(self, wire: Wire) -> None:
        while self.sent < self.size:
            piece = PIECE[: self.size - self.sent]
            view = memoryview(b"%x\r\n%b\r\n" % (len(piece), piece) if self.chunked else piece)
            while view:
                view = view[wire.sock.send(view) :]
            self.sent += len(piece)
        if self.chunked:
            wire.send(b"0\r\n\r\n")

    def stands(self, seconds: float = 0.4) -> int:
        """Wait until nothing moved for that long; the bytes that were sent by then."""
        deadline = time.monotonic() + 30
        last, since = -1, time.monotonic()
        while time.monotonic() < deadline:
            if self.sent != last:
                last, since = self.sent, time.monotonic()
            elif time.monotonic() - since > seconds and self.sent:
                return self.sent
            time.sleep(0.01)
        raise AssertionError("the sender was never stopped")


def take(wire: Wire, size: int) -> int:
    """Read ``size`` bytes without keeping them."""
    left = size - len(wire._buffer)
    wire._buffer = b""
    while left > 0:
        data = wire.sock.recv(min(left, 1 << 20))
        if not data:
            break
        left -= len(data)
    return size - left


def rss(sidecar: Sidecar) -> int:
    return int(psutil.Process(sidecar.program.pid).memory_info().rss)


class Peak:
    """The most memory that a process took while something ran."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar
        self._stop = threading.Event()
        self.before = rss(sidecar)
        self.most = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def growth(self) -> int:
        return self.most - self.before

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.most = max(self.most, rss(self._sidecar))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self.most = max(self.most, rss(self._sidecar))


@pytest.mark.parametrize("chunked", [False, True])
def test_a_workload_that_stops_reading_stops_the_target(
    chunked: bool, sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    size = 128 * MIB
    flow = Flow(size, chunked=chunked)
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size

    def run(wire: Wire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
        flow.run(wire)

    over = upstream.script(run)
    with sidecar.open() as client, Peak(sidecar) as peak:
        client.send(get(f"{lane}/"))
        head = client.until(b"\r\n\r\n")
        assert flow.stands() < IN_FLIGHT
        # And it goes on when the workload does.
        if chunked:
            while b"0\r\n\r\n" not in client.peek()[-5:]:
                client._buffer = client.peek()[-5:]
                client.recorded = b""
                client._fill()
        else:
            assert b"content-length" in head
            assert take(client, size) == size
        assert over.wait(30)
    assert flow.sent == size
    assert peak.growth < GROWTH


@pytest.mark.parametrize("chunked", [False, True])
def test_a_target_that_stops_reading_stops_the_workload(
    chunked: bool, sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    size = 128 * MIB
    flow = Flow(size, chunked=chunked)
    go = threading.Event()

    def run(wire: Wire) -> None:
        wire.until(b"\r\n\r\n")
        go.wait(60)
        if chunked:
            tail = wire._buffer[-7:]
            while not tail.endswith(b"\r\n0\r\n\r\n"):
                tail = (tail + wire.sock.recv(1 << 20))[-7:]
            wire._buffer = b""
        else:
            assert take(wire, size) == size
        wire.send(OK)

    upstream.script(run)
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    with sidecar.open() as client, Peak(sidecar) as peak:
        client.send(get(f"{lane}/", framing, method="POST"))
        sender = threading.Thread(target=flow.run, args=(client,), daemon=True)
        sender.start()
        assert flow.stands() < IN_FLIGHT
        go.set()
        sender.join(60)
        assert flow.sent == size
        assert client.answer().body == b"ok"
    assert peak.growth < GROWTH


@pytest.mark.parametrize(("size", "count"), [(256 << 10, 300), (17 << 10, 2500)])
def test_pipelined_calls_do_not_pile_up_answers_that_nobody_reads(
    size: int, count: int, sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    """While the workload does not take its answers, its further calls wait.

    The small answers each arrive and end in one piece: none is stopped half-way.
    """
    body = PIECE[:size]
    upstream.answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + body
    with sidecar.open() as client, Peak(sidecar) as peak:
        client.send(get(f"{lane}/") * count)
        last, since = 0, time.monotonic()
        while not last or time.monotonic() - since < 0.4:
            if len(upstream.requests) != last:
                last, since = len(upstream.requests), time.monotonic()
            time.sleep(0.01)
        assert 0 < last < count
        for _ in range(count):
            assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")
            assert client.exactly(size) == body
            client.recorded = b""
    assert len(upstream.requests) == count
    assert peak.growth < GROWTH


def test_denied_pipelined_calls_do_not_pile_up_either(
    sidecar: Sidecar, upstream: Recording
) -> None:
    requests = get("/nowhere/at/all") * 500
    with sidecar.open() as client, Peak(sidecar) as peak:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        client.sock.settimeout(2)

        def pour() -> None:
            for _ in range(2_000):
                client.send(requests)

        with pytest.raises(TimeoutError):  # what it does not read holds up what it sends
            pour()
    assert peak.growth < GROWTH


def _stream(
    sidecar: Sidecar, upstream: Recording, lane: str, size: int
) -> tuple[int, float, float]:
    """``size`` bytes each way in one call after the other: growth, seconds up, seconds down."""
    warm = 8 * MIB
    growth, seconds = 0, [0.0, 0.0]
    for total in (warm, size):
        down, up = Flow(total), Flow(total)

        def serve(wire: Wire, down: Flow = down, total: int = total) -> None:
            wire.request()
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
            down.run(wire)

        def receive(wire: Wire, total: int = total) -> None:
            wire.until(b"\r\n\r\n")
            assert take(wire, total) == total
            wire.send(OK)

        with sidecar.open() as client, Peak(sidecar) as peak:
            begun = time.monotonic()
            upstream.script(receive)
            client.send(get(f"{lane}/", f"Content-Length: {total}", method="PUT"))
            up.run(client)
            assert client.answer().body == b"ok"
            seconds[0] = time.monotonic() - begun
            begun = time.monotonic()
            upstream.script(serve)
            client.send(get(f"{lane}/"))
            client.until(b"\r\n\r\n")
            assert take(client, total) == total
            seconds[1] = time.monotonic() - begun
        growth = peak.growth
    return growth, seconds[0], seconds[1]


def test_1_gib_each_way_in_flat_memory(sidecar: Sidecar, upstream: Recording, lane: str) -> None:
    growth, up, down = _stream(sidecar, upstream, lane, 1024 * MIB)
    print(f"1 GiB up in {up:.1f} s, down in {down:.1f} s, memory grew by {growth / MIB:.1f} MiB")
    assert growth < GROWTH
