"""``python -m bench.revocation``: from an incident's 201 to the last call that a target accepted.

Two broker replicas over one PostgreSQL; a thousand simulated sidecars follow the feed, half of them
at each replica (connections end now and then, and those whose replica came back return to it). As
many of them as there are incidents are whole: receiver, cache, exchanges, and calls that go on all
the time, each with a workload of its own. The others poll, look for the events' ids and
acknowledge, so that one process can stand for a thousand machines; for the same reason each SET's
signature is verified once. Incidents are about a token (told to all) and about a subject (told to
its sidecar) in turn. Some of the time one replica is killed, and started again.

The target believes every token that it is shown and notes when it saw which. That none was missed
is read from its notes, which nobody in between can touch, and from the broker's report on each
incident. Results go to bench/results/revocation.md and revocation.json.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
import uvloop

from bench import machine
from bench.light import Light, Line
from bench.measurements import quantile
from bench.replicas import Balancer, Replicas, free_port
from bench.servers import HERE
from tests.integration.broker_support import IDP, TICKETS, World
from tests.support.postgres import Postgres, _programs
from valetkey.contracts import logs
from valetkey.contracts.dpop import ProofKey
from valetkey.contracts.errors import ValetkeyError
from valetkey.proxy import feed as feed_module
from valetkey.proxy.core.cache_policy import CacheKey
from valetkey.proxy.core.decision import Principal
from valetkey.proxy.credentials.bearer import BearerInjector
from valetkey.proxy.credentials.cache import CredentialCache
from valetkey.proxy.credentials.exchange import ExchangeClient
from valetkey.proxy.feed import FeedReceiver
from valetkey.proxy.feed_client import FeedClient
from valetkey.proxy.identity.file import FileIdentity
from valetkey.proxy.metrics import Metrics
from valetkey.proxy.settings import FeedSettings

AIM_MS = 250.0
SETTLED = 2.0
"""Seconds that everything gets to come to rest before the target's notes are read."""
EVERY = 0.25
CALL_EVERY = 0.002


@dataclass
class Target:
    """Accepts whatever it is shown; ``seen`` is when it saw a token, or one of a subject, last."""

    seen: dict[str, float] = field(default_factory=dict)
    calls: int = 0

    def accept(self, jti: str, subject: str) -> None:
        now = time.perf_counter()
        self.seen[jti] = self.seen[subject] = now
        self.calls += 1


class Whole:
    """Receiver, cache and exchanges as in a sidecar, and a workload that calls."""

    def __init__(
        self, world: World, root: Path, number: int, session: aiohttp.ClientSession, target: Target
    ) -> None:
        self.subject = f"spiffe://demo.example/ns/n{number}/sa/bot"
        path = root / f"token-{number}"
        path.write_text(world.workload(self.subject))
        self._identity = FileIdentity(path)
        self._identity.refresh()
        self._target = target
        self._cache = CredentialCache(10)
        self._exchange = ExchangeClient(
            world.url + "/token", self._identity, ProofKey(), ca_file=None, timeout=10
        )
        client = FeedClient(world.url, self._identity, ca_file=None, timeout=10)
        self._exchange._session = client._session = session
        streams = SimpleNamespace(
            unsettled=lambda _calls: [], cut=lambda _calls, _why: None, changed=lambda **_how: None
        )
        self.metrics = Metrics()
        self.receiver = FeedReceiver(
            client,
            self._identity,
            SimpleNamespace(
                streams=streams, revoke=self._revoke, limit_lives=self._cache.limit_lives
            ),
            self._cache,
            self._exchange,
            self.metrics,
            FeedSettings(),
            issuer=world.url,
            name=f"sidecar-{number}",
        )
        self.every = 0.1
        self.refused = 0
        self.current: Any = None

    def _revoke(self, ended: Any) -> list[Any]:
        self._cache.revoke(ended)
        return []

    def _key(self) -> CacheKey:
        principal = self._identity.principal()
        assert isinstance(principal, Principal)
        return CacheKey(
            tenant=principal.tenant, subject=principal.subject, actors=(), audience=TICKETS,
            resource=TICKETS, details="", scopes="tickets:read", endpoint="", thumbprint="",
            policy_digest="", epoch=principal.epoch,
        )  # fmt: skip

    async def call(self) -> None:
        """One call of the workload: by what is cached, or by what the broker gives."""
        key = self._key()
        credential = self._cache.get(key, time.monotonic())
        if credential is None:
            try:
                credential = await self._cache.obtain(
                    key, lambda: self._exchange.exchange(key, BearerInjector(), None)
                )
            except ValetkeyError:
                self.refused += 1
                return
            if credential.revoked:
                return  # as the enforcement point does before it sends
        self.current = credential
        self._target.accept(credential.jti, self.subject)

    async def run(self) -> None:
        while True:
            await self.call()
            await asyncio.sleep(self.every)


