"""Introspection and revocation: who may ask, who may revoke, what falls with a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.broker_support import (
    BOT,
    FILES,
    IDP,
    PAYMENTS,
    READER,
    TICKETS,
    Served,
    World,
    claims_of,
    details,
    serving,
)
from tests.support.ports import free_url
from valetkey.contracts import oauth

OTHER = "spiffe://demo.example/ns/other/sa/cron"


def asking(token: str, client: str, **more: Any) -> dict[str, Any]:
    return {
        "token": token,
        "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
        "client_assertion": client,
        **more,
    }


async def issue(broker: Served, **changes: Any) -> dict[str, Any]:
    status, body, _ = await broker.exchange(broker.world.form(broker.world.workload(), **changes))
    assert status == 200, body
    return body


async def introspect(broker: Served, token: str, client: str) -> dict[str, Any]:
    status, body, headers = await broker.exchange(asking(token, client), path="/introspect")
    assert status == 200, body
    assert headers["Cache-Control"] == "no-store"
    return body


async def test_the_client_and_the_resource_server_see_a_token(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        issued = await issue(broker)
        token = issued["access_token"]
        for caller in (BOT, READER):
            answer = await introspect(broker, token, world.workload(caller))
            assert answer == {
                "active": True,
                "scope": "tickets:read",
                "client_id": BOT,
                "exp": int(world.clock()) + 120,
                "iat": int(world.clock()),
                "sub": BOT,
                "aud": TICKETS,
                "iss": world.url,
                "jti": issued["jti"],
                "txn": issued["txn"],
                "token_type": "Bearer",
            }


async def test_binding_and_details_are_told(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        bound = await issue(broker, audience=PAYMENTS, scope="payments:read")
        answer = await introspect(broker, bound["access_token"], world.workload())
        assert answer["token_type"] == "DPoP"
        assert answer["cnf"] == {"jkt": world.proof_key.thumbprint}
        narrow = await issue(
            broker,
            audience=FILES,
            scope="files:read",
            authorization_details=details("/files/7", "GET", exact=True),
        )
        answer = await introspect(broker, narrow["access_token"], world.workload())
        assert answer["authorization_details"] == narrow["authorization_details"]


async def test_everything_else_is_only_inactive(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        token = (await issue(broker))["access_token"]
        bound = (await issue(broker, audience=PAYMENTS, scope="payments:read"))["access_token"]
        changed = token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB")
        for name, subject, caller in (
            ("another workload asks", token, OTHER),
            ("a resource server asks about another's token", bound, READER),
            ("garbage", "nonsense", READER),
            ("a changed token", changed, BOT),
            ("a foreign token", world.workload(), BOT),
            ("a user's token", world.user(), BOT),
        ):
            answer = await introspect(broker, subject, world.workload(caller))
            assert answer == {"active": False}, name
        world.clock.advance(120)
        assert await introspect(broker, token, world.workload()) == {"active": False}


@pytest.mark.parametrize("path", ["/introspect", "/revoke"])
async def test_callers_authenticate(tmp_path: Path, path: str) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        token = (await issue(broker))["access_token"]
        for name, form, status, error, code in (
            ("nobody", {"token": token}, 401, "invalid_client", "service.unauthenticated"),
            ("garbage", asking(token, "x.y.z"), 401, "invalid_client", "actor.invalid"),
            ("the token itself", asking(token, token), 401, "invalid_client", "actor.invalid"),
            (
                "a reusable token without proof",
                asking(token, world.workload()),
                400,
                "invalid_dpop_proof",
                "dpop.missing",
            ),
            (
                "no token",
                asking("", world.workload()),
                400,
                "invalid_request",
                "service.bad_request",
            ),
        ):
            answer = await broker.post(form, path=path)
            assert (answer[0], answer[1]["error"], answer[1]["code"]) == (status, error, code), name
        # A proof made for another endpoint is none here.
        proof = world.proof(nonce=await broker.nonce(), path="/token")
        answer = await broker.post(asking(token, world.workload()), path=path, proofs=[proof])
        assert answer[1]["code"] == "dpop.invalid"


async def test_a_self_signed_client_introspects_without_proof_once(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        status, body, _ = await broker.post(world.form(world.assertion()))
        assert status == 200, body
        form = asking(body["access_token"], world.assertion())
        status, answer, _ = await broker.post(form, path="/introspect")
        assert (status, answer["active"]) == (200, True)
        status, answer, _ = await broker.post(form, path="/introspect")
        assert (status, answer["code"]) == (401, "actor.replayed")


async def test_a_revoked_token_is_inactive_also_after_a_restart(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        first, second = await issue(broker), await issue(broker)
        form = asking(first["access_token"], world.workload(), token_type_hint="access_token")
        status, body, _ = await broker.exchange(form, path="/revoke")
        assert (status, body) == (200, {})
        answer = await introspect(broker, first["access_token"], world.workload())
        assert answer == {"active": False}
        answer = await introspect(broker, second["access_token"], world.workload())
        assert answer["active"] is True
    async with serving(world) as broker:
        answer = await introspect(broker, first["access_token"], world.workload())
        assert answer == {"active": False}
        answer = await introspect(broker, second["access_token"], world.workload())
        assert answer["active"] is True


async def test_revoked_again_nothing_is_written(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        token = (await issue(broker))["access_token"]
        form = asking(token, world.workload())
        assert (await broker.exchange(form, path="/revoke"))[0] == 200
        head = await broker.broker.base.signals.head()
        world.clock.advance(5)
        for _ in range(3):
            assert (await broker.exchange(form, path="/revoke"))[0] == 200
        assert await broker.broker.base.signals.head() == head
        assert (await introspect(broker, token, world.workload()))["active"] is False


@pytest.mark.parametrize("path", ["/introspect", "/revoke"])
async def test_asked_too_often(tmp_path: Path, path: str) -> None:
    world = World(tmp_path, free_url())
    limited = "introspections" if path == "/introspect" else "revocations"
    world.overrides["limits"] = {limited: {"rate": 1, "burst": 2}}
    async with serving(world) as broker:
        token = (await broker.post(world.form(world.assertion())))[1]["access_token"]
        for _ in range(2):
            assert (await broker.post(asking(token, world.assertion()), path=path))[0] == 200
        status, body, headers = await broker.post(asking(token, world.assertion()), path=path)
        assert (status, body["code"]) == (429, "service.rate_limited")
        assert headers["Retry-After"] == "1"
        # Nobody else is held back by it, nor the same one from anything else.
        assert (await broker.exchange(asking(token, world.workload(READER)), path=path))[0] != 429
        assert (await broker.post(world.form(world.assertion())))[0] == 200
        world.clock.advance(1)
        assert (await broker.post(asking(token, world.assertion()), path=path))[0] == 200


async def test_unknown_tokens_are_revoked_without_complaint(tmp_path: Path) -> None:
    """RFC 7009 §2.2."""
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        for token in ("nonsense", world.workload(), world.user()):
            form = asking(token, world.workload())
            assert (await broker.exchange(form, path="/revoke"))[0] == 200
        assert len(broker.broker.base.revocations) == 0


async def test_only_its_client_revokes_a_token(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        token = (await issue(broker))["access_token"]
        same_name = world.own.token(BOT, world.url, now=world.clock(), ttl=60, jti="same-name")
        for caller in (world.workload(READER), world.workload(OTHER), same_name):
            status, body, _ = await broker.exchange(asking(token, caller), path="/revoke")
            assert (status, body["error"], body["code"]) == (
                400,
                "unauthorized_client",
                "service.forbidden",
            )
        assert (await introspect(broker, token, world.workload()))["active"] is True


async def test_revocation_cascades_over_the_transaction(tmp_path: Path) -> None:
    """A user token of our own is exchanged on: what descends from it falls with it."""
    world = World(tmp_path, free_url())
    document = world.document()
    # The tickets service exchanges on the tokens that it gets; the broker is an issuer to itself.
    world.overrides = {
        "issuers": [
            *document["issuers"],
            {
                "issuer": world.url,
                "audience": TICKETS,
                "use": "user",
                "jwks_url": world.url + "/jwks",
            },
        ]
    }
    async with serving(world) as broker:
        status, root, _ = await broker.exchange(
            world.user_form(world.workload(), world.user("alice"))
        )
        assert status == 200, root
        chained = world.user_form(world.workload(), root["access_token"], scope="tickets:list")
        status, child, _ = await broker.exchange(chained)
        assert status == 200, child
        assert child["txn"] == root["txn"]
        assert claims_of(child["access_token"])["act"] == {
            "sub": BOT,
            "iss": IDP,
            "act": {"sub": BOT, "iss": IDP},
        }
        form = asking(root["access_token"], world.workload())
        assert (await broker.exchange(form, path="/revoke"))[0] == 200
        for token in (root, child):
            answer = await introspect(broker, token["access_token"], world.workload())
            assert answer == {"active": False}
        status, body, _ = await broker.exchange(chained)
        assert (status, body["error"], body["code"]) == (400, "invalid_grant", "subject.revoked")


async def test_what_has_expired_is_swept(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        token = (await issue(broker))["access_token"]
        form = asking(token, world.workload())
        assert (await broker.exchange(form, path="/revoke"))[0] == 200
        assert len(broker.broker.base.revocations) == 2
        await broker.broker.sweep()
        assert len(broker.broker.base.revocations) == 2
        world.clock.advance(3601)
        await broker.broker.sweep()
        assert len(broker.broker.base.revocations) == 0
