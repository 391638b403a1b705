"""kill -9 of a broker while grants are made, used and revoked: nothing acknowledged is lost.

Nor is anything half done: each grant has the record of who made it, each revoked one that of who
revoked it, and no grant gave more tokens than it may.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.integration.broker_support import Served, World
from tests.integration.test_broker_grants_api import written
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from tests.support.procs import Program

_CLIENTS = 3
_USES = 2


@dataclass
class Load:
    """Operators and workloads that never pause. What is acknowledged is remembered."""

    served: Served
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    made: set[str] = field(default_factory=set)
    revoked: set[str] = field(default_factory=set)
    issued: Counter[str] = field(default_factory=Counter)
    faults: list[Any] = field(default_factory=list)
    stopped: bool = False

    async def client(self) -> None:
        while not self.stopped:
            try:
                await self._step(f"jit-{next(self.numbers)}")
            except (aiohttp.ClientError, ConnectionError):
                await asyncio.sleep(0.01)  # it is being started again

    async def more(self, count: int) -> None:
        wanted = len(self.made) + count
        async with asyncio.timeout(60):
            while len(self.made) < wanted:
                await asyncio.sleep(0.005)

    async def _step(self, name: str) -> None:
        """A grant of a scope of its own is made, used once more than it may be, maybe revoked."""
        body = written(name, scopes=[f"tickets:{name}"], max_uses=_USES)
        if await self._manage("/v1/grants", body, 201):
            self.made.add(name)
        for _ in range(_USES + 1):
            world = self.served.world
            form = world.form(world.workload(), scope=f"tickets:{name}")
            status, answer, _ = await self.served.exchange(form)
            if status == 200:
                self.issued[name] += 1
            elif answer["code"] not in {"grant.used_up", "grant.scope", "service.unavailable"}:
                self.faults.append(answer)
        if random.random() < 0.5 and await self._manage(
            f"/v1/grants/{name}/revoke", {"reason": "done"}, 200
        ):
            self.revoked.add(name)

    async def _manage(self, path: str, body: Any, expected: int) -> bool:
        status, answer, _ = await self.served.manage("POST", path, body)
        if status not in {expected, 404, 503}:
            self.faults.append(answer)
        return status == expected


@pytest.fixture(params=["sqlite", "postgres"])
def overrides(request: pytest.FixtureRequest) -> dict[str, Any]:
    fast = {"rate": 1000, "burst": 1000}
    chosen: dict[str, Any] = {"log_level": "info", "limits": {"admin": fast, "exchanges": fast}}
    if request.param == "postgres":
        postgres: Postgres = request.getfixturevalue("postgres")
        chosen["database"] = postgres.database()
    return chosen


@pytest.mark.timeout(600)
async def test_what_was_acknowledged_stands_and_nothing_is_half_done(
    tmp_path: Path, overrides: dict[str, Any], kills: int
) -> None:
    world = World(tmp_path / "world", free_url(), clock=time.time, overrides=overrides)  # type: ignore[arg-type]
    world.overrides["bind"] = world.url.removeprefix("http://")
    program = Program.of("broker", world.write(), tmp_path / "run")
    async with program, aiohttp.ClientSession() as client:
        load = Load(Served(world, None, client))  # type: ignore[arg-type]
        clients = [asyncio.create_task(load.client()) for _ in range(_CLIENTS)]
        for _ in range(kills):
            await load.more(random.randint(3, 12))
            await asyncio.sleep(random.uniform(0, 0.05))  # any moment, not always the same one
            program.kill()
            program.start()
            await program.listening()
        await load.more(5)
        load.stopped = True
        await asyncio.gather(*clients)
        report = await check(load)
    print(f"{kills} kills, {report}")


async def check(load: Load) -> str:
    stored = {
        item["id"]: item
        for item in await items(load.served, "/v1/grants")
        if item["source"] == "api"
    }
    assert not load.faults, load.faults[:3]
    assert not load.made - stored.keys(), "acknowledged and lost"
    revoked = {name for name, item in stored.items() if item["state"] == "revoked"}
    assert load.revoked <= revoked
    # Done wholly or not at all: with each change its record, in both directions.
    actions = await items(load.served, "/v1/admin/actions")
    assert Counter(each["subject"] for each in actions if each["action"] == "grant.create") == (
        Counter(f"grant:{name}" for name in stored)
    )
    assert Counter(each["subject"] for each in actions if each["action"] == "grant.revoke") == (
        Counter(f"grant:{name}" for name in revoked)
    )
    _, verdict, _ = await load.served.manage("GET", "/v1/admin/actions/verify")
    assert verdict["broken_at"] is None
    for name, item in stored.items():
        # A use may be spent on a token that nobody got; there is never a token without a use.
        assert load.issued[name] <= item["uses"] <= _USES, name
    spent = sum(item["uses"] for item in stored.values()) - sum(load.issued.values())
    return (
        f"{len(load.made)} grants acknowledged, {len(stored)} stored, {len(load.revoked)} "
        f"revocations, {sum(load.issued.values())} tokens, {spent} uses spent without one"
    )


async def items(served: Served, path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after = ""
    while True:
        _, page, _ = await served.manage("GET", f"{path}?limit=500&after={after}")
        found += page["items"]
        after = page.get("next", "")
        if not after:
            return found
