"""What each OAuth standard demands to be refused, sent to a broker exactly so.

One case per demand, named by its document, so that a list of the tests is a list of what was tried.
Demands whose other side is not the broker, or that need servers of their own, are cases elsewhere:

- RFC 8705 (mTLS): ``test_broker_mtls.py``.
- RFC 9449 §7.1, a bound token sent as Bearer: the sidecar sends none (``tests/unit/proxy/
  credentials/test_exchange.py``, "a bound token, called bearer"); a resource server learns from
  introspection that it is bound (here).
- RFC 7517, unknown ``kid``, empty sets: ``test_broker_issuer_keys.py``.
- Token Status List, no list to be had: the verifier's to refuse (``docs/how-to/status-lists.md``);
  what the broker answers then is in ``test_broker_status_list.py``.
- Transaction tokens outside their domain: ``test_sidecar_transactions.py``.
- Mutated tokens and proofs of any kind: ``test_broker_mutations.py``.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import pytest
import pytest_asyncio
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.integration.broker_support import (
    BOT,
    FILES,
    IDP,
    PAYMENTS,
    READER,
    SELF_SIGNED,
    TICKETS,
    Issuer,
    Served,
    World,
    details,
    serving,
)
from tests.support.ports import free_url
from valetkey.contracts import es256, oauth
from valetkey.contracts.jose import b64url

pytestmark = pytest.mark.asyncio(loop_scope="module")

Sent = Awaitable[tuple[int, dict[str, Any]]]


@dataclass(frozen=True)
class Vector:
    """One thing to refuse. ``send`` gives status and body of the answer."""

    name: str
    send: Callable[[Refusing], Sent]
    error: str
    status: int = 400


@dataclass
class Refusing:
    """A broker, and an attacker's server that nobody may ask anything."""

    served: Served
    attacker: str
    asked: list[str]

    @property
    def world(self) -> World:
        return self.served.world

    async def exchange(self, **changes: Any) -> tuple[int, dict[str, Any]]:
        """A good exchange of the bot's for itself, but for the changes."""
        status, body, _ = await self.served.exchange(
            self.world.form(self.world.workload(), **changes)
        )
        return status, body

    async def for_user(self, user: str, **changes: Any) -> tuple[int, dict[str, Any]]:
        form = self.world.user_form(self.world.workload(), user, **changes)
        status, body, _ = await self.served.exchange(form)
        return status, body

    async def subject(self, token: str) -> tuple[int, dict[str, Any]]:
        return await self.for_user(token)

    async def assertion(self, token: str, **changes: Any) -> tuple[int, dict[str, Any]]:
        """Self-signed, without a proof: the assertion alone authenticates."""
        form = self.world.form(token, subject_token=self.world.assertion(), **changes)
        status, body, _ = await self.served.post(form)
        return status, body

    async def proofs(self, *proofs: str) -> tuple[int, dict[str, Any]]:
        form = self.world.form(self.world.workload())
        status, body, _ = await self.served.post(form, proofs=proofs)
        return status, body

    async def proof(self, **changes: Any) -> tuple[int, dict[str, Any]]:
        return await self.proofs(self.world.proof(nonce=await self.served.nonce(), **changes))

    async def signed_proof(
        self, header: dict[str, Any], key: Any = None, algorithm: str = "ES256"
    ) -> tuple[int, dict[str, Any]]:
        """A proof signed here, whose header is as it should be but for the changes."""
        own = ec.generate_private_key(ec.SECP256R1())
        public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(own.public_key()))
        claims = {
            "jti": b64url(hashlib.sha256(str(time.time_ns()).encode()).digest()),
            "htm": "POST",
            "htu": self.world.url + "/token",
            "iat": int(self.world.clock()),
            "nonce": await self.served.nonce(),
        }
        full = {"typ": "dpop+jwt", "jwk": public, **header}
        if header.get("jwk") == "private":
            full["jwk"] = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(own))
        return await self.proofs(jwt.encode(claims, key or own, algorithm, headers=full))

    async def ask(self, token: str, form: Any = None, **caller: Any) -> tuple[int, dict[str, Any]]:
        """Introspection by the resource server of tickets."""
        question = form or {
            "token": token,
            "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
            "client_assertion": self.world.workload(caller.get("by", READER)),
        }
        status, body, _ = await self.served.exchange(question, path="/introspect")
        return status, body

    async def issued(self) -> str:
        status, body = await self.exchange()
        assert status == 200, body
        return str(body["access_token"])

    async def reissued(self, typ: str, **claims: Any) -> str:
        """A token of the broker's, written anew and signed with the broker's own key, as it signs."""
        said = jwt.decode(await self.issued(), options={"verify_signature": False})
        key = self.served.broker.base.ring.signer()
        headers = {"alg": "ES256", "typ": typ, "kid": key.times.kid}
        segments = (b64url(json.dumps(part).encode()) for part in (headers, said | claims))
        return es256.sign(key.private, ".".join(segments).encode())


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def refusing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Refusing]:
    asked: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({"keys": []})

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    attacker = f"http://127.0.0.1:{runner.addresses[0][1]}"
    world = World(tmp_path_factory.mktemp("refusals"), free_url())
    try:
        async with serving(world) as served:
            yield Refusing(served, attacker, asked)
    finally:
        await runner.cleanup()


