"""``python -m bench.exchanges``: exchanges a second of one broker, of two, and of Keycloak.

All servers run for the whole time; each round loads one after the other, so that what else the
machine does meets all alike. A sidecar's exchange (a reusable token and a fresh DPoP proof) writes
nothing; one with a self-signed assertion, used once, writes a row. Keycloak exchanges a token for
another with a client secret (`bench.keycloak`). Results go to bench/results/exchanges.md and .json.

Exit status 0 if all was measured, 2 if nothing could be.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import jwt
import msgspec
import uvloop
from cryptography.hazmat.primitives.asymmetric import ec

from bench import machine
from bench.broker_load import Connection, body, prepare
from bench.keycloak import Keycloak
from bench.processes import NotRun, Process, Processes, answers_200, free_port, wait_until_ready
from bench.report import measured_on
from bench.servers import HERE, subdirectory
from tests.support import postgres
from valetkey.contracts.dpop import ProofKey

SERVER_CORE: Final = 0
LOAD_CORE: Final = 1
CONNECTIONS: Final = 16
AIM: Final = 5.0
SELF_SIGNED: Final = "spiffe://bench.example/ns/batch/sa/report"
_START_TIMEOUT: Final = 20.0
# More requests than any server here answers; each is made before the clock starts.
_REQUESTS_A_SECOND: Final = 6000
_WARM: Final = 2.0
# The JVM compiles what is hot: what it does in its first seconds says nothing.
_WARM_JVM: Final = 20.0


class Round(msgspec.Struct, frozen=True):
    """One load of one row. ``cpu_us`` is the servers' own time for each exchange."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    failed: int


@dataclass
class Row:
    """``requests(port, count)`` makes requests for the server on that port."""

    name: str
    title: str
    ports: list[int]
    requests: Callable[[int, int], list[bytes]]
    processes: list[Process]
    warm: float = _WARM
    rounds: list[Round] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.exchanges", description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs gets stopped
    if shutil.which("taskset") is None:
        print("exchanges: taskset is missing: apt-get install util-linux", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="valetkey-exchanges-") as name:
        directory = Path(name)
        date = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        described = machine.describe(directory, Path("none"))
        os.sched_setaffinity(0, {LOAD_CORE})
        with Processes(directory) as processes, postgres.running(durable=True) as database:
            rows, not_run = _rows(directory, processes, database)
            for number in range(options.rounds):
                for row in rows:
                    row.rounds.append(_round(row, options.seconds, first=number == 0))
                    print(f"{number} {row.name}: {row.rounds[-1]}", file=sys.stderr, flush=True)
    if not rows:
        print(f"exchanges: {not_run}", file=sys.stderr)
        return 2
    text = report(rows, not_run, options, measured_on(date, described))
    print(text)
    options.output.mkdir(exist_ok=True)
    (options.output / "exchanges.md").write_text(text)
    document = {
        "date": date,
        "machine": described,
        "seconds": options.seconds,
        "rows": {row.name: row.rounds for row in rows},
        "not_run": not_run,
    }
    encoded = msgspec.json.format(msgspec.json.encode(document))
    (options.output / "exchanges.json").write_bytes(encoded + b"\n")
    return 0


def _rows(
    directory: Path, processes: Processes, database: postgres.Postgres | None
) -> tuple[list[Row], dict[str, str]]:
    """What can be measured here, and why the rest can't."""
    rows: list[Row] = []
    not_run: dict[str, str] = {}
    file = _Brokers(subdirectory(directory, "sqlite"), "", processes)
    one = file.start("broker-sqlite", SERVER_CORE)
    rows += [
        Row("sqlite", "one broker, SQLite", [one[0]], file.sidecars, [one[1]]),
        Row(
            "sqlite-assertions",
            "one broker, SQLite, self-signed assertions",
            [one[0]],
            file.assertions,
            [one[1]],
        ),
    ]
    if database is None:
        not_run["postgres"] = "PostgreSQL is missing: apt-get install postgresql"
    else:
        shared = _Brokers(subdirectory(directory, "postgres"), database.database(), processes)
        first = shared.start("broker-postgres", SERVER_CORE)
        other = shared.start("broker-replica", LOAD_CORE)
        ports, both = [first[0], other[0]], [first[1], other[1]]
        rows += [
            Row("postgres", "one broker, PostgreSQL", [first[0]], shared.sidecars, [first[1]]),
            Row(
                "postgres-assertions",
                "one broker, PostgreSQL, self-signed assertions",
                [first[0]],
                shared.assertions,
                [first[1]],
            ),
            Row("two", "two brokers, PostgreSQL", ports, shared.sidecars, both),
        ]
    try:
        keycloak = Keycloak(subdirectory(directory, "keycloak"), processes, core=SERVER_CORE)
        content = keycloak.form()

        def repeat(port: int, count: int) -> list[bytes]:
            return [_request(port, keycloak.path, content)] * count

        rows.append(
            Row(
                "keycloak",
                "Keycloak, client secret, no DPoP",
                [keycloak.port],
                repeat,
                [keycloak.process],
                _WARM_JVM,
            )
        )
    except NotRun as reason:
        not_run["keycloak"] = str(reason)
    return rows, not_run


