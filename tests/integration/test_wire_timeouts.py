"""Time limits: whose turn it was decides what the workload is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.recording import OK, Ended, Recording, Wire
from tests.support.sidecar import Sidecar, World, lanes, target

pytest_plugins = ["tests.support.wire_fixtures"]

# The sweep looks at deadlines four times a second. Whose limit it was tells the code; this bound is
# for a machine that is busy.
SOON = 12.0


@pytest.fixture(scope="module")
def sidecar(wire_world: World, session_upstream: Recording) -> Iterator[Sidecar]:
    url = session_upstream.url
    made = wire_world.sidecar(
        "hasty",
        lanes(url, 20)
        | {"small": target(url, prefix="/small", pool={"size": 1})}
        | {"brief": target(url, prefix="/brief", pool={"idle": "300ms"})},
        timeouts={
            "head": "1s", "first_byte": "1500ms", "stall": "1500ms", "idle": "1500ms", "connect": "1s",
        },
    )  # fmt: skip
    yield made
    assert made.defects() == []
    made.stop()


@pytest.fixture
def lane(sidecar: Sidecar) -> str:
    return sidecar.lane()


def get(path: str, *lines: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: h", *lines, "", ""]).encode()


def post(path: str, *lines: str) -> bytes:
    return get(path, *lines, method="POST")


def silent(wire: Wire) -> None:
    """Takes the request and says nothing."""
    wire.request()
    wire.ended(SOON)


@pytest.mark.parametrize("part", [b"G", b"GET / HTTP/1.1\r\nHost: h\r\n", b"GET / HTTP/1.1\r\nX"])
def test_a_head_that_does_not_come(part: bytes, sidecar: Sidecar) -> None:
    begun = time.monotonic()
    with sidecar.open() as client:
        client.send(part)
        answer = client.answer()
        assert (answer.code, answer.status, answer.closes) == ("request.timeout", 408, True)
        assert client.ended(SOON)
    assert time.monotonic() - begun < SOON


def test_a_head_that_drips_gets_no_more_time(sidecar: Sidecar) -> None:
    """From its first byte on: each further one prolongs nothing."""
    begun = time.monotonic()
    with sidecar.open() as client:
        client.sock.settimeout(0.05)
        sent = 0
        while time.monotonic() - begun < SOON:
            client.send(b"GET / HTTP/1.1\r\nHost: h\r\nX: "[sent : sent + 1] or b"x")
            sent += 1
            try:
                client.peek()
                break
            except TimeoutError:
                continue
        client.sock.settimeout(SOON)
        assert client.answer().code == "request.timeout"
    assert time.monotonic() - begun < SOON


def test_an_idle_connection_is_closed_without_a_word(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    with sidecar.open() as fresh, sidecar.open() as used:
        used.send(get(f"{lane}/"))
        assert used.answer().status == 200
        said = len(used.recorded)
        assert fresh.ended(SOON)
        assert used.ended(SOON)
        assert (fresh.recorded, used.recorded[said:]) == (b"", b"")


def test_a_target_that_does_not_answer(sidecar: Sidecar, upstream: Recording, lane: str) -> None:
    over = upstream.script(silent)
    with sidecar.open() as client:
        client.send(get(f"{lane}/1"))
        answer = client.answer()
        assert (answer.code, answer.status) == ("target.timeout", 504)
        assert over.wait(SOON)  # its connection is closed
        client.send(get(f"{lane}/2"))  # the workload's is not
        assert client.answer().body == b"ok"


def test_a_target_that_stops_in_its_head(sidecar: Sidecar, upstream: Recording, lane: str) -> None:
    upstream.script(lambda wire: (wire.request(), wire.send(b"HTTP/1.1 200 OK\r\n"), wire.ended()))
    assert sidecar.ask(get(f"{lane}/")).code == "target.timeout"


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nhello",
    ],
    ids=["sized", "chunked", "unframed"],
)
def test_a_target_that_stops_in_its_body(
    head: bytes, sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    upstream.script(lambda wire: (wire.request(), wire.send(head), wire.ended()))
    with sidecar.open() as client:
        client.send(get(f"{lane}/"))
        assert client.broken()


def test_a_body_that_moves_may_take_longer_than_any_limit(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    pause = threading.Event()

    def slow(wire: Wire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 800\r\n\r\n")
        for _ in range(8):
            pause.wait(0.25)
            wire.send(b"x" * 100)

    upstream.script(slow)
    assert sidecar.ask(get(f"{lane}/")).body == b"x" * 800


def test_a_request_body_that_moves_may_take_longer_too(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    with sidecar.open() as client:
        client.send(post(f"{lane}/", "Content-Length: 800"))
        for _ in range(8):
            time.sleep(0.25)  # the rate of the sender is what is tested
            client.send(b"x" * 100)
        assert client.answer().body == b"ok"


def test_a_request_body_that_stalls(sidecar: Sidecar, upstream: Recording, lane: str) -> None:
    upstream.script(lambda wire: (wire.until(b"\r\n\r\n"), wire.ended()))
    with sidecar.open() as client:
        client.send(post(f"{lane}/", "Content-Length: 10") + b"hello")
        answer = client.answer()
        assert (answer.code, answer.status, answer.closes) == ("request.timeout", 408, True)
        assert client.ended(SOON)


def test_a_target_that_does_not_read_the_body(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    """The workload can't send because the target does not take it: that is the target's fault."""
    done = threading.Event()

    def deaf(wire: Wire) -> None:
        wire.until(b"\r\n\r\n")
        done.wait(SOON)

    upstream.script(deaf)
    with sidecar.open() as client:
        client.send(post(f"{lane}/", "Content-Length: 1000000000"))
        sender = threading.Thread(target=_fill, args=(client,), daemon=True)
        sender.start()
        answer = client.answer()
        assert (answer.code, answer.closes) == ("target.timeout", True)
        done.set()
        client.ended(SOON)
        sender.join(SOON)
        assert not sender.is_alive()


def _fill(client: Wire) -> None:
    try:
        while True:
            client.send(b"x" * 65536)
    except OSError:
        return


def test_a_workload_that_does_not_read_is_cut_off(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    stopped = threading.Event()

    def endless(wire: Wire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        try:
            while True:
                wire.send(b"x" * 65536)
        except OSError:
            stopped.set()

    upstream.script(endless)
    with sidecar.open() as client:
        client.send(get(f"{lane}/"))
        assert stopped.wait(SOON)
        with pytest.raises((Ended, ConnectionResetError)):
            client.exactly(1_000_000_000)


def test_a_full_pool_is_waited_for_and_not_for_ever(sidecar: Sidecar, upstream: Recording) -> None:
    holding, go = threading.Event(), threading.Event()

    def held(wire: Wire) -> None:
        wire.request()
        holding.set()
        go.wait(SOON)
        wire.send(OK)

    upstream.script(held)
    with sidecar.open() as first, sidecar.open() as second:
        first.send(get("/small/1"))
        assert holding.wait(SOON)
        second.send(get("/small/2"))
        time.sleep(0.1)  # it may already wait when the connection comes free
        go.set()
        assert first.answer().body == b"ok"
        assert second.answer().body == b"ok"
        assert len(upstream.wires) == 1
        # And now for too long.
        holding.clear()
        go.clear()
        upstream.script(silent)
        first.send(get("/small/3"))
        upstream.wait_for(upstream._scripts.empty)
        second.send(get("/small/4"))
        codes = {first.answer().code, second.answer().code}
        assert codes <= {"target.timeout", "target.unreachable", ""}
        assert "target.timeout" in codes


def test_an_idle_upstream_connection_is_let_go(sidecar: Sidecar, upstream: Recording) -> None:
    assert sidecar.ask(get("/brief/1")).status == 200
    [idle] = upstream.wires
    upstream.wait_for(lambda: idle.sock.fileno() < 0, timeout=SOON)
    assert sidecar.ask(get("/brief/2")).status == 200
    assert len(upstream.wires) == 2


def test_nobody_listening_is_said_at_once(wire_world: World) -> None:
    from tests.support.sidecar import free_port

    made = wire_world.sidecar("alone", lanes(f"http://127.0.0.1:{free_port()}", 1))
    try:
        begun = time.monotonic()
        answer = made.ask(get("/lane0/"))
        assert (answer.code, answer.status) == ("target.unreachable", 502)
        assert answer.values("retry-after") == ["1"]
        assert time.monotonic() - begun < SOON
    finally:
        made.stop()
