"""Grants, uses and windows over two replicas: what one did holds at the other; the last use is one."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.integration.broker_support import Served, World, serving
from tests.integration.test_broker_grants_api import code, create, is_active, revoke, written
from tests.integration.test_broker_replicas import replicas, shared
from tests.integration.test_broker_windows import announce, close, deployment, opened
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from tests.support.waiting import until


async def ready(broker: Served, count: int) -> list[tuple[dict[str, Any], str]]:
    """So many exchanges of which nothing is missing but the sending."""
    world = broker.world
    nonce = await broker.nonce()
    return [
        (world.form(world.workload(), scope="tickets:delete"), world.proof(nonce=nonce))
        for _ in range(count)
    ]


async def race(*brokers: Served, each: int) -> list[str]:
    """All exchanges at once, at all brokers: what became of each."""
    prepared = [(broker, await ready(broker, each)) for broker in brokers]
    # One of each broker in turn, so that they meet.
    mixed = itertools.chain.from_iterable(
        zip(*([(broker, *one) for one in of_broker] for broker, of_broker in prepared), strict=True)
    )
    answers = await asyncio.gather(
        *(broker.post(form, proofs=[proof]) for broker, form, proof in mixed)
    )
    return [body.get("code", "issued") for _, body, _ in answers]


async def test_the_last_uses_go_to_exactly_as_many(tmp_path: Path, postgres: Postgres) -> None:
    async with replicas(shared(tmp_path, postgres)) as (one, other):
        for number, uses in enumerate((1, 1, 1, 3, 7)):
            name = f"jit-{number}"
            await create(one, id=name, max_uses=uses)
            await until(lambda name=name: knows(other, name), "the other replica knows it")
            answers = await race(one, other, each=8)
            assert sorted(set(answers)) == ["grant.used_up", "issued"]
            assert answers.count("issued") == uses
            _, body, _ = await other.manage("GET", f"/v1/grants/{name}")
            assert (body["state"], body["uses"]) == ("used_up", uses)
            await revoke(one, name)


async def test_on_one_broker_too(tmp_path: Path) -> None:
    async with serving(World(tmp_path, free_url())) as broker:
        await create(broker, max_uses=3)
        answers = await race(broker, each=12)
        assert (answers.count("issued"), answers.count("grant.used_up")) == (3, 9)


async def test_two_counted_grants_are_claimed_both_or_neither(
    tmp_path: Path, postgres: Postgres
) -> None:
    """Each request needs a use of both: nobody waits for the other for ever, none is lost."""
    async with replicas(shared(tmp_path, postgres)) as (one, other):
        await create(one, id="a", max_uses=9, scopes=["tickets:delete"])
        await create(one, id="b", max_uses=5, scopes=["tickets:merge"])
        await until(lambda: knows(other, "b"), "the other replica knows the second")
        prepared = []
        for broker in (one, other):
            world = broker.world
            for form, proof in await ready(broker, 8):
                prepared.append((broker, form | {"scope": "tickets:delete tickets:merge"}, proof))
            assert world
        answers = await asyncio.gather(
            *(broker.post(form, proofs=[proof]) for broker, form, proof in prepared)
        )
        both = [body for _, body, _ in answers if body.get("scope", "").count(" ") == 1]
        alone = [body for _, body, _ in answers if body.get("scope") == "tickets:delete"]
        refused = [body for _, body, _ in answers if "code" in body]
        # Once b is used up, what is left of a goes to a alone.
        assert (len(both), len(alone)) == (5, 4)
        assert {body["code"] for body in refused} == {"grant.used_up"}


async def test_what_one_makes_and_ends_holds_at_the_other(
    tmp_path: Path, postgres: Postgres
) -> None:
    async with replicas(shared(tmp_path, postgres)) as (one, other):
        await create(one)

        async def answer(expected: str) -> None:
            async def holds() -> bool:
                return await code(other) == expected

            await until(holds, "what was asked holds")

        await answer("issued")
        world = one.world
        form = world.form(world.workload(), scope="tickets:delete")
        token = (await other.exchange(form))[1]["access_token"]
        await revoke(one)
        await answer("grant.ended")
        assert not await is_active(other, token)

        await create(one, **deployment())
        window = await opened(one)
        await answer("issued")
        token = (await other.exchange(form))[1]["access_token"]
        assert (await close(other, window["id"]))[0] == 200
        assert await code(other) == "grant.outside_window"

        async def ended() -> bool:
            return not await is_active(one, token)

        await until(ended, "the grant has ended at the other replica")


async def test_a_nudge_that_is_missed_costs_half_a_second(
    tmp_path: Path, postgres: Postgres
) -> None:
    async with replicas(shared(tmp_path, postgres)) as (one, other):
        other.broker.base.changes._nudge = lambda *_: None  # type: ignore[method-assign]
        await create(one)
        await until(lambda: knows(other, "jit-1"), "the other replica knows it")


async def test_made_at_both_at_once_it_is_one(tmp_path: Path, postgres: Postgres) -> None:
    async with replicas(shared(tmp_path, postgres)) as (one, other):
        for number in range(5):
            same = written(f"same-{number}")
            answers = await asyncio.gather(
                *(broker.manage("POST", "/v1/grants", same) for broker in (one, other))
            )
            assert sorted(status for status, _, _ in answers) == [200, 201]
            answers = await asyncio.gather(*(
                broker.manage("POST", "/v1/grants", written(f"diff-{number}", ticket=ticket))
                for broker, ticket in ((one, "A"), (other, "B"))
            ))  # fmt: skip
            assert sorted(status for status, _, _ in answers) == [201, 409]
        _, actions, _ = await one.manage("GET", "/v1/admin/actions")
        assert len(actions["items"]) == 10
        _, verdict, _ = await one.manage("GET", "/v1/admin/actions/verify")
        assert verdict["broken_at"] is None


async def test_announced_at_both_at_once_it_is_one_window(
    tmp_path: Path, postgres: Postgres
) -> None:
    async with replicas(shared(tmp_path, postgres)) as (one, other):
        await create(one, **deployment())
        await until(lambda: knows(other, "deploy"), "the other replica knows the window's grant")
        for _ in range(5):
            token = one.world.job()
            answers = await asyncio.gather(*(announce(broker, token) for broker in (one, other)))
            assert sorted(status for status, _ in answers) == [200, 201]
            assert len({body["id"] for _, body in answers}) == 1


async def test_a_deadline_is_recorded_once(tmp_path: Path, postgres: Postgres) -> None:
    async with replicas(shared(tmp_path, postgres)) as (one, other):
        await create(one, **deployment())
        for _ in range(3):
            await opened(one, duration="5s")
        one.world.clock.advance(5)
        await asyncio.gather(one.broker.sweep(), other.broker.sweep())
        _, actions, _ = await one.manage("GET", "/v1/admin/actions")
        told = [each["subject"] for each in actions["items"] if each["action"] == "window.close"]
        assert len(told) == len(set(told)) == 3


async def knows(broker: Served, grant_id: str) -> bool:
    return broker.broker.base.policies.current.find(grant_id) is not None


@pytest.mark.parametrize("table", ["grant_uses", "grants", "windows"])
async def test_a_database_that_fails_gives_nothing(tmp_path: Path, table: str) -> None:
    from sqlalchemy import text

    async with serving(World(tmp_path, free_url())) as broker:
        await create(broker, **deployment(), max_uses=9)
        await opened(broker)
        assert await code(broker) == "issued"
        async with broker.broker.base.database.write() as connection:
            await connection.execute(text(f"DROP TABLE {table}"))
        if table == "grant_uses":
            assert await code(broker) == "service.unavailable"
        if table == "windows":
            status, body = await announce(broker)
            assert (status, body["code"]) == (503, "service.unavailable")
        if table == "grants":
            status, body, _ = await broker.manage("POST", "/v1/grants", written())
            assert (status, body["code"]) == (503, "service.unavailable")
            _, actions, _ = await broker.manage("GET", "/v1/admin/actions")
            assert "grant:jit-1" not in {each["subject"] for each in actions["items"]}
        # What needs no database goes on.
        assert await code(broker, scope="tickets:read") == "issued"
