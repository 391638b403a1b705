"""The load over TLS against a server that says what it saw."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.certificates import SERVER, Certificates
from bench.servers import HERE

# The first test waits for the build.
pytestmark = [
    pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed"),
    pytest.mark.timeout(400),
]

ANSWER = b"HTTP/1.1 %d Some\r\nServer: x\r\ncontent-LENGTH:  3\r\n\r\nabc"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("go") / "tls_load"
    # The language of the oldest Go that Debian has, whichever is here.
    command = ["go", "build", "-gcflags=-lang=go1.19", "-o", built, HERE / "tls_load.go"]
    subprocess.run(command, check=True, timeout=300, env={**os.environ, "GOTOOLCHAIN": "local"})
    return built


@contextmanager
def server(certificates: Certificates, heads: list[bytes], *, tunnel: bool) -> Iterator[int]:
    """Answers 200, and 503 to each tenth call; ``heads`` collects what it was sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    listener = socket.create_server(("127.0.0.1", 0))

    def talk(peer: socket.socket) -> None:
        with peer:
            if tunnel:
                heads.append(peer.recv(4096))
                peer.sendall(b"HTTP/1.1 200 OK\r\nVia: x\r\n\r\n")
            try:
                tls = context.wrap_socket(peer, server_side=True)
            except (ssl.SSLError, OSError):
                return  # the client does not trust us, or is gone
            with tls:
                count = 0
                while head := tls.recv(4096):
                    count += 1
                    heads.append(head)
                    tls.sendall(ANSWER % (503 if count % 10 == 0 else 200))

    def accept() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(peer,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def run(program: Path, port: int, ca: Path, *options: str) -> dict[str, Any]:
    command = [
        *(program, "-address", f"127.0.0.1:{port}", "-name", SERVER, "-ca", ca, "-path", "/x"),
        *("-connections", "3", "-seconds", "0.3", *options),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    report: dict[str, Any] = json.loads(ran.stdout)
    return report


@pytest.mark.parametrize("tunnel", [False, True])
def test_calls_are_counted_and_other_answers_too(
    tunnel: bool, program: Path, tmp_path: Path
) -> None:
    certificates, heads = Certificates(tmp_path), list[bytes]()
    with server(certificates, heads, tunnel=tunnel) as port:
        options = ("-connect", "localhost:7") if tunnel else ("-authorization", "Bearer t")
        report = run(program, port, certificates.ca, *options)
    tunnels = [head for head in heads if head.startswith(b"CONNECT localhost:7 HTTP/1.1\r\n")]
    calls = [head for head in heads if head.startswith(b"GET /x HTTP/1.1\r\n")]
    assert len(tunnels) == (3 if tunnel else 0)
    assert report["requests"] == len(calls) == len(heads) - len(tunnels) > 30
    assert set(calls) == {
        b"GET /x HTTP/1.1\r\nHost: localhost:7\r\n\r\n"
        if tunnel
        else b"GET /x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer t\r\n\r\n"
    }
    assert 0 < report["not_2xx"] <= report["requests"] // 10
    assert report["broken"] == 0
    assert 0 < report["p50_ms"] <= report["p90_ms"] <= report["p99_ms"] <= report["max_ms"]
    assert report["tls"].startswith("TLS_AES_")


def test_a_certificate_of_another_ca_is_not_accepted(program: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Certificates(tmp_path / "other")
    heads: list[bytes] = []
    with server(Certificates(tmp_path), heads, tunnel=False) as port:
        report = run(program, port, other.ca)
    assert (report["requests"], report["broken"], heads) == (0, 3, [])
