"""The admin port: probes and metrics, and nothing for workloads."""

from __future__ import annotations

import socket

import aiohttp
import pytest

from valetkey.contracts.errors import ConfigError
from valetkey.proxy.admin import Admin
from valetkey.proxy.metrics import Metrics


class State:
    reason = ""

    async def ready(self):
        return self.reason

    def health(self):
        return {"boot": "00000000000000a1", "rejected_config": ""}


async def test_probes_and_metrics():
    state = State()
    admin = Admin("127.0.0.1:0", Metrics(), ready=state.ready, health=state.health)
    await admin.start()
    port = admin.port
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
            async with client.get("/healthz") as answer:
                assert await answer.json() == {"status": "ok"}
            async with client.get("/readyz") as answer:
                assert answer.status == 200
                assert (await answer.json())["boot"] == "00000000000000a1"
            state.reason = "audit: the disk is full"
            async with client.get("/readyz") as answer:
                assert answer.status == 503
                assert (await answer.json())["reason"] == "audit: the disk is full"
            async with client.get("/healthz") as answer:
                assert answer.status == 200
            async with client.get("/metrics") as answer:
                assert answer.headers["Content-Type"].startswith("text/plain")
                assert "valetkey_build_info" in await answer.text()
            async with client.get("/nothing") as answer:
                assert answer.status == 404
                assert (await answer.json(content_type=None))["code"] == "service.not_found"
    finally:
        await admin.stop()


async def test_an_address_in_use_names_its_key():
    state = State()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        admin = Admin(bind, Metrics(), ready=state.ready, health=state.health)
        with pytest.raises(ConfigError, match=rf"admin\.bind: {bind}"):
            await admin.start()
        await admin.stop()


@pytest.mark.parametrize("bind", ["", "7071", "host:", "host:port", "127.0.0.1:70000"])
async def test_an_address_that_is_none(bind):
    state = State()
    admin = Admin(bind, Metrics(), ready=state.ready, health=state.health)
    with pytest.raises(ConfigError):
        await admin.start()
