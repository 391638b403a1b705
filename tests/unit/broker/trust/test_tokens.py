"""Verified once, remembered shortly: by the token, for its use, never past its expiry."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.broker_support import BOT, IDP, SELF_SIGNED, USERS, Clock, Issuer
from tests.support.trust_domain import TrustDomain
from valetkey.broker.trust.kinds import KINDS
from valetkey.broker.trust.tokens import TokenVerifier
from valetkey.contracts.issuer import REMEMBERED, IssuerSettings, TrustedIssuers
from valetkey.contracts.jose import LEEWAY, TokenInvalid

URL = "https://broker.example"


class Setup:
    def __init__(self, root: Path) -> None:
        self.clock = Clock(1_800_000_000)
        self.issuers = {name: Issuer(name) for name in (IDP, USERS, SELF_SIGNED)}
        self.settings: dict[str, IssuerSettings] = {}
        for number, (name, issuer) in enumerate(self.issuers.items()):
            file = root / f"{number}.json"
            file.write_text(json.dumps(issuer.jwks()))
            self.settings[name] = IssuerSettings(
                issuer=name,
                audience=URL,
                use="user" if name == USERS else "workload",
                jwks_file=file,
                reusable=name == IDP,
            )
        self.domain = TrustDomain()
        self.settings[self.domain.name] = IssuerSettings(
            issuer=self.domain.name,
            kind="spiffe",
            audience=URL,
            use="workload",
            jwks_file=self.domain.write(root / "bundle.json"),
        )
        trusted = TrustedIssuers(tuple(self.settings.values()), kinds=KINDS)
        self.verifier = TokenVerifier(trusted, clock=self.clock, capacity=10)

    def token(self, issuer: str = IDP, subject: str = BOT, **more: Any) -> str:
        return self.issuers[issuer].token(subject, URL, now=self.clock(), **more)

    def svid(self, **more: Any) -> str:
        return self.domain.jwt_svid([URL], now=self.clock(), **more)


@pytest.fixture
async def setup(tmp_path: Path) -> Setup:
    return await asyncio.to_thread(Setup, tmp_path)


async def test_verified_claims_and_settings(setup: Setup) -> None:
    token = await setup.verifier.verify(setup.token(), use="workload")
    assert (token.claims.issuer, token.claims.subject) == (IDP, BOT)
    assert token.issuer.reusable
    assert token.expires == setup.clock() + 3600


@pytest.mark.parametrize(
    ("issuer", "use", "good"),
    [
        (IDP, "workload", True),
        (IDP, "user", False),
        (IDP, None, True),
        (USERS, "user", True),
        (USERS, "workload", False),
        (USERS, None, True),
        (SELF_SIGNED, "workload", True),
        (SELF_SIGNED, "user", False),
    ],
)
async def test_an_issuer_counts_for_one_use(
    setup: Setup, issuer: str, use: Any, good: bool
) -> None:
    token = setup.token(issuer)
    # Twice: the answer from memory is the answer of the first time.
    for _ in range(2):
        if good:
            assert (await setup.verifier.verify(token, use=use)).claims.issuer == issuer
        else:
            with pytest.raises(TokenInvalid, match="not trusted for"):
                await setup.verifier.verify(token, use=use)


async def test_what_is_remembered_for_one_use_is_not_good_for_the_other(setup: Setup) -> None:
    token = setup.token()
    await setup.verifier.verify(token, use="workload")
    with pytest.raises(TokenInvalid, match="not trusted for user"):
        await setup.verifier.verify(token, use="user")


@pytest.mark.parametrize(
    ("name", "issuer", "remembered"),
    [("reusable", IDP, True), ("user", USERS, True), ("self-signed", SELF_SIGNED, False)],
)
async def test_who_is_remembered(setup: Setup, name: str, issuer: str, remembered: bool) -> None:
    use: Any = "user" if issuer == USERS else "workload"
    token = setup.token(issuer)
    first = await setup.verifier.verify(token, use=use)
    assert (await setup.verifier.verify(token, use=use) is first) is remembered


async def test_remembered_for_a_minute(setup: Setup) -> None:
    token = setup.token()
    first = await setup.verifier.verify(token, use="workload")
    setup.clock.advance(REMEMBERED - 1)
    assert await setup.verifier.verify(token, use="workload") is first
    setup.clock.advance(2)
    assert await setup.verifier.verify(token, use="workload") is not first


async def test_not_remembered_past_its_expiry(setup: Setup) -> None:
    token = setup.token(ttl=10)
    await setup.verifier.verify(token, use="workload")
    setup.clock.advance(10 + LEEWAY)
    with pytest.raises(TokenInvalid, match="expired"):
        await setup.verifier.verify(token, use="workload")


async def test_a_changed_token_is_not_the_remembered_one(setup: Setup) -> None:
    token = setup.token()
    await setup.verifier.verify(token, use="workload")
    head, payload, signature = token.split(".")
    for changed in (
        f"{head}.{payload}.{signature[:-4]}AAAA",
        f"{head}.{payload}.{signature}=",
        f" {token}",
    ):
        with pytest.raises(TokenInvalid):
            await setup.verifier.verify(changed, use="workload")


async def test_too_long_a_token_is_not_even_hashed(setup: Setup) -> None:
    with pytest.raises(TokenInvalid, match="longer than any"):
        await setup.verifier.verify("x" * 20_000, use=None)


async def test_same_party(setup: Setup) -> None:
    async def verified(issuer: str, subject: str, **more: Any) -> Any:
        return await setup.verifier.verify(setup.token(issuer, subject, **more), use="workload")

    one = await verified(IDP, "a")
    assert one.is_same_party(await verified(IDP, "a", jti="another token"))
    assert not one.is_same_party(await verified(IDP, "b"))
    assert not one.is_same_party(await verified(SELF_SIGNED, "a"))
