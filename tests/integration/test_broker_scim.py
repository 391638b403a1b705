"""Users and groups provisioned over SCIM, and what that does to exchanges (RFC 7643, RFC 7644)."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.broker_support import USERS, Served, World, serving
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from tests.support.waiting import until
from valetkey.broker.store.database import StoreError
from valetkey.contracts import oauth

USER = "urn:ietf:params:scim:schemas:core:2.0:User"
GROUP = "urn:ietf:params:scim:schemas:core:2.0:Group"
ENTERPRISE = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
PATCH = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
ERROR = "urn:ietf:params:scim:api:messages:2.0:Error"


def directory(match: str = "user_name", **more: Any) -> dict[str, Any]:
    return {"scim": {"users": [{"issuer": USERS, "match": match, **more}]}}


class Provisioner:
    """A provisioning client of one broker."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.token = served.world.admin("okta", role="provisioner")

    async def call(
        self, method: str, path: str, document: Any = None, **more: Any
    ) -> tuple[int, Any, Any]:
        more.setdefault("token", self.token)
        if document is not None:
            more["data"] = json.dumps(document)
            more["headers"] = {"Content-Type": "application/scim+json", **more.get("headers", {})}
        return await self.served.manage(method, "/scim/v2" + path, **more)

    async def user(self, name: str, **more: Any) -> dict[str, Any]:
        status, body, headers = await self.call(
            "POST", "/Users", {"schemas": [USER], "userName": name, **more}
        )
        assert status == 201, body
        assert headers["Location"] == body["meta"]["location"]
        return dict(body)

    async def group(self, name: str, *members: str) -> dict[str, Any]:
        document = {
            "schemas": [GROUP],
            "displayName": name,
            "members": [{"value": member} for member in members],
        }
        status, body, _ = await self.call("POST", "/Groups", document)
        assert status == 201, body
        return dict(body)

    async def patch(self, path: str, *operations: Any, **more: Any) -> tuple[int, Any, Any]:
        return await self.call(
            "PATCH", path, {"schemas": [PATCH], "Operations": list(operations)}, **more
        )

    async def members(self, group: str) -> set[str]:
        body = (await self.call("GET", f"/Groups/{group}"))[1]
        return {member["value"] for member in body.get("members", ())}

    async def found(self, path: str, expression: str, **more: str) -> list[str]:
        status, body, _ = await self.call("GET", path, params={"filter": expression, **more})
        assert status == 200, body
        return [one.get("userName") or one["displayName"] for one in body["Resources"]]


@asynccontextmanager
async def provisioning(world: World) -> AsyncIterator[tuple[Served, Provisioner]]:
    world.overrides.setdefault("directory", directory())
    world.overrides.setdefault("limits", {"admin": {"rate": 10_000, "burst": 10_000}})
    async with serving(world) as served:
        yield served, Provisioner(served)


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[tuple[Served, Provisioner]]:
    async with provisioning(World(tmp_path, free_url())) as made:
        yield made


@pytest.fixture
def scim(both: tuple[Served, Provisioner]) -> Provisioner:
    return both[1]


async def exchanged(served: Served, user: str = "alice", **more: Any) -> str:
    """What comes of an exchange for the user: ``issued``, or the code of the refusal."""
    world = served.world
    form = world.user_form(world.workload(), world.user(user, **more))
    status, body, _ = await served.exchange(form)
    return "issued" if status == 200 else str(body["code"])


# --- what it does to exchanges -------------------------------------------------------------------


async def test_only_an_active_user_is_acted_for(both: tuple[Served, Provisioner]) -> None:
    served, scim = both
    assert await exchanged(served) == "subject.inactive"
    alice = await scim.user("alice")
    assert alice["active"] is True
    assert await exchanged(served) == "issued"
    path = f"/Users/{alice['id']}"
    deactivate = {"op": "replace", "path": "active", "value": False}
    assert (await scim.patch(path, deactivate))[0] == 200
    assert await exchanged(served) == "subject.inactive"
    assert (await scim.patch(path, {**deactivate, "value": True}))[0] == 200
    assert await exchanged(served) == "issued"
    assert (await scim.call("DELETE", path))[0] == 204
    assert await exchanged(served) == "subject.inactive"
    assert (await scim.call("GET", path))[0] == 404


