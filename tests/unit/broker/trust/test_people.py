"""What policies know of the parties: claims, what kinds of issuers say, agents, our own tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.support.trust_domain import TrustDomain
from valetkey.broker.core.attributes import (
    Attributes,
    AttributesInvalid,
    ClaimDirectory,
    ClaimTable,
    ClaimTables,
)
from valetkey.broker.core.exchange import Party, User
from valetkey.broker.core.patterns import WorkloadPattern
from valetkey.broker.trust.clients import Client
from valetkey.broker.trust.people import People
from valetkey.broker.trust.tokens import VerifiedToken
from valetkey.contracts.issuer import IssuerSettings
from valetkey.contracts.jose import VerifiedClaims

IDP, USERS, BROKER = "https://idp", "https://users", "https://broker"
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


class Echo:
    """Says who was asked about, by which claims."""

    async def attributes(self, issuer: str, subject: str, claims: Mapping[str, Any]) -> Attributes:
        return Attributes(
            roles=frozenset({f"{issuer} {subject}"}), groups=frozenset(claims.get("from", ()))
        )


PEOPLE = People(Echo(), {IDP: (WorkloadPattern.parse("ns/ai/*"),)}, issuers=frozenset({IDP}))
BOT = Party(IDP, "ns/ai/bot", 0.0)


def user(issuer: str = USERS, origin: str = "", **claims: Any) -> User:
    return User(issuer, "alice", 0.0, claims=claims, origin=origin)


async def test_both_are_looked_up_where_they_are_known() -> None:
    known = await PEOPLE.known(BOT, {"from": ["a"]}, user(**{"from": ["b"]}))
    assert known.actor == Attributes(frozenset({f"{IDP} ns/ai/bot"}), frozenset({"a"}))
    assert known.user == Attributes(frozenset({f"{USERS} alice"}), frozenset({"b"}))
    assert known.agent
    assert (await PEOPLE.known(BOT, {}, None)).user == Attributes()


@pytest.mark.parametrize(
    ("issuer", "subject", "expected"),
    [
        (IDP, "ns/ai/x", True),
        (IDP, "ns/web/x", False),
        (USERS, "ns/ai/x", False),
        (IDP, "ns/ai/x/y", False),
    ],
)
def test_agents_are_of_their_issuer(issuer: str, subject: str, expected: bool) -> None:
    assert PEOPLE.is_agent(issuer, subject) is expected


async def test_a_token_of_our_own_carries_its_names_and_no_table_reads_them() -> None:
    own = user(BROKER, USERS, roles=["lead"], groups=[], **{"from": ["a"]})
    known = await PEOPLE.known(BOT, {}, own)
    assert known.user == Attributes(frozenset({"lead", f"{USERS} alice"}))


async def test_a_token_of_our_own_is_looked_up_by_what_we_sealed_in_it() -> None:
    def opened(issuer: str, subject: str, claims: Mapping[str, Any]) -> dict[str, Any]:
        return {"from": [issuer, subject, claims["sealed"]]}

    people = People(Echo(), {}, found_by=opened)
    own = user(BROKER, USERS, roles=[], groups=[], sealed="x", **{"from": ["a"]})
    assert (await people.known(BOT, {}, own)).user.groups == {USERS, "alice", "x"}
    first = user(sealed="x", **{"from": ["a"]})
    assert (await people.known(BOT, {}, first)).user.groups == {"a"}


@pytest.mark.parametrize(
    "claims", [{}, {"roles": []}, {"groups": []}, {"roles": "a", "groups": []}]
)
async def test_a_token_of_our_own_without_them_is_refused(claims: dict[str, Any]) -> None:
    """What is missing could have forbidden something."""
    with pytest.raises(AttributesInvalid, match="missing"):
        await PEOPLE.known(BOT, {}, user(BROKER, USERS, **claims))


@pytest.mark.parametrize(
    ("origin", "subject", "kind"),
    [(USERS, "alice", "User"), (IDP, "ns/web/x", "Workload"), (IDP, "ns/ai/x", "Agent")],
)
async def test_a_token_of_our_own_may_be_a_workloads(origin: str, subject: str, kind: str) -> None:
    own = User(BROKER, subject, 0.0, claims={"roles": [], "groups": []}, origin=origin)
    assert (await PEOPLE.known(BOT, {}, own)).user_kind == kind
    assert (await PEOPLE.known(BOT, {}, None)).user_kind == "User"
