"""Replicas that have different grants files for a while, as in a rollout, over one PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.broker_support import GRANTS, Served, World, serving
from tests.integration.test_broker_grants_api import code, create
from tests.integration.test_broker_grants_reuse import (
    GONE,
    NARROWED,
    OTHER,
    REUSED,
    SCOPES,
    X,
    is_active,
    minted,
    told,
)
from tests.integration.test_broker_replicas import shared
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from tests.support.waiting import until

NARROW = X | {"scopes": SCOPES[:1]}


@pytest.fixture
def world(tmp_path: Path, postgres: Postgres) -> World:
    return shared(tmp_path, postgres)


class Replicas:
    """Replicas of one world, each with a grants file of its own."""

    def __init__(self, world: World) -> None:
        self.world = world

    def _file(self, name: str) -> Path:
        return self.world.root / f"{name}.yaml"

    def write(self, name: str, *grants: dict[str, Any]) -> None:
        new = self._file(name + "-new")
        new.write_text(yaml.safe_dump({"grants": [*GRANTS, *grants]}))
        new.rename(self._file(name))

    @asynccontextmanager
    async def start(self, name: str, *grants: dict[str, Any]) -> AsyncIterator[Served]:
        self.write(name, *grants)
        self.world.clock.advance(1)
        overrides = self.world.overrides | {"grants_file": str(self._file(name))}
        # The first answers for the issuer; where the others listen says no token.
        async with serving(replace(self.world, overrides=overrides), free_url()) as served:
            self.world.clock.advance(1)
            yield served

    async def change(self, served: Served, name: str, *grants: dict[str, Any]) -> None:
        self.write(name, *grants)
        self.world.clock.advance(1)
        await served.broker.base.policies.reload()
        self.world.clock.advance(1)


async def counts(served: Served, token: str, *, wanted: bool) -> None:
    async def as_wanted() -> bool:
        return await is_active(served, token) is wanted

    await until(as_wanted, f"active is {wanted}")


async def test_each_replica_tells_until_when_it_gave(world: World) -> None:
    """B goes on with the old file: what it gives after A was told ends when B reads the new one."""
    replicas = Replicas(world)
    async with replicas.start("a", X) as one, replicas.start("b", X) as other:
        first = await minted(one)
        await replicas.change(one, "a", NARROW)
        await counts(other, first, wanted=False)
        between = await minted(other)
        for served in (one, other):
            await counts(served, between, wanted=True)
        await replicas.change(other, "b", NARROW)
        for served in (one, other):
            await counts(served, between, wanted=False)
            await counts(served, await minted(served), wanted=True)
        assert await told(one) == [("x", NARROWED)] * 2


async def test_one_that_stops_with_the_old_file_tells_too(world: World) -> None:
    replicas = Replicas(world)
    async with replicas.start("a", X, X | {"id": "y", "workload": OTHER}) as one:
        async with replicas.start("b", X, X | {"id": "y", "workload": OTHER}) as other:
            await replicas.change(one, "a", NARROW)
            between = await minted(other)
            await counts(one, between, wanted=True)
            assert await told(one) == [("x", NARROWED), ("y", GONE)]
            world.clock.advance(1)
        world.clock.advance(1)
        await counts(one, between, wanted=False)
        assert sorted(await told(one)) == sorted([("x", NARROWED), ("y", GONE)] * 2)
        assert await is_active(one, await minted(one))


async def test_replicas_with_different_files_do_not_take_turns(world: World) -> None:
    """Each difference is told when a file changes or a replica starts or stops, not in between."""
    replicas = Replicas(world)
    async with replicas.start("a", X) as one, replicas.start("b", X) as other:
        await replicas.change(one, "a")
        assert await told(one) == [("x", GONE)]
        for _ in range(3):
            for served in (one, other):
                world.clock.advance(1)
                await served.broker.base.policies.reload(force=True)
                await served.broker.sweep()
        assert await told(one) == [("x", GONE)]
        assert await code(one) == "grant.scope"
        # The one with the old file gives what its file says.
        token = await minted(other)
        assert await is_active(other, token)


async def test_many_that_start_with_the_new_file_tell_once(world: World) -> None:
    replicas = Replicas(world)
    async with replicas.start("old", X) as old:
        token = await minted(old)
        async with replicas.start("a", NARROW) as one, replicas.start("b", NARROW) as other:
            assert await told(one) == [("x", NARROWED)]
            for served in (old, one, other):
                await counts(served, token, wanted=False)


async def test_an_id_that_went_to_a_grant_by_api_while_another_had_the_old_file(
    world: World,
) -> None:
    replicas = Replicas(world)
    async with replicas.start("a", X) as one, replicas.start("b", X) as other:
        await replicas.change(one, "a")
        between = await minted(other)
        await counts(one, between, wanted=False)
        await create(one, id="x", workload=OTHER)
        world.clock.advance(1)
        await counts(one, between, wanted=False)
        late = await minted(other)
        await replicas.change(other, "b")
        for served in (one, other):
            await counts(served, late, wanted=False)
        assert await told(one) == [("x", GONE), ("x", REUSED), ("x", GONE)]
        await counts(other, await minted(one, OTHER), wanted=True)