class _Brokers:
    """Brokers over one database, all with the same settings, and the requests that they take."""

    def __init__(self, directory: Path, database: str, processes: Processes) -> None:
        self._directory = directory
        self._processes = processes
        self._url = f"http://127.0.0.1:{free_port()}"
        self._proof_key = ProofKey()
        self._own_key = ec.generate_private_key(ec.SECP256R1())
        own = jwt.algorithms.ECAlgorithm.to_jwk(self._own_key.public_key(), as_dict=True)
        keys = {"keys": [{**own, "kid": "own", "alg": "ES256"}]}
        (directory / "own.json").write_bytes(msgspec.json.encode(keys))
        self._config, self._token = prepare(
            directory,
            self._url,
            database=database,
            grant=SELF_SIGNED,
            issuer={
                "issuer": SELF_SIGNED,
                "audience": self._url,
                "use": "workload",
                "jwks_file": str(directory / "own.json"),
            },
        )
        self._nonces: dict[int, str] = {}

    def start(self, name: str, core: int) -> tuple[int, Process]:
        port = free_port()
        process = self._processes.start(
            name,
            [sys.executable, "-m", "valetkey.broker", "--config", self._config],
            core=core,
            env={"VALETKEY_BROKER__BIND": f"127.0.0.1:{port}"},
        )
        wait_until_ready(process, answers_200(port, "/readyz"), timeout=_START_TIMEOUT)
        return port, process

    def sidecars(self, port: int, count: int) -> list[bytes]:
        """A reusable token, a fresh proof each. A nonce lasts for minutes: it is asked for anew."""
        content = body(self._token)
        nonce = asyncio.run(self._nonce(port, content))
        now = int(time.time())
        proofs = (
            self._proof_key.proof(
                method="POST",
                url=f"{self._url}/token",
                jti=secrets.token_urlsafe(12),
                now=now,
                nonce=nonce,
            )
            for _ in range(count)
        )
        return [_request(port, "/token", content, proof) for proof in proofs]

    def assertions(self, port: int, count: int) -> list[bytes]:
        """A fresh assertion each, which the broker remembers in its database."""
        return [_request(port, "/token", body(self._assertion())) for _ in range(count)]

    def _assertion(self) -> str:
        now = int(time.time())
        claims = {
            "iss": SELF_SIGNED,
            "sub": SELF_SIGNED,
            "aud": self._url,
            "iat": now,
            "exp": now + 60,
            "jti": secrets.token_urlsafe(12),
        }
        return jwt.encode(claims, self._own_key, algorithm="ES256", headers={"kid": "own"})

    async def _nonce(self, port: int, content: bytes) -> str:
        """The one that a client goes on with which stays at this broker: the second."""
        line = Connection("127.0.0.1", port)
        await line.open()
        nonce = ""
        for _ in range(2):
            proof = self._proof_key.proof(
                method="POST",
                url=f"{self._url}/token",
                jti=secrets.token_urlsafe(12),
                now=int(time.time()),
                nonce=nonce,
            )
            head, _ = await line.send(_request(port, "/token", content, proof))
            nonce = head.partition(b"DPoP-Nonce: ")[2].partition(b"\r\n")[0].decode()
        line.close()
        return nonce