def json_serialised(token: str) -> str:
    header, payload, signature = token.split(".")
    return json.dumps({"protected": header, "payload": payload, "signature": signature})


def unsigned(token: str, algorithm: str) -> str:
    """The same claims under ``alg: none``, in that spelling, with the signature left out."""
    payload = token.split(".")[1]
    return f"{b64url(json.dumps({'alg': algorithm, 'kid': 'k1'}).encode())}.{payload}."


def signed_with_public_key(issuer: Issuer, token: str) -> str:
    """HS256 with the PEM of the public key as its secret (RFC 8725 §2.1)."""
    pem = issuer.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    header = b64url(json.dumps({"alg": "HS256", "kid": issuer.kid}).encode())
    signing_input = f"{header}.{token.split('.')[1]}"
    signature = hmac.digest(pem, signing_input.encode(), "sha256")
    return f"{signing_input}.{b64url(signature)}"


def pbes2(iterations: int = 2_000_000_000) -> str:
    """A JWE whose key derivation would take an hour (RFC 8725bis)."""
    header = {"alg": "PBES2-HS256+A128KW", "enc": "A128GCM", "p2c": iterations, "p2s": "c2FsdA"}
    return ".".join([b64url(json.dumps(header).encode()), *["AAAA"] * 4])


def user(v: Refusing, **more: Any) -> str:
    return v.world.user("alice", **more)


async def replayed_assertion(v: Refusing) -> tuple[int, dict[str, Any]]:
    token = v.world.assertion()
    assert (await v.assertion(token))[0] == 200
    return await v.assertion(token)


async def replayed_proof(v: Refusing) -> tuple[int, dict[str, Any]]:
    proof = v.world.proof(nonce=await v.served.nonce())
    assert (await v.proofs(proof))[0] == 200
    return await v.proofs(proof)


async def inner_actor(v: Refusing) -> tuple[int, dict[str, Any]]:
    """The bot once acted for alice; that gives whoever acts now none of the bot's grants."""
    world = v.world
    token = world.workload("spiffe://demo.example/ns/agents/sa/other")
    subject = user(v, act={"sub": BOT, "iss": IDP})
    status, body, _ = await v.served.exchange(world.user_form(token, subject))
    return status, body


async def refresh_tokens(v: Refusing) -> tuple[int, dict[str, Any]]:
    _, issued = await v.exchange()
    assert "refresh_token" not in issued
    return await v.exchange(requested_token_type="urn:ietf:params:oauth:token-type:refresh_token")


async def unknown_to_revoke(v: Refusing) -> tuple[int, dict[str, Any]]:
    form = {
        "token": "unknown",
        "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
        "client_assertion": v.world.workload(),
    }
    status, body, _ = await v.served.exchange(form, path="/revoke")
    return status, body


async def bound_is_told(v: Refusing) -> tuple[int, dict[str, Any]]:
    """A bound token: introspection says to what, so that it is not taken as Bearer."""
    _, body = await v.exchange(audience=PAYMENTS, scope="payments:read")
    status, told = await v.ask(body["access_token"], by=BOT)
    assert told["token_type"] == "DPoP"
    assert told["cnf"]["jkt"]
    return status, {}


async def attackers_issuer(v: Refusing) -> tuple[int, dict[str, Any]]:
    """Neither keys nor metadata are fetched from where a token says they are."""
    forged = Issuer(v.attacker)
    return await v.subject(forged.token("alice", v.world.url, now=v.world.clock()))


async def metadata_of_another(v: Refusing) -> tuple[int, dict[str, Any]]:
    """Under whatever Host it is asked for, the document names its own issuer (RFC 8414 §3.3)."""
    url = v.world.url + "/.well-known/oauth-authorization-server"
    async with v.served.client.get(url, headers={"Host": "attacker.example"}) as answer:
        document = await answer.json()
    assert document["issuer"] == v.world.url
    assert all("attacker" not in str(value) for value in document.values())
    return answer.status, {}


