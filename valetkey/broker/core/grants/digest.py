"""The digest that names a policy."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from valetkey.broker.core.approvals import ApprovalRuleSettings
from valetkey.broker.core.grants.compiled import Target
from valetkey.broker.core.grants.form import ConditionSettings, GrantSettings, GrantsFile
from valetkey.contracts.jose import b64url
from valetkey.contracts.mcp import ANY


def policy_digest(file: GrantsFile, targets: Mapping[str, Target]) -> str:
    """base64url SHA-256 over the canonical policy: sets sorted, so that order says nothing."""
    canonical = {
        "grants": sorted(
            (
                {
                    "id": grant.id,
                    "workload": grant.workload,
                    "issuer": grant.issuer,
                    "target": grant.target,
                    "scopes": sorted(set(grant.scopes)),
                    "on_behalf_of": grant.on_behalf_of,
                    "conditions": None
                    if grant.conditions is None
                    else sorted(_canonical(condition) for condition in grant.conditions),
                    "ttl": None if grant.ttl is None else float(grant.ttl),
                    **_approval(grant.approval),
                    **_bounds(grant),
                }
                for grant in file.grants
            ),
            key=lambda grant: str(grant["id"]),
        ),
        "targets": {
            target.name: {
                "audience": target.audience,
                "resource": target.resource,
                "credential": target.credential,
                "ttl": float(target.ttl),
                # One that demands nothing keeps the form that it always had.
                **({"requires": sorted(target.requires)} if target.requires else {}),
            }
            for target in targets.values()
        },
    }
    encoded = msgspec.json.encode(canonical, order="deterministic")
    return b64url(hashlib.sha256(encoded).digest())


def _approval(rule: ApprovalRuleSettings | None) -> dict[str, Any]:
    """A grant that asks nobody keeps the form that it always had."""
    if rule is None:
        return {}
    requirement = rule.compiled("")
    return {"approval": {**requirement.canonical(), "expires": requirement.expires}}


def _canonical(condition: ConditionSettings) -> list[Any]:
    """A condition in one form; one without `mcp` keeps the form that it always had."""
    form: list[Any] = [sorted(set(condition.methods)), condition.path]
    if condition.mcp is not None:
        form += [sorted(set(condition.mcp.methods)), sorted(set(condition.mcp.tools or (ANY,)))]
    return form


def _bounds(grant: GrantSettings) -> dict[str, Any]:
    """What bounds a grant in time and number; one without keeps the form that it always had.

    Reason, ticket and owner decide nothing, so they are not in it.
    """
    bounds: dict[str, Any] = {
        "not_before": grant.not_before and grant.not_before.timestamp(),
        "not_after": grant.not_after and grant.not_after.timestamp(),
        "max_uses": grant.max_uses,
    }
    if grant.window is not None:
        bounds["window"] = {
            "longest": float(grant.window.longest),
            "opened_by": sorted(
                [opener.issuer, opener.subject or "", sorted((opener.claims or {}).items())]
                for opener in grant.window.opened_by
            ),
        }
    return {name: value for name, value in bounds.items() if value is not None}
