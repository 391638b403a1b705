"""``python -m bench.fleet``: 10,000 simulated sidecars at two broker replicas and one collector.

Brokers, collector and PostgreSQL (with fsync) are real and run as they come, with their default
settings. Each sidecar (`bench.fleet_sidecar`) has a token, keys and connections of its own; they
are split over load processes that come from loopback addresses of their own. In this order:

1. all begin within half a minute: a stream, its first poll, a credential;
2. they go on for some time: what that costs each program;
3. incidents about tokens, told to all, and about subjects, told to the workload's own sidecars;
4. a replica is killed; while its sidecars are on their way, an incident is opened at the other one;
5. the replica that is left carries all of them for some time;
6. the fleet ends, and a collector is loaded by itself, over SQLite and over PostgreSQL.

Everything shares one machine, the load included: a rate is a lower bound, a latency an upper one,
and processor time per request is what to reckon with. Results go to bench/results/fleet.md and
fleet.json.

Exit status 0 if all heard of everything, 1 if not, 2 if nothing can be measured here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import uvloop
import yaml

from bench import machine
from bench.fleet_ingest import Ingest, Stored, in_postgres, in_sqlite, ingest
from bench.fleet_record import Texts
from bench.fleet_report import AWAY, report
from bench.measurements import quantile
from bench.processes import Process
from bench.replicas import Replicas, free_port, started
from bench.report import measured_on
from bench.servers import HERE
from tests.integration.broker_support import IDP, TICKETS, World
from tests.support.postgres import Postgres, _programs
from valetkey.contracts import logs

LOADS: Final = 4
"""Load processes."""
WORKLOADS: Final = 500
_LINE: Final = 1 << 26
_PATIENCE: Final = 30.0
_ATTEMPTS: Final = 5
_SETTLE: Final = 3.0


@dataclass
class Use:
    """What a program used while the fleet went on. CPU in cores, memory in bytes."""

    cpu: float
    rss: int


@dataclass
class Steady:
    """Some seconds of the fleet's life. ``counts`` are what sidecars saw."""

    seconds: float
    following: dict[str, int]
    counts: dict[str, int]
    p50_ms: dict[str, float]
    p99_ms: dict[str, float]
    use: dict[str, Use]
    postgres: dict[str, float]


@dataclass
class Told:
    """One incident: seconds from the request for it to each sidecar that it came to."""

    about: str
    answered: float
    seconds: list[float]
    expected: int
    acknowledged: float | None = None
    """From the incident to the last acknowledgement, as the broker reports it."""
    report_seconds: float = 0.0
    attempts: int = 1


@dataclass
class Results:
    sidecars: int
    within: float
    """Seconds in which they began."""
    registered: list[float]
    """Seconds that each needed, from its begin to its first credential."""
    all_registered: float
    """Seconds from the first begin to the last credential."""
    unregistered: int
    cold_counts: dict[str, int]
    cold_use: dict[str, float]
    steady: Steady
    incidents: list[Told] = field(default_factory=list)
    killed: int = 0
    """How many followed the replica that was killed."""
    back: list[float] = field(default_factory=list)
    """Seconds from its end until they heard the other one."""
    while_away: Told | None = None
    alone: Steady | None = None
    spooled_per_call: float = 0.0
    ingest: list[Ingest] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)


class Loads:
    """The load processes, asked all at once."""

    def __init__(self) -> None:
        self._processes: list[asyncio.subprocess.Process] = []

    async def start(self, specs: list[Path]) -> None:
        for spec in specs:
            self._processes.append(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "bench.fleet_load", str(spec)),
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=_LINE, cwd=HERE.parent,
                    start_new_session=True,
                )
            )  # fmt: skip
        await asyncio.gather(*(self._said(process) for process in self._processes))

    async def ask(self, command: str) -> list[dict[str, Any]]:
        return await asyncio.gather(*(self._ask(one, command) for one in self._processes))

    async def _ask(self, process: asyncio.subprocess.Process, command: str) -> dict[str, Any]:
        assert process.stdin is not None
        process.stdin.write(f"{command}\n".encode())
        return await self._said(process)

    async def _said(self, process: asyncio.subprocess.Process) -> dict[str, Any]:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise SystemExit("a load process ended")
        said: dict[str, Any] = json.loads(line)
        return said

    async def stop(self) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.kill()
            await process.wait()

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]


