"""An incident while an exchange waits for something: no token is minted on what was so before it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.integration.approvals_support import Desk, desk, world_of
from tests.integration.broker_support import BOT, GRANTS, IDP, TICKETS, Served, World
from valetkey.broker.store.revocations import FOREVER

USES = 3


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> dict[str, Any]:
    postgres = request.param == "postgres"
    return {"database": request.getfixturevalue("postgres").database()} if postgres else {}


async def incident(served: Served, connection: AsyncConnection, about: str) -> None:
    base = served.broker.base
    if about == "workload":
        await base.epochs.bump(
            connection, IDP, BOT, at=base.clock(), reason="leaked", attest=True
        )  # fmt: skip
    elif about == "target":
        await base.revocations.end(connection, "target", TICKETS, until=FOREVER)
    else:
        thumbprint = served.world.proof_key.thumbprint
        await base.revocations.end(connection, "key", thumbprint, until=FOREVER)


REFUSALS = {
    "workload": "subject.contained",
    "target": "grant.suspended",
    "key": "actor.key_revoked",
}


@asynccontextmanager
async def held(served: Served, about: str, table: str) -> AsyncIterator[None]:
    """An incident whose transaction holds what the exchange in between wants to write."""
    base = served.broker.base
    async with base.database.write() as connection:
        await connection.execute(text(f"DELETE FROM {table} WHERE 1 = 0"))
        if base.database.postgres:
            await connection.execute(text(f"LOCK TABLE {table} IN EXCLUSIVE MODE"))
        yield
        await incident(served, connection, about)
    await base.changes.catch_up()


@pytest.mark.parametrize("about", list(REFUSALS))
async def test_while_a_directory_is_asked(
    tmp_path: Path, about: str, database: dict[str, Any]
) -> None:
    async with desk(world_of(tmp_path, **database)) as one:
        base = one.served.broker.base
        asked, released = asyncio.Event(), asyncio.Event()
        people = base.people._directory.attributes

        async def slow(*args: Any) -> Any:
            asked.set()
            await released.wait()
            return await people(*args)

        base.people._directory.attributes = slow  # type: ignore[method-assign]
        form = one.world.form(one.world.workload())
        asking = asyncio.ensure_future(one.served.exchange(form))
        await asked.wait()
        async with base.database.write() as connection:
            await incident(one.served, connection, about)
        await base.changes.catch_up()
        released.set()
        status, body, _ = await asking
        assert (status, body.get("code")) == (400, REFUSALS[about])


async def uses_left(one: Desk, approval: str) -> int:
    query = text("SELECT uses_left FROM approvals WHERE id = :id")
    async with one.served.broker.base.database.read() as connection:
        return int((await connection.execute(query, {"id": approval})).scalar_one())


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("about", list(REFUSALS))
async def test_while_an_approval_is_used(
    tmp_path: Path, about: str, database: dict[str, Any], deferred: bool
) -> None:
    """Nor is the approval used up."""
    async with desk(world_of(tmp_path, **database)) as one:
        _, opened = await one.ask(deferred=deferred)
        approval, code = opened["approval_id"], opened.get("deferral_code", "")
        assert (await one.approve(approval, uses=USES))[0] == 200
        async with held(one.served, about, "approvals"):
            asking = asyncio.ensure_future(one.poll(code) if deferred else one.ask())
            await asyncio.sleep(0.4)
            assert not asking.done()
        status, body = await asking
        assert (status, body.get("code")) == (400, REFUSALS[about])
        assert await uses_left(one, approval) == USES


async def test_while_a_use_of_a_grant_is_claimed(tmp_path: Path, database: dict[str, Any]) -> None:
    world: World = world_of(tmp_path, **database)
    world.write_grants(
        [{**grant, "max_uses": 9} if grant["id"] == "bot-tickets" else grant for grant in GRANTS]
    )
    async with desk(world) as one:
        form = one.world.form(one.world.workload())
        assert (await one.served.exchange(form))[0] == 200
        async with held(one.served, "workload", "grant_uses"):
            asking = asyncio.ensure_future(one.served.exchange(form))
            await asyncio.sleep(0.4)
            assert not asking.done()
        status, body, _ = await asking
        assert (status, body.get("code")) == (400, "subject.contained")
        async with one.served.broker.base.database.read() as connection:
            uses = (await connection.execute(text("SELECT uses FROM grant_uses"))).scalars().all()
        assert uses == [1]
