"""What was ended counts for nothing, and who is contained gets nothing, until it attests anew."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import text

from tests.integration.broker_support import (
    BOT,
    IDP,
    PAYMENTS,
    SELF_SIGNED,
    TICKETS,
    USERS,
    Issuer,
    Served,
    World,
    claims_of,
    serving,
)
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from valetkey.broker.issuers import signer
from valetkey.broker.store.revocations import FOREVER, Kind, subject_value, token_value
from valetkey.contracts import es256, oauth
from valetkey.contracts.dpop import ProofKey


async def contain(broker: Served, issuer: str, subject: str) -> None:
    base = broker.broker.base
    async with base.database.write() as connection:
        await base.epochs.bump(
            connection, issuer, subject, at=base.clock(), reason="leaked", attest=True
        )
    await base.changes.catch_up()


async def end(broker: Served, kind: Kind, value: str) -> None:
    base = broker.broker.base
    async with base.database.write() as connection:
        await base.revocations.end(connection, kind, value, until=FOREVER)
    await base.changes.catch_up()


async def code_of(broker: Served, form: dict[str, Any]) -> str:
    status, body, _ = await broker.exchange(form)
    assert status in {200, 400}, body
    return "ok" if status == 200 else body["code"]


async def issue(broker: Served, form: dict[str, Any]) -> dict[str, Any]:
    status, body, _ = await broker.exchange(form)
    assert status == 200, body
    return body


async def active(broker: Served, token: str, caller: str = "") -> bool:
    """By introspection of the client that it was issued to, which itself may be contained."""
    form = {
        "token": token,
        "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
        "client_assertion": caller or broker.world.workload(),
    }
    status, body, _ = await broker.exchange(form, path="/introspect")
    assert status == 200, body
    return bool(body["active"])


async def test_contained_until_token_and_key_are_new(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        before = world.workload()
        token = (await issue(broker, world.form(before)))["access_token"]
        assert await active(broker, token)
        world.clock.advance(10)
        await contain(broker, IDP, BOT)
        assert not await active(broker, token)
        assert await code_of(broker, world.form(before)) == "subject.contained"
        world.clock.advance(10)
        later = world.workload()
        assert await code_of(broker, world.form(later)) == "subject.contained", "the old key"
        old_key, world.proof_key = world.proof_key, ProofKey()
        assert await code_of(broker, world.form(before)) == "subject.contained", "the old token"
        issued = await issue(broker, world.form(later))
        assert issued["epoch"] == issued["client_epoch"] == 1
        assert claims_of(issued["access_token"])["epoch"] == 1
        assert await active(broker, issued["access_token"])
        assert not await active(broker, token)
        # Whoever still has what leaked has nothing, now as then.
        assert await code_of(broker, world.form(before)) == "subject.contained"
        world.proof_key = old_key
        assert await code_of(broker, world.form(later)) == "subject.contained"


async def noted(broker: Served) -> int:
    async with broker.broker.base.database.read() as connection:
        return int((await connection.execute(text("SELECT count(*) FROM seen_keys"))).scalar_one())


async def test_keys_of_who_is_refused_are_not_kept(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        refused = world.form(world.workload(), scope="tickets:destroy")
        for _ in range(5):
            world.proof_key = ProofKey()
            assert await code_of(broker, refused) == "grant.scope"
        assert await noted(broker) == 0
        first = world.clock()
        await issue(broker, world.form(world.workload()))
        assert await noted(broker) == 1
        # It was shown before: an incident meanwhile would have been after it.
        world.clock.advance(10)
        client = SimpleNamespace(issuer=IDP, subject=BOT, key=world.proof_key.thumbprint)
        keys = broker.broker.base.standings._keys
        assert await keys.since(client.issuer, client.subject, client.key) == first


async def test_a_key_that_another_replica_saw_earlier_is_decided_on_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        await issue(broker, world.form(world.workload()))
        keys = broker.broker.base.standings._keys
        keys._noted.clear()
        told: list[float] = []
        since = keys.since

        async def younger(issuer: str, subject: str, key: str) -> float:
            told.append(await since(issuer, subject, key) + (0 if told else 100))
            return told[-1]

        monkeypatch.setattr(keys, "since", younger)
        await issue(broker, world.form(world.workload()))
        assert told == [world.clock() + 100, world.clock()]


async def test_nobody_fills_the_database_with_new_keys(tmp_path: Path) -> None:
    world = World(tmp_path, free_url(), overrides={"limits": {"new_keys": 3}})
    async with serving(world) as broker:
        form = world.form(world.workload())
        first = world.proof_key
        for _ in range(3):
            await issue(broker, form)
            world.proof_key = ProofKey()
        for _ in range(3):
            status, body, headers = await broker.exchange(form)
            assert (status, body["code"]) == (429, "actor.too_many_keys")
            assert (body["error"], headers["Retry-After"]) == ("temporarily_unavailable", "60")
        assert await noted(broker) == 3
        late, world.proof_key = world.proof_key, first
        await issue(broker, form)
        world.proof_key = late
        world.clock.advance(1200)
        await issue(broker, world.form(world.workload()))


async def test_a_key_that_was_refused_before_an_incident_is_old_where_it_was_shown(
    tmp_path: Path, postgres: Postgres
) -> None:
    """Also where it was refused at this one, before it was noted at that one."""
    world = World(tmp_path, free_url(), overrides={"database": postgres.database()})
    async with serving(world) as one, serving(world, free_url()) as other:
        refused = world.form(world.workload(), scope="tickets:destroy")
        assert await code_of(one, refused) == "grant.scope"
        world.clock.advance(10)
        await contain(one, IDP, BOT)
        await other.broker.base.changes.catch_up()
        world.clock.advance(10)
        later = world.form(world.workload())
        # To the other one the key is new, to this one it is not; then both know what this one knew.
        assert await code_of(one, later) == "subject.contained"
        world.proof_key, old = ProofKey(), world.proof_key
        await issue(other, later)
        await issue(one, later)
        world.proof_key = old
        assert await code_of(one, later) == "subject.contained"


async def test_who_is_contained_stays_so_over_a_restart(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        await issue(broker, world.form(world.workload()))
        await contain(broker, IDP, BOT)
    world.clock.advance(10)
    async with serving(world) as broker:
        assert await code_of(broker, world.form(world.workload())) == "subject.contained"
        world.proof_key = ProofKey()
        assert await code_of(broker, world.form(world.workload())) == "ok"


async def test_a_user_comes_back_by_logging_in_again(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        own, alice = world.workload(), world.user("alice")
        issued = await issue(broker, world.user_form(own, alice))
        assert claims_of(issued["access_token"])["sub_iss"] == USERS
        world.clock.advance(10)
        await contain(broker, USERS, "alice")
        assert not await active(broker, issued["access_token"])
        assert await code_of(broker, world.user_form(own, alice)) == "subject.contained"
        assert await code_of(broker, world.user_form(own, world.user("bob"))) == "ok"
        assert await code_of(broker, world.form(own)) == "ok"
        world.clock.advance(10)
        again = await issue(broker, world.user_form(own, world.user("alice")))
        assert (again["epoch"], again.get("client_epoch", 0)) == (1, 0)
        assert await active(broker, again["access_token"])


async def test_for_a_user_the_workload_has_to_attest_too(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        own, alice = world.workload(), world.user("alice")
        issued = await issue(broker, world.user_form(own, alice))
        world.clock.advance(10)
        await contain(broker, IDP, BOT)
        assert not await active(broker, issued["access_token"])
        assert await code_of(broker, world.user_form(own, alice)) == "subject.contained"
        world.clock.advance(10)
        world.proof_key = ProofKey()
        again = await issue(broker, world.user_form(world.workload(), alice))
        assert (again.get("epoch", 0), again["client_epoch"]) == (0, 1)
        assert claims_of(again["access_token"])["client_epoch"] == 1


async def test_a_self_signed_client_needs_another_signing_key(tmp_path: Path) -> None:
    """With the key that leaked, anybody makes assertions of any date."""
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        assert (await broker.post(world.form(world.assertion())))[0] == 200
        await contain(broker, SELF_SIGNED, SELF_SIGNED)
        world.clock.advance(10)
        status, body, _ = await broker.post(world.form(world.assertion()))
        assert (status, body["code"]) == (400, "subject.contained")
    world.own = Issuer(SELF_SIGNED, "k2")
    async with serving(world) as broker:
        assert (await broker.post(world.form(world.assertion())))[0] == 200


def chaining(tmp_path: Path) -> World:
    """Whose broker takes its own tokens as those of users."""
    world = World(tmp_path, free_url())
    ours = {
        "issuer": world.url,
        "audience": TICKETS,
        "use": "user",
        "jwks_url": world.url + "/jwks",
    }
    world.overrides = {"issuers": [*world.document()["issuers"], ours]}
    return world


async def test_what_descends_from_a_contained_users_token(tmp_path: Path) -> None:
    """A token of our own as subject token is its user's, whoever the user's issuer is."""
    world = chaining(tmp_path)
    async with serving(world) as broker:
        own = world.workload()
        root = await issue(broker, world.user_form(own, world.user("alice")))
        chained = world.user_form(own, root["access_token"], scope="tickets:list")
        child = await issue(broker, chained)
        assert claims_of(child["access_token"])["sub_iss"] == USERS
        await contain(broker, USERS, "alice")
        assert await code_of(broker, chained) == "subject.revoked"
        assert not await active(broker, child["access_token"])


@pytest.mark.parametrize("kind", ["hash", "key", "bound", "grant", "target", "subject"])
async def test_what_was_ended(tmp_path: Path, kind: str) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        form = world.form(world.workload(), audience=PAYMENTS, scope="payments:read")
        token = (await issue(broker, form))["access_token"]
        other = (await issue(broker, world.form(world.workload())))["access_token"]
        kid = broker.broker.base.ring.signer().times.kid
        what: dict[str, tuple[Kind, str, str, bool]] = {
            "hash": ("hash", token_value(token), "ok", True),
            "key": ("key", kid, "ok", False),
            "bound": ("key", world.proof_key.thumbprint, "actor.key_revoked", True),
            "grant": ("grant", "bot-payments", "grant.suspended", True),
            "target": ("target", PAYMENTS, "grant.suspended", True),
            "subject": ("subject", subject_value(IDP, BOT), "subject.revoked", False),
        }
        named, value, code, spares_other = what[kind]
        await end(broker, named, value)
        assert not await active(broker, token)
        assert await active(broker, other) is spares_other
        assert await code_of(broker, form) == code


@pytest.mark.parametrize("minted", ["as they are now", "by an older broker"])
async def test_a_rewritten_signature_brings_back_no_token_that_was_ended_by_its_hash(
    tmp_path: Path, minted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two signatures that hold, older brokers gave out either."""
    if minted != "as they are now":
        sign = es256.sign
        monkeypatch.setattr(signer, "es256", SimpleNamespace(sign=lambda *a: es256.twin(sign(*a))))
    world = chaining(tmp_path)
    async with serving(world) as broker:
        own = world.workload()
        root = (await issue(broker, world.user_form(own, world.user("alice"))))["access_token"]
        other = es256.twin(root)
        assert [await active(broker, token) for token in (root, other)] == [
            minted == "as they are now",
            minted != "as they are now",
        ]
        await end(broker, "hash", token_value(root))
        for token in (root, other):
            assert not await active(broker, token)
            chained = world.user_form(own, token, scope="tickets:list")
            assert await code_of(broker, chained) == "subject.revoked"


async def test_a_token_with_a_rewritten_signature_is_given_back_all_the_same(
    tmp_path: Path,
) -> None:
    """It is refused where it would give something, and not where it is ended."""
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        token = (await issue(broker, world.form(world.workload())))["access_token"]
        form = {
            "token": es256.twin(token),
            "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
            "client_assertion": world.workload(),
        }
        assert (await broker.exchange(form, path="/revoke"))[0] == 200
        assert not await active(broker, token)