class Site:
    """What runs: replicas, a collector, PostgreSQL, and the load."""

    def __init__(self, options: argparse.Namespace, root: Path, server: Postgres) -> None:
        self.options = options
        self._root = root
        self._server = server
        self.world = World(root / "world", f"http://localhost:{free_port()}", clock=time.time)  # type: ignore[arg-type]
        self.world.root.mkdir()
        grant = {
            "id": "fleet", "workload": "spiffe://demo.example/ns/*/sa/bot", "issuer": IDP,
            "target": "tickets", "scopes": ["tickets:read"],
        }  # fmt: skip
        self.world.write_grants([grant])
        self.database = server.database()
        self.replicas = Replicas(self.world, root, self.database)
        self.records = server.database()
        self.loads = Loads()
        self._collector: subprocess.Popen[bytes] | None = None
        self.texts = Texts.recorded(_directory(root, "record"))
        self._at: dict[str, float] = {}

    async def start(self) -> None:
        for number in (0, 1):
            await self.replicas.start(number)
        port = await self._start_collector("collector", self.records)
        await self.loads.start(self._specs(port))

    async def _start_collector(self, name: str, database: str) -> int:
        """One more collector, in place of the one before; gives its port."""
        self.end_collector()
        directory = _directory(self._root, name)
        port = free_port()
        document = {
            "bind": f"127.0.0.1:{port}",
            "database": database,
            "issuers": [
                {
                    "issuer": IDP, "audience": self.world.url, "use": "workload", "reusable": True,
                    "audience_list": True, "jwks_file": str(self.world.root / "idp.json"),
                }
            ],
        }  # fmt: skip
        config = directory / "collector.yaml"
        config.write_text(yaml.safe_dump(document))
        command = ["-m", "valetkey.collector", "--config", str(config)]
        self._collector = await started(command, directory / "collector.log")
        return port

    def end_collector(self) -> None:
        if self._collector is not None:
            self._collector.terminate()
            self._collector.wait(30)
            self._collector = None

    async def ingest(self, seconds: float) -> tuple[list[Ingest], list[Stored]]:
        """What one collector takes by itself, over either database; the fleet is gone."""
        token = self.world.workload("spiffe://demo.example/ns/n1/sa/bot")
        file = self._root / "collector.db"
        loads, stored = [], []
        records = self._server.database()
        databases = {"SQLite": f"sqlite+aiosqlite:///{file}", "PostgreSQL": records}
        for name, database in databases.items():
            port = await self._start_collector(f"alone-{name}", database)
            running = {name: self.programs()[name] for name in ("collector", "PostgreSQL")}
            loads += await ingest(name, port, running, token, self.texts, seconds)
            self.end_collector()
        stored = [in_sqlite(file), in_postgres(lambda sql: self.query(records, sql))]
        return loads, stored

    def _specs(self, collector: int) -> list[Path]:
        tokens = [
            self.world.workload(f"spiffe://demo.example/ns/n{number % WORKLOADS}/sa/bot")
            for number in range(self.options.sidecars)
        ]
        each = -(-len(tokens) // LOADS)
        specs = []
        for number in range(LOADS):
            spec = {
                "url": self.world.url,
                "ports": self.replicas.ports,
                "collector": collector,
                "source": f"127.0.0.{number + 2}",
                "audience": TICKETS,
                "texts": self.texts.document(),
                "call_every": self.options.call_every,
                "shipping": self.options.shipping,
                "patience": self.options.patience,
                "within": self.options.within,
                "first": number * each,
                "tokens": tokens[number * each : (number + 1) * each],
            }
            path = self._root / f"load-{number}.json"
            path.write_text(json.dumps(spec))
            specs.append(path)
        return specs

    def programs(self) -> dict[str, subprocess.Popen[bytes]]:
        running = {
            f"broker {number + 1}": self.replicas.process(number)
            for number in (0, 1)
            if self.replicas.alive(number)
        }
        assert self._collector is not None
        assert self._server._process is not None
        return {**running, "collector": self._collector, "PostgreSQL": self._server._process}

    def cpu(self) -> dict[str, float]:
        """Seconds so far, by program."""
        return {
            name: Process(name, popen, self._root).cpu_seconds()
            for name, popen in self.programs().items()
        }

    def rss(self) -> dict[str, int]:
        return {
            name: Process(name, popen, self._root).memory().pss
            for name, popen in self.programs().items()
        }

    def query(self, database: str, sql: str) -> str:
        command = ["psql", "-At", "-c", sql, database.replace("+asyncpg", "", 1)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def postgres(self) -> dict[str, float]:
        """What PostgreSQL has done so far, and how large it is."""
        sql = (
            "SELECT xact_commit, tup_inserted, tup_updated, pg_database_size(datname), "
            "(SELECT count(*) FROM pg_stat_activity a WHERE a.datname = d.datname) "
            "FROM pg_stat_database d WHERE datname = current_database()"
        )
        found: dict[str, float] = {}
        for name, database in (("broker", self.database), ("collector", self.records)):
            values = self.query(database, sql).split("|")
            labels = ("commits", "inserted", "updated", "size", "connections")
            found |= {f"{name} {label}": float(v) for label, v in zip(labels, values, strict=True)}
        lsn = "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"
        return found | {"wal": float(self.query(self.database, lsn))}

    def stop(self) -> None:
        self.replicas.stop()
        self.end_collector()


async def steady(site: Site, seconds: float) -> Steady:
    await site.loads.ask("take")
    cpu, done, began = site.cpu(), site.postgres(), time.monotonic()
    await asyncio.sleep(seconds)
    taken = await site.loads.ask("take")
    took = time.monotonic() - began
    after, then, rss = site.cpu(), site.postgres(), site.rss()
    latencies: dict[str, list[float]] = {}
    for one in taken:
        for kind, values in one["latencies"].items():
            latencies.setdefault(kind, []).extend(values)
    kept = ("size", "connections")
    return Steady(
        seconds=took,
        following=_sum(one["following"] for one in taken),
        counts=_sum(one["counts"] for one in taken),
        p50_ms={kind: quantile(values, 0.5) * 1000 for kind, values in latencies.items()},
        p99_ms={kind: quantile(values, 0.99) * 1000 for kind, values in latencies.items()},
        use={name: Use((after[name] - cpu[name]) / took, rss[name]) for name in after},
        postgres={
            name: value if name.endswith(kept) else (value - done[name]) / took
            for name, value in then.items()
        },
    )


async def tell(
    site: Site, session: aiohttp.ClientSession, number: int, about: dict[str, Any], expected: int
) -> Told:
    """Open an incident at a replica, and wait until it has come to all that it concerns."""
    await site.loads.ask("told")
    url = f"http://127.0.0.1:{site.replicas.ports[number]}/v1/incidents"
    headers = {"Authorization": f"Bearer {site.world.admin()}"}
    asked = time.monotonic()
    body = {"reason": "bench", **about}
    for attempts in range(1, _ATTEMPTS + 1):
        async with session.post(url, json=body, headers=headers) as response:
            document = await response.json()
        if response.status == 201:
            break
        if attempts == _ATTEMPTS:
            raise SystemExit(f"no incident: {document}")
        lines = site.replicas.log(number).read_text().splitlines()
        _say("\n".join(line for line in lines[-2000:] if "service.unavailable" in line)[-1000:])
        await asyncio.sleep(1)
    answered = time.monotonic()
    times: list[float] = []
    while len(times) < expected and time.monotonic() - asked < _PATIENCE:
        await asyncio.sleep(0.5)
        for told in await site.loads.ask("told"):
            for came in told.values():
                times += came
    told = Told(next(iter(about)), answered - asked, sorted(at - asked for at in times), expected)
    told.attempts = attempts
    while told.acknowledged is None and time.monotonic() - asked < _PATIENCE:
        began = time.monotonic()
        async with session.get(f"{url}/{document['id']}", headers=headers) as response:
            report = await response.json()
        told.report_seconds = time.monotonic() - began
        if response.status == 200:
            told.acknowledged = report["containment"]["seconds"]
        await asyncio.sleep(0.5)
    return told


def _subject(number: int) -> dict[str, Any]:
    return {"subject": {"issuer": IDP, "subject": f"spiffe://demo.example/ns/n{number}/sa/bot"}}


def _token() -> dict[str, Any]:
    """One that nobody holds: all are told, and nobody has to fetch another."""
    return {"token_hash": secrets.token_urlsafe(32)}


async def measure(options: argparse.Namespace, root: Path, server: Postgres) -> Results:
    site = Site(options, root, server)
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
    try:
        await site.start()
        _say("all begin")
        cpu = site.cpu()
        began = await site.loads.ask("go")
        used = {name: value - cpu[name] for name, value in site.cpu().items()}
        counts = _sum(one["counts"] for one in await site.loads.ask("take"))
        registered = sorted(seconds for one in began for seconds in one["seconds"])
        all_at = max(seconds for one in began for seconds in one["at"])
        missing = sum(one["missing"] for one in began)
        _say(
            f"{len(registered)} there within {all_at:.1f} s, each in {registered[-1]:.1f}: {counts}"
        )
        await asyncio.sleep(_SETTLE)
        results = Results(
            sidecars=options.sidecars,
            within=options.within,
            registered=registered,
            all_registered=all_at,
            unregistered=missing,
            cold_counts=counts,
            cold_use=used,
            steady=await steady(site, options.seconds),
            spooled_per_call=site.texts.spooled_per_call(),
        )
        _say(f"{results.steady}")
        each = options.sidecars // WORKLOADS
        for number in range(options.incidents):
            results.incidents.append(
                await tell(site, session, number % 2, _token(), options.sidecars)
            )
            results.incidents.append(await tell(site, session, number % 2, _subject(number), each))
            _say(f"{[_brief(one) for one in results.incidents[-2:]]}")
        await _kill(site, session, results)
        await asyncio.sleep(_SETTLE)
        results.alone = await steady(site, options.seconds)
        _say(f"{results.alone}")
        await site.loads.stop()
        site.replicas.stop()
        results.ingest, results.stored = await site.ingest(options.ingest)
        _say(f"{results.ingest} {results.stored}")
        return results
    finally:
        await site.loads.stop()
        await session.close()
        site.stop()


async def _kill(site: Site, session: aiohttp.ClientSession, results: Results) -> None:
    taken = await site.loads.ask("take")
    results.killed = _sum(one["following"] for one in taken)[str(site.replicas.ports[1])]
    gone = time.monotonic()
    site.replicas.kill(1)
    await asyncio.sleep(AWAY)
    results.while_away = await tell(site, session, 0, _token(), results.sidecars)
    while time.monotonic() - gone < _PATIENCE and len(results.back) < results.killed:
        for one in await site.loads.ask("take"):
            results.back += [at - gone for at in one["back"]]
        await asyncio.sleep(0.5)
    results.back.sort()
    _say(f"{len(results.back)} of {results.killed} back: {_brief(results.while_away)}")


def _brief(told: Told) -> str:
    at = told.seconds
    last = at[-1] if at else 0.0
    return (
        f"{told.about}: {len(at)} of {told.expected}, p50 {quantile(at, 0.5):.3f} p99 "
        f"{quantile(at, 0.99):.3f} last {last:.3f}, 201 {told.answered:.3f}, "
        f"acknowledged {told.acknowledged}, report {told.report_seconds:.3f}"
    )


def _sum(counts: Any) -> dict[str, int]:
    summed: dict[str, int] = {}
    for one in counts:
        for name, value in one.items():
            summed[name] = summed.get(name, 0) + value
    return dict(sorted(summed.items()))


def rounded(value: Any) -> Any:
    """Times of ten thousand sidecars to the millisecond; what is longer says nothing more."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [round(one, 3) if isinstance(one, float) else rounded(one) for one in value]
    return value


def _directory(root: Path, name: str) -> Path:
    path = root / name
    path.mkdir()
    return path


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__)
    parser.add_argument("--sidecars", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=30.0, help="of steady life, twice")
    parser.add_argument("--incidents", type=int, default=5, help="of each kind")
    parser.add_argument("--call-every", type=float, default=30.0, help="of each workload, seconds")
    parser.add_argument("--shipping", type=float, default=0.1, help="share that ships its record")
    parser.add_argument("--within", type=float, default=30.0, help="seconds, in which all begin")
    parser.add_argument("--patience", type=float, default=20.0, help="of a request, seconds")
    parser.add_argument("--ingest", type=float, default=5.0, help="of each load of a collector, s")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    options = parser.parse_args()
    programs = _programs()
    if programs is None:
        print("fleet: PostgreSQL is missing: apt-get install postgresql", file=sys.stderr)
        return 2
    # The replica that is left has a connection or two of each sidecar.
    needed, (_, hard) = 2 * options.sidecars, resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        print(f"fleet: {needed} open files a process are needed (ulimit -Hn)", file=sys.stderr)
        return 2
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    logs.configure("error")
    date = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    with tempfile.TemporaryDirectory(prefix="valetkey-fleet-") as name:
        root = Path(name)
        root.chmod(0o711)
        described = machine.describe(root, Path("none"))
        server = Postgres(programs, _directory(root, "postgres"), durable=True)
        try:
            server.start()
            results = uvloop.run(measure(options, root, server))
        finally:
            server.stop()
    document = {"date": date, "machine": described, **rounded(asdict(results))}
    text = report(document, measured_on(date, described))
    print(text)
    options.output.mkdir(exist_ok=True)
    (options.output / "fleet.md").write_text(text)
    encoded = msgspec.json.format(msgspec.json.encode(document), indent=0)
    (options.output / "fleet.json").write_bytes(encoded + b"\n")
    told = [*results.incidents, *([results.while_away] if results.while_away else [])]
    unheard = sum(one.expected - len(one.seconds) for one in told)
    return 1 if unheard or results.unregistered or len(results.back) < results.killed else 0


if __name__ == "__main__":
    sys.exit(main())