async def test_the_tokens_of_who_is_deactivated_end(tmp_path: Path) -> None:
    """By ``sub``, which the directory has, and by another claim, whose subject it remembers."""
    for number, (match, claim) in enumerate((("user_name", "sub"), ("external_id", "oid"))):
        world = World(tmp_path / str(number), free_url())
        world.overrides["directory"] = directory(match, claim=claim)
        async with provisioning(world) as (served, scim):
            alice = await scim.user("alice", externalId="0-1")
            form = world.user_form(world.workload(), world.user("alice", oid="0-1"))
            token = (await served.exchange(form))[1]["access_token"]
            question = {
                "token": token,
                "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
                "client_assertion": world.workload(),
            }

            async def active() -> Any:
                answer = await served.exchange(question, path="/introspect")  # noqa: B023
                return answer[1]["active"]

            assert await active() is True
            off = {"op": "replace", "path": "active", "value": False}
            assert (await scim.patch(f"/Users/{alice['id']}", off))[0] == 200
            assert await active() is False
            await scim.patch(f"/Users/{alice['id']}", {**off, "value": True})
            assert await active() is False
            assert await exchanged(served, oid="0-1") == "issued"


async def test_a_name_in_another_case_is_somebody_else(both: tuple[Served, Provisioner]) -> None:
    served, scim = both
    await scim.user("Alice")
    assert await exchanged(served, "alice") == "subject.inactive"
    assert await exchanged(served, "Alice") == "issued"


async def test_a_workload_for_itself_needs_no_user(both: tuple[Served, Provisioner]) -> None:
    served, _ = both
    status, _, _ = await served.exchange(served.world.form(served.world.workload()))
    assert status == 200


@pytest.mark.parametrize(
    ("match", "claim", "claims", "code"),
    [
        ("external_id", "sub", {}, "issued"),
        ("external_id", "oid", {"oid": "alice"}, "issued"),
        ("external_id", "oid", {"oid": "mallory"}, "subject.inactive"),
        ("external_id", "oid", {"oid": ["alice"]}, "subject.inactive"),
        ("external_id", "oid", {}, "subject.inactive"),
        ("user_name", "email", {"email": "alice@example.com"}, "issued"),
        ("user_name", "email", {"email": "ALICE@example.com"}, "subject.inactive"),
        ("id", "sub", {}, "subject.inactive"),
    ],
)
async def test_the_token_names_the_user_exactly(
    tmp_path: Path, match: str, claim: str, claims: dict[str, Any], code: str
) -> None:
    world = World(tmp_path, free_url(), overrides={"directory": directory(match, claim=claim)})
    async with provisioning(world) as (served, scim):
        await scim.user("alice@example.com", externalId="alice")
        assert await exchanged(served, **claims) == code


async def test_roles_and_groups_reach_the_decision(both: tuple[Served, Provisioner]) -> None:
    served, scim = both
    alice = await scim.user("alice", roles=[{"value": "oncall"}])
    team = await scim.group("team", alice["id"])
    company = await scim.group("company", team["id"])
    await scim.group("elsewhere")
    known = served.broker.base.people._directory.attributes

    async def now() -> tuple[set[str], set[str]]:
        told = await known(USERS, "alice", {})
        return set(told.roles), set(told.groups)

    assert await now() == ({"oncall"}, {"team", "company"})
    remove = {"op": "remove", "path": f'members[value eq "{team["id"]}"]'}
    assert (await scim.patch(f"/Groups/{company['id']}", remove))[0] == 204
    assert await now() == ({"oncall"}, {"team"})
    assert (await scim.call("DELETE", f"/Groups/{team['id']}"))[0] == 204
    assert await now() == ({"oncall"}, set())
    drop = {"op": "remove", "path": "roles"}
    assert (await scim.patch(f"/Users/{alice['id']}", drop))[0] == 200
    assert await now() == (set(), set())


