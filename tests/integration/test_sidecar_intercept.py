"""Tunnels to targets: TLS ends at the sidecar, each call inside is decided on, the rest refused."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.support.authorities import canary
from tests.support.canaries import CANARIES
from tests.support.ports import free_port
from tests.support.recording import Recording
from tests.support.sidecar import Client, Sidecar, World, target, whole
from valetkey.contracts.events import TYPE_OUTCOME

pytest_plugins = ["tests.support.wire_fixtures"]

TOKEN = "caller-token-0123456789abcdef"


@dataclass
class Site:
    """A sidecar that intercepts, its TLS upstream, and what clients trust."""

    sidecar: Sidecar
    upstream: Recording
    trust: Path

    @property
    def authority(self) -> str:
        return f"localhost:{self.upstream.port}"

    def tunnel(self, where: str = "") -> Client:
        """A raw client behind CONNECT."""
        where = where or self.authority
        client = self.sidecar.open()
        client.send(f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n\r\n".encode())
        assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        return client

    def tls(self, *, name: str | None = "localhost", alpn: tuple[str, ...] = ()) -> Client:
        context = ssl.create_default_context(cafile=str(self.trust))
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        if name is None or name != "localhost":
            context.check_hostname = False
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return Client(context.wrap_socket(self.tunnel().sock, server_hostname=name))

    def get(self, client: Client, path: str, *lines: str, host: str = "") -> Any:
        head = [f"GET {path} HTTP/1.1", f"Host: {host or self.authority}", *lines, "", ""]
        client.send("\r\n".join(head).encode())
        return client.answer()

    def denied(self) -> list[dict[str, Any]]:
        return [
            event["data"]
            for event in self.sidecar.events()
            if event["data"].get("action_id") == 2 and "authorizations" in event["data"]
        ]


@pytest.fixture(scope="module")
def site(wire_world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("intercept")
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(directory / "upstream.pem"))
    with Recording(context=context) as upstream:
        trust, key = directory / "trust.pem", directory / "ca.key"
        made = wire_world.sidecar(
            "intercept",
            {
                "plain": target(
                    f"https://localhost:{upstream.port}",
                    ca_file=str(directory / "upstream.pem"),
                    allow_networks=["127.0.0.0/8", "::1/128"],
                )
            },
            routes=[
                {
                    **whole("plain"),
                    "match": {"methods": ["GET", "POST"], "path": "/a/{rest*}"},
                }
            ],
            listeners=[{"bind": "127.0.0.1:0", "mode": "forward"}],
            interception={"certificate_file": str(trust), "key_file": str(key)},
            timeouts={"head": "500ms"},
        )
        # Searched for in all that the sidecar writes, logs and says in metrics.
        canary(load_pem_private_key(key.read_bytes(), None), allow=key)
        yield Site(made, upstream, trust)
        assert made.defects() == []
        made.stop()


@pytest.fixture(autouse=True)
def nothing_left(site: Site) -> Iterator[None]:
    site.upstream.forget()
    site.upstream.clear()
    yield
    site.upstream.clear()


def test_calls_in_a_tunnel_are_calls_like_all_others(site: Site) -> None:
    with site.tls() as client:
        for path in ("/a/1", "/a/2"):
            assert site.get(client, path, "Authorization: Bearer stolen").status == 200
        assert site.get(client, "/b").code == "route.no_match"
        assert site.get(client, "/a/3").status == 200
    assert [request.line.split()[1] for request in site.upstream.requests] == [
        b"/a/1", b"/a/2", b"/a/3",
    ]  # fmt: skip
    for request in site.upstream.requests:
        assert request.values("host") == [site.authority]
        [credential] = request.values("authorization")
        assert credential.startswith("Bearer ey")
        CANARIES.add(credential.removeprefix("Bearer "), name="access token")


def test_large_bodies_go_through_both_ways(site: Site) -> None:
    body = bytes(range(256)) * 8192
    site.upstream.answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with site.tls() as client:
        head = (
            f"POST /a/x HTTP/1.1\r\nHost: {site.authority}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        # One after the other: an SSLSocket is not for two threads at once.
        client.send(head.encode() + body)
        answer = client.answer()
    assert answer.body == body
    assert site.upstream.requests[0].body == body


def test_a_hello_right_behind_the_answer_is_not_lost(site: Site) -> None:
    """The answer to CONNECT and the client's hello cross: nothing of it may meet the wrong reader."""
    for _ in range(20):
        with site.tls() as client:
            assert site.get(client, "/a/1").status == 200


HOSTS = [
    ("another name", "other.example"),
    ("another port", "localhost:1"),
    ("no port, which is 443", "localhost"),
    ("with user", "u@localhost"),
]


@pytest.mark.parametrize(("name", "host"), HOSTS, ids=[case[0] for case in HOSTS])
def test_a_tunnel_is_for_its_host_alone(name: str, host: str, site: Site) -> None:
    with site.tls() as client:
        answer = site.get(client, "/a/1", host=host)
    assert answer.code == ("request.ambiguous_host" if "@" in host else "request.misdirected")
    assert site.denied()[-1]["unmapped"]["code"] == answer.code
    assert site.upstream.requests == []


