"""kill -9 of a broker while incidents are opened: what it acknowledged is in force, whole.

After the last restart every acknowledged incident is there and its subject gets nothing. And each
that is there, acknowledged or not, is there with all that belongs to it: the epoch, the signal to
sidecars, the administrator's action. None is half there.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.integration.broker_support import IDP, Served, World
from tests.support import crash
from tests.support.procs import Program
from valetkey.broker.store.admin_actions import AdminActions
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database
from valetkey.broker.store.epochs import Epochs
from valetkey.broker.store.incidents import Incidents
from valetkey.broker.store.schema import SIGNALS
from valetkey.contracts.signals import Signal

_CLIENTS = 3


class Operators(crash.Load):
    """They open incidents."""

    def __init__(self, served: Served) -> None:
        super().__init__()
        self.served = served
        self.opened: dict[str, str] = {}
        """Incident by subject."""
        self.faults: list[Any] = []
        self._numbers = itertools.count()

    @property
    def acknowledged(self) -> int:
        return len(self.opened)

    async def step(self) -> None:
        subject = f"bot-{next(self._numbers)}"
        body = {"reason": "r", "subject": {"issuer": IDP, "subject": subject}}
        status, document, _ = await self.served.manage("POST", "/v1/incidents", body)
        if status == 201:
            self.opened[subject] = document["id"]
        elif status != 503:
            self.faults.append((status, document))


class Silent:
    """For stores that are only read."""

    async def publish(self, connection: Any, signal: Signal) -> str:
        raise AssertionError(signal)

    async def publish_all(self, connection: Any, signals: Any) -> None:
        raise AssertionError(signals)


@pytest.mark.timeout(600)
async def test_an_incident_is_there_whole_or_not_at_all(
    tmp_path: Path, world: World, kills: int
) -> None:
    world.overrides["limits"] = {"admin": {"rate": 10_000, "burst": 10_000}}
    program = Program.of("broker", world.write(), tmp_path / "run")
    async with program, aiohttp.ClientSession() as client:
        served = Served(world, None, client)  # type: ignore[arg-type]
        operators = Operators(served)
        async with operators.clients(_CLIENTS):
            await crash.kill_again_and_again(
                program, operators, kills, after=(5, 25), within=0.03, ready=program.listening
            )
        assert not operators.faults, operators.faults[:3]
        opened = sorted(operators.opened)
        for subject in random.sample(opened, min(20, len(opened))):
            form = world.form(world.workload(subject, iat=int(time.time()) - 120))
            status, body, _ = await served.exchange(form)
            assert (status, body["code"]) == (400, "subject.contained"), subject
    stored = await look(world)
    assert operators.opened.items() <= stored.items()
    print(f"{kills} kills, {len(opened)} acknowledged, {len(stored)} in force")


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