async def test_a_deactivation_at_one_replica_counts_at_the_other(
    tmp_path: Path, postgres: Postgres
) -> None:
    world = World(tmp_path, free_url(), overrides={"database": postgres.database()})
    async with provisioning(world) as (one, scim), serving(world, free_url()) as other:
        alice = await scim.user("alice")
        assert await exchanged(other) == "issued"
        off = {"op": "replace", "path": "active", "value": False}
        assert (await scim.patch(f"/Users/{alice['id']}", off))[0] == 200
        assert await exchanged(one) == "subject.inactive"

        async def known() -> bool:
            return await exchanged(other) == "subject.inactive"

        await until(known, "the other replica knows it")


# --- dialects ------------------------------------------------------------------------------------

ENTRA_USER = {
    "schemas": [USER, ENTERPRISE],
    "externalId": "0a21f0f2-8d2a-4f8e-bf98-7363c4aed4ef",
    "userName": "alice",
    "active": True,
    "emails": [{"primary": True, "type": "work", "value": "alice@example.com"}],
    "meta": {"resourceType": "User"},
    "name": {"formatted": "given family", "familyName": "family", "givenName": "given"},
    "roles": [],
    "phoneNumbers": [{"type": "work", "value": "555"}],
    ENTERPRISE: {"department": "sales"},
}


async def test_entra_id(scim: Provisioner) -> None:
    status, made, _ = await scim.call("POST", "/Users", ENTRA_USER)
    assert status == 201
    assert "phoneNumbers" not in made
    assert ENTERPRISE not in made["schemas"]
    assert await scim.found("/Users", 'externalId eq "0a21f0f2-8d2a-4f8e-bf98-7363c4aed4ef"')
    user = f"/Users/{made['id']}"
    status, body, _ = await scim.patch(
        user,
        {"op": "Replace", "path": 'emails[type eq "work"].value', "value": "a@example.com"},
        {"op": "Add", "path": 'emails[type eq "other"].value', "value": "b@example.com"},
        {"op": "Replace", "path": "name.familyName", "value": "Liddell"},
        {"op": "Add", "path": f"{ENTERPRISE}:department", "value": "law"},
        {"op": "Replace", "path": "active", "value": "False"},
    )
    assert (status, body["active"], body["name"]["familyName"]) == (200, False, "Liddell")
    assert {email["value"] for email in body["emails"]} == {"a@example.com", "b@example.com"}
    group = await scim.group("team")
    path = f"/Groups/{group['id']}"
    add = {"op": "Add", "path": "members", "value": [{"$ref": None, "value": made["id"]}]}
    assert (await scim.patch(path, add))[0] == 204
    assert await scim.members(group["id"]) == {made["id"]}
    assert await scim.found("/Groups", f'id eq "{group["id"]}" and members eq "{made["id"]}"') == [
        "team"
    ]
    assert (await scim.patch(path, {**add, "op": "Remove"}))[0] == 204
    assert await scim.members(group["id"]) == set()


async def test_okta(scim: Provisioner) -> None:
    alice = await scim.user("alice", password="Th1sIsNotForUs", locale="en-US")
    assert "password" not in alice
    status, body, _ = await scim.patch(
        f"/Users/{alice['id']}", {"op": "replace", "value": {"active": False}}
    )
    assert (status, body["active"]) == (200, False)
    group = await scim.group("team", alice["id"])
    path = f"/Groups/{group['id']}"
    rename = {"op": "replace", "value": {"id": group["id"], "displayName": "crew"}}
    assert (await scim.patch(path, rename))[0] == 204
    bob = await scim.user("bob")
    everybody = {"op": "replace", "path": "members", "value": [{"value": bob["id"]}]}
    assert (await scim.patch(path, everybody))[0] == 204
    assert await scim.members(group["id"]) == {bob["id"]}
    assert await scim.found("/Groups", 'displayName eq "CREW"') == ["crew"]


