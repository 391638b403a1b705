"""The chain of administrators' actions."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import delete, update

from tests.integration.broker_support import Clock
from valetkey.broker.store.admin_actions import AdminActions
from valetkey.broker.store.database import Database
from valetkey.broker.store.schema import ADMIN_ACTIONS
from valetkey.broker.trust.admins import Admin

OLGA = Admin("https://login", "olga", frozenset({"operator"}))


async def record(actions: AdminActions, database: Database, count: int = 1, **more: str) -> None:
    for number in range(count):
        async with database.write() as connection:
            await actions.record(
                connection,
                actor=OLGA,
                action="grant.create",
                subject=f"grant:g{number}",
                reason="deploy",
                details={"scopes": ["a"], **more},
            )


async def test_recorded_with_who_and_why(database: Database) -> None:
    actions = AdminActions(database, clock=Clock(1000))
    await record(actions, database, 3)
    newest, *_ = await actions.page(before=None, limit=10)
    assert (newest.actor, newest.actor_issuer) == ("olga", "https://login")
    assert (newest.action, newest.subject, newest.reason) == ("grant.create", "grant:g2", "deploy")
    assert (newest.at, newest.details) == (1000, {"scopes": ["a"]})
    older = await actions.page(before=newest.seq, limit=1)
    assert [action.subject for action in older] == ["grant:g1"]


async def test_the_broker_acts_by_itself(database: Database) -> None:
    actions = AdminActions(database, clock=Clock(1000))
    async with database.write() as connection:
        await actions.record(connection, actor="windows", action="window.close", subject="w1")
    (action,) = await actions.page(before=None, limit=10)
    assert (action.actor, action.actor_issuer) == ("windows", "")


async def test_a_change_that_fails_leaves_no_trace(database: Database) -> None:
    actions = AdminActions(database, clock=Clock(1000))

    async def fail() -> None:
        async with database.write() as connection:
            await actions.record(connection, actor=OLGA, action="a", subject="s")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert await actions.page(before=None, limit=10) == []


async def test_the_chain_holds(database: Database) -> None:
    actions = AdminActions(database, clock=Clock(1000.25))
    assert (await actions.verify()).broken_at is None
    await record(actions, database, 5)
    verdict = await actions.verify()
    (newest,) = await actions.page(before=None, limit=1)
    assert (verdict.count, verdict.head, verdict.broken_at) == (5, newest.hash, None)


@pytest.mark.parametrize(
    "column", ["at", "actor", "actor_issuer", "action", "subject", "reason", "details", "hash"]
)
async def test_a_changed_row_shows(database: Database, column: str) -> None:
    actions = AdminActions(database, clock=Clock(1000))
    await record(actions, database, 5)
    third = (await actions.page(before=None, limit=5))[2].seq
    value = 1 if column == "at" else "{}"
    async with database.write() as connection:
        change = update(ADMIN_ACTIONS).where(ADMIN_ACTIONS.c.seq == third)
        await connection.execute(change.values({column: value}))
    assert (await actions.verify()).broken_at == third


async def test_a_removed_row_shows(database: Database) -> None:
    actions = AdminActions(database, clock=Clock(1000))
    await record(actions, database, 5)
    page = await actions.page(before=None, limit=5)
    async with database.write() as connection:
        await connection.execute(delete(ADMIN_ACTIONS).where(ADMIN_ACTIONS.c.seq == page[2].seq))
    assert (await actions.verify()).broken_at == page[1].seq


async def test_one_chain_whoever_writes(database: Database) -> None:
    """Two replicas at once: their rows are in one order, and each has the hash before it."""
    replicas = [AdminActions(database, clock=Clock(1000)) for _ in range(2)]
    await asyncio.gather(*(record(actions, database, 8) for actions in replicas))
    verdict = await replicas[0].verify()
    assert (verdict.count, verdict.broken_at) == (16, None)
