"""Bodies both ways: framing, interim and early answers, broken ends, and what a bad target sends."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.support.recording import OK, Ended, Recording, Wire
from tests.support.sidecar import Sidecar, World, dechunk, lanes

pytest_plugins = ["tests.support.wire_fixtures"]


@pytest.fixture(scope="module")
def sidecar(wire_world: World, session_upstream: Recording) -> Iterator[Sidecar]:
    made = wire_world.sidecar("bodies", lanes(session_upstream.url, 130))
    yield made
    assert made.defects() == []
    made.stop()


@pytest.fixture
def lane(sidecar: Sidecar) -> str:
    return sidecar.lane()


def get(path: str, *lines: str, version: str = "1.1", method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: h", *lines, "", ""]).encode()


def post(path: str, *lines: str) -> bytes:
    return get(path, *lines, method="POST")


# --- framing of answers ---------------------------------------------------------------------------

ANSWERS = [
    ("sized", [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"], False, b"hello"),
    ("sized, head apart", [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"hel", b"lo"], False, b"hello"),
    ("sized, head in pieces", [b"HTTP/1.1 200", b" OK\r\nContent-Length: 5\r\n", b"\r\nhello"], False, b"hello"),
    ("chunked", [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n"], True, b"hello"),
    ("chunked, in pieces", [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r", b"\nhel", b"lo\r\n0", b"\r\n\r", b"\n"], True, b"hello"),
    ("chunked with extension and trailer", [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX-Trailer: a\r\n\r\n"], True, b"hello"),
    ("chunked and empty", [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"], True, b""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "pieces", "chunked", "body"), ANSWERS, ids=[c[0] for c in ANSWERS]
)
def test_answers_keep_their_framing_and_both_connections(
    name: str,
    pieces: list[bytes],
    chunked: bool,
    body: bytes,
    sidecar: Sidecar,
    upstream: Recording,
    lane: str,
) -> None:
    def run(wire: Wire) -> None:
        wire.request()
        for piece in pieces:
            wire.send(piece)
            gate.wait(0.005)

    gate = threading.Event()  # never set: it only spaces the pieces out
    upstream.script(run)
    with sidecar.open() as client:
        client.send(get(f"{lane}/1"))
        answer = client.answer()
        assert (answer.chunked, answer.body) == (chunked, body)
        assert b"X-Trailer" not in answer.wire
        client.send(get(f"{lane}/2"))
        assert client.answer().body == b"ok"
    assert len(upstream.wires) == 1


def test_an_answer_that_ends_with_its_connection_is_chunked_for_1_1(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    upstream.replies(b"HTTP/1.1 200 OK\r\n\r\nhello", then="close")
    with sidecar.open() as client:
        client.send(get(f"{lane}/1") + get(f"{lane}/2"))
        answer = client.answer()
        assert (answer.chunked, answer.body, answer.closes) == (True, b"hello", False)
        assert client.answer().body == b"ok"  # the workload's connection goes on
    assert len(upstream.wires) == 2


def test_an_answer_that_ends_with_its_connection_does_so_for_1_0(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    upstream.replies(b"HTTP/1.0 200 OK\r\n\r\nhello", then="close")
    answer = sidecar.ask(get(f"{lane}/", version="1.0"))
    assert (answer.chunked, answer.body, answer.closes) == (False, b"hello", True)


def test_an_upstream_that_half_closes_behind_its_answer_is_done(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    upstream.replies(b"HTTP/1.1 200 OK\r\n\r\nhello", then="half_close")
    assert sidecar.ask(get(f"{lane}/")).body == b"hello"


REUSE = [
    ("1.1", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 1),
    ("1.1, close", b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", 2),
    ("1.0", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 2),
    ("1.0, keep-alive", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", 1),
    ("204 with a length", b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n", 2),
    ("204 with chunks", b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", 2),
]  # fmt: skip


@pytest.mark.parametrize(("name", "raw", "connections"), REUSE, ids=[case[0] for case in REUSE])
def test_which_upstream_connections_are_used_again(
    name: str, raw: bytes, connections: int, sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    upstream.replies(raw)
    with sidecar.open() as client:
        client.send(get(f"{lane}/1"))
        answer = client.answer()
        assert answer.values("connection") == []
        client.send(get(f"{lane}/2"))
        assert client.answer().body == b"ok"
    assert len(upstream.wires) == connections


# --- request bodies -------------------------------------------------------------------------------


def test_a_body_streams_before_it_has_ended(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    """What the workload has sent arrives while the rest does not exist yet."""
    arrived: list[bytes] = []
    step = threading.Semaphore(0)

    def read(wire: Wire) -> None:
        wire.until(b"\r\n\r\n")
        for size in (5, 6):
            arrived.append(wire.exactly(size))
            step.release()
        wire.send(OK)

    upstream.script(read)
    with sidecar.open() as client:
        client.send(post(f"{lane}/", "Content-Length: 11"))
        client.send(b"hello")
        assert step.acquire(timeout=15)
        assert arrived == [b"hello"]
        client.send(b" world")
        assert client.answer().body == b"ok"
    assert arrived == [b"hello", b" world"]


def test_chunks_stream_one_by_one(sidecar: Sidecar, upstream: Recording, lane: str) -> None:
    step = threading.Semaphore(0)
    wires: list[bytes] = []

    def read(wire: Wire) -> None:
        wire.until(b"\r\n\r\n")
        wires.append(wire.until(b"abc\r\n"))
        step.release()
        wires.append(wire.until(b"0\r\n\r\n"))
        wire.send(OK)

    upstream.script(read)
    with sidecar.open() as client:
        client.send(post(f"{lane}/", "Transfer-Encoding: chunked") + b"3;x=y\r\nabc\r\n")
        assert step.acquire(timeout=15)
        client.send(b"2\r\nde\r\n0\r\nX-T: a\r\n\r\n")
        assert client.answer().body == b"ok"
    assert dechunk(b"".join(wires)) == b"abcde"
    assert b"X-T" not in b"".join(wires)


def test_a_chunk_that_breaks_midway_breaks_the_upstream_message(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    begun, broken = threading.Event(), threading.Event()

    def read(wire: Wire) -> None:
        wire.until(b"abc\r\n")
        begun.set()
        if wire.ended(5) and b"0\r\n\r\n" not in wire.recorded:
            broken.set()

    upstream.script(read)
    with sidecar.open() as client:
        client.send(post(f"{lane}/", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n")
        assert begun.wait(5)
        client.send(b"zz\r\n")
        assert client.answer().code == "request.body_malformed"
        assert client.ended(3)
    assert broken.wait(5)


# --- Expect, interim answers ----------------------------------------------------------------------


def test_100_continue_comes_from_the_upstream(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    def patient(wire: Wire) -> None:
        head = wire.until(b"\r\n\r\n")
        assert b"\r\nExpect: 100-continue\r\n" in head
        wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert wire.exactly(5) == b"hello"
        wire.send(OK)

    upstream.script(patient)
    with sidecar.open() as client:
        client.send(post(f"{lane}/", "Expect: 100-continue", "Content-Length: 5"))
        interim = b"HTTP/1.1 100 Continue\r\nvia: 1.1 valetkey\r\n\r\n"
        assert client.until(b"\r\n\r\n") == interim
        client.send(b"hello")
        assert client.answer().body == b"ok"
        client.send(get(f"{lane}/2"))
        assert client.answer().body == b"ok"


def test_an_upstream_that_refuses_early_ends_the_connection(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    upstream.script(
        lambda wire: (
            wire.until(b"\r\n\r\n"),
            wire.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"),
        )
    )
    with sidecar.open() as client:
        client.send(post(f"{lane}/", "Expect: 100-continue", "Content-Length: 5"))
        answer = client.answer()
        assert (answer.status, answer.body, answer.closes) == (413, b"no", True)
        assert client.ended(3)


def test_an_upstream_that_never_says_100_gets_the_body_all_the_same(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    upstream.script(lambda wire: (wire.until(b"\r\n\r\n"), wire.exactly(5), wire.send(OK)))
    with sidecar.open() as client:
        client.send(post(f"{lane}/", "Expect: 100-continue", "Content-Length: 5"))
        client.slowly(b"hello", 1)
        assert client.answer().body == b"ok"


def test_a_denied_call_is_not_asked_to_continue(sidecar: Sidecar, upstream: Recording) -> None:
    with sidecar.open() as client:
        client.send(post("/nowhere", "Expect: 100-continue", "Content-Length: 5"))
        answer = client.answer()
        assert (answer.code, answer.closes) == ("target.no_match", True)
        assert client.ended(3)
    assert upstream.wires == []


def test_100_that_nobody_asked_for_ends_here_and_103_goes_on(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
    upstream.replies(b"HTTP/1.1 100 Continue\r\n\r\n" + hints + OK)
    with sidecar.open() as client:
        client.send(get(f"{lane}/"))
        assert client.until(b"\r\n\r\n") == hints[:-2] + b"via: 1.1 valetkey\r\n\r\n"
        assert client.answer().body == b"ok"


# --- answers before the request has ended ---------------------------------------------------------


def test_an_early_answer_reaches_the_workload_while_it_still_sends(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    got: list[bytes] = []

    def early(wire: Wire) -> None:
        wire.until(b"\r\n\r\n")
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        got.append(wire.exactly(10))
        wire.send(b"4\r\nlast\r\n0\r\n\r\n")

    upstream.script(early)
    with sidecar.open() as client:
        client.send(post(f"{lane}/", "Content-Length: 20") + b"hello")
        head = client.until(b"\r\n\r\n")
        assert b"connection: close\r\n" in head  # its end will not be waited for
        assert client.until(b"first\r\n") == b"5\r\nfirst\r\n"
        client.send(b"world")  # the rest still goes on while the answer streams
        assert client.until(b"0\r\n\r\n") == b"4\r\nlast\r\n0\r\n\r\n"
        assert client.ended(3)
    assert got == [b"helloworld"]


def test_an_early_error_is_seen_by_a_workload_in_the_middle_of_a_large_body(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    """The answer must not be lost to a reset while the workload still writes."""

    def refuse(wire: Wire) -> None:
        wire.until(b"\r\n\r\n")
        wire.send(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno")
        wire.ended(5)

    upstream.script(refuse)
    with sidecar.open() as client:
        client.send(post(f"{lane}/", "Content-Length: 1000000"))
        answer = client.answer()
        client.send(b"x" * 500_000)  # taken in and thrown away
        assert (answer.status, answer.body, answer.closes) == (403, b"no", True)
        assert client.ended(5)


def test_a_connection_answered_too_early_is_not_used_again(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    """Also where the body went out whole before the answer ended: who knows what it was taken for."""
    begun = threading.Event()

    def early(wire: Wire) -> None:
        wire.until(b"\r\n\r\n")
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
        begun.set()
        wire.exactly(5)
        wire.send(b"k")

    upstream.script(early)
    with sidecar.open() as client:
        client.send(post(f"{lane}/1", "Content-Length: 5"))
        assert begun.wait(5)
        client.until(b"\r\n\r\n")
        client.send(b"hello")
        assert client.exactly(2) == b"ok"
        assert client.ended(3)
    assert sidecar.ask(get(f"{lane}/2")).body == b"ok"
    assert len(upstream.wires) == 2


CONTENT = [
    ("GET with a length", "Content-Length: 5", b"hello", "GET", 2),
    ("OPTIONS with chunks", "Transfer-Encoding: chunked", b"0\r\n\r\n", "OPTIONS", 2),
    ("GET with a length of nothing", "Content-Length: 0", b"", "GET", 1),
    ("DELETE with a length", "Content-Length: 5", b"hello", "DELETE", 1),
    ("POST with a length", "Content-Length: 5", b"hello", "POST", 1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "framing", "body", "method", "connections"),
    CONTENT,
    ids=[case[0] for case in CONTENT],
)
def test_content_where_servers_expect_none_ends_the_connection(
    name: str,
    framing: str,
    body: bytes,
    method: str,
    connections: int,
    sidecar: Sidecar,
    upstream: Recording,
    lane: str,
) -> None:
    """A server that leaves it unread would take it for the next request (CL.0)."""
    with sidecar.open() as client:
        client.send(get(f"{lane}/1", framing, method=method) + body + get(f"{lane}/2"))
        assert [client.answer().body for _ in range(2)] == [b"ok"] * 2
    assert len(upstream.wires) == connections


# --- broken answers -------------------------------------------------------------------------------

SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
UNFRAMED = b"HTTP/1.1 200 OK\r\n\r\nhello"

BROKEN = [
    ("sized, closed", SIZED, "close", "1.1"),
    ("sized, reset", SIZED, "reset", "1.1"),
    ("sized, half-closed", SIZED, "half_close", "1.1"),
    ("sized, closed, 1.0", SIZED, "close", "1.0"),
    ("sized, nothing sent", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", "close", "1.1"),
    ("chunked, closed", CHUNKED, "close", "1.1"),
    ("chunked, reset", CHUNKED, "reset", "1.1"),
    ("chunked, closed inside a chunk", CHUNKED + b"5\r\nhel", "close", "1.1"),
    ("chunked, closed before the last CRLF", CHUNKED + b"0\r\n", "close", "1.1"),
    ("chunked, closed, 1.0", CHUNKED, "close", "1.0"),
    ("chunked, reset, 1.0", CHUNKED, "reset", "1.0"),
    ("chunked, then nonsense", CHUNKED + b"zz\r\n", "", "1.1"),
    ("chunked, then nonsense, 1.0", CHUNKED + b"zz\r\n", "", "1.0"),
    ("chunked, overflow", CHUNKED + b"10000000000000000\r\n", "", "1.1"),
    ("chunked, chunk too long", CHUNKED + b"2\r\nabc\r\n", "", "1.1"),
    ("chunked, bad trailer", CHUNKED + b"0\r\nHTTP/1.1 200 OK\r\n\r\n", "", "1.1"),
    ("unframed, reset", UNFRAMED, "reset", "1.1"),
    ("unframed, reset, 1.0", UNFRAMED, "reset", "1.0"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "raw", "then", "version"), BROKEN, ids=[case[0] for case in BROKEN]
)
def test_a_broken_answer_is_never_a_clean_end(
    name: str, raw: bytes, then: str, version: str, sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    go = threading.Event()

    def run(wire: Wire) -> None:
        wire.request()
        wire.send(raw)
        if then == "reset":
            go.wait(5)  # what was sent must have been read: a reset would take it away
        if then:
            getattr(wire, then)()

    upstream.script(run)
    with sidecar.open() as client:
        client.send(get(f"{lane}/", version=version))
        head = client.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        if then == "reset":
            client.seen(b"hello")
        go.set()
        framed = b"content-length" in head or b"chunked" in head
        with pytest.raises((Ended, ConnectionResetError) if framed else ConnectionResetError):
            client.body(head) if framed else client.rest()


# --- what is no answer ----------------------------------------------------------------------------

BAD_HEADS = [
    ("no HTTP at all", b"hello there\r\n\r\n"),
    ("a banner", b"SSH-2.0-x\r\n"),
    ("HTTP/2", b"HTTP/2.0 200 OK\r\n\r\n"),
    ("status of two digits", b"HTTP/1.1 20 OK\r\n\r\n"),
    ("length and coding", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("two lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
    ("length list", b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello"),
    ("length with plus", b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello"),
    ("another coding", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("coding in HTTP/1.0", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("obs-fold", b"HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\nContent-Length: 0\r\n\r\n"),
    ("bare LF", b"HTTP/1.1 200 OK\nContent-Length: 0\n\n"),
    ("bare CR", b"HTTP/1.1 200 OK\r\nX-A: b\rc\r\n\r\n"),
    ("NUL", b"HTTP/1.1 200 OK\r\nX-A: \0\r\n\r\n"),
    ("space before the colon", b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello"),
    ("too large", b"HTTP/1.1 200 OK\r\nX-A: " + b"b" * 40_000 + b"\r\n\r\n"),
    ("switching protocols", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"),
    ("endless interim answers", b"HTTP/1.1 102 Processing\r\n\r\n" * 17),
]  # fmt: skip


@pytest.mark.parametrize(("name", "raw"), BAD_HEADS, ids=[case[0] for case in BAD_HEADS])
def test_a_bad_head_is_no_answer(
    name: str, raw: bytes, sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    upstream.replies(raw)
    with sidecar.open() as client:
        client.send(get(f"{lane}/1"))
        for _ in range(16 if name == "endless interim answers" else 0):
            assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 102 Processing\r\n")
        answer = client.answer()
        assert (answer.code, answer.status) == ("target.bad_response", 502)
        client.send(get(f"{lane}/2"))
        assert client.answer().body == b"ok"
    assert len(upstream.wires) == 2  # that connection is not trusted again


NO_HEADS = [
    ("closed", b"", "close"),
    ("reset", b"", "reset"),
    ("half a head, closed", b"HTTP/1.1 200 OK\r\nContent-Le", "close"),
    ("half a head, reset", b"HTTP/1.1 200 OK\r\nContent-Le", "reset"),
]


@pytest.mark.parametrize(("name", "raw", "then"), NO_HEADS, ids=[case[0] for case in NO_HEADS])
def test_no_head_is_no_answer(
    name: str, raw: bytes, then: str, sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    upstream.replies(raw, then=then)
    answer = sidecar.ask(get(f"{lane}/"))
    assert (answer.code, answer.status) == ("target.closed", 502)


EXTRA = [
    ("behind a length", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
    (
        "behind chunks",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ),
    ("behind 204", b"HTTP/1.1 204 No Content\r\n\r\n"),
    ("behind 304", b"HTTP/1.1 304 Not Modified\r\n\r\n"),
    ("behind an empty body", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
]
POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("name", "raw"), EXTRA, ids=[case[0] for case in EXTRA])
def test_what_comes_behind_an_answer_is_never_the_next_one(
    name: str, raw: bytes, apart: bool, sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    over = threading.Event()

    def run(wire: Wire) -> None:
        wire.request()
        wire.send(raw if apart else raw + POISON)
        if apart:
            wire.send(POISON)
        wire.ended(5)
        over.set()

    upstream.script(run)
    with sidecar.open() as client:
        client.send(get(f"{lane}/1"))
        assert client.answer().status in {200, 204, 304}
        assert over.wait(5)  # it was closed for that
        client.send(get(f"{lane}/2"))
        assert client.answer().body == b"ok"
    assert len(upstream.wires) == 2


def test_an_answer_to_head_with_a_body_ends_its_connection(
    sidecar: Sidecar, upstream: Recording, lane: str
) -> None:
    upstream.replies(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    with sidecar.open() as client:
        client.send(get(f"{lane}/1", method="HEAD"))
        assert client.answer(head_only=True).status == 200
        client.send(get(f"{lane}/2"))
        assert client.answer().body == b"ok"
    assert len(upstream.wires) == 2