@dataclass
class Incident:
    """One incident and what came of it. Times in seconds of one clock."""

    id: str
    about: str
    watched: str
    asked: float
    told: float
    replica_killed: bool
    since_asked_ms: float = 0.0
    late_ms: float = 0.0
    missed: bool = False
    refused: int = 0
    acknowledged: int = 0
    concerned: int = 0


async def open_incident(
    world: World, replicas: Replicas, session: aiohttp.ClientSession, number: int, victim: Whole
) -> Incident:
    about: dict[str, Any] = {"subject": {"issuer": IDP, "subject": victim.subject}}
    if number % 2 == 0:
        about = {"token": victim.current.token.reveal()}
    watched = victim.current.jti if "token" in about else victim.subject
    killed = number % 10 == 3
    other = 1 if number % 4 < 2 else 0
    headers = {"Authorization": f"Bearer {world.admin()}"}
    if killed:
        asyncio.get_running_loop().call_later(0.005, replicas.kill, other)
    asked = time.perf_counter()
    async with session.post(
        f"http://127.0.0.1:{replicas.ports[1 - other]}/v1/incidents",
        json={"reason": "bench", **about},
        headers=headers,
    ) as response:
        told = time.perf_counter()
        document = await response.json()
        assert response.status == 201, document
    return Incident(document["id"], next(iter(about)), watched, asked, told, killed)


def _line(replicas: Replicas, preferred: int) -> Line:
    return Line(lambda: [replicas.port_for(preferred)])


async def measure(options: argparse.Namespace, root: Path, database: str) -> list[Incident]:
    port = free_port()
    world = World(root / "world", f"http://localhost:{port}", clock=time.time)  # type: ignore[arg-type]
    world.root.mkdir()
    grant = {
        "id": "fleet", "workload": "spiffe://demo.example/ns/*/sa/bot", "issuer": IDP,
        "target": "tickets", "scopes": ["tickets:read"],
    }  # fmt: skip
    world.write_grants([grant])
    # The replicas live for seconds.
    replicas = Replicas(world, root, database, feed={"connection_age": "1s"})
    target = Target()
    tasks: list[asyncio.Task[None]] = []
    sessions = [
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=Balancer(replicas, number), use_dns_cache=False, limit=0
            )
        )
        for number in (0, 1)
    ]
    try:
        for number in (0, 1):
            await replicas.start(number)
        token = world.workload("spiffe://demo.example/ns/crowd/sa/bot")
        crowd = [
            Light(world.url, token, _line(replicas, number % 2))
            for number in range(options.sidecars - options.incidents)
        ]
        for begin in range(0, len(crowd), 50):
            await asyncio.gather(*(light.begin() for light in crowd[begin : begin + 50]))
        wholes = [
            Whole(world, root, number, sessions[number % 2], target)
            for number in range(options.incidents)
        ]
        tasks += [asyncio.ensure_future(light.run()) for light in crowd]
        tasks += [asyncio.ensure_future(whole.receiver.run()) for whole in wholes]
        async with asyncio.timeout(60):
            while not all(whole.receiver.connected for whole in wholes):
                await asyncio.sleep(0.05)
        tasks += [asyncio.ensure_future(whole.run()) for whole in wholes]
        async with asyncio.timeout(120):
            while not all(whole.current is not None for whole in wholes):
                await asyncio.sleep(0.1)
        incidents = []
        for number, victim in enumerate(wholes):
            for other in (0, 1):
                if not replicas.alive(other):
                    await replicas.start(other)
            victim.every = CALL_EVERY
            await asyncio.sleep(EVERY)
            incident = await open_incident(world, replicas, sessions[0], number, victim)
            refused = victim.refused
            await asyncio.sleep(SETTLED / 2)
            incident.refused = victim.refused - refused
            victim.every = 0.1
            incidents.append(incident)
            if number % 10 == 9:
                print(f"{number + 1} incidents", file=sys.stderr, flush=True)
        await asyncio.sleep(2 * SETTLED)
        ended = time.perf_counter()
        for incident in incidents:
            last = target.seen.get(incident.watched, 0.0)
            incident.late_ms = max(0.0, last - incident.told) * 1000
            incident.since_asked_ms = max(0.0, last - incident.asked) * 1000
            incident.missed = last > ended - SETTLED / 2  # it still goes on
            await ask(world, replicas, sessions[0], incident)
        return incidents
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for session in sessions:
            await session.close()
        replicas.stop()


