"""The decision on one exchange: verified facts in, `Issue`, `Refuse` or `NeedsApproval` out.

Invariants:

- Only `decide` makes an `Issue`, and the minter takes nothing else: no decision, no token.
- An issued token never has more scopes, calls or lifetime than was asked, granted, and carried by
  the subject's and the actor's own tokens.
- Inner ``act`` entries are carried along for the record and never read for a decision
  (RFC 8693 §4.1).
- The target's registry entry decides whether a token is bound, not what the caller sent.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final

from valetkey.broker.core.approvals import Requirement
from valetkey.broker.core.attributes import Known
from valetkey.broker.core.cedar import Policies, Principal
from valetkey.broker.core.containment import IncidentFacts, refusal
from valetkey.broker.core.grants import Granted, Policy, Target
from valetkey.broker.core.permission import Asking, Permission, permission
from valetkey.broker.core.request import ExchangeRequest
from valetkey.broker.core.resources import resource_belongs
from valetkey.broker.core.risk import highest
from valetkey.broker.core.transactions import Earlier, Transaction, added
from valetkey.contracts import codes
from valetkey.contracts.codes import Code
from valetkey.contracts.jose import b64url

# A chain of delegation longer than this is a loop or an attack; real ones have one to three.
MAX_ACTOR_CHAIN: Final = 8
_MAY_ACT_MEMBERS: Final = frozenset({"sub", "iss"})
_POLICY_CODES: Final = {
    "deny": codes.POLICY_DENIED,
    "error": codes.POLICY_ERROR,
    "open": codes.POLICY_OPEN,
}


@dataclass(frozen=True, slots=True)
class Party:
    """Who a verified token speaks for. ``expires`` is in seconds since the epoch."""

    issuer: str
    subject: str
    expires: float


@dataclass(frozen=True, slots=True)
class User(Party):
    """The user for whom a workload acts. ``may_act`` and ``act`` as the token has them.

    ``txn`` and ``origin`` are given where the user's token is one of our own: what descends from it
    shares its transaction and is revoked with it, and its user is known under the issuer of the
    token that it was made from. ``earlier`` is given where it is a transaction token.
    """

    claims: Mapping[str, Any] = field(repr=False)
    txn: str = ""
    origin: str = ""
    earlier: Earlier | None = field(default=None, repr=False)

    @property
    def home(self) -> str:
        """The issuer that the user is known under."""
        return self.origin or self.issuer


@dataclass(frozen=True, slots=True)
class ExchangeFacts:
    """All that a decision rests on. ``user`` is ``None`` when the workload acts for itself.

    ``proof`` is the thumbprint of the key that signed the DPoP proof, or empty, ``certificate``
    that of the certificate with which the client came. ``known`` is what policies know of the
    parties.
    """

    request: ExchangeRequest
    client: Party
    user: User | None
    proof: str
    incidents: IncidentFacts
    certificate: str = ""
    known: Known = field(default=Known(), kw_only=True)


@dataclass(frozen=True, slots=True)
class Refuse:
    """No token. ``reason`` is for the record, ``code`` for the caller.

    ``policy_ids`` are the policies that decided, where policies did, ``errors`` what went wrong in
    them.
    """

    code: Code
    reason: str
    policy_ids: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Issue:
    """What the token says. ``expires_in`` is in whole seconds from ``decided_at`` on, at least 1.

    ``thumbprint`` is empty unless the token is bound to a proof key, ``certificate`` unless it is
    bound to a client certificate. ``txn`` is empty where a new one is to be made. ``policy_ids``
    are the policies that permitted it.
    ``approval`` is the id of the approval that it rests on, if it does; ``single_use`` says that
    the token is for one call, since the uses of the approval or of a grant are counted.
    ``windows`` are the deployment windows that it rests on. Of each grant in ``limited`` one of so
    many uses is claimed before it is minted.
    """

    client: Party
    target: str
    audience: str
    subject: str
    act: Mapping[str, Any] | None
    scopes: tuple[str, ...]
    details: tuple[dict[str, Any], ...]
    thumbprint: str
    expires_in: int
    txn: str
    policy_digest: str
    grant_ids: tuple[str, ...]
    subject_issuer: str
    epoch: int
    """The subject's (`core.containment`)."""
    client_epoch: int
    decided_at: float
    policy_ids: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    """The subject's, as are ``groups``."""
    groups: tuple[str, ...] = ()
    found_by: frozenset[tuple[str, str]] = frozenset()
    """`core.attributes`"""
    approval: str = ""
    single_use: bool = False
    certificate: str = ""
    windows: tuple[str, ...] = ()
    limited: tuple[tuple[str, int], ...] = ()
    transaction: Transaction | None = None
    """``rctx`` and ``tctx`` of a transaction token; ``None``: it is an access token."""

    @property
    def rests_on(self) -> tuple[str, ...]:
        """The ids of the grants and windows with which the token ends."""
        return (*self.grant_ids, *self.windows)