def key_hint(name: str, value: Callable[[Refusing], Any]) -> Callable[[Refusing], Sent]:
    return lambda v: v.subject(user(v, headers={name: value(v)}))


async def _two_proofs(v: Refusing) -> tuple[int, dict[str, Any]]:
    nonce = await v.served.nonce()
    return await v.proofs(v.world.proof(nonce=nonce), v.world.proof(nonce=nonce))


async def _two(v: Refusing, name: str, value: str) -> tuple[int, dict[str, Any]]:
    form = list(v.world.form(v.world.workload(), resource=TICKETS).items())
    proof = v.world.proof(nonce=await v.served.nonce())
    status, body, _ = await v.served.post([*form, (name, value)], proofs=[proof])
    return status, body


async def _active(v: Refusing) -> tuple[int, dict[str, Any]]:
    for token in (await v.issued(), await v.reissued("at+jwt")):
        status, body = await v.ask(token)
        assert body["active"] is True
    return status, {}


async def _inactive(v: Refusing, token: Awaitable[str]) -> tuple[int, dict[str, Any]]:
    status, body = await v.ask(await token)
    assert body == {"active": False}
    return status, {}


async def _text(text: str) -> str:
    return text


async def _none(v: Refusing) -> str:
    return unsigned(await v.issued(), "none") + base64.urlsafe_b64encode(b"x").decode()[:2]


async def _strangers(v: Refusing) -> tuple[int, dict[str, Any]]:
    status, body = await v.ask(await v.issued(), by="spiffe://demo.example/ns/x/sa/x")
    assert body == {"active": False}
    return status, {}


async def _revoke_unasked(v: Refusing) -> tuple[int, dict[str, Any]]:
    status, body, _ = await v.served.exchange({"token": "x"}, path="/revoke")
    return status, body


async def _wit(v: Refusing) -> tuple[int, dict[str, Any]]:
    """A WIT names a key and no audience: without its proof it is nobody's to present."""
    key = v.world.own.jwks()["keys"][0]
    token = v.world.own.token(
        SELF_SIGNED, None, now=v.world.clock(), ttl=60, jti="w", drop=["aud"],
        headers={"typ": "wit+jwt"}, cnf={"jwk": key},
    )  # fmt: skip
    return await v.assertion(token)


INVALID, CLIENT, PROOF = "invalid_request", "invalid_client", "invalid_dpop_proof"
ACCESS = oauth.TOKEN_TYPE_ACCESS

