"""An id that comes to stand for another grant, and a grant that is narrowed in the file.

What was minted under the former has ended, and stays so. On both databases.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import text

from tests.integration.broker_support import BOT, GRANTS, READER, Served, World, serving
from tests.integration.test_broker_containment import active
from tests.integration.test_broker_grants_api import (
    broker,
    code,
    create,
    revoke,
    world,
    written,
)
from tests.integration.test_broker_windows import deployment, opened
from tests.support.waiting import until

__all__ = ["broker", "world"]  # fixtures

SCOPES = ["tickets:delete", "tickets:merge"]
OTHER = "spiffe://demo.example/ns/other/sa/bot"
X = written("x", scopes=SCOPES, reason=None, ticket=None, owner=None)


async def put(broker: Served, *grants: dict[str, Any]) -> None:
    """Have the file hold these beside those that are always there, a second later."""
    broker.world.clock.advance(1)
    broker.world.write_grants([*GRANTS, *grants])
    await broker.broker.base.policies.reload()
    # A token says its time in whole seconds.
    broker.world.clock.advance(1)


async def minted(broker: Served, workload: str = BOT) -> str:
    form = broker.world.form(broker.world.workload(workload), scope="tickets:delete")
    status, body, _ = await broker.exchange(form)
    assert (status, body.get("grants")) == (200, ["x"]), body
    token: str = body["access_token"]
    return token


async def is_active(broker: Served, token: str) -> bool:
    """As the target of the token is told, whoever has it."""
    return await active(broker, token, broker.world.workload(READER))


async def told(broker: Served) -> list[tuple[str, str]]:
    """Grants that sidecars were told of, and why."""
    published = await broker.broker.base.signals.newest(50)
    return [(one.event.value, one.event.reason) for one in published]  # type: ignore[union-attr]


@dataclass(frozen=True)
class Way:
    """How a grant x of the file ends or is narrowed, and how the id is used then."""

    name: str
    steps: list[list[dict[str, Any]]]
    by_api: dict[str, Any] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()

    @property
    def workload(self) -> str:
        """Whose it is in the end."""
        last = self.by_api or (self.steps[-1] or [{}])[0]
        return str(last.get("workload", BOT))


GONE, NARROWED, REUSED = (
    "taken out of the grants file",
    "narrowed in the grants file",
    "another grant had this id",
)
WAYS = [
    Way("for another workload, by API", [[]], {"workload": OTHER}, (GONE, REUSED)),
    Way("for the same workload, by API", [[]], {"scopes": SCOPES}, (GONE, REUSED)),
    Way("the same again, in the file", [[], [X]], {}, (GONE, REUSED)),
    Way("for another workload, in the file", [[], [X | {"workload": OTHER}]], {}, (GONE, REUSED)),
    Way("for another workload, in one step", [[X | {"workload": OTHER}]], {}, (NARROWED,)),
    Way("there and back", [[X | {"workload": OTHER}], [X]], {}, (NARROWED, NARROWED)),
    Way("with a scope less", [[X | {"scopes": SCOPES[:1]}]], {}, (NARROWED,)),
    Way("with a scope less for a while", [[X | {"scopes": SCOPES[:1]}], [X]], {}, (NARROWED,)),
    Way("with an end that passes, and then none",
        [[X | {"not_after": "2001-01-01T00:00:00Z"}], [X]], {}, (NARROWED,)),
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
async def test_what_a_former_grant_gave_does_not_come_back(broker: Served, way: Way) -> None:
    await put(broker, X)
    token = await minted(broker)
    assert await is_active(broker, token)
    assert await told(broker) == []
    for step in way.steps:
        await put(broker, *step)
        assert not await is_active(broker, token)
    if way.by_api:
        await create(broker, id="x", **way.by_api)
        broker.world.clock.advance(1)
    assert not await is_active(broker, token)
    # Sidecars are told each time, and what is given now counts.
    assert await told(broker) == [("x", reason) for reason in way.reasons]
    assert await is_active(broker, await minted(broker, way.workload))


@pytest.mark.parametrize(
    "again",
    [X, X | {"scopes": [*SCOPES, "more"]}, X | {"reason": "y"}, X | {"on_behalf_of": "users"}],
    ids=["the same", "a scope more", "a note", "for users, too"],
)
async def test_what_is_still_given_goes_on(broker: Served, again: dict[str, Any]) -> None:
    await put(broker, X)
    token = await minted(broker)
    await put(broker, again)
    assert await is_active(broker, token)
    assert await told(broker) == []


async def test_a_grant_by_api_that_ended_and_went_to_the_file(broker: Served) -> None:
    await create(broker, id="x", scopes=SCOPES)
    token = await minted(broker)
    await revoke(broker, "x")
    await put(broker, X)
    assert not await is_active(broker, token)
    assert await is_active(broker, await minted(broker))
    assert [reason for _, reason in await told(broker)] == ["done", REUSED]


async def test_an_incident_about_it_is_not_weakened(broker: Served) -> None:
    await put(broker, X)
    body = {"grant": "x", "reason": "leaked"}
    status, incident, _ = await broker.manage("POST", "/v1/incidents", body)
    assert status == 201, incident
    for step in ([], [X], [X | {"scopes": SCOPES[:1]}]):
        await put(broker, *step)
        assert await code(broker) != "issued"
    path = f"/v1/incidents/{incident['id']}/close"
    assert (await broker.manage("POST", path, {"reason": "over"}))[0] == 200
    broker.world.clock.advance(1)
    assert await is_active(broker, await minted(broker))


async def test_its_windows_close_with_it(broker: Served) -> None:
    of_file = deployment("x", scopes=SCOPES)
    await put(broker, of_file)
    await opened(broker, grant="x")
    assert await code(broker) == "issued"
    await put(broker)
    await put(broker, of_file)
    assert await code(broker) == "grant.outside_window"


# --- what nobody was told of ----------------------------------------------------------------------


@asynccontextmanager
async def restarted(world: World, *grants: dict[str, Any]) -> AsyncIterator[Served]:
    """The broker, started with another file than it stopped with."""
    world.clock.advance(1)
    world.write_grants([*GRANTS, *grants])
    async with serving(world) as broker:
        world.clock.advance(1)
        yield broker


async def test_a_file_that_changed_while_no_broker_ran(world: World) -> None:
    world.write()
    y = X | {"id": "y", "scopes": ["y:a", "y:b"]}
    z = y | {"id": "z"}
    async with restarted(world, X, y, z) as broker:
        token = await minted(broker)
    narrower = y | {"scopes": ["y:a"]}
    async with restarted(world, narrower, z) as broker:
        assert await told(broker) == [("x", GONE), ("y", NARROWED)]
        assert not await is_active(broker, token)
        await create(broker, id="x", scopes=SCOPES)
        broker.world.clock.advance(1)
        assert not await is_active(broker, token)
    async with restarted(world, narrower, z) as broker:
        assert len(await told(broker)) == 3, "each is told once"
        assert not await is_active(broker, token)


async def test_a_database_that_fails_is_tried_again(broker: Served) -> None:
    database = broker.broker.base.database

    async def rename(before: str, after: str) -> None:
        async with database.write() as connection:
            await connection.execute(text(f"ALTER TABLE {before} RENAME TO {after}"))

    y = X | {"id": "y", "scopes": ["y:a"]}
    await put(broker, X, y)
    await rename("file_grants", "away")
    await put(broker, y | {"ttl": "1s"})
    await put(broker, X)  # x is back, and y is gone, before anybody was told
    assert await told(broker) == []
    token = await minted(broker)
    await rename("away", "file_grants")

    async def all_told() -> bool:
        return {value for value, _ in await told(broker)} == {"x", "y"}

    await until(all_told, "both were told of")
    assert await is_active(broker, token), "it is from after x was back"
    reasons = await told(broker)
    broker.world.clock.advance(1)
    await broker.broker.base.policies.reload(force=True)
    assert await told(broker) == reasons, "once"