async def ask(
    world: World, replicas: Replicas, session: aiohttp.ClientSession, incident: Incident
) -> None:
    """What the broker says of who has acknowledged."""
    alive = 0 if replicas.alive(0) else 1
    async with session.get(
        f"http://127.0.0.1:{replicas.ports[alive]}/v1/incidents/{incident.id}",
        headers={"Authorization": f"Bearer {world.admin()}"},
    ) as response:
        sidecars = (await response.json())["containment"]["sidecars"]
    incident.concerned = len(sidecars)
    incident.acknowledged = sum(one.get("acknowledged_at") is not None for one in sidecars)


def report(incidents: list[Incident], sidecars: int, where: str) -> str:
    """The page. Figures are as they came."""
    about = (
        "From an incident's 201 to the last call that a target accepted, with "
        f"{sidecars:,} simulated sidecars on the feed of two broker replicas. {where}"
    )
    lines = [
        "# Revocation",
        "",
        about,
        "",
        "| Incidents | | p50 | p99 | worst | from the request on: p50 | p99 |",
        "|---|---|---|---|---|---|---|",
    ]
    groups = {
        "all": incidents,
        "about a token, told to all": [one for one in incidents if one.about == "token"],
        "about a subject, told to its own": [one for one in incidents if one.about == "subject"],
        "while a replica was killed": [one for one in incidents if one.replica_killed],
    }
    for name, group in groups.items():
        late = [one.late_ms for one in group]
        whole = [one.since_asked_ms for one in group]
        if group:
            lines.append(
                f"| {name} | {len(group)} | {quantile(late, 0.5):.0f} ms | "
                f"{quantile(late, 0.99):.0f} ms | {max(late):.0f} ms | "
                f"{quantile(whole, 0.5):.0f} ms | {quantile(whole, 0.99):.0f} ms |"
            )
    late = [one.late_ms for one in incidents]
    met = quantile(late, 0.99) <= AIM_MS
    missed = sum(one.missed for one in incidents)
    told = sum(one.concerned for one in incidents)
    heard = sum(one.acknowledged for one in incidents)
    result = (
        f"p99: {quantile(late, 0.99):.0f} ms (aim {AIM_MS:.0f} ms: {'met' if met else 'missed'}). "
        f"Never in force, by the target's own notes: {missed} of {len(incidents)}; later than a "
        f"second: {sum(one > 1000 for one in late)}. Acknowledged by the "
        f"broker's report: {heard:,} of {told:,}."
    )
    caveat = (
        "A 201 is sent once the incident is in the database; 0 ms means that the last call was "
        "accepted before it came. One process stands for all sidecars and shares the machine with "
        "both replicas and the database, so these figures hold its own work too. What is measured "
        "and how: `bench/revocation.py`."
    )
    lines += ["", result, "", caveat]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.revocation", description=__doc__)
    parser.add_argument("--sidecars", type=int, default=1000)
    parser.add_argument("--incidents", type=int, default=100)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    options = parser.parse_args()
    programs = _programs()
    if programs is None:
        print("revocation: PostgreSQL is missing: apt-get install postgresql", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    logs.configure("error")
    verified: dict[str, Any] = {}
    verify = feed_module.verify_set

    def once(compact: str, *arguments: Any, **named: Any) -> Any:
        if compact not in verified:
            verified[compact] = verify(compact, *arguments, **named)
        return verified[compact]

    feed_module.verify_set = once
    with tempfile.TemporaryDirectory(prefix="valetkey-revocation-") as name:
        root = Path(name)
        root.chmod(0o711)
        directory = root / "postgres"
        directory.mkdir()
        described = machine.describe(root, Path("none"))
        server = Postgres(programs, directory)
        try:
            server.start()
            incidents = uvloop.run(measure(options, root, server.database()))
        finally:
            server.stop()
    where = (
        f"{described['cores']} cores, {described['cpu']}, load average of others "
        f"{described['load_average']} at the start."
    )
    text = report(incidents, options.sidecars, where)
    print(text)
    options.output.mkdir(exist_ok=True)
    (options.output / "revocation.md").write_text(text)
    encoded = msgspec.json.encode({"machine": described, "incidents": incidents})
    (options.output / "revocation.json").write_bytes(msgspec.json.format(encoded) + b"\n")
    lost = sum(one.missed for one in incidents)
    unheard = sum(one.concerned - one.acknowledged for one in incidents)
    return 1 if lost or unheard else 0


if __name__ == "__main__":
    sys.exit(main())
