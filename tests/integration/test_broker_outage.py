"""When the database fails: nothing opens, what needs no database goes on, and it shows."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.integration.broker_support import Served, World, claims_of, serving
from tests.support.ports import free_url
from valetkey.broker import app
from valetkey.contracts import oauth


async def drop(broker: Served, table: str) -> None:
    async with broker.broker.base.database.write() as connection:
        await connection.execute(text(f"DROP TABLE {table}"))


async def test_an_assertion_that_cannot_be_remembered_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        await drop(broker, "used_assertions")
        status, body, headers = await broker.post(world.form(world.assertion()))
        assert (status, body["error"], body["code"]) == (
            503,
            "temporarily_unavailable",
            "service.unavailable",
        )
        assert headers["Retry-After"]
        # A reusable token with a proof needs no row.
        assert (await broker.exchange(world.form(world.workload())))[0] == 200


async def test_a_revocation_that_cannot_be_stored_is_not_acknowledged(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        _, issued, _ = await broker.exchange(world.form(world.workload()))
        await drop(broker, "revocations")
        form = {
            "token": issued["access_token"],
            "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
            "client_assertion": world.workload(),
        }
        status, body, _ = await broker.exchange(form, path="/revoke")
        assert (status, body["code"]) == (503, "service.unavailable")
        # It counts in this process all the same.
        status, body, _ = await broker.exchange(form, path="/introspect")
        assert (status, body) == (200, {"active": False})


async def test_readiness_says_what_is_wrong(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        assert (await broker.get("/readyz"))[0] == 200
        task = broker.broker._tasks[0]
        task.cancel()
        await asyncio.wait([task])
        status, raw, _ = await broker.get("/readyz")
        assert status == 503
        assert json.loads(raw)["reason"] == "the task housekeeping has ended"
        assert (await broker.get("/healthz"))[0] == 200


async def test_nothing_unforeseen_ends_the_housekeeping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_TICK", 0.01)
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        ring = broker.broker.base.ring
        rotate, tried, done = ring.rotate, asyncio.Event(), asyncio.Event()

        async def fail() -> None:
            tried.set()
            raise RecursionError("unforeseen")

        async def again() -> None:
            await rotate()
            done.set()

        with monkeypatch.context() as patch:
            patch.setattr(ring, "rotate", fail)
            async with asyncio.timeout(15):
                await tried.wait()
        monkeypatch.setattr(ring, "rotate", again)
        async with asyncio.timeout(15):
            await done.wait()
        assert (await broker.get("/readyz"))[0] == 200


async def test_a_failing_database_does_not_end_the_housekeeping(tmp_path: Path) -> None:
    """Rotation is due and the table is gone: the old key signs on, and the task lives."""
    keys = {"keys": {"rotate_every": "1h", "publish_before": "5m", "overlap": "1m"}}
    world = World(tmp_path, free_url(), overrides=keys)
    async with serving(world) as broker:
        await drop(broker, "signing_keys")
        world.clock.advance(3600)
        await broker.broker._tick(sweep=True)
        status, body, _ = await broker.exchange(world.form(world.workload()))
        assert status == 200
        assert claims_of(body["access_token"])["iat"] == int(world.clock())
        assert (await broker.get("/readyz"))[0] == 200
