"""Forward mode: absolute-form, CONNECT to passthrough hosts, callers' tokens, Unix sockets."""

from __future__ import annotations

import base64
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.canaries import CANARIES
from tests.support.ports import free_port
from tests.support.recording import TIMEOUT, Recording
from tests.support.sidecar import (
    LOOPBACK,
    Answer,
    Client,
    Sidecar,
    World,
    target,
)
from tests.support.sidecar import whole as whole_target
from valetkey.contracts.events import TYPE_DECISION

pytest_plugins = ["tests.support.wire_fixtures"]

TOKEN = "caller-token-0123456789abcdef"
REVERSE, FORWARD, GUARDED, GUARDED_REVERSE = range(4)


class Echo:
    """A server of no HTTP: sends back what it gets, upper case, then its end after theirs."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    @staticmethod
    def _serve(sock: socket.socket) -> None:
        with sock:
            while data := sock.recv(65536):
                sock.sendall(data.upper())
            sock.sendall(b"!")


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    made = Echo()
    yield made
    made.listener.close()


@pytest.fixture(scope="module")
def sidecar(
    wire_world: World, session_upstream: Recording, echo: Echo, tmp_path_factory: Any
) -> Iterator[Sidecar]:
    token_file = tmp_path_factory.mktemp("token") / "caller"
    token_file.write_text(TOKEN + "\n")
    CANARIES.allow(token_file)
    port = session_upstream.port
    targets = {
        "plain": target(session_upstream.url),
        "elsewhere": target(f"http://localhost:{port}", allow_networks=[*LOOPBACK, "::1/128"]),
        "https": target(f"https://secure.example:{port}"),
    }
    made = wire_world.sidecar(
        "forward",
        targets,
        routes=[
            {**whole_target("plain"), "match": {"methods": ["GET", "POST"], "path": "/a/{rest*}"}},
            whole_target("elsewhere"),
            whole_target("https"),
        ],
        listeners=[
            {"bind": "127.0.0.1:0", "target": "plain"},
            {"bind": "127.0.0.1:0", "mode": "forward"},
            {"bind": "127.0.0.1:0", "mode": "forward", "token_file": str(token_file)},
            {"bind": "127.0.0.1:0", "target": "plain", "token_file": str(token_file)},
        ],
        passthrough=[
            {"host": "127.0.0.1", "ports": [echo.port, free_port()], "allow_networks": LOOPBACK},
            {"host": "*.invalid"},
            {"host": "169.254.169.254", "ports": [80], "allow_networks": ["0.0.0.0/0"]},
        ],
    )
    yield made
    assert made.defects() == []
    made.stop()


def wire(line: str, host: str | None, *lines: str, body: bytes = b"") -> bytes:
    hosts = [] if host is None else [f"Host: {host}"]
    return "\r\n".join([line, *hosts, *lines, "", ""]).encode() + body


def last_pair(sidecar: Sidecar) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last decision on record, and its outcome if it is there."""
    events = sidecar.events()
    decision = [event for event in events if event["type"] == TYPE_DECISION][-1]
    outcome = [
        event for event in events if event["data"]["unmapped"].get("decision") == decision["id"]
    ]
    return decision["data"], outcome[0]["data"] if outcome else {}


# --- absolute-form --------------------------------------------------------------------------------


def test_a_call_by_absolute_form_arrives_in_origin_form(
    sidecar: Sidecar, upstream: Recording
) -> None:
    where = f"127.0.0.1:{upstream.port}"
    answer = sidecar.ask(
        wire(f"GET http://{where}/a/b?c=d HTTP/1.1", where, "Proxy-Connection: keep-alive"),
        FORWARD,
    )
    assert answer.status == 200
    [request] = upstream.requests
    assert request.line == b"GET /a/b?c=d HTTP/1.1"
    assert request.values("host") == [where]
    assert request.values("authorization")[0].startswith("Bearer ")
    assert request.values("proxy-connection") == []