async def test_active_is_nothing_but_true_or_false(scim: Provisioner) -> None:
    alice = await scim.user("alice", active=False)
    for value in (1, "yes", "on", "1", "", [True], {"value": True}):
        status, body, _ = await scim.patch(
            f"/Users/{alice['id']}", {"op": "replace", "path": "active", "value": value}
        )
        assert (status, body["scimType"]) == (400, "invalidValue"), value
        document = {"schemas": [USER], "userName": "bob", "active": value}
        assert (await scim.call("POST", "/Users", document))[0] == 400, value


async def test_put_without_active_changes_nobodys_state(scim: Provisioner) -> None:
    alice = await scim.user("alice", active=False, displayName="Alice")
    document = {"schemas": [USER], "userName": "alice"}
    status, body, _ = await scim.call("PUT", f"/Users/{alice['id']}", document)
    assert (status, body["active"], "displayName" in body) == (200, False, False)


async def test_active_that_is_removed_is_not_active(scim: Provisioner) -> None:
    alice = await scim.user("alice")
    remove = {"op": "remove", "path": "active"}
    assert (await scim.patch(f"/Users/{alice['id']}", remove))[1]["active"] is False


# --- searching -----------------------------------------------------------------------------------


FILTERS = [
    ('userName eq "ALICE"', ["alice"]),
    ('userName ne "alice"', ["bob", "carol"]),
    ('userName co "o"', ["bob", "carol"]),
    ('userName sw "c"', ["carol"]),
    ('userName ew "b"', ["bob"]),
    ("emails pr", ["alice"]),
    ("not (emails pr)", ["bob", "carol"]),
    ('userName gt "alice"', ["bob", "carol"]),
    ('userName ge "carol" or active eq false', ["bob", "carol"]),
    ('userName lt "bob"', ["alice"]),
    ('userName le "bob" and active eq true', ["alice"]),
    ('emails[type eq "work" and value co "@example.com"]', ["alice"]),
    ('emails.type eq "home"', []),
    ('roles.value eq "oncall"', ["carol"]),
    ('groups.display eq "team"', ["carol"]),
    ('meta.created gt "2011-05-13T04:42:34Z"', ["alice", "bob", "carol"]),
    ('externalId eq "c-1"', ["carol"]),
    ('externalId eq "C-1"', []),
    (f'{USER}:userName eq "bob"', ["bob"]),
    ('userName eq "x\\" or userName pr or userName eq \\"x"', []),
]


async def test_filters(scim: Provisioner) -> None:
    await scim.user("alice", emails=[{"value": "a@example.com", "type": "work"}])
    await scim.user("bob", active=False)
    carol = await scim.user("carol", roles=[{"value": "oncall"}], externalId="c-1")
    await scim.group("team", carol["id"])
    search = {"schemas": ["urn:ietf:params:scim:api:messages:2.0:SearchRequest"]}
    for expression, names in FILTERS:
        assert sorted(await scim.found("/Users", expression)) == names, expression
        _, body, _ = await scim.call("POST", "/Users/.search", {**search, "filter": expression})
        assert sorted(user["userName"] for user in body["Resources"]) == names, expression


async def test_filters_that_are_none(scim: Provisioner) -> None:
    for expression in (
        "userName",
        "userName eq",
        "userName eq 'a'",
        "shoeSize eq 5",
        "active gt true",
        "(active eq true",
        'userName eq "a" xor active eq true',
        "not active eq true",
        "(" * 500 + "active eq true" + ")" * 400,
    ):
        status, body, _ = await scim.call("GET", "/Users", params={"filter": expression})
        assert (status, body["schemas"]) == (400, [ERROR]), expression
        assert (body["status"], body["scimType"]) == ("400", "invalidFilter"), expression