VECTORS = [
    # --- RFC 8693
    Vector("RFC 8693 §2.1: actor_token_type without actor_token",
           lambda v: v.exchange(actor_token_type=oauth.TOKEN_TYPE_JWT), INVALID),
    Vector("RFC 8693 §2.1: actor_token without actor_token_type",
           lambda v: v.for_user(user(v), actor_token_type=None), INVALID),
    Vector("RFC 8693 §2.1: no subject_token", lambda v: v.exchange(subject_token=None), INVALID),
    Vector("RFC 8693 §2.1: no subject_token_type",
           lambda v: v.exchange(subject_token_type=None), INVALID),
    Vector("RFC 8693 §2.2.2: a subject token that does not hold",
           lambda v: v.subject(user(v)[:-8] + "AAAAAAAA"), INVALID),
    Vector("RFC 8693 §2.2.2: an actor token that does not hold",
           lambda v: v.for_user(user(v), actor_token="x.y.z"), INVALID),
    Vector("RFC 8693 §2.2.2: a target that is not allowed",
           lambda v: v.exchange(audience="https://nowhere.example"), "invalid_target"),
    Vector("RFC 8693 §4.4: an actor outside may_act",
           lambda v: v.subject(user(v, may_act={"sub": "somebody-else"})), INVALID),
    Vector("RFC 8693 §4.1: an inner act decides nothing", inner_actor, "invalid_target"),
    Vector("RFC 8693 §2.2.1: a refresh token", refresh_tokens, INVALID),
    # --- RFC 9449
    Vector("RFC 9449 §4.3: more than one DPoP header", _two_proofs, PROOF),
    Vector("RFC 9449 §4.3: a private key in jwk",
           lambda v: v.signed_proof({"jwk": "private"}), PROOF),
    Vector("RFC 9449 §4.3: another typ", lambda v: v.signed_proof({"typ": "jwt"}), PROOF),
    Vector("RFC 9449 §4.3: a symmetric alg",
           lambda v: v.signed_proof({}, "0123456789abcdef" * 4, "HS256"), PROOF),
    Vector("RFC 9449 §4.3: another method", lambda v: v.proof(method="GET"), PROOF),
    Vector("RFC 9449 §4.3: another URL", lambda v: v.proof(path="/introspect"), PROOF),
    Vector("RFC 9449 §4.3: a stale iat",
           lambda v: v.proof(now=int(v.world.clock()) - 3600), PROOF),
    Vector("RFC 9449 §4.3: an iat to come",
           lambda v: v.proof(now=int(v.world.clock()) + 3600), PROOF),
    Vector("RFC 9449 §11.1: a jti used before", replayed_proof, PROOF),
    Vector("RFC 9449 §8: without a nonce", lambda v: v.proofs(v.world.proof()), "use_dpop_nonce"),
    Vector("RFC 9449 §9: somebody else's nonce",
           lambda v: v.proofs(v.world.proof(nonce="made-up")), "use_dpop_nonce"),
    Vector("RFC 9449 §5: a bound target without a proof",
           lambda v: v.assertion(v.world.assertion(), audience=PAYMENTS, scope="payments:read"),
           PROOF),
    Vector("RFC 9449 §6.2: bound is told as bound", bound_is_told, "", 200),
    # --- RFC 9396
    Vector("RFC 9396 §5: an unknown type", lambda v: v.exchange(
        authorization_details=details("/a", "GET", audience=TICKETS, type="payment")),
        "invalid_authorization_details"),
    Vector("RFC 9396 §5: an unknown field", lambda v: v.exchange(
        authorization_details=details("/a", "GET", audience=TICKETS, amount=1)),
        "invalid_authorization_details"),
    Vector("RFC 9396 §5: no type", lambda v: v.exchange(
        authorization_details=details("/a", "GET", audience=TICKETS, type=None)),
        "invalid_authorization_details"),
    Vector("RFC 9396 §5: of another target", lambda v: v.exchange(
        authorization_details=details("/a", "GET", audience=FILES)),
        "invalid_authorization_details"),
    # --- RFC 8707
    Vector("RFC 8707 §2: a fragment",
           lambda v: v.exchange(resource=TICKETS + "#a"), "invalid_target"),
    Vector("RFC 8707 §2: an empty fragment",
           lambda v: v.exchange(resource=TICKETS + "#"), "invalid_target"),
    Vector("RFC 8707 §2: a relative URI", lambda v: v.exchange(resource="/api"), "invalid_target"),
    Vector("RFC 8707 §2: another's resource",
           lambda v: v.exchange(resource=FILES), "invalid_target"),
    Vector("RFC 8707: two resources", lambda v: _two(v, "resource", TICKETS), "invalid_target"),
    Vector("RFC 8707: two audiences", lambda v: _two(v, "audience", FILES), "invalid_target"),
    # --- RFC 9068, as the broker reads its own
    Vector("RFC 9068 §4: the token itself is active", _active, "", 200),
    Vector("RFC 9068 §4: another typ", lambda v: _inactive(v, v.reissued("JWT")), "", 200),
    Vector("RFC 9068 §4: another issuer",
           lambda v: _inactive(v, v.reissued("at+jwt", iss="https://x")), "", 200),
    Vector("RFC 9068 §4: expired",
           lambda v: _inactive(v, v.reissued("at+jwt", exp=int(v.world.clock()) - 1)), "", 200),
    Vector("RFC 9068 §4: alg none", lambda v: _inactive(v, _none(v)), "", 200),
    Vector("RFC 9068 §4: another aud",
           lambda v: _inactive(v, v.reissued("at+jwt", aud=FILES)), "", 200),
    # --- RFC 7523 and its update
    Vector("RFC 7523bis §4: aud as a list",
           lambda v: v.assertion(v.world.assertion(aud=[v.world.url])), CLIENT, 401),
    Vector("RFC 7523bis §4: aud is the token endpoint",
           lambda v: v.assertion(v.world.assertion(aud=v.world.url + "/token")), CLIENT, 401),
    Vector("RFC 7523bis §4: aud has a slash more",
           lambda v: v.assertion(v.world.assertion(aud=v.world.url + "/")), CLIENT, 401),
    Vector("RFC 7523 §3: longer than 60 s",
           lambda v: v.assertion(v.world.assertion(ttl=61)), CLIENT, 401),
    Vector("RFC 7523 §3: no exp",
           lambda v: v.assertion(v.world.assertion(drop=["exp"])), CLIENT, 401),
    Vector("RFC 7523 §3: no jti", lambda v: v.assertion(v.world.assertion(jti="")), CLIENT, 401),
    Vector("RFC 7523 §3: a jti used before", replayed_assertion, CLIENT, 401),
    Vector("RFC 7521 §4.2: a client_id that contradicts",
           lambda v: v.assertion(v.world.assertion(), client_id=BOT), CLIENT, 401),
    Vector("RFC 6749 §2.3: two ways to authenticate",
           lambda v: v.assertion(v.world.assertion(), client_secret="x"), CLIENT, 401),
    # --- RFC 7662, RFC 7009
    Vector("RFC 7662 §2.1: an unauthenticated caller",
           lambda v: v.ask("", {"token": "x"}), CLIENT, 401),
    Vector("RFC 7662 §2.2: unknown is inactive and no more",
           lambda v: _inactive(v, _text("unknown")), "", 200),
    Vector("RFC 7662 §4: whose business it is not", _strangers, "", 200),
    Vector("RFC 7009 §2.2: unknown to revoke is fine", unknown_to_revoke, "", 200),
    Vector("RFC 7009 §2.1: an unauthenticated caller", _revoke_unasked, CLIENT, 401),
    # --- RFC 8414, RFC 9728
    Vector("RFC 8414 §3.3: no issuer but its own", metadata_of_another, "", 200),
    Vector("RFC 9728 §7.7: keys from where the token says", attackers_issuer, INVALID),
    # --- RFC 7517, RFC 8725
    Vector("RFC 7517: jku", key_hint("jku", lambda v: v.attacker + "/jwks"), INVALID),
    Vector("RFC 7517: x5u", key_hint("x5u", lambda v: v.attacker + "/cert"), INVALID),
    Vector("RFC 7517: x5c", key_hint("x5c", lambda v: ["AAAA"]), INVALID),
    Vector("RFC 7517: jwk", key_hint("jwk", lambda v: v.world.users.jwks()["keys"][0]), INVALID),
    Vector("RFC 7515 §4.1.11: crit", key_hint("crit", lambda v: ["exp"]), INVALID),
    *(Vector(f"RFC 8725 §3.2: alg {alg}",
             lambda v, alg=alg: v.subject(unsigned(user(v), alg)), INVALID)
      for alg in ("none", "None", "NONE", "nOnE", "")),
    Vector("RFC 8725 §2.1: HS256 with the public key",
           lambda v: v.subject(signed_with_public_key(v.world.users, user(v))), INVALID),
    Vector("RFC 8725bis: JSON serialisation",
           lambda v: v.subject(json_serialised(user(v))), INVALID),
    Vector("RFC 8725bis: a PBES2 bomb", lambda v: v.subject(pbes2()), INVALID),
    Vector("RFC 8725bis: longer than any token",
           lambda v: v.subject(user(v, padding="x" * 20_000)), INVALID),
    Vector("RFC 8725 §3.10: signed by another issuer's key",
           lambda v: v.subject(v.world.idp.token("alice", v.world.url, now=v.world.clock(),
                                                 iss=v.world.users.name)), INVALID),
    Vector("RFC 8725 §3.9: for another audience",
           lambda v: v.subject(user(v, aud="https://elsewhere.example")), INVALID),
    # --- WIMSE
    Vector("WIMSE WIT: a WIT as bearer", _wit, CLIENT, 401),
]  # fmt: skip


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
async def test_it_is_refused(refusing: Refusing, vector: Vector) -> None:
    status, body = await vector.send(refusing)
    assert (status, body.get("error", "")) == (vector.status, vector.error), body
    assert "access_token" not in body
    assert refusing.asked == [], "the attacker's server was asked"


async def test_what_is_good_is_not(refusing: Refusing) -> None:
    """The cases differ from these in nothing but what they are named after."""
    assert (await refusing.exchange())[0] == 200
    assert (await refusing.subject(user(refusing)))[0] == 200
    assert (await refusing.assertion(refusing.world.assertion()))[0] == 200
    assert (await refusing.proof())[0] == 200
    assert (await refusing.signed_proof({}))[0] == 200


async def test_every_standard_with_a_demand_is_there() -> None:
    named = {vector.name.partition(":")[0].partition(" §")[0] for vector in VECTORS}
    assert named >= {
        "RFC 8693", "RFC 9449", "RFC 9396", "RFC 8707", "RFC 9068", "RFC 7523", "RFC 7523bis",
        "RFC 7662", "RFC 7009", "RFC 8414", "RFC 9728", "RFC 7517", "RFC 8725", "RFC 8725bis",
        "WIMSE WIT",
    }  # fmt: skip
    here = Path(__file__).parent
    for elsewhere in ("mtls", "issuer_keys", "mutations", "transactions"):
        assert (here / f"test_broker_{elsewhere}.py").exists()
