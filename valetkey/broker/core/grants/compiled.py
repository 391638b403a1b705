"""A grant ready to be asked, and the target that it is for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from valetkey.broker.core.approvals import Requirement
from valetkey.broker.core.grants.calls import Call
from valetkey.broker.core.grants.form import GrantSettings, WindowSettings
from valetkey.broker.core.patterns import PathPattern, PatternInvalid, WorkloadPattern
from valetkey.contracts.mcp import message_patterns
from valetkey.contracts.oauth import Capability


@dataclass(frozen=True, slots=True)
class Target:
    """A system that calls go to. ``ttl`` is in seconds and already has the default filled in.

    ``requires``: what everybody who gets a credential for it must enforce.
    ``status_list``: its tokens have a place in one.
    """

    name: str
    audience: str
    resource: str
    credential: Literal["bearer", "dpop", "mtls", "txn_token"]
    ttl: float
    requires: tuple[Capability, ...] = ()
    status_list: bool = False


class PolicyInvalid(ValueError):  # noqa: N818 - reads as what it is
    """Grants that contradict each other or the settings."""


@dataclass(frozen=True, slots=True)
class Opener:
    """Who may open a window: every condition that there is must hold, to the letter."""

    issuer: str
    subject: str | None
    claims: Mapping[str, str]

    def admits(self, issuer: str, subject: str, claims: Mapping[str, Any]) -> bool:
        """Whether the holder of these verified claims is meant."""
        return (
            issuer == self.issuer
            and (self.subject is None or subject == self.subject)
            # `type`: a claim that is no text equals no text, whatever it would compare to.
            and all(
                type(claims.get(name)) is str and claims[name] == text
                for name, text in self.claims.items()
            )
        )


@dataclass(frozen=True, slots=True)
class Opening:
    """Who opens windows of a grant, and for how many seconds at the most."""

    openers: tuple[Opener, ...]
    longest: float

    def admits(self, issuer: str, subject: str, claims: Mapping[str, Any]) -> bool:
        return any(opener.admits(issuer, subject, claims) for opener in self.openers)


@dataclass(frozen=True, slots=True)
class Grant:
    """A grant ready to be asked. ``conditions`` is ``None`` for any call on the target.

    It is in force from ``not_before`` on and before ``not_after`` (seconds since the epoch), and
    with an ``opening`` only while a window is open. ``ended``: it was revoked, and is still known
    so that who asks can be told.
    """

    id: str
    workload: WorkloadPattern
    issuer: str
    target: str
    scopes: frozenset[str]
    for_users: bool
    conditions: tuple[Call, ...] | None
    ttl: float | None
    approval: Requirement | None = None
    not_before: float = -math.inf
    not_after: float = math.inf
    max_uses: int | None = None
    opening: Opening | None = None
    ended: bool = False

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
        not_before=-math.inf if written.not_before is None else written.not_before.timestamp(),
        not_after=math.inf if written.not_after is None else written.not_after.timestamp(),
        max_uses=written.max_uses,
        opening=None if written.window is None else _opening(written.window),
    )


def _opening(window: WindowSettings) -> Opening:
    return Opening(
        tuple(
            Opener(opener.issuer, opener.subject, opener.claims or {})
            for opener in window.opened_by
        ),
        float(window.longest),
    )