async def test_pages(scim: Provisioner) -> None:
    for number in range(5):
        await scim.user(f"user{number}")
        scim.served.world.clock.advance(1)

    async def page(**query: str) -> tuple[int, int, list[str]]:
        body = (await scim.call("GET", "/Users", params=query))[1]
        names = [user["userName"] for user in body["Resources"]]
        assert body["itemsPerPage"] == len(names)
        return body["totalResults"], body["startIndex"], names

    assert await page(count="2") == (5, 1, ["user0", "user1"])
    assert await page(startIndex="4", count="9") == (5, 4, ["user3", "user4"])
    assert await page(startIndex="0", count="-1") == (5, 1, [])
    assert await page(filter="active eq true", startIndex="2", count="1") == (5, 2, ["user1"])
    assert (await scim.call("GET", "/Users", params={"count": "x"}))[0] == 400
    assert (await scim.call("GET", "/Users", params={"sortBy": "userName"}))[0] == 501


async def test_attributes(scim: Provisioner) -> None:
    alice = await scim.user("alice", displayName="Alice")

    async def shown(**query: str) -> set[str]:
        return set((await scim.call("GET", f"/Users/{alice['id']}", params=query))[1])

    always = {"schemas", "id"}
    assert await shown(attributes="userName") == always | {"userName"}
    assert await shown(excludedAttributes="userName,meta") == always | {"displayName", "active"}
    status, body, _ = await scim.call(
        "GET", "/Users", params={"attributes": "userName", "excludedAttributes": "name"}
    )
    assert (status, body["status"]) == (400, "400")


# --- versions, uniqueness, nesting ---------------------------------------------------------------


async def test_versions(scim: Provisioner) -> None:
    alice = await scim.user("alice")
    path, version = f"/Users/{alice['id']}", alice["meta"]["version"]
    assert (await scim.call("GET", path, headers={"If-None-Match": version}))[0] == 304
    off = {"op": "replace", "path": "active", "value": False}
    assert (await scim.patch(path, off, headers={"If-Match": '"other"'}))[0] == 412
    status, body, headers = await scim.patch(path, off, headers={"If-Match": version})
    assert status == 200
    assert headers["ETag"] == body["meta"]["version"] != version
    same = await scim.patch(path, off)
    assert same[1]["meta"] == body["meta"]
    assert (await scim.call("DELETE", path, headers={"If-Match": version}))[0] == 412
    document = {"schemas": [USER], "userName": "alice"}
    put = await scim.call("PUT", path, document, headers={"If-Match": version})
    assert (put[0], put[1]["status"]) == (412, "412")
    assert (await scim.call("DELETE", path, headers={"If-Match": "*"}))[0] == 204


async def test_changes_at_the_same_time_all_count(scim: Provisioner) -> None:
    users = [await scim.user(f"user{number}") for number in range(4)]
    group = await scim.group("team")
    changes = [
        scim.patch(
            f"/Groups/{group['id']}",
            {"op": "add", "path": "members", "value": [{"value": user["id"]}]},
        )
        for user in users
    ]
    answers = await asyncio.gather(*changes)
    assert {status for status, _, _ in answers} == {204}
    assert await scim.members(group["id"]) == {user["id"] for user in users}


async def test_what_is_unique(scim: Provisioner) -> None:
    await scim.user("alice", externalId="1")
    bob = await scim.user("bob")
    for document in ({"userName": "ALICE"}, {"userName": "eve", "externalId": "1"}):
        status, body, _ = await scim.call("POST", "/Users", {"schemas": [USER], **document})
        assert (status, body["scimType"]) == (409, "uniqueness")
    rename = {"op": "replace", "path": "userName", "value": "alice"}
    assert (await scim.patch(f"/Users/{bob['id']}", rename))[0] == 409
    await scim.group("team")
    status, _, _ = await scim.call("POST", "/Groups", {"schemas": [GROUP], "displayName": "Team"})
    assert status == 409


