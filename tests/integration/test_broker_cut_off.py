"""A replica that no longer hears what others end: it says so, and says yes to nobody."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.broker_support import TICKETS, Served, World, claims_of, serving
from tests.integration.feed_support import Receiver
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from tests.support.relay import Relay, relaying
from tests.support.waiting import until
from valetkey.broker.app import Broker
from valetkey.broker.parts.signals import SignalsPart
from valetkey.broker.store import changes as module
from valetkey.contracts import oauth
from valetkey.contracts.errors import ConfigError

LIMIT = 3.0
REFUSED = (503, "service.unavailable")


@pytest.fixture(autouse=True)
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is, but shorter: six sweeps."""
    monkeypatch.setattr(module, "CURRENT_FOR", LIMIT)


def presented(world: World, token: str) -> dict[str, str]:
    return {
        "token": token,
        "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
        "client_assertion": world.workload(),
    }


@contextlib.asynccontextmanager
async def replicas(world: World, postgres: Postgres) -> AsyncIterator[tuple[Served, Served, Relay]]:
    """One replica behind a relay, and another beside it that reaches the database directly."""
    direct = postgres.database()
    async with relaying(postgres.port) as relay:
        world.overrides["database"] = direct.replace(f":{postgres.port}/", f":{relay.port}/")
        async with serving(world) as one:
            world.overrides["database"] = direct
            async with serving(world, free_url()) as other:
                yield one, other, relay


async def is_ready(served: Served) -> bool:
    return bool((await served.get("/readyz"))[0] == 200)


async def test_a_replica_that_is_cut_off_says_yes_to_nobody(
    tmp_path: Path, postgres: Postgres
) -> None:
    world = World(tmp_path, free_url())
    async with replicas(world, postgres) as (one, other, relay):
        asked = world.form(world.workload())
        status, issued, _ = await one.exchange(asked)
        assert status == 200
        form = presented(world, issued["access_token"])
        receiver = Receiver(world, one)
        await receiver.begin()
        await receiver.take()
        waiting = asyncio.ensure_future(receiver.ask("POST", receiver.path, {"maxEvents": 10}))
        await asyncio.sleep(0.2)

        relay.cut()
        assert (await other.exchange(form, path="/revoke"))[0] == 200

        async def refuses() -> bool:
            status, body, _ = await one.exchange(form, path="/introspect")
            return (status, body.get("code")) == REFUSED

        await until(refuses, "it refuses")
        status, body, headers = await one.exchange(asked)
        assert (status, body["code"]) == REFUSED
        assert headers["Retry-After"]
        # The poll that waited is not left to wait for what can't come.
        async with asyncio.timeout(15):
            status, body = await waiting
        assert (status, body["code"]) == REFUSED
        status, body = await receiver.ask("POST", receiver.path, {"returnImmediately": True})
        assert (status, body["code"]) == REFUSED
        assert not await is_ready(one)
        # The other one goes on.
        assert (await other.exchange(asked))[0] == 200

        relay.mend()
        await until(lambda: is_ready(one), "it is ready again")
        status, body, _ = await one.exchange(form, path="/introspect")
        assert (status, body) == (200, {"active": False})
        assert (await one.exchange(asked))[0] == 200
        assert {event.value for event in await receiver.take()} >= {  # type: ignore[union-attr]
            claims_of(issued["access_token"])["txn"]
        }


async def test_a_database_that_hangs_is_told_apart_in_time(
    tmp_path: Path, postgres: Postgres
) -> None:
    """Nothing is reset, nothing answers: probes and requests are answered all the same."""
    world = World(tmp_path, free_url())
    world.overrides["postgres"] = {
        "connect": "3s", "acquire": "2s", "statement": "2s", "lock": "1s",
    }  # fmt: skip
    async with replicas(world, postgres) as (one, other, relay):
        asked = world.form(world.workload())
        assert (await one.exchange(asked))[0] == 200
        relay.stall()

        async def refuses() -> bool:
            # A self-signed assertion, which is used up in the database, and a fresh proof key.
            async with asyncio.timeout(30):
                status, body, _ = await one.post(world.form(world.assertion()))
            assert status != 200
            return (status, body.get("code")) == REFUSED

        await until(refuses, 30)
        async with asyncio.timeout(10):
            assert not await is_ready(one)
        assert (await other.exchange(asked))[0] == 200
        relay.flow()
        await until(lambda: is_ready(one), 20)
        assert (await one.exchange(asked))[0] == 200
        assert all(not task.done() for task in one.broker._tasks)


async def test_the_lists_of_a_replica_that_is_cut_off_are_not_given_out(
    tmp_path: Path, postgres: Postgres
) -> None:
    world = World(tmp_path, free_url())
    world.overrides["targets"] = {
        **world.document()["targets"],
        "tickets": {"audience": TICKETS, "credential": "bearer", "status_list": True},
    }
    async with replicas(world, postgres) as (one, _, relay):
        _, issued, _ = await one.exchange(world.form(world.workload()))
        uri = claims_of(issued["access_token"])["status"]["status_list"]["uri"]
        path = uri.removeprefix(world.url)
        assert (await one.get(path))[0] == 200
        relay.cut()

        async def refuses() -> bool:
            status, raw, _ = await one.get(path)
            return status != 200 and (status, json.loads(raw)["code"]) == REFUSED

        await until(refuses, "it gives out none")


@pytest.mark.parametrize("error", [ConfigError("another master key"), ValueError("what is this")])
async def test_a_change_that_cannot_be_applied_is_not_passed_over(
    tmp_path: Path, error: Exception
) -> None:
    """It is tried again and again; meanwhile nothing counts, and when it succeeds, all does."""
    world = World(tmp_path, free_url())
    async with serving(world) as served:
        base = served.broker.base
        asked = world.form(world.workload())
        assert (await served.exchange(asked))[0] == 200
        failing, applied = True, []

        async def fails(key: str) -> None:
            if failing:
                raise error
            applied.append(key)

        base.changes.subscribe("other", fails)
        async with base.database.write() as connection:
            await base.changes.publish(connection, "other", "a")

        async def refuses() -> bool:
            status, body, _ = await served.exchange(asked)
            return (status, body.get("code")) == REFUSED

        await until(refuses, "it refuses")
        status, raw, _ = await served.get("/readyz")
        assert status == 503
        assert "changes" in json.loads(raw)["reason"]
        failing = False
        await until(lambda: is_ready(served), "it is ready again")
        assert applied == ["a"]
        assert (await served.exchange(asked))[0] == 200


async def test_a_start_that_takes_long_ends_with_a_replica_that_is_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CURRENT_FOR", 1.0)
    load = SignalsPart.load

    async def slow(part: SignalsPart) -> None:
        await load(part)
        await asyncio.sleep(1.5)

    monkeypatch.setattr(SignalsPart, "load", slow)
    config = await asyncio.to_thread(World(tmp_path, free_url()).settings)
    broker = await Broker.open(config, clock=time.time)
    try:
        assert broker.base.changes.is_current()
    finally:
        await broker.close()


async def test_a_replica_with_nothing_to_do_stays_current(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as served:
        changes = served.broker.base.changes
        for _ in range(3):
            before = changes.applied_at
            await until(lambda before=before: changes.applied_at > before, "it has looked again")
        assert changes.is_current()
        assert (await served.exchange(world.form(world.workload())))[0] == 200
