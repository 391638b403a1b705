"""What a kind of issuer says of a workload is there for tables of roles and groups, too."""

from __future__ import annotations

from typing import Any

from tests.support.trust_domain import TrustDomain
from valetkey.broker.core.attributes import ClaimDirectory, ClaimTable, ClaimTables
from valetkey.broker.trust.clients import Client
from valetkey.broker.trust.people import People
from valetkey.broker.trust.tokens import VerifiedToken
from valetkey.contracts.issuer import IssuerSettings
from valetkey.contracts.jose import VerifiedClaims

CLUSTER = "https://kubernetes.default.svc.cluster.local"


async def groups(claims: dict[str, Any], attributes: dict[str, str]) -> frozenset[str]:
    settings = IssuerSettings(
        issuer=CLUSTER,
        kind="kubernetes",
        audience="https://broker.example",
        use="workload",
        jwks_url="https://kubernetes.example/jwks",
    )
    table = ClaimTable(("namespace",), {"agents": "agents-of-acme"})
    people = People(ClaimDirectory({CLUSTER: ClaimTables(None, table)}), {})
    verified = VerifiedClaims(CLUSTER, TrustDomain().workload(), claims, {}, attributes)
    known = await people.of(Client(VerifiedToken(verified, settings), "token", "key"), None)
    return known.actor.groups


async def test_attributes_are_read_like_claims() -> None:
    assert await groups({"exp": 1}, {"namespace": "agents"}) == {"agents-of-acme"}
    assert await groups({"exp": 1}, {"namespace": "others"}) == frozenset()
    assert await groups({"exp": 1}, {}) == frozenset()


async def test_a_claim_of_the_same_name_does_not_stand_for_one() -> None:
    assert await groups({"namespace": "agents"}, {"namespace": "others"}) == frozenset()
