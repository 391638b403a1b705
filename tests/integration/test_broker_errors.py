"""Each wrong input has its own OAuth error and code: one table, against a real server."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
import pytest_asyncio

from tests.integration.broker_support import (
    BOT,
    FILES,
    IDP,
    PAYMENTS,
    SELF_SIGNED,
    TICKETS,
    Issuer,
    Served,
    World,
    details,
    serving,
)
from tests.support.ports import free_url
from valetkey.broker.api.wire import description
from valetkey.contracts import codes, oauth
from valetkey.contracts.dpop import ProofKey
from valetkey.contracts.jose import b64url

pytestmark = pytest.mark.asyncio(loop_scope="module")

Forms = Callable[[World], Any]
Proofs = Callable[[World, str], list[str]]


def one_proof(world: World, nonce: str) -> list[str]:
    return [world.proof(nonce=nonce)]


def no_proof(_world: World, _nonce: str) -> list[str]:
    return []


def proof_with(**changes: Any) -> Proofs:
    return lambda world, nonce: [world.proof(**{"nonce": nonce, **changes})]


def forged(header: dict[str, Any], **claims: Any) -> Proofs:
    """A proof with another header: the parts of a good one, the header replaced, signed anew."""

    def make(world: World, nonce: str) -> list[str]:
        key = world.proof_key
        full = {"typ": "dpop+jwt", "alg": "ES256", "jwk": key.jwk, **header}
        payload = {
            "jti": "forged-" + b64url(bytes([len(str(full)) % 256])),
            "htm": "POST",
            "htu": world.url + "/token",
            "iat": int(world.clock()),
            "nonce": nonce,
            **claims,
        }
        payload = {name: value for name, value in payload.items() if value is not None}
        return [jwt.encode(payload, key._key, algorithm="ES256", headers=full)]

    return make


@dataclass(frozen=True)
class Case:
    name: str
    form: Forms
    status: int
    error: str
    code: str
    proofs: Proofs = one_proof
    path: str = "/token"
    headers: tuple[tuple[str, str], ...] = ()


def bot(**changes: Any) -> Forms:
    return lambda world: world.form(world.workload(), **changes)


def user(token: dict[str, Any] | None = None, **changes: Any) -> Forms:
    return lambda world: world.user_form(world.workload(), world.user(**(token or {})), **changes)


def workload(**token: Any) -> Forms:
    """The whole exchange with a workload token that is wrong in this way."""
    return lambda world: world.form(world.workload(**token))


def assertion(**token: Any) -> Forms:
    return lambda world: world.form(world.assertion(**token))


def raw(text: str) -> Forms:
    return lambda _world: text.encode()


def files(detail: Any, **changes: Any) -> Forms:
    text = detail if isinstance(detail, str) else json.dumps(detail)
    return bot(audience=FILES, scope="files:read", authorization_details=text, **changes)


def unsigned(world: World, algorithm: str) -> dict[str, Any]:
    token = world.workload()
    header = b64url(json.dumps({"alg": algorithm, "kid": "k1"}).encode())
    return world.form(".".join([header, token.split(".")[1], "AA"]))


def hmac_with_public_key(world: World) -> dict[str, Any]:
    """RFC 8725 §2.1: the public key used as a shared secret."""
    secret = json.dumps(world.idp.jwks()["keys"][0]).encode()
    head = b64url(json.dumps({"alg": "HS256", "kid": "k1"}).encode())
    signing_input = f"{head}.{world.workload().split('.')[1]}"
    mac = hmac.digest(secret, signing_input.encode(), "sha256")
    return world.form(f"{signing_input}.{b64url(mac)}")


def stranger(world: World, name: str = IDP) -> dict[str, Any]:
    return world.form(Issuer(name).token(BOT, [world.url], now=world.clock()))


def json_serialised(world: World) -> dict[str, Any]:
    header, payload, signature = world.workload().split(".")
    return world.form(json.dumps({"protected": header, "payload": payload, "signature": signature}))


def another_spelling(world: World) -> dict[str, Any]:
    """The same bytes of the signature in non-canonical base64url."""
    token = world.workload()
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return world.form(token[:-1] + alphabet[alphabet.index(token[-1]) ^ 1])


def detail_entry(**changes: Any) -> dict[str, Any]:
    entry = json.loads(details("/files/{id}", "GET"))[0] | changes
    return {name: value for name, value in entry.items() if value is not None}


CLIENT = "invalid_client"
REQUEST = "invalid_request"
TARGET = "invalid_target"
SCOPE = "invalid_scope"
DETAILS = "invalid_authorization_details"
PROOF = "invalid_dpop_proof"

FORM_CASES = [
    Case("empty body", raw(""), 400, REQUEST, "service.bad_request"),
    Case("json body", lambda w: w.form(w.workload()), 400, REQUEST, "service.bad_request",
         headers=(("Content-Type", "application/json"),)),
    Case("another charset", lambda w: w.form(w.workload()), 400, REQUEST, "service.bad_request",
         headers=(("Content-Type", "application/x-www-form-urlencoded; charset=utf-7"),)),
    Case("broken escape", raw("grant_type=%zz"), 400, REQUEST, "service.bad_request"),
    Case("not utf-8", raw("grant_type=%ff%fe"), 400, REQUEST, "service.bad_request"),
    Case("no equals sign", raw("grant_type"), 400, REQUEST, "service.bad_request"),
    Case("control character", raw("grant_type=a%00b"), 400, REQUEST, "service.bad_request"),
    Case("too many parameters", raw("&".join(f"a{n}=1" for n in range(40))), 400, REQUEST,
         "service.bad_request"),
    Case("body over 64 KiB", raw("grant_type=" + "a" * 70_000), 413, REQUEST, "service.too_large"),
    Case("parameter twice", lambda w: [*w.form(w.workload()).items(), ("scope", "tickets:read")],
         400, REQUEST, "service.bad_request"),
    Case("unknown parameter twice",
         lambda w: [*w.form(w.workload()).items(), ("x", "1"), ("x", "2")],
         400, REQUEST, "service.bad_request"),
    Case("parameters in the query", bot(), 400, REQUEST, "service.bad_request", path="/token?x=1"),
    Case("no grant_type", bot(grant_type=None), 400, REQUEST, "service.bad_request"),
    Case("client_credentials", bot(grant_type="client_credentials"), 400, "unsupported_grant_type",
         "exchange.grant_type"),
    Case("grant_type of another case", bot(grant_type=oauth.GRANT_TOKEN_EXCHANGE.upper()), 400,
         "unsupported_grant_type", "exchange.grant_type"),
]  # fmt: skip

CLIENT_CASES = [
    Case("no assertion", bot(client_assertion=None), 401, CLIENT, "service.unauthenticated"),
    Case("empty assertion", bot(client_assertion=""), 401, CLIENT, "service.unauthenticated"),
    Case("no assertion type", bot(client_assertion_type=None), 401, CLIENT,
         "service.unauthenticated"),
    Case("saml assertion type", bot(
        client_assertion_type="urn:ietf:params:oauth:client-assertion-type:saml2-bearer"),
         401, CLIENT, "service.unauthenticated"),
    Case("authorization header too", bot(), 401, CLIENT, "service.unauthenticated",
         headers=(("Authorization", "Basic Ym90OnNlY3JldA=="),)),
    Case("client secret too", bot(client_secret="hunter2"), 401, CLIENT, "service.unauthenticated"),
    Case("client_id of another", bot(client_id="spiffe://demo.example/ns/x/sa/y"), 401, CLIENT,
         "actor.invalid"),
    Case("not a jwt", lambda w: w.form("not-a-token"), 401, CLIENT, "actor.invalid"),
    Case("json serialised", json_serialised, 401, CLIENT, "actor.invalid"),
    Case("non-canonical base64url", another_spelling, 401, CLIENT, "actor.invalid"),
    Case("longer than any token", lambda w: w.form("a." * 9000), 401, CLIENT, "actor.invalid"),
    Case("alg none", lambda w: unsigned(w, "none"), 401, CLIENT, "actor.invalid"),
    Case("alg None", lambda w: unsigned(w, "None"), 401, CLIENT, "actor.invalid"),
    Case("hmac with the public key", hmac_with_public_key, 401, CLIENT, "actor.invalid"),
    Case("unknown issuer", lambda w: stranger(w, "https://evil.example"), 401, CLIENT,
         "actor.invalid"),
    Case("forged signature", stranger, 401, CLIENT, "actor.invalid"),
    Case("unknown kid", workload(headers={"kid": "k9"}), 401, CLIENT, "actor.invalid"),
    Case("jku header", workload(headers={"jku": "https://evil.example/jwks"}), 401, CLIENT,
         "actor.invalid"),
    Case("crit header", workload(headers={"crit": ["x"]}), 401, CLIENT, "actor.invalid"),
    Case("expired", workload(ttl=-31), 401, CLIENT, "actor.invalid"),
    Case("no exp", workload(drop=["exp"]), 401, CLIENT, "actor.invalid"),
    Case("exp is text", workload(exp="4102444800"), 401, CLIENT, "actor.invalid"),
    Case("exp beyond all calendars", workload(exp=10**400), 401, CLIENT, "actor.invalid"),
    Case("nbf beyond all calendars", workload(nbf=-(10**400)), 401, CLIENT, "actor.invalid"),
    Case("not yet valid", lambda w: w.form(w.workload(nbf=int(w.clock()) + 60)), 401, CLIENT,
         "actor.invalid"),
    Case("issued in the future", lambda w: w.form(w.workload(iat=int(w.clock()) + 60)), 401,
         CLIENT, "actor.invalid"),
    Case("another audience", workload(aud="https://collector.example"), 401, CLIENT,
         "actor.invalid"),
    Case("a second audience", lambda w: w.form(w.workload(aud=[w.url, "https://evil.example"])),
         401, CLIENT, "actor.invalid"),
    Case("no subject", workload(drop=["sub"]), 401, CLIENT, "actor.invalid"),
    Case("a user's token", lambda w: w.form(w.user()), 401, CLIENT, "actor.invalid"),
    Case("self-signed for an hour", assertion(ttl=3600), 401, CLIENT, "actor.invalid", no_proof),
    Case("self-signed, issued early for long", lambda w: w.form(
        w.assertion(iat=int(w.clock()) - 30, ttl=45)), 401, CLIENT, "actor.invalid", no_proof),
    Case("self-signed without iat, far exp", assertion(drop=["iat"], ttl=91), 401, CLIENT,
         "actor.invalid", no_proof),
    Case("self-signed without jti", assertion(drop=["jti"]), 401, CLIENT, "actor.invalid",
         no_proof),
    Case("self-signed with an empty jti", assertion(jti=""), 401, CLIENT, "actor.invalid",
         no_proof),
    Case("self-signed with a number as jti", assertion(jti=7), 401, CLIENT, "actor.invalid",
         no_proof),
    Case("self-signed with a list as aud", lambda w: w.form(w.assertion(aud=[w.url])), 401,
         CLIENT, "actor.invalid", no_proof),
    Case("self-signed for the token endpoint", lambda w: w.form(
        w.assertion(aud=w.url + "/token")), 401, CLIENT, "actor.invalid", no_proof),
]  # fmt: skip

PROOF_CASES = [
    Case("reusable token without proof", bot(), 400, PROOF, "dpop.missing", no_proof),
    Case("bound target without proof", lambda w: w.form(
        w.assertion(), audience=PAYMENTS, scope="payments:read"), 400, PROOF, "dpop.missing",
         no_proof),
    Case("two proofs", bot(), 400, PROOF, "dpop.invalid",
         lambda w, n: [w.proof(nonce=n), w.proof(nonce=n)]),
    Case("no nonce", bot(), 400, "use_dpop_nonce", "dpop.nonce", proof_with(nonce="")),
    Case("a made-up nonce", bot(), 400, "use_dpop_nonce", "dpop.nonce",
         proof_with(nonce="AAAAAAAAAAAAAAAAAAAAAA")),
    Case("nonce is a number", bot(), 400, "use_dpop_nonce", "dpop.nonce", forged({}, nonce=7)),
    Case("not a jws", bot(), 400, PROOF, "dpop.invalid", lambda _w, _n: ["proof"]),
    Case("proof for another method", bot(), 400, PROOF, "dpop.invalid", proof_with(method="GET")),
    Case("another url", bot(), 400, PROOF, "dpop.invalid", proof_with(path="/introspect")),
    Case("url with query", bot(), 400, PROOF, "dpop.invalid", proof_with(path="/token?x=1")),
    Case("old proof", bot(), 400, PROOF, "dpop.invalid",
         lambda w, n: [w.proof(nonce=n, now=int(w.clock()) - 90)]),
    Case("proof from the future", bot(), 400, PROOF, "dpop.invalid",
         lambda w, n: [w.proof(nonce=n, now=int(w.clock()) + 90)]),
    Case("no jti", bot(), 400, PROOF, "dpop.invalid", forged({}, jti=None)),
    Case("endless jti", bot(), 400, PROOF, "dpop.invalid", forged({}, jti="x" * 300)),
    Case("no iat", bot(), 400, PROOF, "dpop.invalid", forged({}, iat=None)),
    Case("iat beyond all calendars", bot(), 400, PROOF, "dpop.invalid",
         forged({}, iat=10**400)),
    Case("no htu", bot(), 400, PROOF, "dpop.invalid", forged({}, htu=None)),
    Case("typ jwt", bot(), 400, PROOF, "dpop.invalid", forged({"typ": "jwt"})),
    Case("no jwk", bot(), 400, PROOF, "dpop.invalid", forged({"jwk": None})),
    Case("private jwk", bot(), 400, PROOF, "dpop.invalid",
         lambda w, n: forged({"jwk": {**w.proof_key.jwk, "d": "AAAA"}})(w, n)),
    Case("signed by another key", bot(), 400, PROOF, "dpop.invalid",
         forged({"jwk": ProofKey().jwk})),
]  # fmt: skip

TOKEN_CASES = [
    Case("no subject_token", bot(subject_token=None), 400, REQUEST, "service.bad_request"),
    Case("no subject_token_type", bot(subject_token_type=None), 400, REQUEST,
         "service.bad_request"),
    Case("id_token as subject type",
         bot(subject_token_type="urn:ietf:params:oauth:token-type:id_token"), 400, REQUEST,
         "exchange.token_type"),
    Case("refresh token wanted",
         bot(requested_token_type="urn:ietf:params:oauth:token-type:refresh_token"), 400, REQUEST,
         "exchange.token_type"),
    Case("actor type without actor", bot(actor_token_type=oauth.TOKEN_TYPE_JWT), 400, REQUEST,
         "exchange.token_type"),
    Case("actor without type", user(actor_token_type=None), 400, REQUEST, "exchange.token_type"),
    Case("saml actor type",
         user(actor_token_type="urn:ietf:params:oauth:token-type:saml2"), 400, REQUEST,
         "exchange.token_type"),
    Case("garbage as subject", bot(subject_token="x.y.z"), 400, REQUEST, "subject.invalid"),
    Case("subject of an unknown issuer", lambda w: w.form(
        w.workload(), subject_token=Issuer("https://evil.example").token(
            "alice", w.url, now=w.clock())), 400, REQUEST, "subject.invalid"),
    Case("forged user", lambda w: w.user_form(
        w.workload(), Issuer(w.users.name).token("alice", w.url, now=w.clock())), 400, REQUEST,
         "subject.invalid"),
    Case("expired user", user({"ttl": -31}), 400, REQUEST, "subject.invalid"),
    Case("user within the leeway has no life left", user({"ttl": -5}), 400, REQUEST,
         "subject.invalid"),
    Case("user for another audience", user({"aud": "https://other.example"}), 400, REQUEST,
         "subject.invalid"),
    Case("user's act is no object", user({"act": "bot"}), 400, REQUEST, "subject.invalid"),
    Case("user's act has no sub", user({"act": {"iss": "x"}}), 400, REQUEST, "subject.invalid"),
    Case("another workload as subject", lambda w: w.form(
        w.workload(), subject_token=w.workload("spiffe://demo.example/ns/x/sa/y")), 400, REQUEST,
         "subject.invalid"),
    Case("user without actor", user(actor_token=None, actor_token_type=None), 400, REQUEST,
         "actor.mismatch"),
    Case("actor is another workload", lambda w: w.user_form(
        w.workload(), w.user(), actor_token=w.workload("spiffe://demo.example/ns/x/sa/y")), 400,
         REQUEST, "actor.mismatch"),
    Case("same subject of another issuer as actor", lambda w: w.user_form(
        w.workload(), w.user(), actor_token=w.own.token(BOT, w.url, now=w.clock(), ttl=60)), 400,
         REQUEST, "actor.mismatch"),
    Case("expired actor", lambda w: w.user_form(
        w.workload(), w.user(), actor_token=w.workload(ttl=-40)), 400, REQUEST, "actor.mismatch"),
    Case("a user as actor", lambda w: w.user_form(
        w.workload(), w.user(), actor_token=w.user("bob")), 400, REQUEST, "actor.mismatch"),
    Case("actor beside a workload's own token", lambda w: w.user_form(
        token := w.workload(), token), 400, REQUEST, "actor.mismatch"),
    Case("may_act names another", user({"may_act": {"sub": "spiffe://demo.example/x"}}), 400,
         REQUEST, "actor.not_allowed"),
    Case("may_act names another issuer", user({"may_act": {"sub": BOT, "iss": "https://x"}}), 400,
         REQUEST, "actor.not_allowed"),
    Case("may_act with a member not understood", user({"may_act": {"sub": BOT, "group": "g"}}),
         400, REQUEST, "actor.not_allowed"),
    Case("may_act is empty", user({"may_act": {}}), 400, REQUEST, "actor.not_allowed"),
    Case("may_act is a list", user({"may_act": [{"sub": BOT}]}), 400, REQUEST,
         "actor.not_allowed"),
]  # fmt: skip

TARGET_CASES = [
    Case("no audience", bot(audience=None), 400, REQUEST, "service.bad_request"),
    Case("two audiences", lambda w: [*w.form(w.workload()).items(), ("audience", FILES)], 400,
         TARGET, "exchange.target"),
    Case("unknown audience", bot(audience="https://nowhere.example"), 400, TARGET, "grant.missing"),
    Case("target without grant", lambda w: w.form(
        w.workload("spiffe://demo.example/ns/other/sa/cron")), 400, TARGET, "grant.missing"),
    Case("two segments for one star", lambda w: w.form(
        w.workload("spiffe://demo.example/ns/a/b/sa/bot"), audience=PAYMENTS,
        scope="payments:read"), 400, TARGET, "grant.missing"),
    Case("same workload name of another issuer", lambda w: w.form(
        w.own.token(BOT, w.url, now=w.clock(), ttl=60, jti="other-issuer")), 400, TARGET,
         "grant.missing", no_proof),
    Case("grant is not for users", user(audience=PAYMENTS, scope="payments:read"), 400, TARGET,
         "grant.missing"),
    Case("two resources", lambda w: [*w.form(w.workload(), resource=TICKETS).items(),
                                     ("resource", TICKETS)], 400, TARGET, "exchange.target"),
    Case("relative resource", bot(resource="/api"), 400, TARGET, "exchange.target"),
    Case("resource with fragment", bot(resource=TICKETS + "/#x"), 400, TARGET, "exchange.target"),
    Case("resource with an empty fragment", bot(resource=TICKETS + "/#"), 400, TARGET,
         "exchange.target"),
    Case("resource of another target", bot(resource=PAYMENTS), 400, TARGET, "exchange.target"),
    Case("resource beside the target's", lambda w: w.form(
        w.workload(), audience=FILES, scope="files:read",
        authorization_details=details("/files/{id}", "GET"),
        resource="https://files.example.com/v10"), 400, TARGET, "exchange.target"),
    Case("resource climbs out", lambda w: w.form(
        w.workload(), audience=FILES, scope="files:read",
        authorization_details=details("/files/{id}", "GET"),
        resource="https://files.example.com/v1/%2e%2e/v2"), 400, TARGET, "exchange.target"),
    Case("no scope", bot(scope=None), 400, SCOPE, "exchange.scope"),
    Case("two spaces in scope", bot(scope="tickets:read  tickets:list"), 400, SCOPE,
         "exchange.scope"),
    Case("quote in scope", bot(scope='tickets:"read"'), 400, SCOPE, "exchange.scope"),
    Case("non-ascii scope", bot(scope="tickets:lesén"), 400, SCOPE, "exchange.scope"),
    Case("too many scopes", bot(scope=" ".join(f"s{n}" for n in range(65))), 400, SCOPE,
         "exchange.scope"),
    Case("scope that no grant has", bot(scope="tickets:delete"), 400, SCOPE, "grant.scope"),
    Case("scope of another case", bot(scope="Tickets:Read"), 400, SCOPE, "grant.scope"),
]  # fmt: skip

DETAILS_CASES = [
    Case("conditions but no details", bot(audience=FILES, scope="files:read"), 400, DETAILS,
         "grant.condition"),
    Case("details are no json", files("{"), 400, DETAILS, "exchange.details"),
    Case("details are an object", files(detail_entry()), 400, DETAILS, "exchange.details"),
    Case("details are empty", files([]), 400, DETAILS, "exchange.details"),
    Case("17 details", files([detail_entry()] * 17), 400, DETAILS, "exchange.details"),
    Case("unknown type", files([detail_entry(type="payment_initiation")]), 400, DETAILS,
         "exchange.details"),
    Case("unknown field", files([detail_entry(privileges=["admin"])]), 400, DETAILS,
         "exchange.details"),
    Case("missing field", files([detail_entry(path=None)]), 400, DETAILS, "exchange.details"),
    Case("field of another type", files([detail_entry(actions="GET")]), 400, DETAILS,
         "exchange.details"),
    Case("another location", files([detail_entry(locations=[TICKETS])]), 400, DETAILS,
         "exchange.details"),
    Case("a second location", files([detail_entry(locations=[FILES, TICKETS])]), 400, DETAILS,
         "exchange.details"),
    Case("no location", files([detail_entry(locations=[])]), 400, DETAILS, "exchange.details"),
    Case("no action", files([detail_entry(actions=[])]), 400, DETAILS, "exchange.details"),
    Case("action of lower case", files([detail_entry(actions=["get"])]), 400, DETAILS,
         "exchange.details"),
    Case("no identifier", files([detail_entry(identifier="")]), 400, DETAILS, "exchange.details"),
    Case("dot segments", files([detail_entry(path="/files/../x")]), 400, DETAILS,
         "exchange.details"),
    Case("encoded slash", files([detail_entry(path="/files/a%2fb", exact=True)]), 400, DETAILS,
         "exchange.details"),
    Case("query in path", files([detail_entry(path="/files/1?x=1", exact=True)]), 400, DETAILS,
         "exchange.details"),
    Case("pattern said to be exact", files([detail_entry(exact=True)]), 400, DETAILS,
         "exchange.details"),
    Case("another method", files([detail_entry(actions=["DELETE"])]), 400, DETAILS,
         "grant.condition"),
    Case("one method too many", files([detail_entry(actions=["GET", "DELETE"])]), 400, DETAILS,
         "grant.condition"),
    Case("another path", files([detail_entry(path="/admin", exact=True)]), 400, DETAILS,
         "grant.condition"),
    Case("a wider pattern", files([detail_entry(path="/files/{rest*}")]), 400, DETAILS,
         "grant.condition"),
    Case("one detail of two is not covered",
         files([detail_entry(), detail_entry(path="/admin")]), 400, DETAILS, "grant.condition"),
]  # fmt: skip

CASES = [
    *FORM_CASES, *CLIENT_CASES, *PROOF_CASES, *TOKEN_CASES, *TARGET_CASES, *DETAILS_CASES,
]  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    root: Path = tmp_path_factory.mktemp("broker")
    async with serving(World(root, free_url())) as served:
        yield served


async def test_the_table_is_large_and_has_no_name_twice() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_wrong_input(broker: Served, case: Case) -> None:
    world = broker.world
    nonce = await broker.nonce()
    status, body, headers = await broker.post(
        case.form(world), path=case.path, proofs=case.proofs(world, nonce), headers=case.headers
    )
    assert (status, body["error"], body["code"]) == (case.status, case.error, case.code)
    assert "access_token" not in body
    code = codes.by_name(case.code)
    assert code is not None
    assert body["error_description"] == description(code)
    assert headers["Cache-Control"] == "no-store"
    assert headers["Content-Type"] == "application/json"
    if case.error == "use_dpop_nonce":
        assert headers["DPoP-Nonce"] == nonce


async def test_every_case_is_one_change_away_from_a_token(broker: Served) -> None:
    """The forms that the table spoils are good ones: else every case would pass for nothing."""
    world = broker.world
    good = [
        bot()(world),
        user()(world),
        files([detail_entry()])(world),
        bot(audience=PAYMENTS, scope="payments:read")(world),
        bot(resource=TICKETS + "/api")(world),
        bot(client_id=BOT)(world),
        user({"may_act": {"sub": BOT, "iss": IDP}})(world),
    ]
    for form in good:
        status, body, _ = await broker.exchange(form)
        assert status == 200, body
    status, body, _ = await broker.post(assertion()(world))
    assert (status, body["sub"]) == (200, SELF_SIGNED)


async def test_answers_hold_nothing_of_the_request(broker: Served) -> None:
    canary = base64.urlsafe_b64encode(b"canary-canary-canary").decode()
    world = broker.world
    for form in (
        world.form(f"{canary}.{canary}.{canary}"),
        world.form(world.workload(), subject_token=f"{canary}.{canary}.{canary}"),
        world.form(world.workload(), scope=canary),
        world.form(world.workload(), audience=canary),
    ):
        _, body, _ = await broker.exchange(form)
        assert canary not in json.dumps(body)


@pytest.mark.parametrize("path", ["/token", "/introspect", "/revoke"])
async def test_other_methods_are_405(broker: Served, path: str) -> None:
    async with broker.client.get(broker.world.url + path) as response:
        assert response.status == 405
        assert (await response.json())["code"] == "service.method_not_allowed"
        assert "POST" in response.headers["Allow"]


async def test_unknown_path_is_404(broker: Served) -> None:
    status, body, _ = await broker.get("/authorize")
    assert (status, json.loads(body)["code"]) == (404, "service.not_found")


async def test_a_chunked_body_has_the_same_cap(broker: Served) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(80):
            yield b"a=" + b"b" * 1022 + b"&"

    async with broker.client.post(
        broker.world.url + "/token",
        data=endless(),
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    ) as response:
        assert response.status == 413
        assert (await response.json())["code"] == "service.too_large"
    assert isinstance(broker.client, aiohttp.ClientSession)
