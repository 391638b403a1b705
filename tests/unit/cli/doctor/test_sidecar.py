"""What answers is told apart by what it says; a real sidecar is in the integration tests."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.support.canaries import CANARIES
from tests.support.ports import free_port
from tests.support.recording import Recording, Wire
from valetkey.cli.doctor.proxy_url import Endpoint
from valetkey.cli.doctor.sidecar import (
    Admin,
    Listener,
    ask_admin,
    ask_listener,
    judge_admin,
    judge_listener,
)
from valetkey.contracts import codes, problem
from valetkey.contracts.codes import Code
from valetkey.contracts.secret import Secret

TIMEOUT = 5.0


def answer(status: int, body: bytes = b"", kind: str = "text/html") -> bytes:
    head = f"HTTP/1.1 {status} x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def refusal(code: Code) -> bytes:
    return answer(code.status, problem.render(code), problem.CONTENT_TYPE)


NO_MATCH = refusal(codes.TARGET_NO_MATCH)


@pytest.fixture
def proxy() -> Iterator[Recording]:
    with Recording() as recording:
        yield recording
        recording.clear()


def ask(proxy: Recording, ca_file: Path | None = None, token: str = "") -> Listener:
    endpoint = Endpoint("127.0.0.1", proxy.port)
    return ask_listener(endpoint, Secret(token) if token else None, ca_file, timeout=TIMEOUT)


FIRST = [
    ("another proxy", answer(503), "foreign", "it answers 503, not as a sidecar does"),
    ("a web server", answer(200, b"<html>"), "foreign", "it answers 200, not as a sidecar does"),
    ("a forged problem", answer(403, b'{"code":"a.b"}', problem.CONTENT_TYPE), "foreign", "it answers 403, not as a sidecar does"),
    ("no HTTP", b"SSH-2.0-x\r\n\r\n", "foreign", "no HTTP: SSH-2.0-x\r\n"),
    ("silence", b"", "foreign", "no HTTP: Remote end closed connection without response"),
    ("a wanted token", refusal(codes.CALLER_UNAUTHENTICATED), "token missing", "it answers 407"),
    ("a wanted token of another", answer(407), "token missing", "it answers 407"),
    ("a sidecar that stops", refusal(codes.PROXY_DRAINING), "refuses", "it answers proxy.draining"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "raw", "state", "detail"), FIRST, ids=[case[0] for case in FIRST])
def test_what_is_no_sidecar_for_us(
    name: str, raw: bytes, state: str, detail: str, proxy: Recording
) -> None:
    proxy.replies(raw, then="close")
    found = ask(proxy)
    assert (found.state, found.detail) == (state, detail)
    [request] = proxy.requests
    assert request.line == b"GET http://valetkey.invalid/ HTTP/1.1"
    assert request.values("host") == ["valetkey.invalid"]


THEN: list[tuple[str, bytes, Listener]] = [
    ("no interception", refusal(codes.TUNNEL_NOT_INTERCEPTED), Listener("sidecar", "it answers tunnel.not_intercepted", opens_tls=False)),
    ("a reverse listener", refusal(codes.REQUEST_CONNECT), Listener("foreign", "it is a sidecar's, but a listener in another mode")),
    ("no identity", refusal(codes.IDENTITY_UNAVAILABLE), Listener("refuses", "it answers identity.unavailable to CONNECT")),
    ("another answer", answer(500), Listener("refuses", "it answers 500 to CONNECT")),
    ("a tunnel", b"HTTP/1.1 200 Connection established\r\n\r\n", Listener("sidecar", opens_tls=True)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "raw", "listener"), THEN, ids=[case[0] for case in THEN])
def test_what_a_tunnel_shows(name: str, raw: bytes, listener: Listener, proxy: Recording) -> None:
    proxy.replies(NO_MATCH, then="close")
    proxy.replies(raw, then="close")
    assert ask(proxy) == listener
    assert proxy.requests[1].line == b"CONNECT valetkey.invalid:443 HTTP/1.1"


def test_the_token_is_shown_to_the_proxy_and_to_nobody_else(proxy: Recording) -> None:
    token = "dXNlcjpjYWxsZXItdG9rZW4tMDEyMzQ1Njc4OQ=="
    CANARIES.add(token, name="caller's token")
    for _ in range(2):
        proxy.replies(refusal(codes.CALLER_UNAUTHENTICATED), then="close")
    assert ask(proxy, token=token).state == "token refused"
    assert proxy.requests[0].values("proxy-authorization") == [f"Basic {token}"]
    assert ask(proxy).state == "token missing"
    assert proxy.requests[1].values("proxy-authorization") == []


@pytest.mark.parametrize("trusted", [True, False])
def test_the_certificate_must_be_of_the_ca(trusted: bool, proxy: Recording, tmp_path: Path) -> None:
    authority = trustme.CA()
    file = tmp_path / "ca.pem"
    (authority if trusted else trustme.CA()).cert_pem.write_to_path(str(file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("valetkey.invalid").configure_cert(context)

    def tunnel(wire: Wire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        context.wrap_socket(wire.sock, server_side=True).close()

    proxy.replies(NO_MATCH, then="close")
    over = proxy.script(tunnel)
    found = ask(proxy, file)
    assert (found.state, found.opens_tls, found.leaf_verifies) == ("sidecar", True, trusted)
    assert found.detail == ("" if trusted else "unable to get local issuer certificate")
    assert over.wait(TIMEOUT)


def test_a_tunnel_without_tls(proxy: Recording, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))

    def tunnel(wire: Wire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        wire.peek()
        wire.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        wire.close()

    proxy.replies(NO_MATCH, then="close")
    proxy.script(tunnel)
    found = ask(proxy, file)
    assert (found.state, found.opens_tls) == ("sidecar", False)
    assert found.detail.startswith("TLS in the tunnel: ")


def test_nobody_there() -> None:
    found = ask_listener(Endpoint("127.0.0.1", free_port()), None, None, timeout=TIMEOUT)
    assert found == Listener("unreachable", "Connection refused")


def test_a_listener_that_says_nothing(proxy: Recording) -> None:
    proxy.script(lambda wire: wire.ended(TIMEOUT))
    found = ask_listener(Endpoint("127.0.0.1", proxy.port), None, None, timeout=0.1)
    assert (found.state, found.detail) == ("unreachable", "timed out")


# --- admin ----------------------------------------------------------------------------------------


def test_an_admin_port_that_is_ready(proxy: Recording) -> None:
    for _ in range(2):
        proxy.replies(answer(200, b'{"status":"ready"}', "application/json"), then="close")
    assert ask_admin(proxy.url, timeout=TIMEOUT) == Admin(reachable=True)
    assert [request.line for request in proxy.requests] == [
        b"GET /healthz HTTP/1.1",
        b"GET /readyz HTTP/1.1",
    ]


@pytest.mark.parametrize(
    ("body", "reason"),
    [(b'{"reason":"no token"}', "no token"), (b"[]", "/readyz answered 503"), (b"x", "/readyz answered 503")],
)  # fmt: skip
def test_one_that_is_not_ready(body: bytes, reason: str, proxy: Recording) -> None:
    proxy.replies(answer(200), then="close")
    proxy.replies(answer(503, body), then="close")
    assert ask_admin(proxy.url, timeout=TIMEOUT) == Admin(reachable=True, reason=reason)


def test_one_that_is_something_else(proxy: Recording) -> None:
    proxy.replies(answer(404), then="close")
    found = ask_admin(proxy.url, timeout=TIMEOUT)
    assert found == Admin(reachable=False, reason="/healthz answered 404")


@pytest.mark.parametrize("url", ["nonsense", "ftp://h", "http://", "http://h:port"])
def test_no_url(url: str) -> None:
    assert not ask_admin(url, timeout=TIMEOUT).reachable


def test_no_admin_port() -> None:
    found = ask_admin(f"http://127.0.0.1:{free_port()}", timeout=TIMEOUT)
    assert found == Admin(reachable=False, reason="Connection refused")


# --- judgements -----------------------------------------------------------------------------------

HERE = Endpoint("127.0.0.1", 7072)
JUDGED = [
    (Listener("sidecar", opens_tls=True, leaf_verifies=True), []),
    (Listener("sidecar", opens_tls=True), []),
    (Listener("sidecar", "x", opens_tls=False), ["interception_off"]),
    (Listener("sidecar", "x", opens_tls=True, leaf_verifies=False), ["ca_mismatch"]),
    (Listener("unreachable", "x"), ["listener_unreachable"]),
    (Listener("foreign", "x"), ["listener_foreign"]),
    (Listener("refuses", "x"), ["listener_refuses"]),
    (Listener("token missing", "x"), ["token_missing"]),
    (Listener("token refused", "x"), ["token_refused"]),
]


@pytest.mark.parametrize(("listener", "found"), JUDGED)
def test_listeners(listener: Listener, found: list[str]) -> None:
    judged = judge_listener(HERE, "HTTPS_PROXY", listener)
    assert [each.kind.name for each in judged] == [f"doctor.{name}" for name in found]
    assert all(
        (each.subject, each.detail, each.is_wrong) == (str(HERE), "x", True) for each in judged
    )


def test_what_to_do_about_a_token() -> None:
    [missing] = judge_listener(HERE, "HTTPS_PROXY", Listener("token missing"))
    assert missing.action.endswith("HTTPS_PROXY=http://valetkey:TOKEN@127.0.0.1:7072")
    [refused] = judge_listener(HERE, "HTTPS_PROXY", Listener("token refused"))
    assert "HTTPS_PROXY" in refused.action


@pytest.mark.parametrize(
    ("admin", "found"),
    [
        (Admin(reachable=True), []),
        (Admin(reachable=True, reason="x"), ["doctor.not_ready"]),
        (Admin(reachable=False, reason="x"), ["doctor.admin_unreachable"]),
    ],
)
def test_admins(admin: Admin, found: list[str]) -> None:
    assert [each.kind.name for each in judge_admin("http://h", admin)] == found
