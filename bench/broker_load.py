"""How many exchanges one broker does on one core.

    python bench/broker_load.py --seconds 5

Starts a broker pinned to core 0 (settings, keys and grants in a temporary directory), and from
core 1 sends bearer exchanges with a reusable workload token and a fresh DPoP proof each. Proofs
and requests are made before the clock starts, so that the load is not what is measured. Prints one
JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import jwt
import psutil
import uvloop
import yaml
from cryptography.hazmat.primitives.asymmetric import ec

from valetkey.contracts import oauth
from valetkey.contracts.dpop import ProofKey

IDP = "https://idp.bench.example"
BOT = "spiffe://bench.example/ns/agents/sa/bot"
TICKETS = "https://tickets.bench.example"
GRANTS = 200
START_TIMEOUT = 10.0
# More proofs than any run so far could use; making one takes about 40 µs.
PROOFS_PER_SECOND = 5000


def prepare(
    root: Path, url: str, *, database: str = "", issuer: Any = None, grant: str = ""
) -> tuple[Path, str]:
    """Write the broker's files; gives its settings file and the workload's token.

    ``database`` is a URL (default: SQLite beside the files), ``issuer`` one more trusted issuer,
    ``grant`` a workload of its own name's issuer that gets the same as the bot.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    (root / "idp.json").write_text(json.dumps({"keys": [{**public, "kid": "k1", "alg": "ES256"}]}))
    (root / "master.key").write_bytes(secrets.token_bytes(48))
    (root / "master.key").chmod(0o600)
    grants = [
        {
            "id": f"grant-{number}",
            "workload": BOT if number == 0 else f"spiffe://bench.example/ns/n{number}/sa/bot",
            "issuer": IDP,
            "target": "tickets",
            "scopes": ["tickets:read"],
            "conditions": [{"methods": ["GET"], "path": "/api/tickets/{id}"}],
        }
        for number in range(GRANTS)
    ]
    if grant:
        grants.append({**grants[0], "id": "grant-more", "workload": grant, "issuer": grant})
    (root / "grants.yaml").write_text(yaml.safe_dump({"grants": grants}))
    settings = {
        "issuer": url,
        "bind": urlsplit(url).netloc,
        "database": database or f"sqlite+aiosqlite:///{root / 'broker.db'}",
        "master_key_file": str(root / "master.key"),
        "grants_file": str(root / "grants.yaml"),
        "issuers": [
            {
                "issuer": IDP,
                "audience": url,
                "use": "workload",
                "jwks_file": str(root / "idp.json"),
                "audience_list": True,
                "reusable": True,
            },
            *([issuer] if issuer else []),
        ],
        "targets": {"tickets": {"audience": TICKETS, "credential": "bearer"}},
        # One workload is the whole load.
        "limits": {"exchanges": {"rate": 1_000_000, "burst": 1_000_000}},
    }
    config = root / "broker.yaml"
    config.write_text(yaml.safe_dump(settings))
    now = int(time.time())
    claims = {"iss": IDP, "sub": BOT, "aud": [url], "iat": now, "exp": now + 3600}
    return config, jwt.encode(claims, key, algorithm="ES256", headers={"kid": "k1"})


def body(token: str) -> bytes:
    detail = {
        "type": oauth.DETAILS_HTTP_CALL,
        "locations": [TICKETS],
        "actions": ["GET"],
        "identifier": "tickets-read",
        "path": "/api/tickets/{id}",
    }
    return urlencode(
        {
            "grant_type": oauth.GRANT_TOKEN_EXCHANGE,
            "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
            "client_assertion": token,
            "subject_token": token,
            "subject_token_type": oauth.TOKEN_TYPE_JWT,
            "audience": TICKETS,
            "scope": "tickets:read",
            "authorization_details": json.dumps([detail]),
        }
    ).encode()


class Connection:
    """One keep-alive connection; one request at a time."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(*self._address)

    async def send(self, request: bytes) -> tuple[bytes, bytes]:
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        return head, await self._reader.readexactly(length)

    def close(self) -> None:
        self._writer.close()


@dataclass
class Load:
    url: str
    token: str
    broker: psutil.Process
    key: ProofKey = field(default_factory=ProofKey)
    latencies: list[float] = field(default_factory=list)
    failed: int = 0
    broker_cpu: float = 0.0

    def request(self, content: bytes, nonce: str) -> bytes:
        proof = self.key.proof(
            method="POST",
            url=self.url + "/token",
            jti=secrets.token_urlsafe(12),
            now=int(time.time()),
            nonce=nonce,
        )
        return (
            b"POST /token HTTP/1.1\r\nHost: " + urlsplit(self.url).netloc.encode()
            + b"\r\nContent-Type: application/x-www-form-urlencoded\r\nDPoP: " + proof.encode()
            + b"\r\nContent-Length: " + str(len(content)).encode() + b"\r\n\r\n" + content
        )  # fmt: skip

    async def run(self, seconds: float, connections: int) -> float:
        """Send for ``seconds``; gives the time it really took."""
        parts = urlsplit(self.url)
        lines = [Connection(parts.hostname or "", parts.port or 0) for _ in range(connections)]
        await asyncio.gather(*(line.open() for line in lines))
        content = body(self.token)
        head, _ = await lines[0].send(self.request(content, ""))
        nonce = head.partition(b"DPoP-Nonce: ")[2].partition(b"\r\n")[0].decode()
        requests = [self.request(content, nonce) for _ in range(int(seconds * PROOFS_PER_SECOND))]
        for line in lines:  # warm up: every path taken once
            _, answer = await line.send(requests.pop())
            assert b"access_token" in answer, answer
        cpu = sum(self.broker.cpu_times()[:2])
        began = time.perf_counter()
        until = began + seconds
        await asyncio.gather(*(self._worker(line, requests, until) for line in lines))
        took = time.perf_counter() - began
        self.broker_cpu = sum(self.broker.cpu_times()[:2]) - cpu
        for line in lines:
            line.close()
        return took

    async def _worker(self, line: Connection, requests: list[bytes], until: float) -> None:
        while requests and time.perf_counter() < until:
            sent = time.perf_counter()
            head, _ = await line.send(requests.pop())
            self.latencies.append(time.perf_counter() - sent)
            self.failed += not head.startswith(b"HTTP/1.1 200")


def wait_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while b'"listening"' not in log.read_bytes():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the broker did not start:\n{log.read_text()}")
        time.sleep(0.01)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        url = f"http://127.0.0.1:{free_port()}"
        config, token = prepare(root, url)
        log = root / "broker.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                ["taskset", "-c", "0", sys.executable, "-m", "valetkey.broker", "--config", config],
                stderr=stream,
            )
        try:
            wait_ready(process, log)
            load = Load(url, token, psutil.Process(process.pid))
            took = uvloop.run(load.run(options.seconds, options.connections))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(10)
    if load.failed or not load.latencies:
        raise SystemExit(f"{load.failed} of {len(load.latencies)} exchanges failed")
    ordered = sorted(load.latencies)
    print(
        json.dumps(
            {
                "exchanges_per_second": round(len(ordered) / took, 1),
                "p50_ms": round(ordered[len(ordered) // 2] * 1000, 3),
                "p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1000, 3),
                "count": len(ordered),
                # Also meaningful on a machine that does other things at the same time.
                "broker_cpu_us": round(load.broker_cpu / len(ordered) * 1e6, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