async def test_groups_in_groups_have_no_circle_and_an_end(scim: Provisioner) -> None:
    groups = [await scim.group("g0")]
    for number in range(1, 8):
        groups.append(await scim.group(f"g{number}", groups[-1]["id"]))
    status, body, _ = await scim.call(
        "POST",
        "/Groups",
        {"schemas": [GROUP], "displayName": "g8", "members": [{"value": groups[-1]["id"]}]},
    )
    assert (status, body["scimType"]) == (400, "invalidValue")

    async def join(group: Any, member: str) -> int:
        add = {"op": "add", "path": "members", "value": [{"value": member}]}
        return (await scim.patch(f"/Groups/{group['id']}", add))[0]

    assert await join(groups[0], groups[3]["id"]) == 400
    assert await join(groups[0], groups[0]["id"]) == 400
    assert await join(groups[0], "00000000-0000-4000-8000-000000000000") == 400
    assert await scim.found("/Groups", f'members.value eq "{groups[0]["id"]}"') == ["g1"]


BAD_OPERATIONS: list[tuple[dict[str, Any], str]] = [
    ({"op": "move", "path": "active", "value": True}, "invalidValue"),
    ({"op": "remove"}, "noTarget"),
    ({"op": "replace", "path": "active("}, "invalidPath"),
    ({"op": "replace", "path": "id", "value": "2"}, "mutability"),
    ({"op": "replace", "path": "groups", "value": []}, "mutability"),
    ({"op": "remove", "path": "userName"}, "mutability"),
    ({"op": "replace", "path": "userName", "value": 7}, "invalidValue"),
    ({"op": "replace", "path": "userName", "value": "x" * 513}, "invalidValue"),
    ({"op": "replace", "path": 'emails[type eq "work"]', "value": "x"}, "noTarget"),
    ({"op": "add", "path": "emails", "value": [{"value": "a"}] * 65}, "invalidValue"),
]


async def test_a_bad_operation_changes_nothing(scim: Provisioner) -> None:
    alice = await scim.user("alice")
    path = f"/Users/{alice['id']}"
    off = {"op": "replace", "path": "active", "value": False}
    for operation, scim_type in BAD_OPERATIONS:
        status, body, _ = await scim.patch(path, off, operation)
        assert (status, body["scimType"]) == (400, scim_type), (operation, body)
        assert "errors.pydantic" not in body["detail"]
    assert (await scim.call("GET", path))[1] == alice


async def test_bad_operations_on_groups(scim: Provisioner) -> None:
    group = await scim.group("team")
    operations: list[dict[str, Any]] = [
        {"op": "add", "path": "members", "value": [{"display": "x"}]},
        {"op": "add", "path": "members", "value": [{"value": 5}]},
        {"op": "add", "path": "members", "value": "x"},
        {"op": "replace", "path": 'members[value eq "x"]', "value": {"value": "y"}},
        {"op": "remove", "path": 'members[display eq "x"]'},
        {"op": "remove", "path": "members.value"},
        {"op": "remove", "path": "displayName"},
    ]
    for operation in operations:
        status, body, _ = await scim.patch(f"/Groups/{group['id']}", operation)
        assert (status, body["schemas"]) == (400, [ERROR]), operation


# --- who may, what is on record ------------------------------------------------------------------


async def test_other_administrators_provision_nothing(scim: Provisioner) -> None:
    for role in ("viewer", "operator", "admin", "approver"):
        token = scim.served.world.admin(role=role)
        for method, path in (("GET", "/Users"), ("GET", "/Schemas"), ("DELETE", "/Users/1")):
            status, body, headers = await scim.call(method, path, token=token)
            assert (status, body["schemas"], body["status"]) == (403, [ERROR], "403"), role
            assert headers["Content-Type"] == "application/scim+json"


