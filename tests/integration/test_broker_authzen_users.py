"""AuthZEN subject search for users: who of the directory is permitted, and who can't be listed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.broker_support import BOT, GRANTS, IDP, TICKETS, USERS, Served, serving
from tests.integration.test_broker_authzen import AuthzenWorld, endpoint, pages, post
from tests.integration.test_broker_scim import Provisioner, directory
from tests.support.ports import free_url
from valetkey.broker.api.authzen import EVALUATION, SEARCH_SUBJECT
from valetkey.broker.core import authzen_search

HELPER = "spiffe://demo.example/ns/agents/sa/helper"
POLICIES = """
@id("workloads") permit (principal is Workload, action, resource);
@id("crew") permit (principal in Group::"crew", action, resource);
@id("no-helper") forbid (principal == User::"https://users.demo.example|dora", action, resource)
  when { context.actor.subject like "*helper" };
"""
READ: dict[str, Any] = endpoint(TICKETS + "/tickets/7", "GET", "tickets:read")
ACT = {"iss": IDP, "sub": BOT}


def made(root: Path, *, grants: tuple[Any, ...] = (), **overrides: Any) -> AuthzenWorld:
    world = AuthzenWorld(root, free_url())
    world.policies(POLICIES)
    world.overrides.update({"directory": directory(), **overrides})
    world.overrides["limits"] = {"admin": {"rate": 10_000, "burst": 10_000}}
    world.write_grants([*GRANTS, *grants])
    return world


def search(**properties: Any) -> dict[str, Any]:
    sought = {"type": "user", "id": "ignored"}
    return {"subject": {**sought, "properties": properties} if properties else sought, **READ}


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> dict[str, Any]:
    postgres = request.param == "postgres"
    return {"database": request.getfixturevalue("postgres").database()} if postgres else {}


async def people(served: Served) -> None:
    """alice, carol and dora are of the crew, carol through a group; dora's is over, bob's never was."""
    scim = Provisioner(served)
    known = {
        name: (await scim.user(name))["id"] for name in ("alice", "bob", "carol", "dora", "eve")
    }
    team = await scim.group("team", known["carol"])
    await scim.group("crew", known["alice"], known["dora"], known["eve"], team["id"])
    off = {"op": "replace", "path": "active", "value": False}
    assert (await scim.patch(f"/Users/{known['eve']}", off))[0] == 200


async def test_who_is_permitted_is_listed(tmp_path: Path, database: dict[str, Any]) -> None:
    async with serving(made(tmp_path, **database)) as served:
        await people(served)
        for limit in (1, 2, 3, 7):
            found = await pages(served, SEARCH_SUBJECT, search(act=ACT), limit)
            names = [one["id"] for one in found]
            assert sorted(names) == ["alice", "carol", "dora"], limit
        assert all(one["properties"] == {"issuer": USERS, "act": ACT} for one in found)
        # What a search says, an evaluation says of each (Authorization API 1.0, Semantics).
        for name in ("alice", "bob", "carol", "dora", "eve", "mallory"):
            who = {"type": "user", "id": name, "properties": {"issuer": USERS, "act": ACT}}
            status, body, _ = await post(served, EVALUATION, {**READ, "subject": who})
            assert (status, body["decision"]) == (200, name in names), name
        _, body, _ = await post(served, SEARCH_SUBJECT, search(act=ACT))
        assert body["page"] == {"next_token": "", "count": 3}
        assert "context" not in body


async def test_without_a_workload_it_is_each_that_a_grant_names(tmp_path: Path) -> None:
    helper = {**GRANTS[0], "id": "helper", "workload": HELPER}
    pattern = {**GRANTS[0], "id": "any", "workload": "spiffe://demo.example/ns/x/sa/*"}
    for_nobody = {**GRANTS[0], "id": "itself", "workload": BOT + "2", "on_behalf_of": "nobody"}
    async with serving(made(tmp_path, grants=(helper, pattern, for_nobody))) as served:
        await people(served)
        for limit in (1, 4, 100):
            found = await pages(served, SEARCH_SUBJECT, search(), limit)
            pairs = sorted((one["id"], one["properties"]["act"]["sub"]) for one in found)
            assert pairs == [
                ("alice", BOT), ("alice", HELPER), ("carol", BOT), ("carol", HELPER), ("dora", BOT),
            ]  # fmt: skip
        _, body, _ = await post(served, SEARCH_SUBJECT, search())
        assert body["context"]["unlisted"] == [f"{IDP} {pattern['workload']}"]
        _, body, _ = await post(served, SEARCH_SUBJECT, search(act={"iss": IDP, "sub": "nobody"}))
        assert body["results"] == []


async def test_a_page_asks_about_so_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authzen_search, "MAX_USERS_ASKED", 2)
    async with serving(made(tmp_path)) as served:
        await people(served)
        sizes, token, found = [], "", []
        while True:
            page = {"limit": 100, **({"token": token} if token else {})}
            _, body, _ = await post(served, SEARCH_SUBJECT, {**search(act=ACT), "page": page})
            sizes.append(len(body["results"]))
            found += [one["id"] for one in body["results"]]
            token = body["page"]["next_token"]
            if not token:
                break
        assert len(sizes) == 2
        assert max(sizes) <= 2
        assert sorted(found) == ["alice", "carol", "dora"]


async def test_who_is_contained_is_not_listed(tmp_path: Path) -> None:
    async with serving(made(tmp_path)) as served:
        await people(served)
        named = {"reason": "stolen", "subject": {"issuer": USERS, "subject": "alice"}}
        assert (await served.manage("POST", "/v1/incidents", named))[0] == 201
        found = await pages(served, SEARCH_SUBJECT, search(act=ACT), 10)
        assert sorted(one["id"] for one in found) == ["carol", "dora"]


@pytest.mark.parametrize(
    "overrides",
    [{"directory": directory("external_id", claim="oid")}, {"directory": None}],
    ids=["found by another claim", "no directory"],
)
async def test_users_without_a_list(tmp_path: Path, overrides: dict[str, Any]) -> None:
    async with serving(made(tmp_path, **overrides)) as served:
        if overrides["directory"] is not None:
            await Provisioner(served).user("alice", externalId="0-1")
        status, body, _ = await post(served, SEARCH_SUBJECT, search(act=ACT))
        assert (status, body["results"]) == (200, [])
        assert body["context"]["unlisted"] == [f"users of {USERS}"]
