from __future__ import annotations

import asyncio

from aiohttp.test_utils import TestClient, TestServer

from tests.support.chain import Chain, batch
from valetkey.collector.app import build_app
from valetkey.collector.store.sqlite import open_file


async def test_probes(client):
    for path, status in (("/healthz", "ok"), ("/readyz", "ready")):
        async with client.get(path) as response:
            assert (response.status, (await response.json())["status"]) == (200, status)


async def test_build_info(client):
    async with client.get("/metrics") as response:
        assert 'valetkey_build_info{program="collector"' in await response.text()


async def test_not_ready_without_its_database(bench):
    opened = await asyncio.to_thread(open_file, bench.database)
    async with TestClient(TestServer(build_app(bench.settings(), opened))) as client:
        await opened.reader.dispose()
        bench.database.unlink()
        bench.database.mkdir()
        async with client.get("/readyz") as response:
            assert response.status == 503
            assert (await response.json())["status"] == "unready"


async def test_gauges_say_what_is_in_the_database(bench):
    broken = Chain()
    broken.add("t", {}, prevhash="ab" * 32)
    broken.calls(3)
    for missing, expected in ((True, None), (False, b"valetkey_collector_gaps 1.0")):
        opened = await asyncio.to_thread(open_file, bench.database)
        async with TestClient(TestServer(build_app(bench.settings(), opened))) as client:
            if missing:
                raws = broken.events[:2] + broken.events[4:]
                async with client.post(
                    "/v1/events", data=batch(raws), headers=bench.sidecar()
                ) as r:
                    assert (await r.json())["acked"] == 2
            else:
                async with client.get("/metrics") as response:
                    text = await response.read()
                assert expected in text
                assert b"valetkey_collector_breaks 1.0" in text
