"""An approval as people read it: facts that the broker derived, and apart from them what was said.

Everything outside ``untrusted`` was verified or made by the broker. What is inside was written by
the side that asks, and decides nothing.
"""

from __future__ import annotations

from typing import Any

from valetkey.broker.core.approvals import Approval, Identity, Requirement, Vote
from valetkey.contracts.times import rfc3339


def document_of(approval: Approval, *, purpose: str, used: int, now: float) -> dict[str, Any]:
    """The members of ``GET /v1/approvals/{id}``. Times are RFC 3339."""
    request = approval.request
    document: dict[str, Any] = {
        "id": approval.id,
        "state": approval.state(now),
        "opened_at": rfc3339(approval.opened_at),
        "expires_at": rfc3339(approval.expires_at),
        "request": {
            "digest": request.digest(),
            "workload": _party(request.client),
            "subject": _party(request.subject),
            "actors": [_party(actor) for actor in request.actors],
            "target": request.target,
            "audience": request.audience,
            "resource": request.resource,
            "scopes": list(request.scopes),
            "authorization_details": list(request.details),
            "key_thumbprint": request.thumbprint,
            "policy_digest": request.policy_digest,
            "grants": list(request.grants),
        },
        "requires": _requires(request.requirement, approval.valid),
        "votes": [_vote(vote) for vote in approval.votes],
        "untrusted": {"purpose": purpose},
    }
    if approval.decision == "approved":
        document |= {
            "uses_left": approval.uses_left,
            "used": used,
            "until": rfc3339(approval.until),
        }
    if approval.decided_at:
        document["decided_at"] = rfc3339(approval.decided_at)
    return document


def _requires(requirement: Requirement, valid: float) -> dict[str, Any]:
    return {
        "quorum": requirement.quorum,
        "one_of_each": [
            {"roles": list(each.roles), "groups": list(each.groups)} for each in requirement.holders
        ],
        "most_uses": requirement.uses,
        "longest": valid,
        "asked_for_by": list(requirement.reasons),
    }


def _vote(vote: Vote) -> dict[str, Any]:
    document: dict[str, Any] = {
        "approver": _party(vote.voter),
        "approves": vote.approves,
        "reason": vote.reason,
        "at": rfc3339(vote.at),
    }
    if vote.approves:
        document |= {"uses": vote.terms.uses, "until": rfc3339(vote.terms.until)}
    return document


def _party(identity: Identity) -> dict[str, str]:
    party = {"subject": identity.subject}
    if identity.issuer:
        party["issuer"] = identity.issuer
    return party