def test_targets_differ_by_the_name_that_was_called(sidecar: Sidecar, upstream: Recording) -> None:
    where = f"LocalHost.:{upstream.port}"
    assert sidecar.ask(wire(f"GET http://{where}/x HTTP/1.1", where), FORWARD).status == 200
    assert last_pair(sidecar)[0]["api"]["service"]["name"] == "elsewhere"


def test_http_1_0_needs_no_host(sidecar: Sidecar, upstream: Recording) -> None:
    line = f"GET http://127.0.0.1:{upstream.port}/a/b HTTP/1.0"
    assert sidecar.ask(wire(line, None), FORWARD).status == 200


REFUSED = [
    ("origin-form", "GET /a/b HTTP/1.1", "127.0.0.1:{port}", "request.no_origin"),
    ("another host", "GET http://127.0.0.1:{port}/a/b HTTP/1.1", "other", "request.ambiguous_host"),
    ("unknown host", "GET http://other.example/a/b HTTP/1.1", "other.example", "target.no_match"),
    ("unknown port", "GET http://127.0.0.1:9/a/b HTTP/1.1", "127.0.0.1:9", "target.no_match"),
    ("other scheme", "GET https://127.0.0.1:{port}/a/b HTTP/1.1", "127.0.0.1:{port}", "target.no_match"),
    ("no route", "GET http://127.0.0.1:{port}/b HTTP/1.1", "127.0.0.1:{port}", "route.no_match"),
    ("userinfo", "GET http://u:p@127.0.0.1:{port}/a/b HTTP/1.1", "127.0.0.1:{port}", "request.ambiguous_host"),
    ("a reserved name", "GET http://valetkey.invalid/ HTTP/1.1", "valetkey.invalid", "target.no_match"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "line", "host", "code"), REFUSED, ids=[c[0] for c in REFUSED])
def test_what_a_forward_listener_refuses(
    name: str, line: str, host: str, code: str, sidecar: Sidecar, upstream: Recording
) -> None:
    raw = wire(line.format(port=upstream.port), host.format(port=upstream.port))
    assert sidecar.ask(raw, FORWARD).code == code
    assert upstream.requests == []


# --- CONNECT --------------------------------------------------------------------------------------


def connect(sidecar: Sidecar, where: str, *lines: str, listener: int = FORWARD) -> Client:
    client = sidecar.open(listener)
    client.send(wire(f"CONNECT {where} HTTP/1.1", where, *lines))
    return client


