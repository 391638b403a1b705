"""Credentials over real sockets: a real broker, a real sidecar, a target that says 401."""

from __future__ import annotations

import asyncio
import json

import jwt
import pytest
from aiohttp import web

from tests.support.fleet import USER, WORKLOAD, Fleet
from valetkey.contracts import events


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path)


def token_of(request):
    kind, _, token = request.headers["Authorization"].partition(" ")
    assert kind == "Bearer"
    return jwt.decode(token, options={"verify_signature": False})


async def issued(fleet):
    return await fleet.metric("valetkey_broker_exchanges_total", fleet.broker_url, result="issued")


async def refused(fleet):
    return await fleet.metric(
        "valetkey_broker_exchanges_total", fleet.broker_url, code="grant.scope"
    )


async def test_a_thousand_concurrent_calls_on_a_cold_key_make_one_exchange(fleet):
    async with fleet.running(collector=False):
        answers = await asyncio.gather(*(fleet.call("/api/1") for _ in range(1000)))
        assert {status for status, _ in answers} == {200}
        assert len(fleet.received) == 1000
        assert await issued(fleet) == 1
        assert len({request.headers["Authorization"] for request in fleet.received}) == 1
        # The nonce of a DPoP proof costs one more request, no more.
        assert await fleet.metric("valetkey_exchanges_total", result="ok") == 1


async def test_narrowed_to_the_route_and_to_the_call_where_asked(fleet):
    async with fleet.running(collector=False):
        await fleet.call("/api/1")
        await fleet.call("/api/1", "POST")
        for number in (1, 2, 2):
            await fleet.call(f"/once/{number}")
        read, write, *once = map(token_of, fleet.received)
        assert (read["scope"], write["scope"]) == ("t:read", "t:write")
        assert read["sub"] == WORKLOAD
        assert "act" not in read
        (details,) = read["authorization_details"]
        assert (details["path"], details["actions"]) == ("/api/{id}", ["GET"])
        assert [claims["authorization_details"][0]["path"] for claims in once] == [
            "/once/1", "/once/2", "/once/2",
        ]  # fmt: skip
        assert all(claims["authorization_details"][0]["exact"] for claims in once)
        assert len({claims["jti"] for claims in once}) == 3
        assert await issued(fleet) == 5


async def test_for_a_user_the_user_is_the_subject_and_each_has_a_credential(fleet):
    async with fleet.running(collector=False):
        first, second = fleet.user_token(), fleet.user_token() + ""
        for token in (first, first, second):
            status, _ = await fleet.call("/api/1", headers={"X-Valetkey-Subject": token})
            assert status == 200
        await fleet.call("/api/1")
        *users, own = map(token_of, fleet.received)
        assert {claims["sub"] for claims in users} == {USER}
        assert {claims["act"]["sub"] for claims in users} == {WORKLOAD}
        assert own["sub"] == WORKLOAD
        assert not any("X-Valetkey-Subject" in request.headers for request in fleet.received)
        assert users[0]["jti"] == users[1]["jti"] != own["jti"]
        status, problem = await fleet.call("/api/1", headers={"X-Valetkey-Subject": "nonsense"})
        assert (status, problem["code"]) == (403, "subject.invalid")


async def test_a_401_evicts_and_the_call_is_tried_once_more(fleet):
    spoiled = set()

    async def target(request):
        if not spoiled:
            spoiled.add(request.headers["Authorization"])
        if request.headers["Authorization"] in spoiled:
            return web.Response(status=401, headers={"WWW-Authenticate": "Bearer"})
        return web.json_response({})

    fleet.target = target
    async with fleet.running(collector=False):
        assert (await fleet.call("/api/1"))[0] == 200
        assert len(fleet.received) == 2
        assert await issued(fleet) == 2
        assert await fleet.metric("valetkey_cache_evictions_total") == 1
        (outcome,) = await fleet.spooled(events.TYPE_OUTCOME)
        assert [one["jti"] for one in outcome["data"]["unmapped"]["credentials"]] == [
            token_of(request)["jti"] for request in fleet.received
        ]
        assert (await fleet.call("/api/1"))[0] == 200
        assert await issued(fleet) == 2


async def test_a_target_that_always_says_401_is_asked_twice_and_told_of(fleet):
    async def target(_request):
        return web.json_response({}, status=401, headers={"WWW-Authenticate": "Bearer"})

    fleet.target = target
    async with fleet.running(collector=False):
        async with fleet.client.get(f"{fleet.url}/api/1") as response:
            assert response.status == 401
            assert "WWW-Authenticate" not in response.headers
        assert len(fleet.received) == 2
        assert await issued(fleet) == 2


async def test_a_denial_is_remembered_for_a_second_at_most(fleet):
    async with fleet.running(collector=False):
        for _ in range(20):
            status, problem = await fleet.call("/refused/1")
            assert (status, problem["code"]) == (403, "grant.scope")
        assert await refused(fleet) == 1
        assert fleet.received == []
        grants = json.loads((fleet.directory / "grants.yaml").read_text())
        grants["grants"][0]["scopes"].append("t:never")
        fresh = fleet.directory / "grants.new"
        fresh.write_text(json.dumps(grants))
        fresh.replace(fleet.directory / "grants.yaml")

        async def allowed():
            return (await fleet.call("/refused/1"))[0] == 200

        await fleet.until(allowed, "the new grant")


async def test_per_request_credentials_are_never_cached(fleet):
    async with fleet.running(collector=False):
        await fleet.call("/once/1")
        assert await fleet.metric("valetkey_cache_entries") == 0


async def test_policies_decide_calls_and_are_on_record(fleet):
    """By rule, path and change of the file; the sidecar says which policies, on both sides."""
    policies = fleet.directory / "main.cedar"
    policies.write_text(
        '@id("all") permit (principal, action, resource);'
        '@id("no-secrets") forbid (principal, action, resource)'
        ' when { context.method == "GET" && context.path like "/once/secret*" };'
    )
    fleet.broker_changes = {"policies": str(policies)}
    async with fleet.running(collector=False):
        assert (await fleet.call("/api/1", "POST"))[0] == 200
        assert (await fleet.call("/once/1"))[0] == 200
        status, problem = await fleet.call("/once/secret")
        assert (status, problem["code"]) == (403, "policy.denied")
        # A credential for a whole pattern leaves open what the policy reads.
        status, problem = await fleet.call("/api/1")
        assert (status, problem["code"]) == (403, "policy.open")
        assert len(fleet.received) == 2
        assert [token_of(request)["policies"] for request in fleet.received] == [["all"]] * 2
    decisions = [
        data
        for data in (event["data"] for event in await fleet.spooled(events.TYPE_DECISION))
        if data["http_request"]["url"]["path"].startswith("/once")
    ]
    allowed, denied = decisions
    assert [entry["policy"]["uid"] for entry in allowed["authorizations"]] == ["all"]
    assert denied["unmapped"]["code"] == "policy.denied"
    assert denied["unmapped"]["reason"].endswith("; policies no-secrets")
