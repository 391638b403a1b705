"""What an exchange gives: who, for whom, which scopes and calls, how long, bound to what."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import jwt
import pytest
import pytest_asyncio

from tests.integration.broker_support import (
    BOT,
    FILES,
    GRANTS,
    IDP,
    PAYMENTS,
    READER,
    SELF_SIGNED,
    TICKETS,
    Served,
    World,
    claims_of,
    details,
    serving,
)
from tests.support.ports import free_url
from valetkey.contracts import oauth

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(World(tmp_path_factory.mktemp("broker"), free_url())) as served:
        yield served


async def verified(broker: Served, token: str, audience: str) -> dict[str, Any]:
    """As a resource server does it: keys from /jwks, then signature, issuer, audience, type."""
    _, document, _ = await broker.get("/jwks")
    keys = jwt.PyJWKSet.from_json(document)
    header = jwt.get_unverified_header(token)
    assert header["typ"] == "at+jwt"
    key = keys[header["kid"]]
    claims: dict[str, Any] = jwt.decode(
        token,
        key,
        algorithms=["ES256"],
        audience=audience,
        issuer=broker.world.url,
        options={"verify_exp": False, "verify_iat": False},
    )
    return claims


async def test_a_workload_for_itself(broker: Served) -> None:
    world = broker.world
    status, body, headers = await broker.exchange(world.form(world.workload()))
    assert status == 200
    assert headers["Cache-Control"] == "no-store"
    assert headers["DPoP-Nonce"]
    assert body["issued_token_type"] == oauth.TOKEN_TYPE_ACCESS
    assert (body["token_type"], body["expires_in"], body["scope"]) == (
        "Bearer",
        120,
        "tickets:read",
    )
    assert body["sub"] == BOT
    assert "act" not in body
    assert "refresh_token" not in body
    claims = await verified(broker, body["access_token"], TICKETS)
    now = int(world.clock())
    assert claims == {
        "iss": world.url,
        "sub": BOT,
        "aud": TICKETS,
        "client_id": BOT,
        "client_iss": IDP,
        "iat": now,
        "exp": now + 120,
        "jti": body["jti"],
        "txn": body["txn"],
        "scope": "tickets:read",
        "policy_digest": body["policy_digest"],
        "policies": ["grants-decide"],
        "grants": ["bot-tickets"],
    }


async def test_a_self_signed_client_needs_no_proof(broker: Served) -> None:
    world = broker.world
    status, body, headers = await broker.post(world.form(world.assertion()))
    assert status == 200, body
    assert "DPoP-Nonce" not in headers
    assert claims_of(body["access_token"])["client_iss"] == SELF_SIGNED


async def test_a_user_with_the_workload_as_actor(broker: Served) -> None:
    world = broker.world
    status, body, _ = await broker.exchange(world.user_form(world.workload(), world.user("alice")))
    assert status == 200, body
    claims = await verified(broker, body["access_token"], TICKETS)
    assert claims["sub"] == body["sub"] == "alice"
    assert claims["act"] == body["act"] == {"sub": BOT, "iss": IDP}
    assert claims["client_id"] == BOT


async def test_earlier_actors_are_carried_along_and_decide_nothing(broker: Served) -> None:
    """RFC 8693 §4.1: only the outermost actor counts, here one that no grant knows inside."""
    world = broker.world
    prior = {"sub": "frontend", "iss": "https://x", "act": {"sub": "gateway"}, "extra": "dropped"}
    user = world.user("alice", act=prior)
    status, body, _ = await broker.exchange(world.user_form(world.workload(), user))
    assert status == 200, body
    assert claims_of(body["access_token"])["act"] == {
        "sub": BOT,
        "iss": IDP,
        "act": {"sub": "frontend", "iss": "https://x", "act": {"sub": "gateway"}},
    }


async def test_an_inner_actor_gets_nothing_from_being_named(broker: Served) -> None:
    """The bot inside the chain does not lend its grant to the outer actor."""
    world = broker.world
    other = world.workload("spiffe://demo.example/ns/x/sa/y")
    user = world.user("alice", act={"sub": BOT, "iss": IDP})
    status, body, _ = await broker.exchange(world.user_form(other, user))
    assert (status, body["code"]) == (400, "grant.missing")


async def test_a_bound_target_gives_a_bound_token(broker: Served) -> None:
    world = broker.world
    form = world.form(world.workload(), audience=PAYMENTS, scope="payments:read")
    status, body, _ = await broker.exchange(form)
    assert (status, body["token_type"], body["expires_in"]) == (200, "DPoP", 60)
    claims = await verified(broker, body["access_token"], PAYMENTS)
    assert claims["cnf"] == {"jkt": world.proof_key.thumbprint}


async def test_a_proof_does_not_bind_a_bearer_targets_token(broker: Served) -> None:
    world = broker.world
    status, body, _ = await broker.exchange(world.form(world.assertion()))
    assert (status, body["token_type"]) == (200, "Bearer")
    assert "cnf" not in claims_of(body["access_token"])


async def test_scopes_are_narrowed_to_what_was_asked_and_granted(broker: Served) -> None:
    world = broker.world
    for asked, given in (
        ("tickets:read", "tickets:read"),
        ("tickets:read tickets:delete", "tickets:read"),
        ("tickets:list tickets:read", "tickets:list tickets:read"),
        ("tickets:read tickets:read", "tickets:read"),
    ):
        status, body, _ = await broker.exchange(world.form(world.workload(), scope=asked))
        assert (status, body["scope"]) == (200, given)
        assert claims_of(body["access_token"])["scope"] == given


async def test_details_come_back_as_they_were_asked_for(broker: Served) -> None:
    world = broker.world
    for path, exact in (("/files/{id}", None), ("/files/7", True), ("/public/a/b", True)):
        asked = details(path, "GET", exact=exact)
        form = world.form(
            world.workload(), audience=FILES, scope="files:read", authorization_details=asked
        )
        status, body, _ = await broker.exchange(form)
        assert status == 200, body
        assert body["authorization_details"] == json.loads(asked)
        claims = claims_of(body["access_token"])
        assert claims["authorization_details"] == json.loads(asked)
        assert body["expires_in"] == 30  # the grant's ttl shortens the target's


async def test_details_without_conditions_are_echoed_too(broker: Served) -> None:
    world = broker.world
    asked = details("/api/{rest*}", "GET", "POST", audience=TICKETS)
    form = world.form(world.workload(), authorization_details=asked)
    status, body, _ = await broker.exchange(form)
    assert (status, body["authorization_details"]) == (200, json.loads(asked))


@dataclass(frozen=True)
class Lifetime:
    name: str
    workload: float
    user: float
    expected: int


@pytest.mark.parametrize(
    "case",
    [
        Lifetime("the target's", 3600, 3600, 120),
        Lifetime("the actor's", 50, 3600, 50),
        Lifetime("the user's", 3600, 45, 45),
        Lifetime("the shortest of both", 50, 45, 45),
    ],
    ids=lambda case: case.name,
)
async def test_a_token_lives_no_longer_than(broker: Served, case: Lifetime) -> None:
    world = broker.world
    world.clock.now = float(int(world.clock.now))  # tokens carry whole seconds
    form = world.user_form(world.workload(ttl=case.workload), world.user(ttl=case.user))
    status, body, _ = await broker.exchange(form)
    assert (status, body["expires_in"]) == (200, case.expected)


async def test_resources_of_the_target_are_fine(broker: Served) -> None:
    world = broker.world
    for resource in ("https://files.example.com/v1", "https://files.example.com/v1/a/b"):
        form = world.form(
            world.workload(),
            audience=FILES,
            scope="files:read",
            resource=resource,
            authorization_details=details("/files/{id}", "GET"),
        )
        status, body, _ = await broker.exchange(form)
        assert status == 200, body
        assert claims_of(body["access_token"])["aud"] == FILES


async def test_the_type_asked_for_is_the_type_named(broker: Served) -> None:
    world = broker.world
    form = world.form(world.workload(), requested_token_type=oauth.TOKEN_TYPE_JWT)
    status, body, _ = await broker.exchange(form)
    assert (status, body["issued_token_type"]) == (200, oauth.TOKEN_TYPE_JWT)


async def test_empty_and_unknown_parameters_count_as_left_out(broker: Served) -> None:
    """RFC 6749 §3.2."""
    world = broker.world
    form = world.form(world.workload(), resource="", actor_token="", whatever="x", client_id="")
    status, body, _ = await broker.exchange(form)
    assert status == 200, body


async def test_an_actor_token_may_be_another_token_of_the_same_workload(broker: Served) -> None:
    world = broker.world
    form = world.user_form(world.workload(), world.user(), actor_token=world.workload(ttl=40))
    status, body, _ = await broker.exchange(form)
    assert status == 200, body
    assert body["expires_in"] <= 40


async def test_every_token_has_an_id_of_its_own(broker: Served) -> None:
    world = broker.world
    form = world.form(world.workload())
    bodies = [(await broker.exchange(form))[1] for _ in range(5)]
    assert len({body["jti"] for body in bodies}) == 5
    assert len({body["txn"] for body in bodies}) == 5


async def test_metadata_names_what_is_there(broker: Served) -> None:
    """RFC 8414: the issuer is what the URL was made from, and every endpoint answers."""
    url = broker.world.url
    status, raw, headers = await broker.get("/.well-known/oauth-authorization-server")
    document = json.loads(raw)
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    assert document["issuer"] == url
    assert document["dpop_signing_alg_values_supported"] == ["ES256"]
    assert document["authorization_details_types_supported"] == [oauth.DETAILS_HTTP_CALL]
    assert document["token_endpoint_auth_methods_supported"] == ["private_key_jwt"]
    assert document["grant_types_supported"] == [oauth.GRANT_TOKEN_EXCHANGE]
    for name in ("token_endpoint", "introspection_endpoint", "revocation_endpoint"):
        status, body, _ = await broker.post(b"", path=document[name].removeprefix(url))
        assert status == 400
        assert body["error"] == "invalid_request"
    status, _, _ = await broker.get(document["jwks_uri"].removeprefix(url))
    assert status == 200


async def test_the_key_set_is_cacheable_and_public(broker: Served) -> None:
    status, raw, headers = await broker.get("/jwks")
    assert status == 200
    assert headers["Cache-Control"] == "public, max-age=300"
    for key in json.loads(raw)["keys"]:
        assert key["alg"] == "ES256"
        assert "d" not in key
    async with broker.client.get(
        broker.world.url + "/jwks", headers={"If-None-Match": headers["ETag"]}
    ) as response:
        assert response.status == 304


async def test_metrics_count_by_result_and_code(broker: Served) -> None:
    world = broker.world

    async def count(labels: str) -> float:
        _, raw, _ = await broker.get("/metrics")
        lines = raw.decode().splitlines()
        name = f"valetkey_broker_exchanges_total{labels} "
        return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0)

    issued, refused = '{code="ok",result="issued"}', '{code="grant.scope",result="refused"}'
    before = await count(issued), await count(refused)
    await broker.exchange(world.form(world.workload()))
    await broker.exchange(world.form(world.workload(), scope="no:such"))
    assert await count(issued) == before[0] + 1
    assert await count(refused) == before[1] + 1
    _, raw, _ = await broker.get("/metrics")
    for name in (
        "valetkey_broker_exchange_seconds_bucket",
        "valetkey_broker_signing_key_age_seconds",
        "valetkey_broker_revocations_total",
        'valetkey_broker_grants_reload_total{result="failed"}',
        "valetkey_broker_build_info",
    ):
        assert name in raw.decode()


async def test_a_reader_that_has_no_grant_gets_nothing(broker: Served) -> None:
    world = broker.world
    status, body, _ = await broker.exchange(world.form(world.workload(READER)))
    assert (status, body["code"]) == (400, "grant.missing")
    assert broker.broker.base.policies.current.count == len(GRANTS)