def test_an_opaque_tunnel_carries_bytes_both_ways_and_is_on_record(
    sidecar: Sidecar, echo: Echo
) -> None:
    with connect(sidecar, f"127.0.0.1:{echo.port}") as client:
        assert client.until(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
        decision, outcome = last_pair(sidecar)
        assert decision["action_id"] == 1
        assert decision["api"]["operation"] == "CONNECT"
        assert decision["api"]["service"]["name"] == f"127.0.0.1:{echo.port}"
        assert decision["policy"]["uid"] == "passthrough:127.0.0.1"
        assert outcome == {}
        client.send(b"hello")
        assert client.exactly(5) == b"HELLO"
        client.half_close()
        assert client.rest() == b"!"
    sidecar_outcome = reached(lambda: last_pair(sidecar)[1])
    assert sidecar_outcome["unmapped"]["outcome"] == "completed"
    assert sidecar_outcome["unmapped"]["sent"] == 5
    assert sidecar_outcome["unmapped"]["received"] == 6


def reached(look: Any) -> Any:
    """What ``look`` finds, once it finds something."""
    event = threading.Event()
    for _ in range(500):
        if found := look():
            return found
        event.wait(0.01)
    raise AssertionError("not reached")


def test_a_tunnel_moves_much_in_both_directions_at_once(sidecar: Sidecar, echo: Echo) -> None:
    payload = b"abcdefgh" * (1 << 18)
    with connect(sidecar, f"127.0.0.1:{echo.port}") as client:
        client.until(b"\r\n\r\n")
        sender = threading.Thread(target=lambda: (client.send(payload), client.half_close()))
        sender.start()
        assert client.rest() == payload.upper() + b"!"
        sender.join()


TUNNELS = [
    ("no target, no passthrough", "other.example:443", "target.no_match"),
    ("another port", "127.0.0.1:1", "target.no_match"),
    ("a target, but no CA", "secure.example:{port}", "tunnel.not_intercepted"),
    ("a name that leads nowhere", "no-such-name.invalid:443", "target.unreachable"),
    ("a metadata service", "169.254.169.254:80", "target.address_denied"),
]


@pytest.mark.parametrize(("name", "where", "code"), TUNNELS, ids=[case[0] for case in TUNNELS])
def test_tunnels_that_are_refused(
    name: str, where: str, code: str, sidecar: Sidecar, upstream: Recording
) -> None:
    with connect(sidecar, where.format(port=upstream.port)) as client:
        answer = client.answer()
        assert answer.code == code
    if code.startswith(("target.no", "tunnel")):
        assert answer.closes
        assert last_pair(sidecar)[0]["action_id"] == 2
    assert last_pair(sidecar)[1]["unmapped"]["code"] == code


def test_a_tunnel_to_a_plain_target_is_read_call_by_call(
    sidecar: Sidecar, upstream: Recording
) -> None:
    """As undici (Node's fetch) does it: CONNECT, for http:// URLs too."""
    where = f"127.0.0.1:{upstream.port}"
    with connect(sidecar, where) as client:
        assert client.until(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
        for path in ("/a/1", "/a/2"):
            client.send(wire(f"GET {path} HTTP/1.1", where, "Authorization: Bearer stolen"))
            assert client.answer().status == 200
        client.send(wire("GET /b HTTP/1.1", where))
        assert client.answer().code == "route.no_match"
        client.send(wire("GET /a/3 HTTP/1.1", f"localhost:{upstream.port}"))
        assert client.answer().code == "request.misdirected"
    assert [request.line.split()[1] for request in upstream.requests] == [b"/a/1", b"/a/2"]
    for request in upstream.requests:
        assert request.values("authorization")[0].startswith("Bearer ey")


@pytest.mark.parametrize(
    "raw", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"SSH-2.0-OpenSSH_9.2\r\n"]
)
def test_what_is_no_http_in_a_tunnel_to_a_plain_target_is_refused(
    raw: bytes, sidecar: Sidecar, upstream: Recording
) -> None:
    with connect(sidecar, f"127.0.0.1:{upstream.port}") as client:
        client.until(b"\r\n\r\n")
        client.send(raw)
        answer = client.answer()
        assert answer.code.startswith("request.")
        assert answer.closes
    assert upstream.requests == []


def test_the_reserved_host_is_answered_here(sidecar: Sidecar, upstream: Recording) -> None:
    """A listed ``*.invalid`` does not take it over, and without a CA its tunnel stays shut."""
    host = "valetkey.invalid"
    with connect(sidecar, f"{host}:80") as client:
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        client.send(wire("GET / HTTP/1.1", host))
        assert client.answer().code == "target.no_match"
    with connect(sidecar, f"{host}:443") as client:
        assert client.answer().code == "tunnel.not_intercepted"
    with connect(sidecar, f"{host}:81") as client:
        assert client.answer().code == "target.no_match"


def test_a_tunnel_is_for_who_waits_for_its_answer(sidecar: Sidecar, echo: Echo) -> None:
    where = f"127.0.0.1:{echo.port}"
    early = wire(f"CONNECT {where} HTTP/1.1", where, body=b"early")
    assert sidecar.ask(early, FORWARD).code == "tunnel.early_data"
    for framing in ("Content-Length: 0", "Content-Length: 5", "Transfer-Encoding: chunked"):
        raw = wire(f"CONNECT {where} HTTP/1.1", where, framing, body=b"0\r\n\r\n")
        assert sidecar.ask(raw, FORWARD).code == "request.ambiguous_framing"


def test_connect_is_for_forward_listeners(sidecar: Sidecar, echo: Echo) -> None:
    with connect(sidecar, f"127.0.0.1:{echo.port}", listener=REVERSE) as client:
        assert client.answer().code == "request.connect_denied"


def test_a_tunnel_of_http_1_0_needs_no_host(sidecar: Sidecar, echo: Echo) -> None:
    with sidecar.open(FORWARD) as client:
        client.send(wire(f"CONNECT 127.0.0.1:{echo.port} HTTP/1.0", None))
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")


# --- callers' tokens ------------------------------------------------------------------------------

BASIC = base64.b64encode(f"whoever:{TOKEN}".encode()).decode()
CALLERS = [
    ("none", [], False),
    ("bearer", [f"Proxy-Authorization: Bearer {TOKEN}"], True),
    ("basic", [f"proxy-authorization: basic {BASIC}"], True),
    ("a wrong token", ["Proxy-Authorization: Bearer caller-token-0123456789abcdee"], False),
    ("a part of it", [f"Proxy-Authorization: Bearer {TOKEN[:-1]}"], False),
    ("as user", [f"Proxy-Authorization: Basic {base64.b64encode(TOKEN.encode()).decode()}"], False),
    ("twice", [f"Proxy-Authorization: Bearer {TOKEN}"] * 2, False),
    ("another scheme", [f"Proxy-Authorization: Digest {TOKEN}"], False),
    ("not base64", ["Proxy-Authorization: Basic %%%"], False),
    ("empty", ["Proxy-Authorization: Bearer"], False),
]


@pytest.mark.parametrize(("name", "lines", "admitted"), CALLERS, ids=[c[0] for c in CALLERS])
def test_a_listener_with_a_token(
    name: str, lines: list[str], admitted: bool, sidecar: Sidecar, upstream: Recording, echo: Echo
) -> None:
    where = f"127.0.0.1:{upstream.port}"
    for raw, listener in (
        (wire(f"GET http://{where}/a/b HTTP/1.1", where, *lines), GUARDED),
        (wire("GET /a/b HTTP/1.1", "h", *lines), GUARDED_REVERSE),
    ):
        answer = sidecar.ask(raw, listener)
        if admitted:
            assert answer.status == 200
            assert upstream.requests[-1].values("proxy-authorization") == []
            assert "dropped" not in last_pair(sidecar)[0]["unmapped"]
        else:
            assert answer.status == 407
            assert answer.code == "caller.unauthenticated"
            assert answer.values("proxy-authenticate") == ['Basic realm="valetkey"']
    with connect(sidecar, f"127.0.0.1:{echo.port}", *lines, listener=GUARDED) as client:
        status = client.until(b"\r\n\r\n").split()[1]
        assert status == (b"200" if admitted else b"407")
    if not admitted:
        assert upstream.requests == []


# --- Unix sockets ---------------------------------------------------------------------------------


def ask_unix(path: Path, raw: bytes) -> Answer:
    with Client(_connected(path)) as client:
        client.send(raw)
        return client.answer()


def _connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(TIMEOUT)
    sock.connect(str(path))
    return sock


def test_unix_sockets_know_their_callers(
    wire_world: World, upstream: Recording, tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "ours.sock", tmp_path / "theirs.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(ours))  # what is left of a sidecar that was killed
    stale.close()
    made = wire_world.sidecar(
        "unix",
        {"plain": target(upstream.url)},
        listeners=[
            {"bind": f"unix:{ours}", "target": "plain", "uids": [os.getuid()]},
            {"bind": f"unix:{theirs}", "target": "plain", "uids": [os.getuid() + 1],
             "socket_mode": "0660"},
        ],
    )  # fmt: skip
    try:
        assert ours.stat().st_mode & 0o777 == 0o600
        assert theirs.stat().st_mode & 0o777 == 0o660
        assert ask_unix(ours, wire("GET /a HTTP/1.1", "h")).status == 200
        assert last_pair(made)[0]["src_endpoint"] == {"name": "unix", "uid": str(os.getuid())}
        with Client(_connected(theirs)) as client:
            assert client.answer().code == "caller.uid_denied"
        assert len(upstream.requests) == 1
        assert made.defects() == []
        made.stop()
        assert not ours.exists()
    finally:
        made.kill()
