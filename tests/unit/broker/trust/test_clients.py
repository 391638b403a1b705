"""Authentication: what is checked, in which order, and what is used up only at the end."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any

import pytest

from tests.integration.broker_support import BOT, IDP, SELF_SIGNED
from tests.unit.broker.trust.test_tokens import URL, Setup
from valetkey.broker.core.form import Form
from valetkey.broker.core.nonces import Nonces
from valetkey.broker.core.replay import ReplayMemory
from valetkey.broker.trust.clients import Client, ClientAuthenticator
from valetkey.contracts import codes
from valetkey.contracts.dpop import ProofKey
from valetkey.contracts.errors import CallerError
from valetkey.contracts.oauth import ASSERTION_JWT_BEARER, ASSERTION_JWT_SPIFFE

ENDPOINT = URL + "/token"


class Assertions:
    """The store's interface over a set: an adapter boundary, where a fake may stand."""

    def __init__(self) -> None:
        self.used: dict[tuple[str, str], float] = {}

    async def use(self, issuer: str, jti: str, *, expires: float) -> bool:
        first = (issuer, jti) not in self.used
        self.used.setdefault((issuer, jti), expires)
        return first


class Door:
    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.assertions = Assertions()
        self.proofs = ReplayMemory(100)
        self.key = ProofKey()
        self.nonces = Nonces(b"n" * 32, replica=b"replica1", alone=False)
        self.clients = ClientAuthenticator(
            setup.verifier, self.assertions, self.proofs, self.nonces, clock=setup.clock
        )

    def assertion(self, **more: Any) -> str:
        return self.setup.token(
            SELF_SIGNED, SELF_SIGNED, **{"ttl": 60, "jti": secrets.token_urlsafe(8), **more}
        )

    def proof(self, nonce: str | None = None, **more: Any) -> str:
        return self.key.proof(
            method="POST",
            url=more.get("url", ENDPOINT),
            jti=secrets.token_urlsafe(8),
            now=int(self.setup.clock()),
            nonce=self.clients.nonce(["any"]) if nonce is None else nonce,
        )

    async def come(self, token: str, *proofs: str, **form: str) -> Client:
        fields = {
            "client_assertion": token,
            "client_assertion_type": ASSERTION_JWT_BEARER,
            **form,
        }
        return await self.clients.authenticate(Form(list(fields.items())), proofs, url=ENDPOINT)

    async def code(self, token: str, *proofs: str, **form: str) -> str:
        try:
            await self.come(token, *proofs, **form)
        except CallerError as error:
            return error.code.name
        return "in"


@pytest.fixture
async def door(tmp_path: Path) -> Door:
    return Door(await asyncio.to_thread(Setup, tmp_path))


async def test_a_reusable_token_with_a_proof(door: Door) -> None:
    token = door.setup.token()
    client = await door.come(token, door.proof())
    assert client.proof == door.key.thumbprint
    assert (client.assertion.claims.issuer, client.assertion.claims.subject) == (IDP, BOT)
    assert await door.code(token, door.proof()) == "in", "it may be presented again"
    assert door.assertions.used == {}
    assert token not in repr(client)


async def test_a_self_signed_assertion(door: Door) -> None:
    token = door.assertion()
    client = await door.come(token)
    assert client.proof == ""
    assert await door.code(token) == "actor.replayed"
    ((_, expires),) = door.assertions.used.items()
    assert expires == door.setup.clock() + 90, "as long as the leeway lets it count"


SPIFFE = {"client_assertion_type": ASSERTION_JWT_SPIFFE}


async def test_a_jwt_svid(door: Door) -> None:
    token = door.setup.svid()
    client = await door.come(token, door.proof(), **SPIFFE)
    assert (client.assertion.claims.issuer, client.assertion.claims.subject) == (
        door.setup.domain.name,
        door.setup.domain.workload(),
    )
    assert await door.code(token, door.proof(), **SPIFFE) == "in", "good until it expires"


@pytest.mark.parametrize(
    ("name", "token", "proofs", "form", "code"),
    [
        ("its own client_id", lambda d: d.setup.svid(), 1,
         {**SPIFFE, "client_id": "spiffe://acme.example/ns/agents/sa/bot"}, "in"),
        ("another client_id", lambda d: d.setup.svid(), 1,
         {**SPIFFE, "client_id": "spiffe://acme.example/ns/agents/sa/other"}, "actor.invalid"),
        ("the trust domain as client_id", lambda d: d.setup.svid(), 1,
         {**SPIFFE, "client_id": "spiffe://acme.example"}, "actor.invalid"),
        ("no proof", lambda d: d.setup.svid(), 0, SPIFFE, "dpop.missing"),
        ("an SVID as jwt-bearer", lambda d: d.setup.svid(), 1, {}, "actor.invalid"),
        ("another token as jwt-spiffe", lambda d: d.setup.token(), 1, SPIFFE, "actor.invalid"),
        ("an assertion as jwt-spiffe", lambda d: d.assertion(), 1, SPIFFE, "actor.invalid"),
        ("an expired one", lambda d: d.setup.svid(ttl=-31), 1, SPIFFE, "actor.invalid"),
        ("of another domain", lambda d: d.setup.svid(sub="spiffe://other.example/x"), 1, SPIFFE,
         "actor.invalid"),
    ],
)  # fmt: skip
async def test_jwt_svids(
    door: Door, name: str, token: Any, proofs: int, form: dict[str, str], code: str
) -> None:
    given = [door.proof() for _ in range(proofs)]
    assert await door.code(token(door), *given, **form) == code, name


