"""kill -9 of a broker while grants are made, used and revoked: nothing acknowledged is lost.

Nor is anything half done: each grant has the record of who made it, each revoked one that of who
revoked it, and no grant gave more tokens than it may.
"""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.integration.broker_support import Served, World
from tests.integration.test_broker_grants_api import written
from tests.support import crash
from tests.support.procs import Program

_CLIENTS = 3
_USES = 2


class Load(crash.Load):
    """Operators make grants and revoke half of them, workloads use them."""

    def __init__(self, served: Served) -> None:
        super().__init__()
        self.served = served
        self.made: set[str] = set()
        self.revoked: set[str] = set()
        self.issued: Counter[str] = Counter()
        self.faults: list[Any] = []
        self._numbers = itertools.count()

    @property
    def acknowledged(self) -> int:
        return len(self.made)

    async def step(self) -> None:
        """A grant of a scope of its own is made, used once more than it may be, maybe revoked."""
        number = next(self._numbers)
        name = f"jit-{number}"
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
        if number % 2 and await self._manage(f"/v1/grants/{name}/revoke", {"reason": "done"}, 200):
            self.revoked.add(name)

    async def _manage(self, path: str, body: Any, expected: int) -> bool:
        status, answer, _ = await self.served.manage("POST", path, body)
        if status not in {expected, 404, 503}:
            self.faults.append(answer)
        return status == expected


@pytest.mark.timeout(600)
async def test_what_was_acknowledged_stands_and_nothing_is_half_done(
    tmp_path: Path, world: World, kills: int
) -> None:
    fast = {"rate": 1000, "burst": 1000}
    world.overrides["limits"] = {"admin": fast, "exchanges": fast}
    program = Program.of("broker", world.write(), tmp_path / "run")
    async with program, aiohttp.ClientSession() as client:
        load = Load(Served(world, None, client))  # type: ignore[arg-type]
        async with load.clients(_CLIENTS):
            await crash.kill_again_and_again(
                program, load, kills, after=(3, 12), within=0.05, ready=program.listening
            )
        report = await check(load)
    print(f"{kills} kills, {report}")


async def check(load: Load) -> str:
    stored = {
        item["id"]: item
        for item in await load.served.items("/v1/grants")
        if item["source"] == "api"
    }
    assert not load.faults, load.faults[:3]
    assert not load.made - stored.keys(), "acknowledged and lost"
    revoked = {name for name, item in stored.items() if item["state"] == "revoked"}
    assert load.revoked <= revoked
    # Done wholly or not at all: with each change its record, in both directions.
    actions = await load.served.items("/v1/admin/actions")
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