async def test_a_provisioner_administers_nothing_else(scim: Provisioner) -> None:
    assert (await scim.served.manage("GET", "/v1/admin/actions", token=scim.token))[0] == 403


async def test_without_a_token(scim: Provisioner) -> None:
    status, body, headers = await scim.call("GET", "/Users", token="x")
    assert (status, body["status"], headers["WWW-Authenticate"]) == (401, "401", "Bearer")


async def test_every_change_is_an_action(scim: Provisioner) -> None:
    alice = await scim.user("alice")
    off = {"op": "replace", "path": "active", "value": False}
    await scim.patch(f"/Users/{alice['id']}", off)
    await scim.group("team", alice["id"])
    await scim.call("DELETE", f"/Users/{alice['id']}")
    served = scim.served
    _, body, _ = await served.manage("GET", "/v1/admin/actions")
    told = [
        (item["action"], item["actor"], item["details"].get("changed")) for item in body["items"]
    ]
    assert told == [
        ("user.delete", "okta", None),
        ("group.create", "okta", None),
        ("user.update", "okta", ["active"]),
        ("user.create", "okta", None),
    ]
    verified = (await served.manage("GET", "/v1/admin/actions/verify"))[1]
    assert verified["broken_at"] is None


async def test_bodies_that_are_none(scim: Provisioner) -> None:
    async def sent(body: Any, kind: str = "application/scim+json") -> tuple[int, Any]:
        status, answer, _ = await scim.call(
            "POST", "/Users", data=body, headers={"Content-Type": kind}
        )
        return status, answer.get("scimType")

    good = json.dumps({"schemas": [USER], "userName": "alice"}).encode()
    assert await sent(good, "text/plain") == (415, None)
    assert await sent(b"{") == (400, "invalidSyntax")
    assert await sent(b"[]") == (400, "invalidSyntax")
    assert await sent(b'{"userName": "alice"}') == (400, "invalidSyntax")
    assert await sent(io.BytesIO(b" " * (2 * 1024 * 1024 + 1))) == (413, None)
    assert await sent(good.replace(USER.encode(), GROUP.encode())) == (400, "invalidSyntax")
    assert await sent(good, "application/json") == (201, None)


async def test_what_is_not_served_says_so_in_its_form(scim: Provisioner) -> None:
    for path, expected in (("/Me", 501), ("/Bulk", 501), ("/.search", 501), ("/Devices", 404)):
        status, body, headers = await scim.call("POST", path, {"schemas": [USER]})
        assert (status, body["schemas"], body["status"]) == (expected, [ERROR], str(expected))
        assert headers["Content-Type"] == "application/scim+json"
    for path in ("/ServiceProviderConfig", "/ResourceTypes/User", f"/Schemas/{GROUP}"):
        assert (await scim.call("GET", path))[0] == 200
    status, body, _ = await scim.call("GET", "/Schemas", params={"filter": "name pr"})
    assert (status, body["status"]) == (403, "403")
    listed = (await scim.call("GET", "/Schemas"))[1]
    names = {
        attribute["name"] for schema in listed["Resources"] for attribute in schema["attributes"]
    }
    assert "password" not in names


async def test_without_a_directory_there_is_no_endpoint(tmp_path: Path) -> None:
    async with serving(World(tmp_path, free_url())) as served:
        scim = Provisioner(served)
        assert (await scim.call("GET", "/Users"))[0] == 404
        assert await exchanged(served) == "issued"


async def test_when_the_database_fails_nobody_is_acted_for(
    both: tuple[Served, Provisioner], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is remembered counts only while the replica knows that it is current."""
    served, scim = both
    await scim.user("alice")
    assert await exchanged(served) == "issued"
    source = served.broker.base.directories.all[0]
    monkeypatch.setattr(source, "_monotonic", lambda: float("inf"))
    monkeypatch.setattr(served.broker.base.database, "read", _broken)
    assert await exchanged(served) == "service.unavailable"


def _broken() -> Any:
    raise StoreError(OSError("no database"))
