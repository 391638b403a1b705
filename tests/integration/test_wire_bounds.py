"""Bounds of one route: refused before anything goes upstream, or cut off where they are met."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.support.recording import Recording, Wire
from tests.support.sidecar import Sidecar, World, target, whole
from valetkey.contracts.events import TYPE_DECISION

pytest_plugins = ["tests.support.wire_fixtures"]

SOON = 15.0
LIMITS = {"head_size": "1KiB", "headers": 8, "body_size": "10KiB"}
MOST = 10 << 10


@pytest.fixture(scope="module")
def sidecar(wire_world: World, session_upstream: Recording) -> Iterator[Sidecar]:
    url = session_upstream.url
    made = wire_world.sidecar(
        "bounds",
        {
            "free": target(url, prefix="/free"),
            "bound": target(url, prefix="/bound"),
            "once": target(url, prefix="/once"),
        },
        routes=[
            whole("free"),
            whole("bound", limits=LIMITS),
            whole("once", limits=LIMITS, per_request=True),
        ],
    )
    yield made
    assert made.defects() == []
    made.stop()


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: h", *lines, "", ""]).encode()


def chunk(size: int) -> bytes:
    return b"%x\r\n%b\r\n" % (size, b"x" * size)


def hits(sidecar: Sidecar, limit: str) -> float:
    return sidecar.metric(f'valetkey_limit_hits_total{{limit="{limit}"}}')


HEADS = [
    ("a head of the size", [f"A: {'x' * 985}"], 200, ""),
    ("a head beyond it", [f"A: {'x' * 986}"], 431, "request.head_too_large"),
    ("as many fields", ["A: b"] * 7, 200, ""),
    ("one more", ["A: b"] * 8, 431, "request.too_many_headers"),
]


@pytest.mark.parametrize(("name", "lines", "status", "code"), HEADS, ids=[c[0] for c in HEADS])
def test_heads(
    name: str, lines: list[str], status: int, code: str, sidecar: Sidecar, upstream: Recording
) -> None:
    raw = head("/bound/a", *lines, method="GET")
    with sidecar.open() as client:
        client.send(raw)
        answer = client.answer()
        assert (answer.status, answer.code) == (status, code)
        # It is the call that is refused, not the connection.
        client.send(head("/bound/b", method="GET"))
        assert client.answer().status == 200
    assert sidecar.ask(head("/free/a", *lines, method="GET")).status == 200
    assert len(upstream.requests) == (2 if code else 3)
    if code:
        key = "head_size" if "large" in code else "headers"
        assert hits(sidecar, f"routes[].limits.{key}") > 0
        said = sidecar.events(TYPE_DECISION)[-3]["data"]  # of the three calls the first
        assert (said["policy"]["uid"], said["unmapped"]["code"]) == ("bound", code)


def test_the_sizes_of_heads_are_what_they_should_be() -> None:
    assert len(head("/bound/a", HEADS[0][1][0], method="GET")) == 1024


def test_a_body_that_is_announced_too_large_goes_nowhere(
    sidecar: Sidecar, upstream: Recording
) -> None:
    before = hits(sidecar, "routes[].limits.body_size")
    with sidecar.open() as client:
        client.send(head("/bound/a", f"Content-Length: {MOST + 1}", "Expect: 100-continue"))
        answer = client.answer()  # and no 100 before it
        assert (answer.code, answer.status, answer.closes) == ("request.body_too_large", 413, True)
        assert client.ended(SOON)
    assert upstream.wires == []
    assert upstream.requests == []
    assert hits(sidecar, "routes[].limits.body_size") == before + 1


def test_a_body_of_that_size_goes_on(sidecar: Sidecar, upstream: Recording) -> None:
    assert sidecar.ask(head("/bound/a", f"Content-Length: {MOST}") + b"x" * MOST).body == b"ok"
    assert len(upstream.requests[-1].body) == MOST
    chunks = chunk(MOST - 10) + chunk(10) + b"0\r\n\r\n"
    assert sidecar.ask(head("/bound/a", "Transfer-Encoding: chunked") + chunks).body == b"ok"
    assert b"x" * 10 + b"\r\n0\r\n\r\n" in upstream.requests[-1].body


def truncated(wire: Wire, seen: list[bytes], over: threading.Event) -> None:
    """Reads what comes to its end."""
    wire.until(b"\r\n\r\n")
    wire.ended(SOON)
    seen.append(wire._buffer)
    over.set()


def test_chunks_beyond_it_are_cut_off_so_that_the_target_sees_it(
    sidecar: Sidecar, upstream: Recording
) -> None:
    seen: list[bytes] = []
    over = threading.Event()
    upstream.script(lambda wire: truncated(wire, seen, over))
    with sidecar.open() as client:
        client.send(head("/bound/a", "Transfer-Encoding: chunked") + chunk(MOST))
        upstream.wait_for(upstream._scripts.empty)
        client.send(chunk(1))
        answer = client.answer()
        assert (answer.code, answer.status, answer.closes) == ("request.body_too_large", 413, True)
    assert over.wait(SOON)
    # All that was within, and no end.
    assert seen[0].startswith(b"2800\r\nxxx")
    assert not seen[0].endswith(b"0\r\n\r\n")
    assert len(seen[0]) < MOST + 20


@pytest.mark.parametrize("prefix", ["/bound", "/once"])
def test_a_chunk_that_comes_with_its_head_goes_nowhere(
    prefix: str, sidecar: Sidecar, upstream: Recording
) -> None:
    """Before the decision, and while a credential of its own is fetched."""
    with sidecar.open() as client:
        client.send(head(f"{prefix}/a", "Transfer-Encoding: chunked") + chunk(MOST + 1))
        answer = client.answer()
        assert (answer.code, answer.status) == ("request.body_too_large", 413)
    assert upstream.requests == []
    denied = sidecar.events(TYPE_DECISION)[-1]
    assert denied["data"]["policy"]["uid"] == prefix[1:]
    assert denied["data"]["unmapped"]["code"] == "request.body_too_large"


def test_a_body_that_grows_while_the_answer_streams_cuts_both(
    sidecar: Sidecar, upstream: Recording
) -> None:
    def early(wire: Wire) -> None:
        wire.until(b"\r\n\r\n")
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        wire.ended(SOON)

    over = upstream.script(early)
    with sidecar.open() as client:
        client.send(head("/bound/a", "Transfer-Encoding: chunked") + chunk(MOST))
        assert client.until(b"hello").startswith(b"HTTP/1.1 200 OK")
        client.send(chunk(1))
        assert not client.rest().endswith(b"0\r\n\r\n")
    assert over.wait(SOON)


def test_other_routes_take_more(sidecar: Sidecar, upstream: Recording) -> None:
    body = b"x" * MOST * 3
    assert sidecar.ask(head("/free/a", f"Content-Length: {len(body)}") + body).body == b"ok"
    assert upstream.requests[-1].body == body


def test_connect_says_what_else_it_takes(sidecar: Sidecar) -> None:
    """RFC 9110 §15.5.6."""
    with sidecar.open() as client:
        client.send(b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n")
        answer = client.answer()
        assert (answer.status, answer.code) == (405, "request.connect_denied")
        assert "GET" in answer.values("allow")[0].split(", ")
