"""Connections of the workload: kept, pipelined, half-closed, old-fashioned; and the pool behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from tests.support.recording import OK, Recording, Wire
from tests.support.sidecar import Sidecar, World, lanes

pytest_plugins = ["tests.support.wire_fixtures"]


@pytest.fixture(scope="module")
def sidecar(wire_world: World, session_upstream: Recording) -> Iterator[Sidecar]:
    made = wire_world.sidecar("connections", lanes(session_upstream.url, 60))
    yield made
    assert made.defects() == []
    made.stop()


@pytest.fixture
def lane(sidecar: Sidecar) -> str:
    return sidecar.lane()


def get(path: str, *lines: str, method: str = "GET", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: h", *lines, "", ""]).encode()


def sized(body: bytes, *lines: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *lines, b"", body])


# --- keep-alive and pipelining --------------------------------------------------------------------


def test_one_connection_serves_many_calls_over_one_upstream_connection(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    with sidecar.open() as client:
        for n in range(20):
            client.send(get(f"{lane}/{n}"))
            answer = client.answer()
            assert (answer.status, answer.body, answer.values("connection")) == (200, b"ok", [])
    assert [request.line for request in upstream.requests] == [
        b"GET /%d HTTP/1.1" % n for n in range(20)
    ]
    assert len(upstream.wires) == 1


def test_pipelined_calls_are_answered_in_order_with_a_denied_one_between(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    for n in (0, 1, 3, 4):
        upstream.replies(sized(b"body-%d" % n))
    paths = [f"{lane}/0", f"{lane}/1", "/nowhere/2", f"{lane}/3", f"{lane}/4"]
    with sidecar.open() as client:
        client.send(b"".join(map(get, paths)))
        bodies = [client.answer() for _ in paths]
    assert [answer.body for answer in bodies if not answer.code] == [
        b"body-0", b"body-1", b"body-3", b"body-4",
    ]  # fmt: skip
    assert bodies[2].code == "target.no_match"
    assert not bodies[2].closes


def test_pipelined_bodies_end_where_they_end(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    first = get(f"{lane}/1", "Content-Length: 5", method="POST") + b"hello"
    second = (
        get(f"{lane}/2", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n0\r\n\r\n"
    )
    third = get(f"{lane}/3")
    with sidecar.open() as client:
        client.slowly(first + second + third, len(first) - 2, len(first) + len(second) - 3)
        assert [client.answer().status for _ in range(3)] == [200, 200, 200]
    # The upstream's script reads each by its framing; nothing may be left over.
    assert [request.line for request in upstream.requests] == [
        b"POST /1 HTTP/1.1", b"POST /2 HTTP/1.1", b"GET /3 HTTP/1.1",
    ]  # fmt: skip
    assert upstream.requests[0].body == b"hello"


def test_a_denied_call_with_a_body_is_the_last_of_its_connection(
    sidecar: Sidecar, upstream: Recording
) -> None:
    with sidecar.open() as client:
        client.send(
            get("/nowhere", "Content-Length: 100", method="POST") + b"GET / HTTP/1.1\r\n\r\n"
        )
        answer = client.answer()
        assert (answer.code, answer.closes) == ("target.no_match", True)
        assert client.ended()
        assert client.recorded.count(b"HTTP/1.1 ") == 1
    assert upstream.requests == []


def test_a_denied_call_whose_body_came_whole_is_not(sidecar: Sidecar) -> None:
    with sidecar.open() as client:
        client.send(
            get("/nowhere", "Content-Length: 5", method="POST") + b"hello" + get("/nowhere")
        )
        answers = [client.answer() for _ in range(2)]
        assert [(answer.code, answer.closes) for answer in answers] == [
            ("target.no_match", False)
        ] * 2


def test_a_connection_that_asks_to_be_closed_is(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    with sidecar.open() as client:
        client.send(get(f"{lane}/1", "Connection: close") + get(f"{lane}/2"))
        assert client.answer().closes
        assert client.ended()
        assert client.recorded.count(b"HTTP/1.1 ") == 1
    assert len(upstream.requests) == 1


def test_after_a_malformed_head_nothing_is_read_any_more(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    with sidecar.open() as client:
        client.send(get(f"{lane}/1") + b"GET  /bad HTTP/1.1\r\nHost: h\r\n\r\n" + get(f"{lane}/2"))
        assert client.answer().status == 200
        answer = client.answer()
        assert (answer.code, answer.closes) == ("request.malformed", True)
        assert client.ended()
    assert len(upstream.requests) == 1


# --- HTTP/1.0 -------------------------------------------------------------------------------------


def test_http_1_0_ends_with_its_answer(sidecar: Sidecar, upstream: Recording, lane: str) -> None:
    with sidecar.open() as client:
        client.send(get(f"{lane}/", version="1.0"))
        answer = client.answer()
        assert (answer.status, answer.body, answer.closes) == (200, b"ok", True)
        assert client.ended()


def test_http_1_0_with_keep_alive_goes_on(sidecar: Sidecar, upstream: Recording, lane: str) -> None:
    with sidecar.open() as client:
        for _ in range(2):
            client.send(get(f"{lane}/", "Connection: Keep-Alive", version="1.0"))
            answer = client.answer()
            assert (answer.body, answer.values("connection")) == (b"ok", ["keep-alive"])


def test_http_1_0_gets_chunks_as_plain_bytes_to_the_end(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    upstream.replies(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    )
    with sidecar.open() as client:
        client.send(get(f"{lane}/", "Connection: keep-alive", version="1.0"))
        answer = client.answer()
        assert (answer.body, answer.chunked, answer.closes) == (b"abcde", False, True)


def test_http_1_0_gets_no_interim_answers(sidecar: Sidecar, upstream: Recording, lane: str) -> None:
    upstream.replies(b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + OK)
    assert sidecar.ask(get(f"{lane}/", version="1.0")).status == 200


# --- answers without a body -----------------------------------------------------------------------

BODILESS = [
    ("HEAD with a length", "HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", ["1000"]),
    ("HEAD with chunks", "HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", []),
    ("HEAD without framing", "HEAD", b"HTTP/1.1 200 OK\r\n\r\n", []),
    ("204", "GET", b"HTTP/1.1 204 No Content\r\n\r\n", []),
    ("304 with a length", "GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n", ["1000"]),
    ("304", "GET", b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n", []),
    ("length 0", "GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ["0"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "method", "raw", "length"), BODILESS, ids=[c[0] for c in BODILESS]
)
def test_answers_without_a_body_leave_both_connections_usable(
    name: str,
    method: str,
    raw: bytes,
    length: list[str],
    sidecar: Sidecar,
    upstream: Recording,
    lane: str,
) -> None:
    upstream.replies(raw)
    with sidecar.open() as client:
        client.send(get(f"{lane}/1", method=method))
        answer = client.answer(head_only=method == "HEAD")
        assert answer.values("content-length") == length
        assert answer.values("transfer-encoding") == []
        client.send(get(f"{lane}/2"))
        assert client.answer().body == b"ok"
    assert len(upstream.wires) == 1


def test_an_error_of_ours_to_head_has_no_body(sidecar: Sidecar) -> None:
    with sidecar.open() as client:
        client.send(get("/nowhere", method="HEAD") + get("/nowhere"))
        assert client.answer(head_only=True).status == 403
        assert client.answer().code == "target.no_match"


# --- half-closed ----------------------------------------------------------------------------------


def test_a_workload_that_sends_no_more_still_gets_its_answer(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    go = threading.Event()

    def late(wire: Wire) -> None:
        wire.request()
        go.wait(5)
        wire.send(OK)

    upstream.script(late)
    with sidecar.open() as client:
        client.send(get(f"{lane}/"))
        client.half_close()
        go.set()
        assert client.answer().body == b"ok"
        assert client.ended()


@pytest.mark.parametrize("count", [2, 5, 500])
def test_pipelined_calls_before_a_half_close_are_all_answered(
    count: int, sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    with sidecar.open() as client:
        client.send(b"".join(get(f"{lane}/{n}") for n in range(count)))
        client.half_close()
        assert [client.answer().status for _ in range(count)] == [200] * count
        assert client.ended()
    assert len(upstream.requests) == count


def test_half_a_head_before_a_half_close_is_no_call(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    with sidecar.open() as client:
        client.send(get(f"{lane}/1") + get(f"{lane}/2")[:-2])
        client.half_close()
        assert client.answer().status == 200
        assert client.ended()
        assert client.recorded.count(b"HTTP/1.1 ") == 1
    assert len(upstream.requests) == 1


def test_half_a_body_before_a_half_close_reaches_the_upstream_as_broken(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    begun, broken = threading.Event(), threading.Event()

    def read(wire: Wire) -> None:
        wire.until(b"\r\n\r\n")
        wire.exactly(5)
        begun.set()
        if wire.ended(5):
            broken.set()

    upstream.script(read)
    with sidecar.open() as client:
        client.send(get(f"{lane}/", "Content-Length: 10", method="POST") + b"hello")
        assert begun.wait(5)
        client.half_close()
        assert broken.wait(5)
        assert client.ended()


def test_a_workload_that_goes_away_takes_its_upstream_call_along(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    waiting, gone = threading.Event(), threading.Event()

    def silent(wire: Wire) -> None:
        wire.request()
        waiting.set()
        if wire.ended(5):
            gone.set()

    upstream.script(silent)
    client = sidecar.open()
    client.send(get(f"{lane}/"))
    assert waiting.wait(5)
    client.reset()
    assert gone.wait(5)


# --- the pool -------------------------------------------------------------------------------------


def test_a_stale_connection_is_replaced_once_for_a_get(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    """The upstream takes the second request and closes without a word, as a timeout would."""
    assert sidecar.ask(get(f"{lane}/1")).status == 200
    upstream.script(lambda wire: (wire.request(), wire.close()))
    assert sidecar.ask(get(f"{lane}/2")).body == b"ok"
    assert [request.line for request in upstream.requests] == [
        b"GET /1 HTTP/1.1", b"GET /2 HTTP/1.1",
    ]  # fmt: skip
    assert len(upstream.wires) == 2


def test_a_stale_connection_is_replaced_only_once(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    assert sidecar.ask(get(f"{lane}/1")).status == 200
    for _ in range(2):
        upstream.script(lambda wire: (wire.request(), wire.close()))
    assert sidecar.ask(get(f"{lane}/2")).code == "target.closed"
    assert len(upstream.wires) == 2


def test_a_reset_stale_connection_is_replaced_for_a_put_with_its_body(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    assert sidecar.ask(get(f"{lane}/1")).status == 200
    upstream.script(lambda wire: (wire.request(), wire.reset()))
    raw = get(f"{lane}/2", "Content-Length: 5", method="PUT") + b"hello"
    assert sidecar.ask(raw).body == b"ok"
    assert upstream.requests[-1].body == b"hello"


def test_a_post_is_never_sent_twice(sidecar: Sidecar, upstream: Recording, lane: str) -> None:
    assert sidecar.ask(get(f"{lane}/1")).status == 200
    upstream.script(lambda wire: (wire.request(), wire.close()))
    raw = get(f"{lane}/2", "Content-Length: 5", method="POST") + b"hello"
    assert sidecar.ask(raw).code == "target.closed"
    assert len(upstream.wires) == 1


def test_a_fresh_connection_that_closes_is_no_stale_one(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    upstream.script(lambda wire: (wire.request(), wire.close()))
    assert sidecar.ask(get(f"{lane}/")).code == "target.closed"
    assert len(upstream.wires) == 1


def test_a_connection_that_has_spoken_is_no_stale_one(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    assert sidecar.ask(get(f"{lane}/1")).status == 200
    upstream.replies(b"HTTP/1.1 103 Early Hints\r\n\r\n", then="close")
    with sidecar.open() as client:
        client.send(get(f"{lane}/2"))
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 103 ")
        assert client.answer().code == "target.closed"
    assert len(upstream.wires) == 1


def test_an_idle_connection_that_says_something_is_closed(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    """What comes unasked must not be the answer to the next call."""
    assert sidecar.ask(get(f"{lane}/1")).status == 200
    [idle] = upstream.wires
    idle.send(sized(b"poison"))
    upstream.wait_for(lambda: idle.sock.fileno() < 0)  # the default script sees the end
    assert sidecar.ask(get(f"{lane}/2")).body == b"ok"
    assert len(upstream.wires) == 2


def test_a_new_connection_that_is_closed_at_once_is_an_error_at_once(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    listener = upstream._listener
    assert listener.fileno() > 0
    upstream.script(lambda wire: wire.reset())
    assert sidecar.ask(get(f"{lane}/")).code == "target.closed"


# --- limits and the end ---------------------------------------------------------------------------


def test_connections_beyond_the_limit_are_told_so(
    wire_world: World, session_upstream: Recording, upstream: Recording
) -> None:
    made = wire_world.sidecar("limited", lanes(session_upstream.url, 1), limits={"connections": 3})
    try:
        kept = [made.open() for _ in range(3)]
        for client in kept:
            client.send(get("/lane0/"))
            assert client.answer().status == 200
        with made.open() as client:
            answer = client.answer()
            assert (answer.code, answer.status, answer.closes) == ("proxy.overloaded", 503, True)
            assert answer.values("retry-after") == ["1"]
            assert client.ended()
        kept.pop().close()
        upstream.wait_for(lambda: made.ask(get("/lane0/")).status == 200)
        for client in kept:
            client.send(get("/lane0/"))
            assert client.answer().status == 200
            client.close()
    finally:
        made.stop()


def test_a_drain_loses_no_call_in_flight(
    wire_world: World, session_upstream: Recording, upstream: Recording
) -> None:
    made = wire_world.sidecar("drained", lanes(session_upstream.url, 1))
    try:
        go, asked = threading.Event(), threading.Semaphore(0)

        def late(wire: Wire) -> None:
            wire.request()
            asked.release()
            go.wait(10)
            wire.send(sized(b"late"))

        clients = [made.open() for _ in range(8)]
        for client in clients:
            upstream.script(late)
            client.send(get("/lane0/", "Content-Length: 1", method="POST") + b"x")
        for _ in clients:
            assert asked.acquire(timeout=15)
        idle = made.open()
        half_a_head = made.open()
        half_a_head.send(get("/lane0/half")[:-2])
        upstream.wait_for(lambda: made.program.running)
        made.program.terminate()
        assert idle.ended()  # nothing is under way on it
        assert made.program.running
        half_a_head.send(b"\r\n")
        answer = half_a_head.answer()
        assert (answer.status, answer.closes) == (200, True)
        go.set()
        for client in clients:
            answer = client.answer()
            assert (answer.status, answer.body, answer.closes) == (200, b"late", True)
            assert client.ended()
        assert asyncio.run(made.program.ended()) == 0
    finally:
        made.kill()


def test_a_drain_ends_in_time(
    wire_world: World, session_upstream: Recording, upstream: Recording
) -> None:
    made = wire_world.sidecar(
        "hurried", lanes(session_upstream.url, 1), timeouts={"drain": "300ms"}
    )
    try:
        asked = threading.Event()

        def never(wire: Wire) -> None:
            wire.request()
            asked.set()
            wire.ended()

        upstream.script(never)
        with made.open() as client:
            client.send(get("/lane0/"))
            assert asked.wait(15)
            made.program.terminate()
            assert asyncio.run(made.program.ended()) == 0
            assert client.ended()
    finally:
        made.kill()
