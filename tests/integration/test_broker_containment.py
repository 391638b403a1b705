"""What was ended counts for nothing, and who is contained gets nothing, until it attests anew."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

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


async def test_what_descends_from_a_contained_users_token(tmp_path: Path) -> None:
    """A token of our own as subject token is its user's, whoever the user's issuer is."""
    world = World(tmp_path, free_url())
    ours = {
        "issuer": world.url,
        "audience": TICKETS,
        "use": "user",
        "jwks_url": world.url + "/jwks",
    }
    world.overrides = {"issuers": [*world.document()["issuers"], ours]}
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
    world = World(tmp_path, free_url())
    ours = {
        "issuer": world.url,
        "audience": TICKETS,
        "use": "user",
        "jwks_url": world.url + "/jwks",
    }
    world.overrides = {"issuers": [*world.document()["issuers"], ours]}
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