def test_absolute_form_in_a_tunnel_must_name_the_tunnels_origin(site: Site) -> None:
    with site.tls() as client:
        assert site.get(client, f"https://{site.authority}/a/1").status == 200
        assert site.get(client, f"http://{site.authority}/a/1").code == "request.misdirected"


def test_no_tunnel_in_a_tunnel(site: Site) -> None:
    with site.tls() as client:
        where = site.authority
        client.send(f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n\r\n".encode())
        assert client.answer().code == "request.connect_denied"


BYTES = [
    ("plain HTTP", b"GET /a/1 HTTP/1.1\r\nHost: localhost\r\n\r\n", "interception.not_tls"),
    ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n", "interception.not_tls"),
    ("HTTP/2 in the clear", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "interception.not_tls"),
    ("nothing", b"", "interception.handshake_failed"),
]


@pytest.mark.parametrize(("name", "raw", "code"), BYTES, ids=[case[0] for case in BYTES])
def test_what_is_no_tls_is_refused_and_recorded(
    name: str, raw: bytes, code: str, site: Site
) -> None:
    before = len(site.denied())
    with site.tunnel() as client:
        client.send(raw)
        assert client.ended()
    denied = _grown(site, before)
    assert denied["unmapped"]["code"] == code
    assert denied["api"]["service"]["name"] == "plain"


def _grown(site: Site, before: int) -> dict[str, Any]:
    for _ in range(500):
        if len(denied := site.denied()) > before:
            return denied[-1]
        threading.Event().wait(0.01)
    raise AssertionError("no denial on record")


@pytest.mark.parametrize(
    "raw", [b"\x16\x03\x01 no HTTP\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"EHLO x\r\n\r\n"]
)
def test_what_is_no_http_in_a_tunnel_is_refused_and_recorded(raw: bytes, site: Site) -> None:
    before = len(site.denied())
    with site.tls() as client:
        client.send(raw)
        assert client.answer().code.startswith("request.")
    assert _grown(site, before)["api"]["service"]["name"].startswith("https://localhost")


def test_the_server_name_is_the_tunnels_host(site: Site) -> None:
    for name in ("other.example", None):
        before = len(site.denied())
        with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):  # the alert arrives
            site.tls(name=name)
        assert _grown(site, before)["unmapped"]["code"] == "interception.server_name"


def test_a_client_that_does_not_trust_the_ca_is_on_record(site: Site) -> None:
    before = len(site.denied())
    with pytest.raises(ssl.SSLCertVerificationError):
        ssl.create_default_context().wrap_socket(site.tunnel().sock, server_hostname="localhost")
    assert _grown(site, before)["unmapped"]["code"] == "interception.untrusted"


def test_the_reserved_host_has_a_certificate_and_no_answer_but_one(site: Site) -> None:
    context = ssl.create_default_context(cafile=str(site.trust))
    sock = site.tunnel("valetkey.invalid:443").sock
    with Client(context.wrap_socket(sock, server_hostname="valetkey.invalid")) as client:
        for path in ("/", "/a/1"):
            answer = site.get(client, path, host="valetkey.invalid")
            assert (answer.status, answer.code) == (403, "target.no_match")
        assert site.get(client, "/a/1").code == "request.misdirected"
    assert site.denied()[-2]["unmapped"]["code"] == "target.no_match"
    assert site.upstream.requests == []


def test_http_1_1_is_what_is_spoken(site: Site) -> None:
    with site.tls(alpn=("h2", "http/1.1")) as client:
        assert isinstance(client.sock, ssl.SSLSocket)
        assert client.sock.selected_alpn_protocol() == "http/1.1"


def test_health_says_how_long_the_ca_is_good(site: Site) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{site.sidecar.admin}/readyz") as answer:
        said = json.load(answer)["interception_ca"]
    assert re.fullmatch(r"good until 20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z", said)


def test_the_memory_that_holds_the_key_is_closed(site: Site) -> None:
    """`contracts.memory` says what else that means; the limit shows that it was asked for."""
    limits = Path(f"/proc/{site.sidecar.program.pid}/limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)


def test_tunnels_end_with_the_sidecar(wire_world: World, tmp_path: Path) -> None:
    """Opaque ones too: cut when their time to finish is over, with an outcome on record."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        made = wire_world.sidecar(
            "ending",
            {"plain": target(f"http://127.0.0.1:{free_port()}")},
            listeners=[{"bind": "127.0.0.1:0", "mode": "forward"}],
            passthrough=[{"host": "127.0.0.1", "ports": [port], "allow_networks": ["127.0.0.0/8"]}],
            timeouts={"drain": "100ms"},
        )
        with made.open() as client:
            client.send(f"CONNECT 127.0.0.1:{port} HTTP/1.0\r\n\r\n".encode())
            client.until(b"\r\n\r\n")
            asyncio.run(made.program.stop())
            assert client.ended()
        made.kill()
    outcome = made.events(TYPE_OUTCOME)[-1]["data"]["unmapped"]
    assert (outcome["outcome"], outcome["code"]) == ("cut", "proxy.draining")