@dataclass(frozen=True, slots=True)
class NeedsApproval:
    """A token once people have said yes: ``issue`` is what they are asked about.

    Nothing mints an issue in here; `with_approval` takes it out when an approval was used up.
    """

    issue: Issue
    requirement: Requirement


def with_approval(
    needs: NeedsApproval, *, approval: str, single_use: bool, until: float, now: float
) -> Issue | Refuse:
    """What an approval gives: never for longer than the approval itself."""
    expires_in = min(needs.issue.expires_in, math.floor(until - now))
    if expires_in < 1:
        return Refuse(codes.APPROVAL_EXPIRED, "the approval is about to end")
    return replace(
        needs.issue,
        expires_in=expires_in,
        approval=approval,
        single_use=single_use or needs.issue.single_use,
    )


def decide(
    facts: ExchangeFacts, policy: Policy, policies: Policies, *, now: float
) -> Issue | Refuse | NeedsApproval:
    """``now`` is in seconds since the epoch."""
    request, client, user = facts.request, facts.client, facts.user
    target = policy.targets.get(request.audience)
    if target is None:
        # Not told apart from a target without a grant: the registry is nobody's business.
        return Refuse(codes.GRANT_MISSING, "no target has this audience")
    if request.resource and not resource_belongs(request.resource, target.resource):
        return Refuse(codes.EXCHANGE_TARGET, "the resource is not the target's")  # RFC 8707 §2
    act = None
    if user is not None:
        delegated = _delegation(client, user)
        if isinstance(delegated, Refuse):
            return delegated
        act = delegated
    known = facts.known
    if not known.actor.active or (user is not None and not known.user.active):
        return Refuse(codes.SUBJECT_INACTIVE, "the directory says inactive")
    contained = _contained(facts, now)
    if contained is not None:
        return contained
    allowed = _allowed(policy, policies, target, facts, now)
    if isinstance(allowed, Refuse):
        return allowed
    granted, permitted = allowed
    suspended = facts.incidents.ended_grants.intersection(granted.grant_ids)
    if suspended:
        return Refuse(codes.GRANT_SUSPENDED, f"grants {', '.join(sorted(suspended))}")
    transaction = _transaction(target, request, user)
    if isinstance(transaction, Refuse):
        return transaction
    if target.credential == "dpop" and not facts.proof:
        return Refuse(codes.DPOP_MISSING, f"tokens for target {target.name} are bound to a key")
    if target.credential == "mtls" and not facts.certificate:
        return Refuse(
            codes.MTLS_MISSING, f"tokens for target {target.name} are bound to a certificate"
        )
    expires_in = _lifetime(target, granted, client, user, now)
    if expires_in < 1:
        # Within the leeway a token still identifies, but it has no life left to hand on.
        code = codes.ACTOR_INVALID if user is None else codes.SUBJECT_INVALID
        return Refuse(code, "the subject's or the actor's token is about to expire")
    subject = known.actor if user is None else known.user
    issue = Issue(
        client=client,
        target=target.name,
        audience=target.audience,
        subject=client.subject if user is None else user.subject,
        act=act,
        scopes=granted.scopes,
        details=request.details,
        thumbprint=facts.proof if target.credential == "dpop" else "",
        expires_in=expires_in,
        txn=user.txn if user is not None else "",
        policy_digest=rules_digest(policy.digest, policies.digest),
        grant_ids=granted.grant_ids,
        subject_issuer=client.issuer if user is None else user.home,
        epoch=(facts.incidents.user or facts.incidents.client).epoch.number,
        client_epoch=facts.incidents.client.epoch.number,
        policy_ids=permitted.policy_ids,
        roles=tuple(sorted(subject.roles)),
        groups=tuple(sorted(subject.groups)),
        found_by=subject.found_by,
        certificate=facts.certificate if target.credential == "mtls" else "",
        decided_at=now,
        windows=granted.windows,
        limited=granted.limited,
        single_use=bool(granted.limited),
        transaction=transaction,
    )
    names = ", ".join(permitted.policy_ids)
    by_policies = [
        Requirement.of(rule.quorum, rule.roles, rule.groups, reason=f"policies {names}")
        for rule in permitted.approvals
    ]
    requirement = Requirement.strictest((*granted.approvals, *by_policies))
    if requirement is not None and transaction is not None:
        # What people would be asked about is in its context, which is not kept.
        return Refuse(codes.EXCHANGE_TOKEN_TYPE, "transaction tokens do not wait for approval")
    return issue if requirement is None else NeedsApproval(issue, requirement)


