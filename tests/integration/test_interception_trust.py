"""Clients of every make accept what the sidecar's CA signs, and only if they were told to."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import pytest
from cryptography import x509

from tests.support import trusting_clients
from tests.support.authorities import make
from tests.support.handshake import client_context
from tests.support.trusting_clients import Ask, Refused, Trust
from valetkey.proxy.intercept.authority import InterceptionAuthority
from valetkey.proxy.settings import GivenAuthoritySettings, InterceptionSettings

NAME, ADDRESS = "www.example.test", "127.0.0.1"
PAGE = "a page that came through"
ANSWER = (
    f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(PAGE)}\r\n"
    f"Connection: close\r\n\r\n{PAGE}"
).encode()


class Server:
    """Serves one page as whatever host the client asks for, until it is closed."""

    def __init__(self, authority: InterceptionAuthority) -> None:
        self.ports: dict[str, int] = {}
        self._authority = authority
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(10)

    def url(self, host: str) -> str:
        return f"https://{host}:{self.ports[host]}/"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        servers = []
        for host in (NAME, ADDRESS):
            context = self._authority.context(host)
            server = await asyncio.start_server(self._answer, "127.0.0.1", 0, ssl=context)
            self.ports[host] = int(server.sockets[0].getsockname()[1])
            servers.append(server)
        self._ready.set()
        await self._stop.wait()
        for server in servers:
            server.close()
            await server.wait_closed()

    @staticmethod
    async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ANSWER)
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        except (OSError, asyncio.IncompleteReadError):  # a client that asks for nothing
            writer.transport.abort()


@dataclass(frozen=True, slots=True)
class Site:
    server: Server
    authority: InterceptionAuthority
    trust: Trust


def settings(kind: str, directory: Path) -> InterceptionSettings:
    ca = None
    if kind == "intermediate":
        permitted = [x509.DNSName("example.test"), x509.IPAddress(ip_network("127.0.0.0/8"))]
        bounds = x509.NameConstraints(permitted, None)
        given = make("Given CA", issuer=make("Given root"), more=(bounds,))
        certificate, key = given.write(directory)
        ca = GivenAuthoritySettings(certificate=certificate, key=key)
    return InterceptionSettings(
        ca=ca,
        certificate_file=directory / "ca.pem",
        bundle_file=directory / "bundle.pem",
        truststore_file=directory / "trust.p12",
    )


@pytest.fixture(scope="module", params=["made", "intermediate"])
def site(request, tmp_path_factory) -> Iterator[Site]:
    """Under a CA that was made, and under a given one below a root, bound to its names."""
    directory = tmp_path_factory.mktemp(request.param)
    authority = InterceptionAuthority.open(settings(request.param, directory), instance="sidecar-1")
    authority.publish()
    home = directory / "home"
    home.mkdir()
    server = Server(authority)
    trust = Trust(directory / "ca.pem", directory / "bundle.pem", directory / "trust.p12", home)
    yield Site(server, authority, trust)
    server.close()


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> Trust:
    """The files of another sidecar."""
    directory = tmp_path_factory.mktemp("stranger")
    InterceptionAuthority.open(settings("made", directory), instance="sidecar-1").publish()
    home = directory / "home"
    home.mkdir()
    return Trust(directory / "ca.pem", directory / "bundle.pem", directory / "trust.p12", home)


CLIENTS = [
    pytest.param(
        client,
        id=client.__name__,
        marks=pytest.mark.skipif(bool(lacking), reason=lacking),
    )
    for client in (
        trusting_clients.curl,
        trusting_clients.openssl,
        trusting_clients.node,
        trusting_clients.java,
        trusting_clients.chromium,
    )
    for lacking in [trusting_clients.missing(client)]
]


# How each of them says that it does not know the issuer.
UNTRUSTED = (
    "unable to get local issuer certificate|UNABLE_TO_|SELF_SIGNED_CERT|unable to find valid certification path"
    "|ERR_CERT_AUTHORITY_INVALID"
)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_that_was_told(client: Ask, site: Site) -> None:
    assert PAGE in client(site.server.url(NAME), site.trust)


@pytest.mark.parametrize("client", CLIENTS[:4])
def test_a_client_that_was_told_by_address(client: Ask, site: Site) -> None:
    assert PAGE in client(site.server.url(ADDRESS), site.trust)


@pytest.mark.parametrize("site", ["made"], indirect=True)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_that_was_told_of_another(client: Ask, site: Site, stranger: Trust) -> None:
    """So the pages above came because of the CA, not because nobody looked."""
    with pytest.raises(Refused, match=UNTRUSTED):
        client(site.server.url(NAME), stranger)


@pytest.mark.parametrize("host", [NAME, ADDRESS])
def test_python_as_strict_as_it_is_since_3_13(site: Site, host: str) -> None:
    context = client_context(site.authority.pem)
    with (
        socket.create_connection(("127.0.0.1", site.server.ports[host]), 10) as raw,
        context.wrap_socket(raw, server_hostname=host) as connection,
    ):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert PAGE in connection.makefile(encoding="ascii").read()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_verifies_the_chain_offline(site: Site, tmp_path: Path) -> None:
    pems = ssl.get_server_certificate((ADDRESS, site.server.ports[ADDRESS]))
    (tmp_path / "leaf.pem").write_text(pems)
    given = site.trust.certificate.parent / "given.pem"
    between = ["-untrusted", str(given)] if given.exists() else []
    said = subprocess.run(
        [
            "openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_ip", ADDRESS,
            "-CAfile", str(site.trust.certificate), *between, str(tmp_path / "leaf.pem"),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.stdout.endswith("leaf.pem: OK\n"), said.stderr
