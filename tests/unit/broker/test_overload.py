"""A replica that is late turns sidecars away, and nobody else."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import Counter

from valetkey.broker import overload
from valetkey.broker.overload import LATE, Lateness, turning_away
from valetkey.contracts import problem

SIDECARS = ("/token", "/introspect", "/ssf/streams", "/ssf/poll/abc")
OTHERS = ("/v1/incidents", "/revoke", "/healthz", "/ssf/status")


class Late(Lateness):
    now = 0.0

    @property
    def seconds(self) -> float:
        return self.now


async def ok(_request: web.Request) -> web.Response:
    return web.Response(text="ok")


@pytest.fixture
async def late():
    return Late()


@pytest.fixture
async def turned_away():
    return Counter("turned_away", "…", registry=None)


@pytest.fixture
async def client(late, turned_away):
    app = web.Application(middlewares=[turning_away(late, turned_away)])
    for path in (*SIDECARS, *OTHERS):
        app.router.add_post(path, ok)
    async with TestClient(TestServer(app)) as made:
        yield made


@pytest.mark.parametrize("path", SIDECARS)
async def test_sidecars_come_again(client, late, turned_away, path):
    late.now = LATE + 0.1
    async with client.post(path) as answer:
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) > 0
        told = await answer.json(content_type=None)
    if path in {"/token", "/introspect"}:
        assert told["error"] == "temporarily_unavailable"
    else:
        assert answer.content_type == problem.CONTENT_TYPE
    late.now = LATE
    async with client.post(path) as answer:
        assert (answer.status, await answer.text()) == (200, "ok")
    (counted, _) = next(iter(turned_away.collect())).samples
    assert counted.value == 1


@pytest.mark.parametrize("path", OTHERS)
async def test_who_opens_an_incident_gets_in(client, late, path):
    late.now = 60.0
    async with client.post(path) as answer:
        assert answer.status == 200


class Clocks:
    """What the clock and the processor's say."""

    def __init__(self) -> None:
        self.now, self.busy = 100.0, 10.0

    def monotonic(self) -> float:
        return self.now

    def thread_time(self) -> float:
        return self.busy


async def test_late_is_who_was_busy_for_long(monkeypatch):
    clocks = Clocks()
    monkeypatch.setattr(overload, "time", clocks)
    lateness = Lateness()
    assert lateness.seconds == 0
    clocks.now += 3
    assert lateness.seconds == 0, "it was stopped, and has nothing to do"
    clocks.busy += 2
    assert 2.9 < lateness.seconds < 3
    looks = asyncio.create_task(lateness.run())
    await asyncio.sleep(0)
    assert lateness.seconds == 0, "once the loop comes round it is in time again"
    looks.cancel()