def _transaction(
    target: Target, request: ExchangeRequest, user: User | None
) -> Transaction | Refuse | None:
    """What the token says of its transaction: what an earlier one says, and what is added."""
    asked = request.transaction
    if (asked is not None) != (target.credential == "txn_token"):
        # A trust domain gets transaction tokens and nothing else does.
        return Refuse(codes.EXCHANGE_TOKEN_TYPE, f"not the token type of target {target.name}")
    earlier = user.earlier if user is not None else None
    if asked is None or earlier is None:
        return asked
    if earlier.audience != target.audience:
        return Refuse(codes.EXCHANGE_TARGET, "a transaction token of another trust domain")
    if not earlier.covers(request.scopes, request.calls):
        return Refuse(codes.GRANT_SCOPE, "more than the earlier transaction token opens")
    context, details = added(earlier.rctx, asked.request), added(earlier.tctx, asked.details)
    if context is None or details is None:
        return Refuse(codes.EXCHANGE_CONTEXT, "would change what the earlier token says")
    return Transaction(context, details)


def _contained(facts: ExchangeFacts, now: float) -> Refuse | None:
    """What incidents have against this exchange: its target, its client, its user."""
    incidents = facts.incidents
    if incidents.target_ended:
        return Refuse(codes.GRANT_SUSPENDED, "the target is suspended")
    if facts.user is not None and incidents.user is None:
        return Refuse(codes.SUBJECT_CONTAINED, "nothing is known of the user's standing")
    for who, standing in (("workload", incidents.client), ("user", incidents.user)):
        if standing is not None:
            refused = refusal(standing, now=now, skew=incidents.skew)
            if refused is not None:
                return Refuse(refused[0], f"{who}: {refused[1]}")
    return None


@lru_cache(maxsize=64)
def rules_digest(grants: str, policies: str) -> str:
    """base64url SHA-256 that names everything a decision rests on: grants, targets, policies."""
    return b64url(hashlib.sha256(f"{grants}.{policies}".encode()).digest())


def _allowed(
    policy: Policy, policies: Policies, target: Target, facts: ExchangeFacts, now: float
) -> tuple[Granted, Permission] | Refuse:
    """What grants give and policies permit, with the same scopes in both."""
    granted = given_by_grants(policy, target, facts, facts.request.scopes, now)
    if isinstance(granted, Code):
        return Refuse(granted, f"policy, target {target.name}")
    windowed = _windowed(policy, target, facts, granted, now)
    permitted = _permission(policies, target, facts, granted, windowed, now)
    if isinstance(permitted, Refuse):
        return permitted
    if permitted.scopes != granted.scopes:
        # Only the grants that give what is left count, with their limits.
        granted = given_by_grants(policy, target, facts, permitted.scopes, now)
        if isinstance(granted, Code):
            return Refuse(granted, f"policy, target {target.name}")
    return granted, permitted


