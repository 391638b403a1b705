"""A decision, explained: by which policies, and what became of each grant.

Nothing is decided here. The decision is that of `exchange.decide`, and what a single grant would
give is asked of the same `Policy`, with that grant alone in it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, Final, Literal

import msgspec

from valetkey.broker.core.cedar import Policies
from valetkey.broker.core.exchange import (
    ExchangeFacts,
    Issue,
    NeedsApproval,
    Refuse,
    decide,
    given_by_grants,
    rules_digest,
)
from valetkey.broker.core.grants import Grant, Granted, Policy, Target
from valetkey.broker.core.grants.index import GrantIndex
from valetkey.contracts import codes
from valetkey.contracts.codes import Code

Decision = Literal["permit", "approve", "deny"]
Fit = Literal["used", "fits", "no"]
# As Cedar names them in its errors.
_ERRING: Final = re.compile(r"`([a-z0-9][a-z0-9._-]{0,63})`")
_UNFIT: Final[Mapping[Code, str]] = {
    codes.GRANT_SCOPE: "has none of the scopes",
    codes.GRANT_CONDITION: "its conditions do not cover every call",
    codes.GRANT_OUTSIDE_WINDOW: "has not begun, or no deployment window of it is open",
    codes.GRANT_USED_UP: "all of its uses are spent",
    codes.GRANT_ENDED: "has ended",
}


class ExplainedPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """A policy that can apply on the target. ``annotations`` are all but ``@id``."""

    id: str
    effect: str
    file: str
    line: int
    annotations: Mapping[str, str]


class ExplainedGrant(msgspec.Struct, frozen=True, kw_only=True):
    """A grant on the target.

    ``fit``: ``used`` by the decision, ``fits`` (but the decision does not rest on it), or ``no``;
    then ``why`` says in words what is in the way, and ``code`` what a workload that had this grant
    alone would be told.
    """

    id: str
    workload: str
    issuer: str
    scopes: tuple[str, ...]
    fit: Fit
    why: str = ""
    code: str = ""


class ExplainedApproval(msgspec.Struct, frozen=True, kw_only=True):
    """Who has to say yes: ``quorum`` people, each of every one of ``holders``."""

    quorum: int
    holders: tuple[dict[str, tuple[str, ...]], ...]
    reasons: tuple[str, ...]


class Explanation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``approve`` is a permit that waits for people.

    A deny has a ``code`` with its ``help``, and the ``reason`` as the broker's log has it.

    ``decided`` are the policies that made the decision, or that erred; ``others`` are the rest of
    those that can apply on the target. ``expires_in`` is in seconds.
    """

    decision: Decision
    policy_digest: str
    target: str = ""
    code: str = ""
    help: str = ""
    reason: str = ""
    scopes: tuple[str, ...] = ()
    expires_in: int | None = None
    single_use: bool = False
    approval: ExplainedApproval | None = None
    decided: tuple[ExplainedPolicy, ...] = ()
    others: tuple[ExplainedPolicy, ...] = ()
    errors: tuple[str, ...] = ()
    grants: tuple[ExplainedGrant, ...] = ()


def explain(facts: ExchangeFacts, policy: Policy, policies: Policies, *, now: float) -> Explanation:
    """What `decide` says to the same arguments, and why."""
    decision = decide(facts, policy, policies, now=now)
    digest = rules_digest(policy.digest, policies.digest)
    target = policy.targets.get(facts.request.audience)
    about = {} if target is None else _about(target, decision, facts, policy, policies, now)
    if isinstance(decision, Refuse):
        return Explanation(
            decision="deny",
            policy_digest=digest,
            code=decision.code.name,
            help=decision.code.help,
            reason=decision.reason,
            errors=decision.errors,
            **about,
        )
    issue = decision if isinstance(decision, Issue) else decision.issue
    return Explanation(
        decision="permit" if isinstance(decision, Issue) else "approve",
        policy_digest=digest,
        scopes=issue.scopes,
        expires_in=issue.expires_in,
        single_use=issue.single_use,
        approval=None if isinstance(decision, Issue) else _approval(decision),
        **about,
    )


def _about(
    target: Target,
    decision: Issue | Refuse | NeedsApproval,
    facts: ExchangeFacts,
    policy: Policy,
    policies: Policies,
    now: float,
) -> dict[str, Any]:
    """What is the same of every decision about a target that there is."""
    deciding = _deciding(decision)
    applicable = [
        ExplainedPolicy(
            id=rule.id,
            effect=rule.effect,
            file=rule.file,
            line=rule.line,
            annotations=rule.annotations,
        )
        for rule in policies.of_target(target.name).rules.values()
    ]
    grants = sorted(_grants(target, decision, facts, policy, now), key=_order)
    return {
        "target": target.name,
        "decided": tuple(one for one in applicable if one.id in deciding),
        "others": tuple(one for one in applicable if one.id not in deciding),
        "grants": tuple(grants),
    }


def _deciding(decision: Issue | Refuse | NeedsApproval) -> Collection[str]:
    if isinstance(decision, NeedsApproval):
        return decision.issue.policy_ids
    if isinstance(decision, Issue):
        return decision.policy_ids
    return {*decision.policy_ids, *_ERRING.findall(" ".join(decision.errors))}


def _approval(decision: NeedsApproval) -> ExplainedApproval:
    requirement = decision.requirement
    return ExplainedApproval(
        quorum=requirement.quorum,
        holders=tuple(
            {"roles": holders.roles, "groups": holders.groups} for holders in requirement.holders
        ),
        reasons=requirement.reasons,
    )


def _grants(
    target: Target,
    decision: Issue | Refuse | NeedsApproval,
    facts: ExchangeFacts,
    policy: Policy,
    now: float,
) -> Iterator[ExplainedGrant]:
    """Each grant on the target."""
    scopes = facts.request.scopes
    together = given_by_grants(policy, target, facts, scopes, now)
    resting = together.grant_ids if isinstance(together, Granted) else ()
    fit: Fit = "fits" if isinstance(decision, Refuse) else "used"
    for grant in chain(policy.index, policy.live.made):
        if grant.target != target.name:
            continue
        found: tuple[Fit, str, str] = (fit, "", "")
        if grant.id not in resting:  # of several that cover the calls together, none does alone
            found = _alone(grant, target, facts, policy, now)
        yield ExplainedGrant(
            id=grant.id,
            workload=grant.workload.text,
            issuer=grant.issuer,
            scopes=tuple(sorted(grant.scopes)),
            fit=found[0],
            why=found[1],
            code=found[2],
        )


def _alone(
    grant: Grant, target: Target, facts: ExchangeFacts, policy: Policy, now: float
) -> tuple[Fit, str, str]:
    """What this grant would give if there were no other."""
    live = copy.copy(policy.live)  # its windows and uses are those of every grant
    live.made = GrantIndex()
    only = replace(policy, index=GrantIndex([grant]), live=live)
    given = given_by_grants(only, target, facts, facts.request.scopes, now)
    if isinstance(given, Granted):
        return "fits", "others last longer, or are not counted", ""
    why = _UNFIT.get(given, given.help)
    if given is codes.GRANT_MISSING:
        for_itself = given_by_grants(
            only, target, replace(facts, user=None), facts.request.scopes, now
        )
        why = "is for another workload"
        if for_itself is not codes.GRANT_MISSING:
            why = "does not let the workload act for users"
    return "no", why, given.name


def _order(grant: ExplainedGrant) -> tuple[int, bool, str]:
    """Those that give something first, those of other workloads last."""
    fits = ("used", "fits", "no").index(grant.fit)
    return fits, grant.code == codes.GRANT_MISSING.name, grant.id
