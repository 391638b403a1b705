"""An approval of a grant that counts its uses: both are used, or neither is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import text

from tests.integration.approvals_support import CLOSING, Desk, desk, world_of
from tests.integration.broker_support import GRANTS
from tests.support.postgres import Postgres


@pytest_asyncio.fixture(params=["sqlite", "postgres"])
async def at(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Desk]:
    overrides = {}
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        overrides["database"] = server.database()
    world = world_of(tmp_path, **overrides)
    world.write_grants([*GRANTS, CLOSING | {"max_uses": 1}])
    async with desk(world) as opened:
        yield opened


def forget(at: Desk) -> None:
    """As a replica that has not heard yet of the use."""
    at.served.broker.base.policies.live._uses.clear()


async def used(at: Desk, approval: str) -> int:
    return int((await at.show(approval))["used"])


async def test_a_use_of_the_grant_that_is_gone_leaves_the_approval_as_it_was(at: Desk) -> None:
    approval = await at.opened()
    await at.approve(approval, uses=3)
    status, body = await at.ask()
    assert (status, body["single_use"], await used(at, approval)) == (200, True, 1)
    status, body = await at.ask()
    assert (status, body["code"]) == (400, "grant.used_up")
    forget(at)
    status, body = await at.ask()
    assert (status, body["code"]) == (400, "grant.used_up")
    assert await used(at, approval) == 1
    assert at.served.broker.base.policies.live.uses("bot-closes") == 1, "it is known from now on"


async def test_a_deferral_is_not_redeemed_by_it_either(at: Desk) -> None:
    _, waits = await at.ask(deferred=True)
    approval, code = waits["approval_id"], waits["deferral_code"]
    await at.approve(approval, uses=2)
    assert (await at.ask())[0] == 200
    forget(at)
    status, body = await at.poll(code)
    assert (status, body["code"]) == (400, "grant.used_up")
    assert await used(at, approval) == 1
    # It was undone: the code is as good as before.
    at.world.clock.advance(2)
    forget(at)
    async with at.served.broker.base.database.write() as connection:
        await connection.execute(text("UPDATE grant_uses SET uses = 0"))
    status, body = await at.poll(code)
    assert (status, body.get("code", "")) == (200, "")
    assert await used(at, approval) == 2
