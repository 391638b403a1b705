"""Clients of streams, each by each way it knows: WebSockets and server-sent events.

What a client gets directly it gets through the sidecar: the same messages, the same close, the same
events. The handshake brings the sidecar's credential in place of the workload's.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import trustme

from tests.support.clients import (
    NODE_MODULES,
    PYTHON,
    needs_clients,
    upstream_name,
    without_ambient,
)
from tests.support.ports import free_port
from tests.support.sidecar import Sidecar, World, target, whole

pytest_plugins = ["tests.support.wire_fixtures"]
pytestmark = needs_clients

PROGRAMS: Final = Path(__file__).parent / "clients"
MESSAGES: Final[list[Any]] = [
    "text",
    "",
    "é ✓ " * 5000,
    {"binary": base64.b64encode(bytes(range(256)) * 4).decode()},
    {"binary": base64.b64encode(bytes(1 << 20)).decode()},
    "close 4321 enough",
]
_WAYS: Final = ("reverse", "reverse to TLS", "forward", "forward and TLS", "Unix socket")
_NODE: Final = shutil.which("node") is not None and (NODE_MODULES / "undici").exists()


@dataclass(frozen=True)
class Way:
    """Where a client's stream goes, without its scheme; ``secure`` if that has TLS."""

    authority: str
    secure: bool = False
    environ: tuple[tuple[str, str], ...] = ()
    socket: str = ""


@dataclass
class Site:
    """The target twice, with and without TLS, and a sidecar with every way in."""

    sidecar: Sidecar
    ways: dict[str, Way]

    def run(self, client: str, way: Way, path: str) -> dict[str, Any]:
        scheme = "http" if client == "httpx-sse" else "ws"
        url = f"{scheme}{'s' if way.secure else ''}://{way.authority}{path}"
        argv = (
            ["node", "--no-warnings", str(PROGRAMS / "streams_client.js")]
            if client == "node"
            else [str(PYTHON), str(PROGRAMS / "streams_client.py"), client]
        )
        done = subprocess.run(
            argv,
            input=json.dumps({"url": url, "socket": way.socket, "messages": MESSAGES}),
            env={**without_ambient(), "NODE_PATH": str(NODE_MODULES), **dict(way.environ)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


@contextlib.contextmanager
def streaming(address: str, log: Path, certificate: Path | None = None) -> Iterator[int]:
    """The target as a process; its port."""
    port = free_port()
    argv = [str(PYTHON), str(PROGRAMS / "streams_target.py"), address, str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*argv, *([str(certificate)] if certificate else [])], stdout=out, stderr=out
        )
    try:
        deadline = time.monotonic() + 20
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            with contextlib.suppress(OSError):
                socket.create_connection((address, port), timeout=1).close()
                break
            time.sleep(0.02)
        yield port
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.wait(20)


@pytest.fixture(scope="module")
def site(wire_world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("streams")
    name, address = upstream_name()
    authority = trustme.CA()
    certificate = directory / "target.pem"
    authority.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(str(certificate))
    authority.cert_pem.write_to_path(str(directory / "target-ca.pem"))
    with (
        streaming(address, directory / "plain.log") as plain,
        streaming(address, directory / "secure.log", certificate) as secure,
    ):
        more = {"allow_networks": [f"{address}/32"]}
        unix = directory / "s.sock"
        sidecar = wire_world.sidecar(
            "streams",
            {
                "plain": target(f"http://{name}:{plain}", prefix="/plain", **more),
                "secure": target(
                    f"https://{name}:{secure}",
                    prefix="/secure",
                    ca_file=str(directory / "target-ca.pem"),
                    **more,
                ),
            },
            routes=[whole(each, upgrade=["websocket"]) for each in ("plain", "secure")],
            listeners=[
                {"bind": "127.0.0.1:0"},
                {"bind": "127.0.0.1:0", "mode": "forward"},
                {"bind": f"unix:{unix}", "target": "plain"},
            ],
            interception={
                "certificate_file": str(directory / "ca.pem"),
                "bundle_file": str(directory / "bundle.pem"),
            },
        )
        proxy = f"http://127.0.0.1:{sidecar.ports[1]}"
        forward = (
            ("http_proxy", proxy),
            ("https_proxy", proxy),
            # aiohttp looks for these alone when a WebSocket is dialled.
            ("ws_proxy", proxy),
            ("wss_proxy", proxy),
            ("SSL_CERT_FILE", str(directory / "bundle.pem")),
            ("NODE_EXTRA_CA_CERTS", str(directory / "ca.pem")),
        )
        reverse = f"127.0.0.1:{sidecar.ports[0]}"
        yield Site(
            sidecar,
            {
                "direct": Way(f"{name}:{plain}"),
                "reverse": Way(f"{reverse}/plain"),
                "reverse to TLS": Way(f"{reverse}/secure"),
                "forward": Way(f"{name}:{plain}", environ=forward),
                "forward and TLS": Way(f"{name}:{secure}", secure=True, environ=forward),
                "Unix socket": Way("by.the.socket", socket=str(unix)),
            },
        )
        assert sidecar.defects() == []
        sidecar.stop()


@pytest.mark.parametrize(
    ("client", "way"),
    [
        pytest.param(
            client,
            way,
            id=f"{client}, {way}",
            marks=pytest.mark.skipif(
                client == "node" and not _NODE, reason="node or undici is not installed"
            ),
        )
        for client in ("websockets", "aiohttp", "node")
        for way in _WAYS
        if (client, way) != ("aiohttp", "forward")  # see below
    ],
)
def test_a_websocket_is_what_it_is_directly(client: str, way: str, site: Site) -> None:
    path = f"/ws?{client}&{way.replace(' ', '-')}"
    direct = site.run(client, site.ways["direct"], path)
    seen = site.run(client, site.ways[way], path)
    handshake, *messages = seen["got"]
    assert messages == direct["got"][1:] == MESSAGES[:-1]
    assert seen["closed"] == direct["closed"] == [4321, "enough"]
    # The credential is the sidecar's, and the workload's cookie stays here.
    same = {"query": path.partition("?")[2], "protocol": "echo.v1"}
    assert direct["got"][0] == {"authorized": "", "cookie": "mine=1", **same}
    assert handshake == {"authorized": "Bearer", "cookie": "", **same}


def test_a_proxy_is_asked_for_http_urls_alone(site: Site) -> None:
    """aiohttp sends ``GET ws://…`` where others open a tunnel (RFC 6455 §4.1): no proxy knows that."""
    with pytest.raises(AssertionError, match="WSServerHandshakeError: 400"):
        site.run("aiohttp", site.ways["forward"], "/ws")


@pytest.mark.parametrize("way", _WAYS)
def test_events_are_what_they_are_directly(way: str, site: Site) -> None:
    direct = site.run("httpx-sse", site.ways["direct"], "/events")
    assert site.run("httpx-sse", site.ways[way], "/events") == direct
    ids = [event[1] for event in direct["got"]]
    assert ids == [*map(str, range(10)), "8", "9"]
    assert direct["got"][4][:3] == ["even", "4", 1500]
    assert direct["got"][3][3] == f"line 3 ✓\n{'x' * 3000}"
