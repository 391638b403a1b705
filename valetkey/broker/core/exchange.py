"""The decision on one exchange: verified facts in, `Issue` or `Refuse` out.

Invariants:

- Only `decide` makes an `Issue`, and the minter takes nothing else: no decision, no token.
- An issued token never has more scopes, calls or lifetime than was asked, granted, and carried by
  the subject's and the actor's own tokens.
- Inner ``act`` entries are carried along for the record and never read for a decision
  (RFC 8693 §4.1).
- The target's registry entry decides whether a token is bound, not what the caller sent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from valetkey.broker.core.containment import IncidentFacts, refusal
from valetkey.broker.core.grants import Policy, Target
from valetkey.broker.core.request import ExchangeRequest
from valetkey.broker.core.resources import resource_belongs
from valetkey.contracts import codes
from valetkey.contracts.codes import Code

# A chain of delegation longer than this is a loop or an attack; real ones have one to three.
MAX_ACTOR_CHAIN: Final = 8
_MAY_ACT_MEMBERS: Final = frozenset({"sub", "iss"})


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
    token that it was made from.
    """

    claims: Mapping[str, Any] = field(repr=False)
    txn: str = ""
    origin: str = ""

    @property
    def home(self) -> str:
        """The issuer that the user is known under."""
        return self.origin or self.issuer


@dataclass(frozen=True, slots=True)
class ExchangeFacts:
    """All that a decision rests on. ``user`` is ``None`` when the workload acts for itself.

    ``proof`` is the thumbprint of the key that signed the DPoP proof, or empty.
    """

    request: ExchangeRequest
    client: Party
    user: User | None
    proof: str
    incidents: IncidentFacts


@dataclass(frozen=True, slots=True)
class Refuse:
    """No token. ``reason`` is for the record, ``code`` for the caller."""

    code: Code
    reason: str


@dataclass(frozen=True, slots=True)
class Issue:
    """What the token says. ``expires_in`` is in whole seconds, at least 1.

    ``thumbprint`` is empty for a bearer token. ``txn`` is empty where a new one is to be made.
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


def decide(facts: ExchangeFacts, policy: Policy, *, now: float) -> Issue | Refuse:
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
    contained = _contained(facts, now)
    if contained is not None:
        return contained
    granted = policy.grant(
        target,
        issuer=client.issuer,
        workload=client.subject,
        for_user=user is not None,
        scopes=request.scopes,
        calls=request.calls,
    )
    if isinstance(granted, Code):
        return Refuse(granted, f"policy, target {target.name}")
    suspended = facts.incidents.ended_grants.intersection(granted.grant_ids)
    if suspended:
        return Refuse(codes.GRANT_SUSPENDED, f"grants {', '.join(sorted(suspended))}")
    if target.credential == "dpop" and not facts.proof:
        return Refuse(codes.DPOP_MISSING, f"tokens for target {target.name} are bound to a key")
    expires_in = _lifetime(target, granted.ttl, client, user, now)
    if expires_in < 1:
        # Within the leeway a token still identifies, but it has no life left to hand on.
        code = codes.ACTOR_INVALID if user is None else codes.SUBJECT_INVALID
        return Refuse(code, "the subject's or the actor's token is about to expire")
    return Issue(
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
        policy_digest=policy.digest,
        grant_ids=granted.grant_ids,
        subject_issuer=client.issuer if user is None else user.home,
        epoch=(facts.incidents.user or facts.incidents.client).epoch.number,
        client_epoch=facts.incidents.client.epoch.number,
    )


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


def _lifetime(
    target: Target, grant_ttl: float | None, client: Party, user: User | None, now: float
) -> int:
    limits = [target.ttl, client.expires - now]
    if grant_ttl is not None:
        limits.append(grant_ttl)
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
