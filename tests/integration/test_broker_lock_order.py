"""Two that write at once on PostgreSQL: the turn comes before any row, so neither is given up.

SQLite has one writer at a time, so there is nothing to order.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.broker_support import BOT, IDP, World, serving
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from valetkey.broker.core.incidents import Exposure, Incident, Party
from valetkey.broker.incidents.response import Report
from valetkey.broker.part import Foundation
from valetkey.broker.store.incidents import DONE
from valetkey.broker.store.uses import UsesSpent
from valetkey.broker.trust.admins import Admin

# In seconds: who is not done by then waits for a row.
BLOCKED = 0.5
ABOUT = Exposure("subject", BOT, issuer=IDP, party=Party(IDP, BOT))
ADMIN = Admin("https://people", "olga", frozenset({"admin"}))


class Replaces:
    name = "replaces"

    def concerns(self, incident: Incident) -> bool:
        return incident.kind == "subject"

    async def rotate(self, incident: Incident) -> str:
        raise AssertionError("nobody rotates here")


@pytest.fixture
async def base(tmp_path: Path, postgres: Postgres) -> AsyncIterator[Foundation]:
    world = World(tmp_path, free_url())
    world.overrides["database"] = postgres.database()
    async with serving(world) as served:
        yield served.broker.base


def report(exposure: Exposure, *, seen_at: float | None = None) -> Report:
    return Report(exposure, source="admin", by="a test", reason="leaked", seen_at=seen_at)


@asynccontextmanager
async def before_its_turn(
    base: Foundation, work: Coroutine[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[asyncio.Task[Any]]:
    """``work`` stopped where it asks for its turn, with whatever rows it took until then."""
    stopped, go_on = asyncio.Event(), asyncio.Event()
    take_turn = base.database.take_turn

    async def stops(connection: Any) -> None:
        if asyncio.current_task() is held:
            stopped.set()
            await go_on.wait()
        await take_turn(connection)

    monkeypatch.setattr(base.database, "take_turn", stops)
    held = asyncio.ensure_future(work)
    await asyncio.wait_for(stopped.wait(), 15)
    yield held
    go_on.set()


async def both(
    base: Foundation,
    first: Coroutine[Any, Any, Any],
    second: Callable[[], Coroutine[Any, Any, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Any, Any]:
    async with before_its_turn(base, first, monkeypatch) as held:
        other = asyncio.ensure_future(second())
        await asyncio.wait({other}, timeout=BLOCKED)  # done, or at a row that the first one has
    return tuple(await asyncio.gather(held, other))  # type: ignore[return-value]


async def test_a_client_revokes_the_token_that_an_incident_is_opened_about(
    base: Foundation, monkeypatch: pytest.MonkeyPatch
) -> None:
    expires = base.clock() + 60
    # The row is there, so that both change the same one.
    await base.revocations.revoke(jti="j", txn="t", expires=expires - 30, descendants=expires)
    exposure = Exposure("token", "j", party=Party(IDP, BOT), txn="t", expires=expires)
    revoked, (incident, new) = await both(
        base,
        base.revocations.revoke(jti="j", txn="t", expires=expires, descendants=expires),
        lambda: base.response.open(report(exposure)),
        monkeypatch,
    )
    assert revoked
    assert new
    assert await base.incidents.get(incident.id) is not None


async def test_a_subject_attests_itself_while_its_incident_is_closed(
    base: Foundation, monkeypatch: pytest.MonkeyPatch
) -> None:
    incident, _ = await base.response.open(report(ABOUT))
    _, closed = await both(
        base,
        base.incidents.attested(IDP, BOT, epoch=incident.epoch),
        lambda: base.response.close(incident, by=ADMIN, reason="over", force=True),
        monkeypatch,
    )
    assert closed is not None
    assert closed.closed_at is not None


async def test_a_rotation_is_settled_while_it_is_asked_for_again(
    base: Foundation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base.response, "_rotators", (Replaces(),))
    incident, _ = await base.response.open(report(ABOUT))
    await base.incidents.attested(IDP, BOT, epoch=incident.epoch)
    (rotation,) = await base.incidents.rotations([incident.id])
    _, (again, new) = await both(
        base,
        base.incidents.settle(rotation, state=DONE, detail="replaced", again_in=0),
        lambda: base.response.open(report(ABOUT, seen_at=base.clock())),
        monkeypatch,
    )
    assert new
    assert again.id == incident.id
    (rotation,) = await base.incidents.rotations([incident.id])
    assert rotation.detail == "replaced"


async def test_the_last_use_is_claimed_by_two(
    base: Foundation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has its turn already, as whoever redeems an approval has."""
    limited = [("counted", 2)]
    assert await base.uses.claim(limited)

    async def in_turn() -> bool:
        try:
            async with base.database.write_in_turn() as connection:
                return bool(await base.uses.claim_in(connection, limited))
        except UsesSpent:
            return False

    claimed = await both(base, base.uses.claim(limited), in_turn, monkeypatch)
    assert sorted(claimed) == [False, True]


async def test_a_use_that_is_not_the_last_waits_for_no_turn(base: Foundation) -> None:
    async with base.database.write_in_turn():
        assert await asyncio.wait_for(base.uses.claim([("counted", 3)]), 15)


async def test_what_a_check_refuses_undoes_the_last_use_too(base: Foundation) -> None:
    def refuse() -> None:
        raise ZeroDivisionError

    for most in (1, 2):
        with pytest.raises(ZeroDivisionError):
            await base.uses.claim([("counted", most)], refuse)
    assert await base.uses.counts(["counted"]) == {}
