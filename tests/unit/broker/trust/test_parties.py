"""Who the subject and the actor of an exchange are."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.broker_support import BOT, IDP, SELF_SIGNED, USERS, Issuer
from tests.unit.broker.trust.test_tokens import URL, Setup
from valetkey.broker.core.exchange import Party
from valetkey.broker.core.request import ExchangeRequest
from valetkey.broker.issuers.jwt import OwnToken
from valetkey.broker.trust.clients import Client
from valetkey.broker.trust.parties import PartyResolver
from valetkey.broker.trust.tokens import TokenVerifier
from valetkey.contracts.errors import CallerError
from valetkey.contracts.issuer import IssuerSettings, TrustedIssuers
from valetkey.contracts.oauth import TOKEN_TYPE_ACCESS
from valetkey.contracts.secret import Secret


class Revoked:
    """The question to `trust.standing`, answered from a set: an adapter boundary."""

    def __init__(self, *revoked: str) -> None:
        self.revoked = revoked

    def token_counts(self, token: OwnToken, compact: str) -> bool:
        assert compact
        return token.jti not in self.revoked and token.txn not in self.revoked


@pytest.fixture
async def setup(tmp_path: Path) -> Setup:
    return await asyncio.to_thread(Setup, tmp_path)


async def resolve(
    setup: Setup, own: str, subject: str, actor: str = "", *, revoked: Revoked | None = None,
    verifier: TokenVerifier | None = None,
) -> Any:  # fmt: skip
    verifier = verifier or setup.verifier
    request = ExchangeRequest(
        Secret(subject), Secret(actor), TOKEN_TYPE_ACCESS, "a", "", ("s",), (), ()
    )
    client = Client(await verifier.verify(own, use="workload"), own, "")
    return await resolver(verifier, revoked).resolve(request, client)


def resolver(verifier: TokenVerifier, revoked: Revoked | None = None) -> PartyResolver:
    return PartyResolver(verifier, revoked or Revoked(), issuer=URL, recognise=lambda _: None)


async def test_the_workload_itself(setup: Setup) -> None:
    own = setup.token()
    assert await resolve(setup, own, own) == (Party(IDP, BOT, setup.clock() + 3600), None)


async def test_another_token_of_the_workload_itself(setup: Setup) -> None:
    acting, user = await resolve(setup, setup.token(), setup.token(ttl=50))
    assert (acting.expires, user) == (setup.clock() + 50, None)


async def test_a_user(setup: Setup) -> None:
    own = setup.token(ttl=100)
    alice = setup.token(USERS, "alice", ttl=50, act={"sub": "x"})
    acting, user = await resolve(setup, own, alice, own)
    assert acting == Party(IDP, BOT, setup.clock() + 100)
    assert (user.issuer, user.subject, user.expires) == (USERS, "alice", setup.clock() + 50)
    assert user.claims["act"] == {"sub": "x"}
    assert user.txn == ""


async def test_who_came_by_certificate_may_leave_the_actor_out(setup: Setup) -> None:
    own = await setup.verifier.verify(setup.token(ttl=100), use="workload")
    alice = setup.token(USERS, "alice", ttl=50)
    for compact, good in (("", True), ("a token", False)):
        client = Client(own, compact, "", certificate="x5t")
        request = ExchangeRequest(
            Secret(alice), Secret(""), TOKEN_TYPE_ACCESS, "a", "", ("s",), (), ()
        )
        resolving = resolver(setup.verifier).resolve(request, client)
        if good:
            acting, user = await resolving
            assert (acting, user.subject) == (Party(IDP, BOT, setup.clock() + 100), "alice")
        else:
            with pytest.raises(CallerError, match=r"actor\.mismatch"):
                await resolving


async def test_the_earlier_expiry_of_assertion_and_actor_counts(setup: Setup) -> None:
    acting, _ = await resolve(
        setup, setup.token(ttl=100), setup.token(USERS, "alice"), setup.token(ttl=70)
    )
    assert acting.expires == setup.clock() + 70


@pytest.mark.parametrize(
    ("name", "subject", "actor", "code"),
    [
        ("garbage", lambda _: "x.y.z", lambda _: "", "subject.invalid"),
        ("another workload", lambda s: s.token(IDP, "other"), lambda _: "", "subject.invalid"),
        ("same name, another issuer", lambda s: s.token(SELF_SIGNED, BOT), lambda _: "",
         "subject.invalid"),
        ("expired user", lambda s: s.token(USERS, "alice", ttl=-40), lambda s: s.token(),
         "subject.invalid"),
        ("no actor", lambda s: s.token(USERS, "alice"), lambda _: "", "actor.mismatch"),
        ("garbage as actor", lambda s: s.token(USERS, "alice"), lambda _: "x", "actor.mismatch"),
        ("another actor", lambda s: s.token(USERS, "alice"), lambda s: s.token(IDP, "other"),
         "actor.mismatch"),
        ("actor of the same name, another issuer", lambda s: s.token(USERS, "alice"),
         lambda s: s.token(SELF_SIGNED, BOT), "actor.mismatch"),
        ("a user as actor", lambda s: s.token(USERS, "alice"), lambda s: s.token(USERS, BOT),
         "actor.mismatch"),
        ("actor for itself", lambda s: s.token(), lambda s: s.token(), "actor.mismatch"),
    ],
)  # fmt: skip
async def test_what_is_refused(
    setup: Setup, name: str, subject: Any, actor: Any, code: str
) -> None:
    with pytest.raises(CallerError) as refused:
        await resolve(setup, setup.token(), subject(setup), actor(setup))
    assert refused.value.code.name == code, name


@pytest.mark.parametrize(
    ("name", "claims", "revoked", "code"),
    [
        ("good", {"jti": "j", "txn": "t"}, (), ""),
        ("revoked", {"jti": "j", "txn": "t"}, ("j",), "subject.revoked"),
        ("its transaction revoked", {"jti": "j", "txn": "t"}, ("t",), "subject.revoked"),
        ("no jti", {"txn": "t"}, (), "subject.invalid"),
        ("txn is a number", {"jti": "j", "txn": 1}, (), "subject.invalid"),
    ],
)
async def test_a_token_of_our_own(
    setup: Setup, tmp_path: Path, name: str, claims: dict[str, Any], revoked: Any, code: str
) -> None:
    ours = Issuer(URL)

    def trusted() -> TrustedIssuers:
        file = tmp_path / "ours.json"
        file.write_text(json.dumps(ours.jwks()))
        return TrustedIssuers(
            (
                IssuerSettings(issuer=URL, audience="https://t", use="user", jwks_file=file),
                setup.settings[IDP],
            )
        )

    verifier = TokenVerifier(await asyncio.to_thread(trusted), clock=setup.clock, capacity=10)
    own = setup.token()
    kind = {"typ": "at+jwt"}
    token = ours.token("alice", "https://t", now=setup.clock(), headers=kind, **claims)
    if code:
        with pytest.raises(CallerError) as refused:
            await resolve(setup, own, token, own, revoked=Revoked(*revoked), verifier=verifier)
        assert refused.value.code.name == code, name
    else:
        _, user = await resolve(setup, own, token, own, verifier=verifier)
        assert user.txn == "t"