def given_by_grants(
    policy: Policy, target: Target, facts: ExchangeFacts, scopes: tuple[str, ...], now: float
) -> Granted | Code:
    """What the grants give of ``scopes``, before any policy is asked; or why they give nothing."""
    return policy.grant(
        target,
        issuer=facts.client.issuer,
        workload=facts.client.subject,
        for_user=facts.user is not None,
        scopes=scopes,
        calls=facts.request.calls,
        now=now,
    )


def _windowed(
    policy: Policy, target: Target, facts: ExchangeFacts, granted: Granted, now: float
) -> frozenset[str]:
    """The scopes that are given, one by one, by a grant whose deployment window is open."""
    if not granted.windows:
        return frozenset()
    of_scope = {s: given_by_grants(policy, target, facts, (s,), now) for s in granted.scopes}
    return frozenset(s for s, g in of_scope.items() if isinstance(g, Granted) and g.windows)


def _permission(
    policies: Policies,
    target: Target,
    facts: ExchangeFacts,
    granted: Granted,
    windowed: frozenset[str],
    now: float,
) -> Permission | Refuse:
    """What the policies permit of what the grants give."""
    client, user, known, incidents = facts.client, facts.user, facts.known, facts.incidents
    asking = Asking(
        target=target.name,
        actor=Principal(
            "Agent" if known.agent else "Workload",
            client.issuer,
            client.subject,
            known.actor.roles,
            known.actor.groups,
        ),
        user=None
        if user is None
        else Principal(
            known.user_kind, user.home, user.subject, known.user.roles, known.user.groups
        ),
        scopes=granted.scopes,
        windowed=windowed,
        calls=facts.request.calls,
        now=now,
        risk=highest(*(party.risk for party in (incidents.client, incidents.user) if party)),
    )
    found = permission(policies, asking)
    if isinstance(found, Permission):
        return found
    reason = f"target {target.name}: " + ("; ".join(found.errors) or "no policy permits it")
    if found.policy_ids:
        reason = f"target {target.name}: forbidden by {', '.join(found.policy_ids)}"
    return Refuse(_POLICY_CODES[found.outcome], reason, found.policy_ids, found.errors)


def _lifetime(
    target: Target, granted: Granted, client: Party, user: User | None, now: float
) -> int:
    limits = [target.ttl, granted.until - now, client.expires - now]
    if granted.ttl is not None:
        limits.append(granted.ttl)
    if user is not None:
        limits.append(user.expires - now)
    return math.floor(min(limits))


def _delegation(client: Party, user: User) -> dict[str, Any] | Refuse:
    """The ``act`` claim of a token with which ``client`` acts for ``user`` (RFC 8693 §4.1)."""
    may_act = user.claims.get("may_act")
    if may_act is not None and not _names(may_act, client):
        return Refuse(codes.ACTOR_NOT_ALLOWED, "may_act names another actor")
    act: dict[str, Any] = {"sub": client.subject, "iss": client.issuer}
    inner = user.claims.get("act")
    if inner is not None:
        carried = _chain(inner, MAX_ACTOR_CHAIN - 1)
        if carried is None:
            return Refuse(codes.SUBJECT_INVALID, "act is no chain of actors, or is too long")
        act["act"] = carried
    return act


def _names(may_act: Any, actor: Party) -> bool:
    """RFC 8693 §4.4: whether ``may_act`` is this actor.

    A member that is not understood may be a restriction, so it leads to a no.
    """
    return (
        isinstance(may_act, dict)
        and may_act.keys() <= _MAY_ACT_MEMBERS
        and may_act.get("sub") == actor.subject
        and may_act.get("iss", actor.issuer) == actor.issuer
    )


def _chain(act: Any, depth: int) -> dict[str, Any] | None:
    """A prior ``act``, reduced to who acted; ``None`` if it is malformed or too deep."""
    if depth < 1 or not isinstance(act, dict):
        return None
    reduced: dict[str, Any] = {}
    for name in ("sub", "iss"):
        value = act.get(name)
        if value is None and name == "iss":
            continue
        if not isinstance(value, str) or not 1 <= len(value) <= 1024:
            return None
        reduced[name] = value
    if "act" in act:
        inner = _chain(act["act"], depth - 1)
        if inner is None:
            return None
        reduced["act"] = inner
    return reduced
