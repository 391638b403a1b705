"""kill -9 of the sidecar under load: every call that got an answer is on record."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web

from tests.support.fleet import Fleet
from valetkey.contracts import events

_CLIENTS = 16


@dataclass
class Load:
    """Clients that call without a pause, each call with a number of its own in its path."""

    url: str
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    answered: set[int] = field(default_factory=set)
    sent: int = 0
    stopped: bool = False

    async def client(self, session: aiohttp.ClientSession) -> None:
        while not self.stopped:
            number = next(self.numbers)
            self.sent += 1
            try:
                async with session.get(f"{self.url}/api/n{number}") as response:
                    await response.read()
                    if response.status == 200:
                        self.answered.add(number)
            except (aiohttp.ClientError, ConnectionError):
                await asyncio.sleep(0.01)  # it is being started again

    async def more(self, count: int) -> None:
        """Wait until so many further calls were answered."""
        wanted = len(self.answered) + count
        async with asyncio.timeout(20):
            while len(self.answered) < wanted:
                await asyncio.sleep(0.005)


async def crash(fleet: Fleet, kills: int) -> tuple[Load, list[float]]:
    load = Load(fleet.url)
    restarts = []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        clients = [asyncio.ensure_future(load.client(session)) for _ in range(_CLIENTS)]
        for _ in range(kills):
            await load.more(random.randint(20, 200))
            await asyncio.sleep(random.uniform(0, 0.02))  # any moment of a call, not the same one
            fleet.sidecar.kill()
            begun = time.monotonic()
            fleet.sidecar.start()
            await fleet.up()
            restarts.append(time.monotonic() - begun)
        await load.more(50)
        load.stopped = True
        await asyncio.gather(*clients)
    return load, restarts


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
        load, restarts = await crash(fleet, kills)
        report = await check(fleet, load, kills)
    report += f"; restart to ready: median {sorted(restarts)[len(restarts) // 2]:.2f} s"
    record_property("report", report)
    print(report)
