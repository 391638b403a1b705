"""kill -9 of a broker while incidents are opened: what it acknowledged is in force, whole.

After the last restart every acknowledged incident is there and its subject gets nothing. And each
that is there, acknowledged or not, is there with all that belongs to it: the epoch, the signal to
sidecars, the administrator's action. None is half there.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.integration.broker_support import IDP, Served, World
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from tests.support.procs import Program
from valetkey.broker.store.admin_actions import AdminActions
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database
from valetkey.broker.store.epochs import Epochs
from valetkey.broker.store.incidents import Incidents
from valetkey.broker.store.schema import SIGNALS
from valetkey.contracts.signals import Signal

_CLIENTS = 3


@dataclass
class Operators:
    """They open incidents and never pause."""

    served: Served
    acknowledged: dict[str, str] = field(default_factory=dict)
    """Incident by subject."""
    asked: int = 0
    stopped: bool = False
    faults: list[Any] = field(default_factory=list)

    async def work(self) -> None:
        while not self.stopped:
            with suppress(aiohttp.ClientError, ConnectionError):
                await self._open()
            await asyncio.sleep(0.005)

    async def more(self, count: int) -> None:
        wanted = len(self.acknowledged) + count
        async with asyncio.timeout(60):
            while len(self.acknowledged) < wanted:
                await asyncio.sleep(0.005)

    async def _open(self) -> None:
        self.asked += 1
        subject = f"bot-{self.asked}"
        body = {"reason": "r", "subject": {"issuer": IDP, "subject": subject}}
        status, document, _ = await self.served.manage("POST", "/v1/incidents", body)
        if status == 201:
            self.acknowledged[subject] = document["id"]
        elif status != 503:
            self.faults.append((status, document))


class Silent:
    """For stores that are only read."""

    async def publish(self, connection: Any, signal: Signal) -> str:
        raise AssertionError(signal)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_an_incident_is_there_whole_or_not_at_all(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, kills: int
) -> None:
    limits = {"admin": {"rate": 10_000, "burst": 10_000}}
    overrides: dict[str, Any] = {"log_level": "info", "limits": limits}
    if kind == "postgres":
        postgres: Postgres = request.getfixturevalue("postgres")
        overrides["database"] = postgres.database()
    world = World(tmp_path / "world", free_url(), clock=time.time, overrides=overrides)  # type: ignore[arg-type]
    world.overrides["bind"] = world.url.removeprefix("http://")
    program = Program.of("broker", world.write(), tmp_path / "run")
    async with program, aiohttp.ClientSession() as client:
        served = Served(world, None, client)  # type: ignore[arg-type]
        operators = Operators(served)
        working = [asyncio.create_task(operators.work()) for _ in range(_CLIENTS)]
        for _ in range(kills):
            await operators.more(random.randint(5, 25))
            await asyncio.sleep(random.uniform(0, 0.03))
            program.kill()
            program.start()
            await program.listening()
        await operators.more(5)
        operators.stopped = True
        await asyncio.gather(*working)
        assert not operators.faults, operators.faults[:3]
        for subject in random.sample(sorted(operators.acknowledged), 20):
            form = world.form(world.workload(subject, iat=int(time.time()) - 120))
            status, body, _ = await served.exchange(form)
            assert (status, body["code"]) == (400, "subject.contained"), subject
    stored = await look(world)
    assert operators.acknowledged.items() <= stored.items()
    print(f"{kills} kills, {len(operators.acknowledged)} acknowledged, {len(stored)} in force")


async def look(world: World) -> dict[str, str]:
    """What is in the database, each with all that belongs to it."""
    database = await Database.open(world.document()["database"])
    try:
        changes = Changes(database)
        epochs = Epochs(database, changes, Silent())
        await epochs.load()
        incidents = await Incidents(database, changes, clock=time.time).page(
            state="open", before=None, limit=100_000
        )
        actions = AdminActions(database, clock=time.time)
        assert (await actions.verify()).broken_at is None
        recorded = Counter(a.subject for a in await actions.page(before=None, limit=100_000))
        async with database.read() as connection:
            told = Counter(row.txn for row in await connection.execute(SIGNALS.select()))
        for incident in incidents:
            epoch = epochs.of(IDP, incident.subject)
            assert (epoch.number, epoch.attest_after) == (incident.epoch, incident.opened_at)
            assert told[incident.id] == recorded[f"incident:{incident.id}"] == 1
        assert len(incidents) == len(epochs) == len(told) == len(recorded)
        return {incident.subject: incident.id for incident in incidents}
    finally:
        await database.close()
