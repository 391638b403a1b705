"""A replica that is late turns sidecars away, and nobody else."""

from __future__ import annotations

import asyncio
import time

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import Counter

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


async def test_late_is_who_did_not_look_at_the_clock_in_time(monkeypatch):
    clock = [100.0]
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "time", lambda: clock[0], raising=True)
    lateness = Lateness()
    assert lateness.seconds == 0
    clock[0] += 3
    assert 2.9 < lateness.seconds < 3
    monkeypatch.undo()
    looks = asyncio.create_task(lateness.run())
    deadline = time.monotonic() + 30
    lateness._due = loop.time() - 1000
    while lateness.seconds > 100 and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    assert lateness.seconds < 100, "once the loop comes round it is in time again"
    looks.cancel()
