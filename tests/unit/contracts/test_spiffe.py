"""JWT-SVIDs: by the bundle of their trust domain, for its own workloads, in the one form."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.idp import Idp
from tests.support.trust_domain import TrustDomain
from valetkey.contracts import jose, keys
from valetkey.contracts.issuer import IssuerSettings, TrustedIssuer, TrustedIssuers
from valetkey.contracts.jose import TokenInvalid, VerifiedClaims
from valetkey.contracts.spiffe import SpiffeIssuer

BROKER = "https://broker.example"


class Trust:
    """Two trust domains and an OIDC issuer, all trusted, and one domain that is not."""

    def __init__(self, root: Path) -> None:
        self.acme = TrustDomain("acme.example")
        self.partner = TrustDomain("partner.example")
        self.stranger = TrustDomain("stranger.example")
        self.idp = Idp(root)
        self.file = self.acme.write(root / "acme.json")
        self.issuers = TrustedIssuers(
            (
                self.settings(self.acme, self.file),
                self.settings(self.partner, self.partner.write(root / "partner.json")),
                IssuerSettings(
                    issuer=self.idp.issuer,
                    audience=BROKER,
                    use="workload",
                    jwks_file=self.idp.jwks_file,
                ),
            ),
            kinds={"oidc": TrustedIssuer, "spiffe": SpiffeIssuer},
        )

    @staticmethod
    def settings(domain: TrustDomain, file: Path) -> IssuerSettings:
        return IssuerSettings(
            issuer=domain.name, kind="spiffe", audience=BROKER, use="workload", jwks_file=file
        )

    async def verify(self, token: str) -> VerifiedClaims:
        parsed = jose.parse(token)
        return await self.issuers.find(parsed).verify(parsed, now=time.time())


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    return Trust(tmp_path)


async def test_an_svid_as_spire_writes_it(trust: Trust) -> None:
    verified = await trust.verify(trust.acme.jwt_svid([BROKER]))
    assert (verified.issuer, verified.subject) == (
        "spiffe://acme.example",
        "spiffe://acme.example/ns/agents/sa/bot",
    )


GOOD: dict[str, Callable[[Trust], str]] = {
    "one audience as text": lambda t: t.acme.jwt_svid(BROKER),
    "another trusted domain": lambda t: t.partner.jwt_svid([BROKER]),
    "with an iss that nobody knows": lambda t: t.acme.jwt_svid([BROKER], iss="https://spire"),
    "typ JOSE": lambda t: t.acme.jwt_svid([BROKER], headers={"typ": "JOSE"}),
    "no typ": lambda t: t.acme.jwt_svid([BROKER], headers={"typ": None}),
}
BAD: dict[str, tuple[Callable[[Trust], str], str]] = {
    "another audience": (lambda t: t.acme.jwt_svid(["https://other"]), "aud"),
    "two audiences": (lambda t: t.acme.jwt_svid([BROKER, "https://other"]), "aud"),
    "no audience": (lambda t: t.acme.jwt_svid(None), "aud"),
    "no audience in the list": (lambda t: t.acme.jwt_svid([]), "aud"),
    "expired": (lambda t: t.acme.jwt_svid([BROKER], ttl=-60), "expired"),
    "no expiry": (lambda t: t.acme.jwt_svid([BROKER], exp=None), "exp is missing"),
    "not yet valid": (lambda t: t.acme.jwt_svid([BROKER], nbf=time.time() + 90), "nbf"),
    "a foreign trust domain": (lambda t: t.stranger.jwt_svid([BROKER]), "not trusted"),
    "signed for a neighbour": (
        lambda t: t.partner.jwt_svid([BROKER], sub=t.acme.workload(), iss=t.partner.name),
        "another trust domain",
    ),
    "signed by a neighbour": (
        lambda t: t.partner.jwt_svid([BROKER], sub=t.acme.workload(), headers={"kid": "jwt-1"}),
        "signature",
    ),
    "an OIDC issuer of that name's subject": (
        lambda t: t.idp.mint(t.acme.workload(), BROKER, iss="https://unknown.example"),
        "does not hold",
    ),
    "an ID with a query": (
        lambda t: t.acme.jwt_svid([BROKER], sub=t.acme.workload() + "?x=y"),
        "not trusted",
    ),
    "an ID with a port": (
        lambda t: t.acme.jwt_svid([BROKER], sub="spiffe://acme.example:443/bot"),
        "not trusted",
    ),
    "a trust domain in capitals": (
        lambda t: t.acme.jwt_svid([BROKER], sub="spiffe://Acme.example/bot"),
        "not trusted",
    ),
    "the same, named by iss": (
        lambda t: t.acme.jwt_svid([BROKER], sub="spiffe://Acme.example/bot", iss=t.acme.name),
        "lower-case",
    ),
    "the trust domain itself": (
        lambda t: t.acme.jwt_svid([BROKER], sub=t.acme.name),
        "not a workload",
    ),
    "no subject": (lambda t: t.acme.jwt_svid([BROKER], sub=None), "not trusted"),
    "no subject, named by iss": (
        lambda t: t.acme.jwt_svid([BROKER], sub=None, iss=t.acme.name),
        "sub is missing",
    ),
    "a header too many": (lambda t: t.acme.jwt_svid([BROKER], headers={"cty": "JWT"}), "header"),
    "another typ": (lambda t: t.acme.jwt_svid([BROKER], headers={"typ": "at+jwt"}), "header"),
    "an unknown key": (lambda t: t.acme.jwt_svid([BROKER], headers={"kid": "jwt-9"}), "key"),
}


@pytest.mark.parametrize("token", GOOD.values(), ids=GOOD)
async def test_svids_that_hold(trust: Trust, token: Callable[[Trust], str]) -> None:
    assert (await trust.verify(token(trust))).subject.endswith("/ns/agents/sa/bot")


@pytest.mark.parametrize(("token", "message"), BAD.values(), ids=BAD)
async def test_svids_that_are_refused(
    trust: Trust, token: Callable[[Trust], str], message: str
) -> None:
    with pytest.raises(TokenInvalid, match=message):
        await trust.verify(token(trust))


async def test_an_svid_does_not_verify_under_a_key_for_certificates(trust: Trust) -> None:
    """The bundle's CA key has a `kid` too in some domains; its `use` says that it signs no JWT."""
    bundle = trust.acme.bundle()
    bundle["keys"][0]["kid"] = "ca"
    trust.file.write_text(json.dumps(bundle))
    trust.acme.key = trust.acme.authority.key
    with pytest.raises(TokenInvalid, match="does not hold"):
        await trust.verify(trust.acme.jwt_svid([BROKER], headers={"kid": "ca"}))


async def test_a_new_key_in_the_bundle_is_found(
    trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "REFETCH_COOLDOWN", 0.0)
    await trust.verify(trust.acme.jwt_svid([BROKER]))
    trust.acme = TrustDomain("acme.example", kid="jwt-2")
    trust.acme.write(trust.file)
    await trust.verify(trust.acme.jwt_svid([BROKER]))


async def test_a_bundle_without_keys_for_tokens_lets_nobody_in(trust: Trust) -> None:
    bundle: dict[str, Any] = trust.acme.bundle()
    del bundle["keys"][1]
    trust.file.write_text(json.dumps(bundle))
    with pytest.raises(TokenInvalid, match="keys are not available"):
        await trust.verify(trust.acme.jwt_svid([BROKER]))
