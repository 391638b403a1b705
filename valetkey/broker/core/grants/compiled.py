"""A grant ready to be asked, and the target that it is for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from valetkey.broker.core.approvals import Requirement
from valetkey.broker.core.grants.calls import Call
from valetkey.broker.core.grants.form import GrantSettings
from valetkey.broker.core.patterns import PathPattern, PatternInvalid, WorkloadPattern
from valetkey.contracts.mcp import message_patterns


@dataclass(frozen=True, slots=True)
class Target:
    """A system that calls go to. ``ttl`` is in seconds and already has the default filled in."""

    name: str
    audience: str
    resource: str
    credential: Literal["bearer", "dpop", "mtls"]
    ttl: float


class PolicyInvalid(ValueError):  # noqa: N818 - reads as what it is
    """Grants that contradict each other or the settings."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A grant ready to be asked. ``conditions`` is ``None`` for any call on the target."""

    id: str
    workload: WorkloadPattern
    issuer: str
    target: str
    scopes: frozenset[str]
    for_users: bool
    conditions: tuple[Call, ...] | None
    ttl: float | None
    approval: Requirement | None = None

    def covers(self, call: Call) -> bool:
        """Whether one condition includes the call whole; without conditions, always."""
        return self.conditions is None or any(own.includes(call) for own in self.conditions)


def compile_grant(written: GrantSettings) -> Grant:
    """Raises `PolicyInvalid`."""
    try:
        conditions = (
            tuple(
                Call(
                    frozenset(condition.methods),
                    PathPattern.parse(condition.path),
                    message_patterns(condition.mcp.methods, condition.mcp.tools or ())
                    if condition.mcp is not None
                    else None,
                )
                for condition in written.conditions
            )
            if written.conditions is not None
            else None
        )
        workload = WorkloadPattern.parse(written.workload)
    except PatternInvalid as error:
        raise PolicyInvalid(f"grant {written.id}: {error}") from error
    return Grant(
        id=written.id,
        workload=workload,
        issuer=written.issuer,
        target=written.target,
        scopes=frozenset(written.scopes),
        for_users=written.on_behalf_of == "users",
        conditions=conditions,
        ttl=written.ttl,
        approval=None
        if written.approval is None
        else written.approval.compiled(f"grant {written.id}"),
    )
