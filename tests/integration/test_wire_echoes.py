"""What a target sends back of credentials: overwritten, dropped, recorded, counted."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.canaries import CANARIES
from tests.support.recording import Recording, Wire
from tests.support.sidecar import BOUND, Answer, Sidecar, World, target, whole
from valetkey.contracts.events import TYPE_OUTCOME

pytest_plugins = ["tests.support.wire_fixtures"]

PREFIXES = ("bearer", "header", "dpop")


@pytest.fixture(scope="module")
def sidecar(wire_world: World, session_upstream: Recording) -> Iterator[Sidecar]:
    url = session_upstream.url
    vendor = {"kind": "header", "name": "X-Vendor-Key"}
    made = wire_world.sidecar(
        "echoes",
        {
            "bearer": target(url, prefix="/bearer"),
            "header": target(url, prefix="/header", credential=vendor),
            "dpop": target(url, prefix="/dpop", audience=BOUND, credential={"kind": "dpop"}),
            "cookies": target(url, prefix="/cookies", pass_headers=["Cookie"]),
            "challenged": target(url, prefix="/challenged"),
            "scrubbed": target(url, prefix="/scrubbed"),
        },
        routes=[whole(name) for name in ("bearer", "header", "dpop", "cookies", "challenged")]
        + [whole("scrubbed", scrub_answers=True)],
    )
    yield made
    assert made.defects() == []
    made.stop()


def get(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: h", *lines, "", ""]).encode()


def token_of(head: bytes) -> str:
    """The credential in a request, as it was sent."""
    for line in head.decode().split("\r\n")[1:]:
        name, _, value = line.partition(": ")
        if name.lower() in {"authorization", "x-vendor-key"}:
            token = value.rpartition(" ")[2]
            CANARIES.add(token, name="credential")
            return token
    raise AssertionError("no credential")


def echoing(upstream: Recording, answer: Callable[[str], str]) -> None:
    """Script: answer with what ``answer`` makes of the credential."""

    def run(wire: Wire) -> None:
        head, _ = wire.request()
        wire.send(answer(token_of(head)).encode())

    upstream.script(run)


def outcome(sidecar: Sidecar) -> dict[str, Any]:
    """What the last outcome says besides numbers."""
    said: dict[str, Any] = sidecar.events(TYPE_OUTCOME)[-1]["data"]["unmapped"]
    return {name: said[name] for name in ("scrubbed", "dropped", "code") if name in said}


def counted(sidecar: Sidecar, metric: str, target_name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{sidecar.admin}/metrics") as page:
        for line in page.read().decode().splitlines():
            if line.startswith(f'{metric}{{target="{target_name}"}} '):
                return float(line.rpartition(" ")[2])
    raise AssertionError(metric)


def stars(answer: Answer, name: str) -> str:
    """A header whose token is overwritten, with the stars as one."""
    [value] = answer.values(name)
    run = value.count("*")
    assert "*" * run in value
    assert run > 100  # as long as the token was
    return value.replace("*" * run, "*")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_an_echo_in_a_head_is_overwritten_recorded_and_counted(
    prefix: str, sidecar: Sidecar, upstream: Recording
) -> None:
    before = counted(sidecar, "valetkey_credentials_echoed_total", prefix)
    echoing(
        upstream,
        lambda t: f"HTTP/1.1 200 OK\r\nX-You-Sent: Bearer {t}!\r\nContent-Length: 2\r\n\r\nok",
    )
    answer = sidecar.ask(get(f"/{prefix}/a"))
    assert (answer.status, answer.body) == (200, b"ok")
    assert stars(answer, "x-you-sent") == "Bearer *!"
    assert outcome(sidecar) == {"scrubbed": ["head"]}
    assert counted(sidecar, "valetkey_credentials_echoed_total", prefix) == before + 1
    assert sidecar.ask(get(f"/{prefix}/b")).body == b"ok"
    assert outcome(sidecar) == {}
    assert counted(sidecar, "valetkey_credentials_echoed_total", prefix) == before + 1


def test_a_redirect_goes_on_without_the_credential_in_it(
    sidecar: Sidecar, upstream: Recording
) -> None:
    echoing(
        upstream,
        lambda t: (
            f"HTTP/1.1 307 Go\r\nLocation: https://b.example/?t={quote(t, safe='')}&n=1\r\n"
            "Content-Length: 0\r\n\r\n"
        ),
    )
    answer = sidecar.ask(get("/bearer/a"))
    assert (answer.status, stars(answer, "location")) == (307, "https://b.example/?t=*&n=1")
    assert upstream.requests == []  # nobody followed it: there was none but the script's


def test_an_echo_in_an_interim_answer(sidecar: Sidecar, upstream: Recording) -> None:
    echoing(
        upstream,
        lambda t: (
            f"HTTP/1.1 103 Early Hints\r\nLink: </{t}>\r\n\r\n"
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        ),
    )
    with sidecar.open() as client:
        client.send(get("/bearer/a"))
        hints = client.until(b"\r\n\r\n")
        assert b"Link: </***" in hints
        assert client.answer().body == b"ok"
    assert outcome(sidecar) == {"scrubbed": ["head"]}


def test_a_head_that_comes_in_pieces(sidecar: Sidecar, upstream: Recording) -> None:
    def slowly(wire: Wire) -> None:
        head, _ = wire.request()
        token = token_of(head)
        wire.send(b"HTTP/1.1 200 OK\r\nX-Was: " + token[:20].encode())
        time.sleep(0.02)  # so that it is read in two pieces
        wire.send(token[20:].encode() + b"\r\nContent-Length: 0\r\n\r\n")

    upstream.script(slowly)
    assert stars(sidecar.ask(get("/bearer/a")), "x-was") == "*"


def test_an_echo_in_a_challenge_that_is_retried(sidecar: Sidecar, upstream: Recording) -> None:
    """The answer that is thrown away counts as well: the target keeps credentials badly."""
    echoing(upstream, lambda t: f"HTTP/1.1 401 No\r\nX-Was: {t}\r\nContent-Length: 0\r\n\r\n")
    answer = sidecar.ask(get("/challenged/a"))
    assert (answer.status, answer.values("x-was")) == (200, [])
    assert outcome(sidecar) == {"scrubbed": ["head"]}


def test_what_carries_no_credential_is_untouched(sidecar: Sidecar, upstream: Recording) -> None:
    line = "x" * 3000
    upstream.replies(f"HTTP/1.1 200 OK\r\nX-Long: {line}\r\nContent-Length: 2\r\n\r\nok".encode())
    answer = sidecar.ask(get("/bearer/a"))
    assert answer.values("x-long") == [line]
    assert outcome(sidecar) == {}


SETS = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nX-Kept: yes\r\nset-cookie: c=d\r\nContent-Length: 2\r\n\r\nok"


def test_cookies_of_the_sidecars_session_are_dropped_recorded_and_counted(
    sidecar: Sidecar, upstream: Recording
) -> None:
    upstream.replies(SETS)
    before = counted(sidecar, "valetkey_sessions_dropped_total", "bearer")
    answer = sidecar.ask(get("/bearer/a", "Cookie: mine=1"))
    kept = b"X-Kept: yes\r\nvia: 1.1 valetkey\r\ncontent-length: 2\r\n\r\n"
    assert answer.head == b"HTTP/1.1 200 OK\r\n" + kept
    assert upstream.requests[-1].values("cookie") == []
    assert outcome(sidecar) == {"dropped": ["set-cookie"]}
    assert counted(sidecar, "valetkey_sessions_dropped_total", "bearer") == before + 1


def test_cookies_of_the_workload_go_in_and_come_back(sidecar: Sidecar, upstream: Recording) -> None:
    upstream.replies(SETS)
    answer = sidecar.ask(get("/cookies/a", "Cookie: mine=1"))
    assert answer.values("set-cookie") == ["a=b", "c=d"]
    assert upstream.requests[-1].values("cookie") == ["mine=1"]
    assert outcome(sidecar) == {}
    assert counted(sidecar, "valetkey_sessions_dropped_total", "cookies") == 0


def test_no_way_around_the_sidecar_is_offered(sidecar: Sidecar, upstream: Recording) -> None:
    upstream.replies(
        b'HTTP/1.1 200 OK\r\nAlt-Svc: h3=":443"\r\nProxy-Status: edge\r\nContent-Length: 0\r\n\r\n'
    )
    answer = sidecar.ask(get("/bearer/a"))
    assert (answer.values("alt-svc"), answer.values("proxy-status")) == ([], ["edge"])


def test_a_bad_answer_tells_nothing_of_itself(sidecar: Sidecar, upstream: Recording) -> None:
    echoing(upstream, lambda t: f"HTTP/1.1 200 OK\r\nContent-Length: {t}\r\n\r\n")
    answer = sidecar.ask(get("/bearer/a"))
    assert answer.code == "target.bad_response"
    assert (
        json.loads(answer.body)["detail"]
        == "The target's answer is not well-formed HTTP/1.1 (RFC 9112)."
    )


# --- bodies ---------------------------------------------------------------------------------------

FRAMINGS = ["sized", "chunked", "unframed"]


def framed(framing: str, pieces: list[bytes]) -> list[bytes]:
    """An answer whose body comes in these pieces."""
    if framing == "chunked":
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece]
        return [head, *chunks, b"0\r\n\r\n"]
    length = b"Content-Length: %d\r\n" % sum(map(len, pieces)) if framing == "sized" else b""
    return [b"HTTP/1.1 200 OK\r\n" + length + b"\r\n", *pieces]


def echoing_body(upstream: Recording, framing: str, cuts: list[int], *, times: int = 1) -> None:
    """Script: the credential in a body that is cut so many bytes into it."""

    def run(wire: Wire) -> None:
        head, _ = wire.request()
        token = token_of(head).encode()
        text = (b"<pre>you sent: " + token + b"</pre>") * times
        places = [0, *(15 + cut for cut in cuts), len(text)]
        pieces = [text[a:b] for a, b in pairwise(places)]
        for piece in framed(framing, pieces):
            wire.send(piece)
            time.sleep(0.005)
        if framing == "unframed":
            wire.close()

    upstream.script(run)


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("cuts", [[], [0], [1], [40], [3, 4, 90], [-3]], ids=str)
def test_an_echo_in_a_body_is_overwritten(
    framing: str, cuts: list[int], sidecar: Sidecar, upstream: Recording
) -> None:
    echoing_body(upstream, framing, cuts)
    answer = sidecar.ask(get("/scrubbed/a"))
    body = answer.body.decode()
    stars = body.count("*")
    assert stars > 100
    assert body == "<pre>you sent: " + "*" * stars + "</pre>"
    assert outcome(sidecar) == {"scrubbed": ["body"]}


def test_every_echo_in_a_body_is_overwritten(sidecar: Sidecar, upstream: Recording) -> None:
    echoing_body(upstream, "sized", [], times=300)
    body = sidecar.ask(get("/scrubbed/a")).body
    assert body.count(b"<pre>you sent: ***") == 300
    assert set(body) == set(b"<pre>you sent: *</pre>")


def test_elsewhere_bodies_are_not_looked_at(sidecar: Sidecar, upstream: Recording) -> None:
    echoing_body(upstream, "sized", [])
    assert b"*" not in sidecar.ask(get("/bearer/a")).body
    assert outcome(sidecar) == {}


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_body_without_an_echo_is_as_it_was(
    framing: str, sidecar: Sidecar, upstream: Recording
) -> None:
    """Also where it ends with what could have been the beginning of one."""
    body = bytes(range(256)) * 2000 + b"eyJ"

    def run(wire: Wire) -> None:
        wire.request()
        for piece in framed(framing, [body[:100_000], body[100_000:]]):
            wire.send(piece)
        if framing == "unframed":
            wire.close()

    upstream.script(run)
    answer = sidecar.ask(get("/scrubbed/a"))
    assert answer.body == body
    assert outcome(sidecar) == {}


def test_what_could_not_be_read_is_not_asked_for(sidecar: Sidecar, upstream: Recording) -> None:
    lines = ["Accept-Encoding: gzip, br", "Range: bytes=0-9", "If-Range: x", "Accept: text/html"]
    assert sidecar.ask(get("/scrubbed/a", *lines)).body == b"ok"
    request = upstream.requests[-1]
    assert request.values("accept-encoding") == ["identity"]
    assert (request.values("range"), request.values("if-range")) == ([], [])
    assert request.values("accept") == ["text/html"]
    assert sidecar.ask(get("/bearer/a", *lines)).body == b"ok"
    assert upstream.requests[-1].values("accept-encoding") == ["gzip, br"]


UNREADABLE = [
    "Content-Encoding: gzip",
    "Content-Encoding: identity, br",
    "Content-Range: bytes 0-1/9",
]


@pytest.mark.parametrize("line", UNREADABLE)
def test_what_can_not_be_read_is_refused(line: str, sidecar: Sidecar, upstream: Recording) -> None:
    raw = f"HTTP/1.1 200 OK\r\n{line}\r\nContent-Length: 2\r\n\r\nok".encode()
    upstream.replies(raw)
    answer = sidecar.ask(get("/scrubbed/a"))
    assert (answer.code, answer.status) == ("target.encoded", 502)
    assert outcome(sidecar) == {"code": "target.encoded"}
    upstream.replies(raw)
    assert sidecar.ask(get("/bearer/a")).body == b"ok"


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 304 Not Modified\r\nContent-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: identity\r\nContent-Length: 2\r\n\r\nok",
    ],
)
def test_what_holds_nothing_encoded_goes_on(
    raw: bytes, sidecar: Sidecar, upstream: Recording
) -> None:
    upstream.replies(raw)
    assert str(sidecar.ask(get("/scrubbed/a")).status).encode() == raw[9:12]


def test_events_are_not_delayed_by_the_search(sidecar: Sidecar, upstream: Recording) -> None:
    go = threading.Event()

    def run(wire: Wire) -> None:
        head, _ = wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        assert go.wait(5)
        wire.send(b"data: " + token_of(head).encode() + b"\n\n")
        wire.close()

    upstream.script(run)
    with sidecar.open() as client:
        client.send(get("/scrubbed/a"))
        assert client.until(b"data: 1\n\n")
        go.set()
        client.until(b"data: ***")
        assert client.until(b"0\r\n\r\n").endswith(b"*\n\n\r\n0\r\n\r\n")


def test_a_scrubbed_answer_that_breaks_off_is_seen_to(
    sidecar: Sidecar, upstream: Recording
) -> None:
    upstream.replies(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", then="close")
    with sidecar.open() as client:
        client.send(get("/scrubbed/a"))
        assert client.broken()
    upstream.replies(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX")
    with sidecar.open() as client:
        client.send(get("/scrubbed/a"))
        assert client.broken()
