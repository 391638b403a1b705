"""A user who is renamed, or changes while an exchange is under way: what was issued before, and ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from tests.integration.broker_support import TICKETS, USERS, Served, World, claims_of, serving
from tests.integration.test_broker_scim import Provisioner, directory, exchanged, provisioning
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from tests.support.waiting import until
from valetkey.broker.settings import MAX_TTL
from valetkey.broker.store import scim_subjects
from valetkey.broker.store.schema import SCIM_SUBJECTS
from valetkey.broker.store.scim_subjects import KEPT, NOTED_FOR, Seen
from valetkey.contracts import oauth

OFF = {"op": "replace", "path": "active", "value": False}
# The attribute that the claim has to be, and what the claim is: each with a new value for it.
MATCHES = [
    ("user_name", "sub", "userName", "alicia"),
    ("external_id", "sub", "externalId", "alicia"),
    ("external_id", "oid", "externalId", "0-2"),
    ("user_name", "oid", "userName", "0-2"),
]


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> dict[str, Any]:
    postgres = request.param == "postgres"
    return {"database": request.getfixturevalue("postgres").database()} if postgres else {}


@asynccontextmanager
async def with_alice(
    world: World, match: str, claim: str
) -> AsyncIterator[tuple[Served, Provisioner, str]]:
    """A broker that knows alice by the claim, with ``oid`` 0-1; gives the path of the user too."""
    world.overrides["directory"] = directory(match, claim=claim)
    async with provisioning(world) as (served, scim):
        named = "alice" if claim == "sub" else "0-1"
        names = ("alice-login", named) if match == "external_id" else (named, "e-1")
        alice = await scim.user(names[0], externalId=names[1])
        yield served, scim, f"/Users/{alice['id']}"


async def token_of(served: Served, subject: str = "alice", oid: str = "0-1", **more: Any) -> str:
    world = served.world
    form = world.user_form(world.workload(), world.user(subject, oid=oid), **more)
    status, body, _ = await served.exchange(form)
    assert status == 200, body
    return str(body["access_token"])


async def active(served: Served, token: str) -> bool:
    question = {
        "token": token,
        "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
        "client_assertion": served.world.workload(),
    }
    return bool((await served.exchange(question, path="/introspect"))[1]["active"])


def renamed(attribute: str, name: str) -> dict[str, Any]:
    return {"op": "replace", "path": attribute, "value": name}


@pytest.mark.parametrize(("match", "claim", "attribute", "name"), MATCHES)
async def test_what_was_issued_under_the_old_name_ends(
    tmp_path: Path, match: str, claim: str, attribute: str, name: str, database: dict[str, Any]
) -> None:
    world = World(tmp_path, free_url(), overrides=database)
    async with with_alice(world, match, claim) as (served, scim, path):
        token = await token_of(served)
        # What tokens do not name the user by changes nothing for them.
        for one in ("displayName", "externalId" if attribute == "userName" else "userName"):
            assert (await scim.patch(path, renamed(one, "another")))[0] == 200
            assert await active(served, token), one
        assert (await scim.patch(path, renamed(attribute, name)))[0] == 200
        assert not await active(served, token)
        assert await exchanged(served, oid="0-1") == "subject.inactive"
        subject, oid = (name, "0-1") if claim == "sub" else ("alice", name)
        token = await token_of(served, subject, oid)
        assert await active(served, token)
        assert (await scim.patch(path, OFF))[0] == 200
        assert not await active(served, token)


@pytest.mark.parametrize("how", ["deactivated", "deleted"])
async def test_a_user_of_several_subjects_takes_all_of_them_along(
    tmp_path: Path, how: str, database: dict[str, Any]
) -> None:
    world = World(tmp_path, free_url(), overrides=database)
    async with with_alice(world, "external_id", "oid") as (served, scim, path):
        await scim.user("bob", externalId="0-9")
        tokens = [await token_of(served, f"pairwise-{number}") for number in range(3)]
        other = await token_of(served, "bob", "0-9")
        status = (
            await scim.call("DELETE", path) if how == "deleted" else await scim.patch(path, OFF)
        )[0]
        assert status in {200, 204}
        assert [await active(served, token) for token in tokens] == [False] * 3
        assert await active(served, other)


async def test_whoever_gets_the_old_name_comes_into_nothing(tmp_path: Path) -> None:
    async with with_alice(World(tmp_path, free_url()), "user_name", "sub") as (served, scim, path):
        token = await token_of(served)
        bob = await scim.user("bob")
        await scim.patch(path, renamed("userName", "alicia"))
        await scim.patch(f"/Users/{bob['id']}", renamed("userName", "alice"))
        assert not await active(served, token)
        await scim.patch(path, OFF)
        assert await exchanged(served) == "issued", "who has the name now"


async def test_a_rename_at_one_replica_counts_at_the_other(
    tmp_path: Path, postgres: Postgres
) -> None:
    world = World(tmp_path, free_url(), overrides={"database": postgres.database()})
    async with (
        with_alice(world, "external_id", "oid") as (one, scim, path),
        serving(world, free_url()) as other,
    ):
        token = await token_of(other)
        assert (await scim.patch(path, renamed("externalId", "0-2")))[0] == 200
        assert not await active(one, token)

        async def ended() -> bool:
            return not await active(other, token)

        await until(ended, "the other replica knows")


async def test_what_our_own_tokens_carry_finds_nobody_who_was_renamed(tmp_path: Path) -> None:
    """And before that it finds the user, whose `sub` the directory does not know."""
    world = World(tmp_path, free_url())
    ours = {
        "issuer": world.url, "audience": TICKETS, "use": "user", "jwks_url": world.url + "/jwks",
    }  # fmt: skip
    world.overrides["issuers"] = [*world.document()["issuers"], ours]
    async with with_alice(world, "external_id", "oid") as (served, scim, path):

        async def chained(root: str) -> str:
            form = world.user_form(world.workload(), root, scope="tickets:list")
            status, body, _ = await served.exchange(form)
            if status == 200:
                assert claims_of(body["access_token"])["sub_iss"] == USERS
            return "issued" if status == 200 else str(body["code"])

        # Two users' tokens have one subject: each is its own, by what it was made from.
        await scim.user("bob", externalId="0-9")
        alices, bobs = await token_of(served), await token_of(served, oid="0-9")
        assert [await chained(alices), await chained(bobs)] == ["issued", "issued"]
        await scim.patch(path, renamed("externalId", "0-2"))
        assert await chained(alices) == "subject.revoked"


# --- while an exchange is under way --------------------------------------------------------------


@pytest.mark.parametrize("how", ["deactivated", "renamed"])
@pytest.mark.parametrize("claim", ["sub", "oid"])
async def test_who_goes_after_the_directory_was_asked_gets_nothing(
    tmp_path: Path, how: str, claim: str, database: dict[str, Any]
) -> None:
    world = World(tmp_path, free_url(), overrides=database)
    async with with_alice(world, "external_id", claim) as (served, scim, path):
        people = served.broker.base.people._directory
        ask = people.attributes
        told, released = asyncio.Event(), asyncio.Event()

        async def slow(issuer: str, *args: Any) -> Any:
            answer = await ask(issuer, *args)
            if issuer == USERS and not told.is_set():
                told.set()
                await released.wait()
            return answer

        people.attributes = slow  # type: ignore[method-assign]
        asking = asyncio.ensure_future(exchanged(served, oid="0-1"))
        await told.wait()
        change = OFF if how == "deactivated" else renamed("externalId", "another")
        assert (await scim.patch(path, change))[0] == 200
        released.set()
        assert await asking == "subject.inactive"


async def test_who_goes_before_the_subject_is_noted_gets_nothing(
    tmp_path: Path, database: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, free_url(), overrides=database)
    async with with_alice(world, "external_id", "oid") as (served, scim, path):
        subjects = served.broker.base.directories.scim.subjects  # type: ignore[union-attr]
        note, asked = subjects.note, 0

        async def late(*args: Any) -> bool:
            nonlocal asked
            asked += 1
            if asked == 1:
                assert (await scim.patch(path, OFF))[0] == 200
            return await note(*args)

        monkeypatch.setattr(subjects, "note", late)
        assert await exchanged(served, oid="0-1") == "subject.inactive"
        assert asked == 1
        # What is no end, but a change, has it looked up anew.
        assert (await scim.patch(path, {**OFF, "value": True}))[0] == 200

        async def changed(*args: Any) -> bool:
            nonlocal asked
            asked += 1
            if asked == 2:
                assert (await scim.patch(path, renamed("displayName", "Alice")))[0] == 200
            return await note(*args)

        monkeypatch.setattr(subjects, "note", changed)
        assert await exchanged(served, oid="0-1") == "issued"
        assert asked == 3


# --- how long, and how many ----------------------------------------------------------------------


def test_a_note_outlasts_every_token_that_rests_on_it() -> None:
    # It may be relied on for as long as it is young, and be remembered for as long again.
    assert KEPT > 2 * NOTED_FOR + MAX_TTL


async def noted(served: Served) -> int:
    async with served.broker.base.database.read() as connection:
        query = select(func.count()).select_from(SCIM_SUBJECTS)
        return int((await connection.execute(query)).scalar_one())


async def test_notes_end_by_themselves_and_not_while_they_are_in_use(
    tmp_path: Path, database: dict[str, Any]
) -> None:
    world = World(tmp_path, free_url(), overrides=database)
    async with with_alice(world, "external_id", "oid") as (served, scim, path):
        for _ in range(8):
            await token_of(served)
            assert await noted(served) == 1
            world.clock.advance(NOTED_FOR - 1)
            await served.broker.sweep()
        token = await token_of(served)
        assert await active(served, token)
        scim.token = world.admin("okta", role="provisioner")
        assert (await scim.patch(path, OFF))[0] == 200
        assert not await active(served, token)
        assert await noted(served) == 0
        assert (await scim.patch(path, {**OFF, "value": True}))[0] == 200
        await token_of(served)
        world.clock.advance(KEPT + 1)
        await served.broker.sweep()
        assert await noted(served) == 0


async def test_a_claim_of_too_many_subjects_names_nobody(
    tmp_path: Path, database: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scim_subjects, "MOST", 2)
    world = World(tmp_path, free_url(), overrides=database)
    async with with_alice(world, "external_id", "oid") as (served, scim, path):
        tokens = [await token_of(served, name) for name in ("a", "b", "a")]
        assert await exchanged(served, "c", oid="0-1") == "subject.inactive"
        assert (await scim.patch(path, OFF))[0] == 200
        assert [await active(served, token) for token in tokens] == [False] * 3


async def test_two_replicas_note_one_subject_once(tmp_path: Path, postgres: Postgres) -> None:
    world = World(tmp_path, free_url(), overrides={"database": postgres.database()})
    async with (
        with_alice(world, "external_id", "oid") as (one, _, path),
        serving(world, free_url()) as other,
    ):
        stores = [each.broker.base.directories.scim for each in (one, other)]
        seen = Seen(USERS, "alice", "0-1")
        user = path.rpartition("/")[2]
        answers = await asyncio.gather(
            *(store.subjects.note(user, 1, seen) for store in stores * 4 if store is not None)
        )
        assert answers == [True] * 8
        assert await noted(one) == 1
