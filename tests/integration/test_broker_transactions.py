"""Transaction tokens: asked for, replaced, and refused (draft-ietf-oauth-transaction-tokens)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.integration.broker_support import (
    BOT,
    FILES,
    GRANTS,
    IDP,
    TICKETS,
    USERS,
    Served,
    World,
    claims_of,
    details,
    serving,
)
from tests.integration.feed_support import Receiver
from tests.support.ports import free_url
from valetkey.contracts import oauth
from valetkey.contracts.signals import Signal

DOMAIN = "demo.example"
OTHER = "other.example"
API = "spiffe://demo.example/ns/api/sa/orders"
SCOPES = ["orders:place", "orders:read"]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    world = World(tmp_path, free_url())
    world.overrides["targets"] = {
        **world.document()["targets"],
        "mesh": {"audience": DOMAIN, "credential": "txn_token", "ttl": "60s"},
        "elsewhere": {"audience": OTHER, "credential": "txn_token", "ttl": "60s"},
    }
    world.root.mkdir(exist_ok=True)
    mesh = {"issuer": IDP, "scopes": SCOPES, "on_behalf_of": "users"}
    approval = {"quorum": 1}
    world.write_grants(
        [
            *GRANTS,
            {"id": "bot-mesh", "workload": BOT, "target": "mesh", **mesh},
            {"id": "api-mesh", "workload": API, "target": "mesh", **mesh},
            {"id": "api-elsewhere", "workload": API, "target": "elsewhere", **mesh},
            {"id": "asked", "workload": BOT, "target": "mesh", "issuer": IDP,
             "scopes": ["orders:refund"], "approval": approval},
        ]
    )  # fmt: skip
    async with serving(world) as made:
        yield made


def asked(token: str, **changes: Any) -> dict[str, Any]:
    return {
        "requested_token_type": oauth.TOKEN_TYPE_TXN,
        "audience": DOMAIN,
        "scope": "orders:place",
        **changes,
    }


async def txn_token(served: Served, **changes: Any) -> tuple[int, dict[str, Any]]:
    world = served.world
    token = world.workload()
    form = world.user_form(token, world.user("alice"), **asked(token, **changes))
    status, body, _ = await served.exchange(form)
    return status, body


async def replaced(
    served: Served, earlier: str, workload: str = API, **changes: Any
) -> tuple[int, dict[str, Any]]:
    world = served.world
    token = world.workload(workload)
    form = world.form(
        token,
        **asked(
            token,
            **{
                "subject_token": earlier,
                "subject_token_type": oauth.TOKEN_TYPE_TXN,
                **changes,
            },
        ),
    )
    status, body, _ = await served.exchange(form)
    return status, body


async def test_who_holds_a_replaced_one_hears_of_its_subject(served: Served) -> None:
    """An incident about the workload that started it ends what others hold in its name."""
    world = served.world
    token = world.workload()
    status, body, _ = await served.exchange(world.form(token, **asked(token)))
    assert status == 200, body
    status, body = await replaced(served, body["access_token"])
    assert status == 200, body
    claims = claims_of(body["access_token"])
    assert (claims["sub"], claims["sub_iss"], claims["client_id"]) == (BOT, IDP, API)
    holder = Receiver(world, served, subject=API)
    await holder.begin()
    named = {"reason": "entered", "subject": {"issuer": IDP, "subject": BOT}}
    assert (await served.manage("POST", "/v1/incidents", json=named))[0] == 201
    told = [event for event in await holder.take() if isinstance(event, Signal)]
    assert [(one.kind, one.issuer, one.value) for one in told] == [("subject", IDP, BOT)]


async def test_what_it_says(served: Served) -> None:
    status, body = await txn_token(
        served,
        request_context=json.dumps({"req_ip": "69.151.72.123"}),
        request_details=json.dumps({"action": "BUY", "quantity": 100, "who": {"geo": "US"}}),
    )
    assert status == 200, body
    assert (body["token_type"], body["issued_token_type"]) == ("N_A", oauth.TOKEN_TYPE_TXN)
    assert "refresh_token" not in body
    keys = jwt.PyJWKSet.from_json((await served.get("/jwks"))[1].decode())
    compact = body["access_token"]
    header = jwt.get_unverified_header(compact)
    assert header["typ"] == "txntoken+jwt"
    claims = jwt.decode(compact, keys[header["kid"]].key, ["ES256"], audience=DOMAIN)
    assert (claims["sub"], claims["req_wl"]) == ("alice", BOT)
    assert (claims["scope"], claims["txn"]) == ("orders:place", body["txn"])
    assert claims["rctx"] == {"req_ip": "69.151.72.123"}
    assert claims["tctx"] == {"action": "BUY", "quantity": 100, "who": {"geo": "US"}}
    assert claims["exp"] - claims["iat"] <= 60
    assert "cnf" not in claims
    assert claims["act"] == {"sub": BOT, "iss": IDP}


async def test_a_workload_starts_one_of_its_own(served: Served) -> None:
    token = served.world.workload()
    status, body, _ = await served.exchange(served.world.form(token, **asked(token)))
    assert status == 200
    claims = claims_of(body["access_token"])
    assert (claims["sub"], claims["req_wl"], "act" in claims) == (BOT, BOT, False)


async def test_another_in_its_place_keeps_what_it_says(served: Served) -> None:
    _, first = await txn_token(
        served, scope=" ".join(SCOPES), request_details=json.dumps({"action": "BUY"})
    )
    status, second = await replaced(
        served,
        first["access_token"],
        scope="orders:read",
        request_details=json.dumps({"action": "BUY", "checked": True}),
    )
    assert status == 200, second
    before, after = claims_of(first["access_token"]), claims_of(second["access_token"])
    for name in ("txn", "sub", "aud"):
        assert after[name] == before[name]
    assert after["tctx"] == {"action": "BUY", "checked": True}
    assert (after["req_wl"], after["scope"]) == (API, "orders:read")
    assert after["exp"] <= before["exp"]
    # The call chain: who presents it now, for whom it was made then.
    assert after["act"] == {"sub": API, "iss": IDP, "act": {"sub": BOT, "iss": IDP}}


async def test_another_in_its_place_opens_no_more(served: Served) -> None:
    changing = {"request_details": json.dumps({"action": "SELL"})}
    _, first = await txn_token(
        served,
        request_details=json.dumps({"action": "BUY"}),
        request_context=json.dumps({"ip": "192.0.2.1"}),
    )
    token = first["access_token"]
    for changes, code in (
        ({"scope": "orders:read"}, "grant.scope"),
        ({"scope": "orders:place orders:read"}, "grant.scope"),
        (changing, "exchange.context"),
        ({"request_context": json.dumps({"ip": "192.0.2.2"})}, "exchange.context"),
        ({"audience": OTHER}, "exchange.target"),
        ({"audience": TICKETS, "scope": "tickets:read"}, "grant.missing"),
        ({"requested_token_type": oauth.TOKEN_TYPE_ACCESS}, "exchange.token_type"),
        ({"requested_token_type": None}, "exchange.token_type"),
        ({"subject_token_type": oauth.TOKEN_TYPE_ACCESS}, "subject.invalid"),
    ):
        status, body = await replaced(served, token, **changes)
        assert (status, body["code"]) == (400, code), changes
    assert (await replaced(served, token))[0] == 200


async def test_calls_that_it_is_limited_to_stay_so(served: Served) -> None:
    one = details("/orders/{id}", "GET", audience=DOMAIN)
    status, first = await txn_token(served, authorization_details=one)
    assert status == 200, first
    token = first["access_token"]
    narrower = details("/orders/7", "GET", audience=DOMAIN, exact=True)
    for asked_details, expected in (
        (narrower, 200),
        (one, 200),
        (None, 400),
        (details("/orders/{id}", "POST", audience=DOMAIN), 400),
        (details("/{rest*}", "GET", audience=DOMAIN), 400),
    ):
        status, _ = await replaced(served, token, authorization_details=asked_details)
        assert status == expected, asked_details


async def test_one_that_ended_is_replaced_no_more(served: Served) -> None:
    _, first = await txn_token(served)
    token = first["access_token"]
    form = {
        "token": token,
        "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
        "client_assertion": served.world.workload(),
    }
    state = (await served.exchange(form, path="/introspect"))[1]
    assert (state["active"], state["token_type"]) == (True, "N_A")
    assert (await served.exchange(form, path="/revoke"))[0] == 200
    assert (await replaced(served, token))[1]["code"] == "subject.revoked"
    _, second = await txn_token(served)
    served.world.clock.advance(61)
    assert (await replaced(served, second["access_token"]))[1]["code"] == "subject.invalid"


async def test_only_a_trust_domain_gets_them_and_it_gets_nothing_else(served: Served) -> None:
    world = served.world
    token = world.workload()
    for changes in (
        asked(token, requested_token_type=oauth.TOKEN_TYPE_ACCESS),
        asked(token, requested_token_type=None),
        asked(token, audience=TICKETS, scope="tickets:read"),
    ):
        status, body, _ = await served.exchange(world.form(token, **changes))
        assert (status, body["error"]) == (400, "invalid_request"), changes
        assert body["code"] == "exchange.token_type"


async def test_contexts_that_are_none(served: Served) -> None:
    world = served.world
    deep: Any = 1
    for _ in range(12):
        deep = {"a": deep}
    token, user = world.workload(), world.user("alice")
    for context in (
        "x", "[]", "1", '"a"', json.dumps(deep), json.dumps({"a": "x" * 2048}),
        json.dumps({"token": user}), json.dumps({"a": [f"Bearer {token}"]}),
        json.dumps({token[:1200]: 1})[:0] or json.dumps({user: 1}),
    ):  # fmt: skip
        for name in ("request_context", "request_details"):
            form = world.user_form(token, user, **asked(token, **{name: context}))
            status, body, _ = await served.exchange(form)
            assert (status, body["code"]) == (400, "exchange.context"), context
    form = world.form(token, request_context="{}")
    assert (await served.exchange(form))[1]["code"] == "exchange.context"


async def test_it_is_nobodys_access_token(served: Served) -> None:
    """Neither a client's assertion nor a user's token, whatever the issuers allow."""
    world = served.world
    _, first = await txn_token(served)
    compact = first["access_token"]
    status, body, _ = await served.exchange(world.form(compact))
    assert (status, body["error"]) == (401, "invalid_client")
    form = world.user_form(world.workload(), compact, audience=FILES, scope="files:read")
    assert (await served.exchange(form))[1]["code"] == "subject.invalid"


async def test_it_waits_for_nobody(served: Served) -> None:
    token = served.world.workload()
    form = served.world.form(token, **asked(token, scope="orders:refund"))
    status, body, _ = await served.exchange(form)
    assert (status, body["code"]) == (400, "exchange.token_type")


async def test_own_tokens_as_a_users_are_access_tokens_only(tmp_path: Path) -> None:
    """RFC 8725 §3.11: even where the trust domain is an audience that the broker takes."""
    world = World(tmp_path, free_url())
    keys = tmp_path / "broker.json"
    world.overrides["targets"] = {
        **world.document()["targets"],
        "mesh": {"audience": DOMAIN, "credential": "txn_token"},
    }
    mesh = {"id": "mesh", "workload": BOT, "issuer": IDP, "target": "mesh", "scopes": SCOPES}
    world.write_grants([*GRANTS, mesh | {"on_behalf_of": "users"}])
    async with serving(world) as served:
        keys.write_bytes((await served.get("/jwks"))[1])
        _, first = await txn_token(served)
    chained = {
        "issuer": world.url,
        "audience": DOMAIN,
        "use": "user",
        "jwks_file": str(keys),
    }
    world.overrides["issuers"] = [*world.document()["issuers"], chained]
    async with serving(world) as served:
        form = world.user_form(world.workload(), first["access_token"])
        status, body, _ = await served.exchange(form)
        assert (status, body["code"]) == (400, "subject.invalid")
        assert USERS in {issuer["issuer"] for issuer in world.document()["issuers"]}
