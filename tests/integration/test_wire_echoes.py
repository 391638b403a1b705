"""What a target sends back of credentials: overwritten, dropped, recorded, counted."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.canaries import CANARIES
from tests.support.recording import Recording, Wire
from tests.support.sidecar import BOUND, Answer, Sidecar, World, target

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
        },
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
    said: dict[str, Any] = sidecar.events()[-1]["data"]["unmapped"]
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