@pytest.mark.parametrize(
    ("name", "token", "proofs", "form", "code"),
    [
        ("no assertion", lambda _: "", (), {}, "service.unauthenticated"),
        ("another type", lambda d: d.assertion(), (), {"client_assertion_type": "x"},
         "service.unauthenticated"),
        ("a secret too", lambda d: d.assertion(), (), {"client_secret": "s"},
         "service.unauthenticated"),
        ("its own client_id", lambda d: d.assertion(), (), {"client_id": SELF_SIGNED}, "in"),
        ("another client_id", lambda d: d.assertion(), (), {"client_id": BOT}, "actor.invalid"),
        ("no proof", lambda d: d.setup.token(), (), {}, "dpop.missing"),
        ("no nonce", lambda d: d.setup.token(), (lambda d: d.proof(""),), {}, "dpop.nonce"),
        ("two proofs", lambda d: d.setup.token(), (lambda d: d.proof(), lambda d: d.proof()), {},
         "dpop.invalid"),
        ("proof for another endpoint", lambda d: d.setup.token(),
         (lambda d: d.proof(url=URL + "/revoke"),), {}, "dpop.invalid"),
        ("60 seconds", lambda d: d.assertion(ttl=60), (), {}, "in"),
        ("61 seconds", lambda d: d.assertion(ttl=61), (), {}, "actor.invalid"),
        ("no iat, near exp", lambda d: d.assertion(drop=["iat"]), (), {}, "in"),
        ("no iat, far exp", lambda d: d.assertion(drop=["iat"], ttl=61), (), {}, "actor.invalid"),
        ("iat is true", lambda d: d.assertion(iat=True), (), {}, "actor.invalid"),
        ("no jti", lambda d: d.assertion(drop=["jti"]), (), {}, "actor.invalid"),
        ("long jti", lambda d: d.assertion(jti="j" * 257), (), {}, "actor.invalid"),
        ("a bad proof beside a good assertion", lambda d: d.assertion(), (lambda _: "x",), {},
         "dpop.invalid"),
    ],
)  # fmt: skip
async def test_who_gets_in(
    door: Door, name: str, token: Any, proofs: Any, form: dict[str, str], code: str
) -> None:
    got = await door.code(token(door), *(proof(door) for proof in proofs), **form)
    assert got == code, name


@pytest.mark.parametrize(
    ("name", "cnf", "proved", "code"),
    [
        ("its key", lambda d: {"jkt": d.key.thumbprint}, True, "in"),
        ("another key", lambda _: {"jkt": ProofKey().thumbprint}, True, "actor.invalid"),
        ("no proof", lambda d: {"jkt": d.key.thumbprint}, False, "actor.invalid"),
        ("a certificate", lambda _: {"x5t#S256": "x"}, True, "actor.invalid"),
        ("its key and a certificate", lambda d: {"jkt": d.key.thumbprint, "x5t#S256": "x"}, True,
         "actor.invalid"),
        ("what nobody knows", lambda d: {"jkt": d.key.thumbprint, "kid": "x"}, True,
         "actor.invalid"),
        ("nothing", lambda _: {}, True, "actor.invalid"),
        ("no object", lambda d: d.key.thumbprint, True, "actor.invalid"),
    ],
)  # fmt: skip
async def test_a_token_that_is_bound(
    door: Door, name: str, cnf: Any, proved: bool, code: str
) -> None:
    """RFC 7800 §3.1: only with what it is bound to, in a form and alone; also self-signed."""
    proofs = [door.proof()] if proved else []
    assert await door.code(door.assertion(cnf=cnf(door)), *proofs) == code, name
    if code != "in":
        assert (door.assertions.used, len(door.proofs)) == ({}, 0), name
    proofs = [door.proof()] if proved else []
    got = "in"
    try:
        await door.clients.authenticate_bearer(
            door.setup.token(cnf=cnf(door)),
            proofs,
            method="POST",
            url=ENDPOINT,
            unbound=lambda *_: True,
        )
    except CallerError as error:
        got = error.code.name
    assert got == code, name


async def test_nothing_is_used_up_by_a_refusal(door: Door) -> None:
    token, proof = door.assertion(), door.proof()
    assert await door.code(token, door.proof("")) == "dpop.nonce"
    assert await door.code(token, "x") == "dpop.invalid"
    assert await door.code(token, proof, client_id="other") == "actor.invalid"
    assert (door.assertions.used, len(door.proofs)) == ({}, 0)
    assert await door.code(token, proof) == "in"


async def test_a_proof_of_two_keys_may_have_the_same_jti(door: Door) -> None:
    """`jti` is unique per key: another client's choice does not lock this one out."""
    other = ProofKey()
    token = door.setup.token()
    for key in (door.key, other):
        proof = key.proof(
            method="POST",
            url=ENDPOINT,
            jti="same",
            now=int(door.setup.clock()),
            nonce=door.clients.nonce(["any"]),
        )
        assert await door.code(token, proof) == "in"
        assert await door.code(token, proof) == "dpop.replayed"


@pytest.mark.parametrize(
    ("name", "proofs", "code", "expected"),
    [
        ("no proof", (), None, False),
        ("a proof", ("p",), None, True),
        ("refused for another reason", (), codes.GRANT_SCOPE, False),
        ("refused for another reason, with a proof", ("p",), codes.GRANT_SCOPE, True),
        ("refused for want of a proof", (), codes.DPOP_MISSING, True),
    ],
)
async def test_where_a_nonce_is_sent(
    door: Door, name: str, proofs: Any, code: Any, expected: bool
) -> None:
    assert bool(door.clients.nonce(proofs, code)) is expected, name