def _request(port: int, path: str, content: bytes, proof: str = "") -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Content-Type: application/x-www-form-urlencoded",
        f"Content-Length: {len(content)}",
        *([f"DPoP: {proof}"] if proof else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + content


def _round(row: Row, seconds: float, *, first: bool) -> Round:
    if first:
        _load(row, row.warm)
    return _load(row, seconds)


def _load(row: Row, seconds: float) -> Round:
    each = int(seconds * _REQUESTS_A_SECOND / len(row.ports))
    requests = {port: row.requests(port, each) for port in row.ports}
    return uvloop.run(_send(row, requests, seconds))


async def _send(row: Row, requests: dict[int, list[bytes]], seconds: float) -> Round:
    """Every connection sends its next request when the answer to the last one is there."""
    ports = [row.ports[number % len(row.ports)] for number in range(CONNECTIONS)]
    lines = [Connection("127.0.0.1", port) for port in ports]
    await asyncio.gather(*(line.open() for line in lines))
    latencies: list[float] = []
    failed = 0
    cpu = sum(process.cpu_seconds() for process in row.processes)
    began = time.perf_counter()
    until = began + seconds

    async def work(line: Connection, waiting: list[bytes]) -> None:
        nonlocal failed
        while waiting and time.perf_counter() < until:
            sent = time.perf_counter()
            head, answer = await line.send(waiting.pop())
            latencies.append(time.perf_counter() - sent)
            failed += not head.startswith(b"HTTP/1.1 200") or b"access_token" not in answer

    await asyncio.gather(
        *(work(line, requests[port]) for line, port in zip(lines, ports, strict=True))
    )
    took = time.perf_counter() - began
    cpu = sum(process.cpu_seconds() for process in row.processes) - cpu
    for line in lines:
        line.close()
    ordered = sorted(latencies)
    return Round(
        rate=len(ordered) / took,
        p50_ms=ordered[len(ordered) // 2] * 1000,
        p99_ms=ordered[int(len(ordered) * 0.99)] * 1000,
        cpu_us=cpu / len(ordered) * 1e6,
        failed=failed,
    )


def report(
    rows: Sequence[Row],
    not_run: dict[str, str],
    options: argparse.Namespace,
    measured: str,
) -> str:
    """The results as Markdown."""
    lines = [
        "| Exchanges | a second | p50 ms | p99 ms | CPU µs each | beside Keycloak |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    keycloak = next((_median(row, "rate") for row in rows if row.name == "keycloak"), None)
    for row in rows:
        rates = [item.rate for item in row.rounds]
        beside = f"{_median(row, 'rate') / keycloak:.1f} ×" if keycloak else "–"
        lines.append(
            f"| {row.title} | {_median(row, 'rate'):,.0f} ({min(rates):,.0f} to {max(rates):,.0f}) "
            f"| {_median(row, 'p50_ms'):.2f} | {_median(row, 'p99_ms'):.2f} "
            f"| {_median(row, 'cpu_us'):,.0f} | {beside} |"
        )
    lines += [f"| {name} | not run: {reason} | | | | |" for name, reason in not_run.items()]
    failed = sum(item.failed for row in rows for item in row.rounds)
    if keycloak:
        ratio = _median(rows[0], "rate") / keycloak
        verdict = "met" if ratio >= AIM else "missed"
        lines += ["", f"One broker over Keycloak: **{ratio:.1f} ×** (aim: {AIM:g}, {verdict})."]
    method = (
        f"{options.rounds} rounds of {options.seconds:g} s, interleaved over all rows, after a "
        f"warm-up of {_WARM:g} s ({_WARM_JVM:g} s for the JVM); figures are medians. The server "
        "has one core; the load, PostgreSQL (with fsync) and the second of two brokers share the "
        "other. Brokers verify the workload's token, a DPoP proof and authorization details "
        "against 200 grants for each exchange, or, with self-signed assertions, the assertion, "
        "which they remember in the database; Keycloak, built for production, verifies a client "
        "secret and its own token. Both sign with ES256."
    )
    not_answered = f"{failed} exchanges were not answered with a token."
    lines += ["", not_answered, "", measured, "", method]
    return "\n".join(lines) + "\n"


def _median(row: Row, name: str) -> float:
    return statistics.median(getattr(item, name) for item in row.rounds)


if __name__ == "__main__":
    sys.exit(main())
