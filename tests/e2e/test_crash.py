"""kill -9 of the sidecar under load: every call that got an answer is on record."""

from __future__ import annotations

from collections import Counter

import pytest
from aiohttp import web

from tests.support import crash
from tests.support.fleet import Fleet
from valetkey.contracts import events

_CLIENTS = 16


class Load(crash.Load):
    """Each call has a number of its own in its path."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__()
        self._fleet = fleet
        self.answered: set[int] = set()
        self.sent = 0

    @property
    def acknowledged(self) -> int:
        return len(self.answered)

    async def step(self) -> None:
        number = self.sent
        self.sent += 1
        url = f"{self._fleet.url}/api/n{number}"
        async with self._fleet.client.get(url) as response:
            await response.read()
            if response.status == 200:
                self.answered.add(number)


async def quick(_request: web.Request) -> web.StreamResponse:
    return web.Response(text="ok")


async def check(fleet: Fleet, load: Load, kills: int) -> str:
    await fleet.delivered()
    decided: Counter[int] = Counter()
    for event in fleet.events(events.TYPE_DECISION):
        path = event["data"]["http_request"]["url"]["path"]
        decided[int(path.removeprefix("/api/n"))] += 1
    received = {int(request.path.removeprefix("/api/n")) for request in fleet.received}
    missing = load.answered - decided.keys()
    unrecorded = received - decided.keys()
    twice = [number for number, count in decided.items() if count > 1]
    boots = fleet.events(events.TYPE_BOOT)
    torn = sum(event["data"]["unmapped"].get("torn_tail", False) for event in boots)
    report = (
        f"{kills} kills, {load.sent} calls, {len(load.answered)} answered, "
        f"{len(received)} reached the target, {sum(decided.values())} decisions on record, "
        f"{len(missing)} missing, {len(unrecorded)} unrecorded at the target, "
        f"{len(twice)} twice, {torn} torn tails"
    )
    assert not missing, report
    assert not unrecorded, report  # stronger: whatever left is on record, answered or not
    assert not twice, report
    assert len(boots) == kills + 1, report
    assert fleet.events(events.TYPE_GAP) == [], report
    verified = await fleet.verify()
    assert verified.exit_code == 0, f"{report}\n{verified.output}"
    return report


@pytest.mark.timeout(300)
async def test_no_answered_call_is_missing(tmp_path, kills, record_property):
    fleet = Fleet(tmp_path)
    fleet.target = quick
    async with fleet.running():
        load = Load(fleet)
        async with load.clients(_CLIENTS):
            restarts = await crash.kill_again_and_again(
                fleet.sidecar, load, kills, after=(20, 200), within=0.02, ready=fleet.up
            )
        report = await check(fleet, load, kills)
    report += f"; restart to ready: median {sorted(restarts)[len(restarts) // 2]:.2f} s"
    record_property("report", report)
    print(report)
