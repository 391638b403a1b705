"""The decision on an exchange: each case with result, code and what the token would say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.unit.broker.core.test_grants import BOT, FILES, IDP, TICKETS, grant, policy_of
from valetkey.broker.core.attributes import Attributes, Known
from valetkey.broker.core.cedar import Policies
from valetkey.broker.core.containment import Attestation, Epoch, IncidentFacts, Standing
from valetkey.broker.core.exchange import (
    MAX_ACTOR_CHAIN,
    ExchangeFacts,
    Issue,
    Party,
    Refuse,
    User,
    decide,
    rules_digest,
)
from valetkey.broker.core.grants import Target
from valetkey.broker.core.places import TargetFacts
from valetkey.broker.core.request import ExchangeRequest
from valetkey.contracts.oauth import TOKEN_TYPE_ACCESS
from valetkey.contracts.secret import Secret

NOW = 1_800_000_000.0
VAULT = Target("vault", "https://v.example", "https://v.example", "mtls", 120.0)
POLICY = policy_of(
    grant("tickets", on_behalf_of="users"),
    grant("files", target="files", ttl="60s"),
    grant("vault", target="vault"),
    targets=(TICKETS, FILES, VAULT),
)
POLICIES = Policies.compile(None, [TargetFacts(name) for name in ("tickets", "files", "vault")])


def chain(length: int) -> dict[str, Any]:
    act: dict[str, Any] = {"sub": "0"}
    for number in range(1, length):
        act = {"sub": str(number), "act": act}
    return act


def standing(**changes: Any) -> Standing:
    """Nothing is held against this party, or just what is named."""
    values: dict[str, Any] = {
        "epoch": Epoch(),
        "attestation": Attestation(NOW - 60, NOW - 60),
        "ended": False,
        "key_ended": False,
        **changes,
    }
    return Standing(**values)


def clean(*, user: bool | Standing = True, **changes: Any) -> IncidentFacts:
    if user is True:
        user = standing(attestation=Attestation(NOW - 60, None))
    values: dict[str, Any] = {
        "client": standing(),
        "user": user or None,
        "target_ended": False,
        "ended_grants": frozenset(),
        "skew": 1.0,
        **changes,
    }
    return IncidentFacts(**values)


CONTAINED = standing(epoch=Epoch(2, NOW - 30))
ATTESTED = standing(epoch=Epoch(2, NOW - 90))


@dataclass(frozen=True)
class Case:
    name: str
    code: str = ""
    expected: dict[str, Any] = field(default_factory=dict)
    audience: str = TICKETS.audience
    resource: str = ""
    scopes: tuple[str, ...] = ("read",)
    client_expires: float = NOW + 3600
    user: dict[str, Any] | None = None
    user_expires: float = NOW + 3600
    txn: str = ""
    proof: str = ""
    incidents: IncidentFacts | None = None
    client_active: bool = True
    user_active: bool = True
    certificate: str = ""


CASES = [
    Case("for itself", expected={"subject": BOT, "act": None, "expires_in": 120, "thumbprint": ""}),
    Case("unknown audience", "grant.missing", audience="https://x"),
    Case("resource of the target", resource=TICKETS.resource + "/a"),
    Case("resource of another", "exchange.target", resource="https://x"),
    Case("no grant for the scope", "grant.scope", scopes=("write",)),
    Case("bound", expected={"thumbprint": "key", "expires_in": 60}, audience=FILES.audience,
         proof="key"),
    Case("bound without a proof", "dpop.missing", audience=FILES.audience),
    Case("bearer with a proof stays bearer", expected={"thumbprint": ""}, proof="key"),
    Case("bound to a certificate", expected={"certificate": "x5t", "thumbprint": ""},
         audience=VAULT.audience, certificate="x5t", proof="key"),
    Case("without the certificate", "mtls.missing", audience=VAULT.audience, proof="key"),
    Case("bearer with a certificate stays bearer", expected={"certificate": ""}, certificate="x5t"),
    Case("a proof is no certificate's", "dpop.missing", audience=FILES.audience,
         certificate="x5t"),
    Case("the policy speaks before the proof", "grant.scope", audience=FILES.audience,
         scopes=("write",)),
    Case("for a user", expected={"subject": "alice", "act": {"sub": BOT, "iss": IDP}}, user={}),
    Case("for a user without a grant for users", "grant.missing", audience=FILES.audience,
         proof="key", user={}),
    Case("for a user who is not active", "subject.inactive", user={}, user_active=False),
    Case("a user who is not active, unasked", user_active=False),
    Case("a workload that is not active", "subject.inactive", client_active=False),
    Case("state before grants", "subject.inactive", scopes=("write",), client_active=False),
    Case("transaction goes on", expected={"txn": "t1"}, user={}, txn="t1"),
    Case("may_act names the actor", user={"may_act": {"sub": BOT}}),
    Case("may_act names actor and issuer", user={"may_act": {"sub": BOT, "iss": IDP}}),
    Case("may_act names another", "actor.not_allowed", user={"may_act": {"sub": "x"}}),
    Case("may_act of another issuer", "actor.not_allowed",
         user={"may_act": {"sub": BOT, "iss": "x"}}),
    Case("may_act without sub", "actor.not_allowed", user={"may_act": {"iss": IDP}}),
    Case("may_act is false", "actor.not_allowed", user={"may_act": False}),
    Case("may_act is text", "actor.not_allowed", user={"may_act": BOT}),
    Case("may_act with more", "actor.not_allowed", user={"may_act": {"sub": BOT, "x": 1}}),
    Case("may_act is checked before the grants", "actor.not_allowed", scopes=("write",),
         user={"may_act": {"sub": "x"}}),
    Case("act is carried along",
         expected={"act": {"sub": BOT, "iss": IDP, "act": {"sub": "b", "iss": "i"}}},
         user={"act": {"sub": "b", "iss": "i", "junk": 1}}),
    Case("longest chain", user={"act": chain(MAX_ACTOR_CHAIN - 1)}),
    Case("chain too long", "subject.invalid", user={"act": chain(MAX_ACTOR_CHAIN)}),
    Case("act is a list", "subject.invalid", user={"act": []}),
    Case("act without sub", "subject.invalid", user={"act": {}}),
    Case("act with a number as sub", "subject.invalid", user={"act": {"sub": 1}}),
    Case("act with a number as iss", "subject.invalid", user={"act": {"sub": "a", "iss": 1}}),
    Case("inner act malformed", "subject.invalid", user={"act": {"sub": "a", "act": "b"}}),
    Case("inner act null", "subject.invalid", user={"act": {"sub": "a", "act": None}}),
    Case("client expires first", expected={"expires_in": 10}, client_expires=NOW + 10.9, user={}),
    Case("user expires first", expected={"expires_in": 5}, user={}, user_expires=NOW + 5),
    Case("client has under a second", "actor.invalid", client_expires=NOW + 0.9),
    Case("user has under a second", "subject.invalid", user={}, user_expires=NOW + 0.5),
    Case("client expired within the leeway", "actor.invalid", client_expires=NOW - 10),
    Case("contained", "subject.contained", incidents=clean(user=False, client=CONTAINED)),
    Case("attested again", expected={"epoch": 2, "client_epoch": 2},
         incidents=clean(user=False, client=ATTESTED)),
    Case("the user is contained", "subject.contained", user={}, incidents=clean(user=CONTAINED)),
    Case("the workload is contained, not the user", "subject.contained", user={},
         incidents=clean(client=CONTAINED)),
    Case("both attested again", expected={"epoch": 2, "client_epoch": 3}, user={},
         incidents=clean(user=ATTESTED, client=standing(epoch=Epoch(3, NOW - 90)))),
    Case("a user of whom nothing is known", "subject.contained", user={},
         incidents=clean(user=False)),
    Case("the subject was revoked", "subject.revoked",
         incidents=clean(user=False, client=standing(ended=True))),
    Case("the user was revoked", "subject.revoked", user={},
         incidents=clean(user=standing(ended=True))),
    Case("the proof key was revoked", "actor.key_revoked",
         incidents=clean(user=False, client=standing(key_ended=True))),
    Case("the target is suspended", "grant.suspended",
         incidents=clean(user=False, target_ended=True)),
    Case("the grant is suspended", "grant.suspended",
         incidents=clean(user=False, ended_grants=frozenset({"tickets"}))),
    Case("another grant is suspended", incidents=clean(user=False, ended_grants=frozenset({"x"}))),
    Case("containment speaks before the policy", "subject.contained", scopes=("write",),
         incidents=clean(user=False, client=CONTAINED)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_decide(case: Case) -> None:
    request = ExchangeRequest(
        subject_token=Secret("subject"),
        actor_token=Secret(""),
        issued_token_type=TOKEN_TYPE_ACCESS,
        audience=case.audience,
        resource=case.resource,
        scopes=case.scopes,
        details=(),
        calls=(),
    )
    user = (
        User("https://users", "alice", case.user_expires, case.user, case.txn)
        if case.user is not None
        else None
    )
    facts = ExchangeFacts(
        request,
        Party(IDP, BOT, case.client_expires),
        user,
        case.proof,
        case.incidents or clean(user=user is not None),
        case.certificate,
        known=Known(
            Attributes(active=case.client_active), user=Attributes(active=case.user_active)
        ),
    )
    decision = decide(facts, POLICY, POLICIES, now=NOW)
    if case.code:
        assert isinstance(decision, Refuse)
        assert decision.code.name == case.code
        assert decision.reason
    else:
        assert isinstance(decision, Issue)
        assert decision.policy_digest == rules_digest(POLICY.digest, POLICIES.digest)
        assert decision.policy_ids == ("grants-decide",)
        assert decision.client == facts.client
        for name, value in case.expected.items():
            assert getattr(decision, name) == value, name


def test_facts_do_not_show_what_they_hold() -> None:
    request = ExchangeRequest(
        Secret("canary-1"), Secret("canary-2"), TOKEN_TYPE_ACCESS, "a", "", (), (), ()
    )
    user = User("i", "s", 1.0, {"email": "canary-3"})
    facts = ExchangeFacts(request, Party("i", "s", 1.0), user, "", clean())
    assert "canary" not in repr(facts)
