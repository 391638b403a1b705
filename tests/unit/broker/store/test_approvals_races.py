"""Who comes at the very moment at which somebody decides: nothing is asked twice, nothing lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.postgres import Postgres
from tests.unit.broker.store.test_approvals import admin, request, voter
from valetkey.broker.store.admin_actions import AdminActions
from valetkey.broker.store.approvals import Approvals, Denied, Entry, Taken, Waiting
from valetkey.broker.store.database import Database

NOW = 1_000.0


class Store(Approvals):
    """Stops before it looks for an open request, so that somebody can decide just then."""

    looked: asyncio.Event | None = None
    go_on: asyncio.Event | None = None

    async def _open(self, *args: Any) -> Waiting:
        if self.looked is not None and self.go_on is not None and not self.looked.is_set():
            self.looked.set()
            await self.go_on.wait()
        return await super()._open(*args)


def store(database: Database, opened: list[str]) -> Store:
    async def announce(_connection: Any, event: str, entry: Entry, _now: float) -> None:
        opened.append(f"{event} {entry.approval.id}")

    return Store(database, AdminActions(database, clock=lambda: NOW), announce, open_limit=10)


async def ask(approvals: Approvals) -> Taken | Waiting | Denied:
    return await approvals.take_or_open(
        request("alice", 1), purpose="", expires=100, valid=100, now=NOW
    )


@pytest.mark.parametrize("verdict", ["approve", "deny"])
async def test_a_decision_between_looking_and_opening(postgres: Postgres, verdict: str) -> None:
    """On PostgreSQL alone: SQLite has one writer at a time, and nothing comes between."""
    database = await Database.open(postgres.database())
    opened: list[str] = []
    approvals = store(database, opened)
    first = await ask(approvals)
    approvals.looked, approvals.go_on = asyncio.Event(), asyncio.Event()
    late = asyncio.ensure_future(ask(approvals))
    await approvals.looked.wait()
    how: dict[str, Any] = {"reason": "ok", "now": NOW}
    if verdict == "approve":
        await approvals.approve(first.id, admin("olga"), voter("olga"), uses=1, until=None, **how)
    else:
        await approvals.deny(first.id, admin("olga"), voter("olga"), **how)
    approvals.go_on.set()
    found = await late
    assert isinstance(found, Taken if verdict == "approve" else Denied)
    assert found.id == first.id
    assert sum(line.startswith("requested") for line in opened) == 1
    await database.close()


async def test_many_at_once_are_one(database: Database) -> None:
    opened: list[str] = []
    approvals = store(database, opened)
    found = await asyncio.gather(*(ask(approvals) for _ in range(20)))
    assert len({each.id for each in found}) == 1
    assert len(opened) == 1


async def test_as_many_pass_as_may(database: Database) -> None:
    approvals = store(database, [])
    first = await ask(approvals)
    await approvals.approve(
        first.id, admin("olga"), voter("olga"), reason="ok", uses=3, until=None, now=NOW
    )
    found = await asyncio.gather(*(ask(approvals) for _ in range(10)))
    assert sum(isinstance(each, Taken) for each in found) == 3
    assert len({each.id for each in found if isinstance(each, Waiting)}) == 1
