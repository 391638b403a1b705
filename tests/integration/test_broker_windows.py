"""Deployment windows: who opens and closes them, and that nothing is given outside of them."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.integration.broker_support import (
    BOT,
    CI,
    IDP,
    JOB,
    JOB_CLAIMS,
    Clock,
    Issuer,
    Served,
    World,
    claims_of,
    serving,
)
from tests.integration.test_broker_grants_api import asked, code, is_active, rfc3339
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from valetkey.contracts import es256


def new_world(tmp_path: Path) -> World:
    # Whole seconds: a time as text is then the very time.
    return World(tmp_path, free_url(), Clock(float(int(time.time()))))


@pytest.fixture(params=["sqlite", "postgres"])
def world(tmp_path: Path, request: pytest.FixtureRequest) -> World:
    world = new_world(tmp_path)
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        world.overrides["database"] = server.database()
    return world


@pytest_asyncio.fixture
async def broker(world: World) -> AsyncIterator[Served]:
    async with serving(world) as served:
        yield served


def deployment(name: str = "deploy", **changes: Any) -> dict[str, Any]:
    return {
        "id": name,
        "workload": BOT,
        "issuer": IDP,
        "target": "tickets",
        "scopes": ["tickets:delete"],
        "reason": "migrations of the schema",
        "use": "deployment",
        "window": {"opened_by": [{"issuer": CI, "claims": JOB_CLAIMS}], "longest": "30m"},
        **changes,
    }


async def create(broker: Served, **changes: Any) -> None:
    status, body, _ = await broker.manage("POST", "/v1/grants", deployment(**changes))
    assert status == 201, body


async def announce(
    broker: Served, token: str = "", *, grant: str = "deploy", **more: Any
) -> tuple[int, dict[str, Any]]:
    token = token or broker.world.job()
    status, body, _ = await broker.manage(
        "POST", "/v1/windows", {"grant": grant, **more}, token=token
    )
    return status, body


async def opened(broker: Served, token: str = "", **more: Any) -> dict[str, Any]:
    status, body = await announce(broker, token, **more)
    assert status == 201, body
    return body


async def close(broker: Served, window_id: str, token: str = "") -> tuple[int, dict[str, Any]]:
    path = f"/v1/windows/{window_id}/close"
    status, body, _ = await broker.manage("POST", path, token=token or broker.world.job())
    return status, body


async def listed(broker: Served, query: str = "") -> list[str]:
    status, body, _ = await broker.manage("GET", f"/v1/windows?{query}")
    assert status == 200, body
    return [item["id"] for item in body["items"]]


async def test_it_opens_gives_and_closes(broker: Served) -> None:
    await create(broker)
    assert await code(broker) == "grant.outside_window"
    window = await opened(broker)
    assert (window["state"], window["opened_by"]) == ("open", JOB)
    issued = await asked(broker)
    assert issued["grants"] == ["deploy", window["id"]]
    assert claims_of(issued["access_token"])["grants"] == ["deploy", window["id"]]
    assert await is_active(broker, issued["access_token"])
    status, closed = await close(broker, window["id"])
    assert (status, closed["state"], closed["closed_reason"]) == (
        200,
        "closed",
        "the deployment ended",
    )
    assert await code(broker) == "grant.outside_window"
    assert not await is_active(broker, issued["access_token"])
    assert (await close(broker, window["id"]))[0] == 200  # again: nothing changes
    _, actions, _ = await broker.manage("GET", "/v1/admin/actions")
    told = [(each["action"], each["actor"], each["actor_issuer"]) for each in actions["items"]]
    assert told[:2] == [("window.close", JOB, CI), ("window.open", JOB, CI)]
    assert len(told) == 3
    (published,) = await broker.broker.base.signals.newest(10)
    assert (published.event.kind, published.event.value) == ("grant", window["id"])  # type: ignore[union-attr]


async def test_it_closes_by_itself(world: World, broker: Served) -> None:
    await create(broker)
    window = await opened(broker, duration="10s")
    begun = world.clock()
    assert window["deadline"] == f"{rfc3339(begun + 10)[:19]}.000Z"
    for after, expected in ((0, 10), (8.5, 1), (9, 1)):
        world.clock.now = begun + after
        issued = await asked(broker)
        assert issued["expires_in"] == expected
        assert claims_of(issued["access_token"])["exp"] <= begun + 10
    for after in (9.5, 10, 11):
        world.clock.now = begun + after
        assert await code(broker) == "grant.outside_window", after
    assert await listed(broker, "state=open") == []
    assert await listed(broker, "state=closed") == [window["id"]]
    await broker.broker.sweep()
    await broker.broker.sweep()
    _, body, _ = await broker.manage("GET", f"/v1/windows/{window['id']}")
    assert (body["closed_by"], body["closed_at"]) == ("system:deadline", window["deadline"])
    _, actions, _ = await broker.manage("GET", "/v1/admin/actions")
    closes = [each for each in actions["items"] if each["action"] == "window.close"]
    assert [(each["actor"], each["reason"]) for each in closes] == [
        ("system:deadline", "its deadline passed")
    ]


async def test_what_closed_long_ago_is_forgotten(world: World, broker: Served) -> None:
    await create(broker)
    closed, forgotten = await opened(broker), await opened(broker)
    await close(broker, closed["id"])
    world.clock.advance(89 * 86_400)
    await broker.broker.sweep()  # the one that nobody closed is put on record as closed now
    assert sorted(await listed(broker)) == sorted([closed["id"], forgotten["id"]])
    world.clock.advance(2 * 86_400)
    await broker.broker.sweep()
    assert await listed(broker) == [forgotten["id"]]
    world.clock.advance(90 * 86_400)
    await broker.broker.sweep()
    assert await listed(broker) == []


async def test_an_operator_closes_it(world: World, broker: Served) -> None:
    await create(broker)
    window = await opened(broker)
    path = f"/v1/windows/{window['id']}/revoke"
    viewer = world.admin(role="viewer")
    status, _, _ = await broker.manage("POST", path, {"reason": "x"}, token=viewer)
    assert status == 403
    status, body, _ = await broker.manage("POST", path, {"reason": "stuck"})
    assert (status, body["closed_by"], body["closed_reason"]) == (200, "olga", "stuck")
    assert await code(broker) == "grant.outside_window"
    # The job's own close changes nothing any more.
    assert (await close(broker, window["id"]))[1]["closed_by"] == "olga"


async def test_a_revoked_grant_closes_its_windows(broker: Served) -> None:
    await create(broker)
    window = await opened(broker)
    token = (await asked(broker))["access_token"]
    path = "/v1/grants/deploy/revoke"
    assert (await broker.manage("POST", path, {"reason": "no more"}))[0] == 200
    _, body, _ = await broker.manage("GET", f"/v1/windows/{window['id']}")
    assert (body["state"], body["closed_reason"]) == ("closed", "the grant was revoked")
    assert not await is_active(broker, token)
    assert await code(broker) == "grant.ended"
    assert (await announce(broker))[1]["code"] == "grant.ended"


async def test_the_same_token_opens_one_window(broker: Served) -> None:
    await create(broker)
    await create(broker, id="deploy-2", scopes=["tickets:merge"])
    for jti in ("run-1", None):
        token = broker.world.job(jti=jti)
        first = await opened(broker, token)
        status, again = await announce(broker, token)
        assert (status, again["id"]) == (200, first["id"])
        # The job has one token for all it deploys to: of each grant it opens one window.
        other = await opened(broker, token, grant="deploy-2")
        assert other["id"] != first["id"]
        assert (await close(broker, first["id"], token))[0] == 200
        status, body = await announce(broker, token)
        assert (status, body["code"]) == (409, "window.ended"), jti


async def test_a_rewritten_signature_makes_no_second_token(broker: Served) -> None:
    await create(broker)
    token = broker.world.job(jti=None)
    first = await opened(broker, token)
    status, again = await announce(broker, es256.twin(token))
    assert (status, again["id"]) == (200, first["id"])


async def test_two_runs_have_a_window_each(broker: Served) -> None:
    await create(broker)
    first, second = await opened(broker), await opened(broker, duration="5m")
    assert sorted(await listed(broker, "state=open&grant=deploy")) == sorted(
        [first["id"], second["id"]]
    )
    assert (await asked(broker))["grants"] == ["deploy", first["id"]]  # the longer one
    await close(broker, first["id"])
    assert (await asked(broker))["grants"] == ["deploy", second["id"]]


async def test_who_may_not_open(world: World, broker: Served) -> None:
    await create(broker)
    await create(broker, id="by-subject", window={
        "opened_by": [{"issuer": CI, "subject": "someone"}], "longest": "30m",
    })  # fmt: skip
    elsewhere = JOB_CLAIMS | {"ref": "refs/heads/x"}
    for name, grant, token in (
        ("another ref", "deploy", world.job(**elsewhere)),
        ("no environment", "deploy", world.job(environment=None)),
        ("a list is no text", "deploy", world.job(environment=["production"])),
        ("another subject", "by-subject", world.job()),
        ("a standing grant", "bot-tickets", world.job()),
        ("no such grant", "none", world.job()),
    ):
        status, body = await announce(broker, token, grant=grant)
        assert (status, body["code"]) == (403, "window.denied"), name
        assert "reason" not in body, name
    assert await listed(broker) == []


async def test_tokens_that_are_no_deployment_s(world: World, broker: Served) -> None:
    await create(broker)
    stranger = Issuer(CI)
    for name, token in (
        ("an administrator's", world.admin(role="admin")),
        ("a workload's", world.workload()),
        ("a user's", world.user()),
        ("another audience", world.job(aud="https://elsewhere")),
        ("expired", world.job(ttl=-600)),
        ("another key", stranger.token(JOB, world.url, now=world.clock(), **JOB_CLAIMS)),
        ("none", "x"),
    ):
        status, body = await announce(broker, token)
        assert (status, body["code"]) == (401, "service.unauthenticated"), name
        status, body = await close(broker, "win:0", token)
        assert (status, body["code"]) == (401, "service.unauthenticated"), name
    # And a job administers nothing, and is no workload.
    status, _, _ = await broker.manage("GET", "/v1/windows", token=world.job())
    assert status == 401
    status, body, _ = await broker.post(world.form(world.job()))
    assert body["code"] == "actor.invalid"


@pytest.mark.parametrize("cnf", [{"jkt": "x"}, {"x5t#S256": "x"}, {"jwk": {}}, {}])
async def test_a_token_that_is_bound_is_no_bearer_token(
    world: World, broker: Served, cnf: dict[str, Any]
) -> None:
    await create(broker)
    status, body = await announce(broker, world.job(cnf=cnf))
    assert (status, body["code"]) == (401, "mtls.mismatch")


async def test_nobody_else_closes_it(world: World, broker: Served) -> None:
    await create(broker)
    window = await opened(broker)
    status, body = await close(broker, window["id"], world.job("repo:acme/other"))
    assert (status, body["code"]) == (403, "window.denied")
    status, body = await close(broker, "win:00")
    assert (status, body["code"]) == (403, "window.denied")
    assert await code(broker) == "issued"


async def test_what_is_asked_wrongly(world: World, broker: Served) -> None:
    await create(broker)
    await create(broker, id="later", not_before=rfc3339(world.clock() + 60))
    await create(broker, id="short", not_after=rfc3339(world.clock() + 60))
    for body, reason in (
        ({"grant": "deploy", "duration": "31m"}, "between 1s and 1800s"),
        ({"grant": "deploy", "duration": "0s"}, "between 1s and 1800s"),
        ({"grant": "deploy", "duration": 60}, "duration with a unit"),
        ({"grant": "deploy", "until": "x"}, "unknown field"),
        ({}, "missing required field `grant`"),
    ):
        status, answer, _ = await broker.manage("POST", "/v1/windows", body, token=world.job())
        assert (status, answer["code"]) == (400, "service.bad_request"), body
        assert reason in answer["reason"], body
    status, answer = await announce(broker, grant="later")
    assert (status, answer["code"]) == (403, "grant.outside_window")
    # It is never open for longer than the grant itself.
    window = await opened(broker, grant="short")
    assert window["deadline"] == f"{rfc3339(world.clock() + 60)[:19]}.000Z"
    for path in ("/v1/windows/win:0", "/v1/windows/x"):
        status, answer, _ = await broker.manage("GET", path)
        assert (status, answer["code"]) == (404, "window.unknown")


async def test_too_often(tmp_path: Path) -> None:
    world = new_world(tmp_path)
    world.overrides["limits"] = {"admin": {"rate": 1, "burst": 2}}
    async with serving(world) as broker:
        assert [(await announce(broker, grant="none"))[0] for _ in range(3)] == [403, 403, 429]


async def test_no_deployments_in_settings(tmp_path: Path) -> None:
    world = new_world(tmp_path)
    world.overrides["deployments"] = None
    async with serving(world) as broker:
        status, body = await announce(broker)
        assert (status, body["code"]) == (401, "service.unauthenticated")
        status, body, _ = await broker.manage("POST", "/v1/grants", deployment())
        assert (status, "trust for deployments" in body["reason"]) == (400, True)


async def test_windows_are_there_after_a_restart(world: World) -> None:
    async with serving(world) as broker:
        await create(broker)
        first, second = await opened(broker), await opened(broker, duration="60s")
        await close(broker, first["id"])
    async with serving(world) as broker:
        assert (await asked(broker))["grants"] == ["deploy", second["id"]]
        world.clock.advance(60)
        assert await code(broker) == "grant.outside_window"


async def test_a_grant_of_the_file_has_windows_too(tmp_path: Path) -> None:
    world = new_world(tmp_path)
    world.write()
    world.write_grants(json.loads(json.dumps([deployment("filed")])))
    async with serving(world) as broker:
        window = await opened(broker, grant="filed")
        assert (await asked(broker))["grants"] == ["filed", window["id"]]
        assert (await close(broker, window["id"]))[0] == 200
        assert await code(broker) == "grant.outside_window"
