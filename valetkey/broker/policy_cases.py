"""Cases for policies: requests, and what is expected of the policies for each.

They are about policies alone: a token also needs a grant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from valetkey.broker.core.cedar import Policies, Principal
from valetkey.broker.core.grants import METHOD, SCOPE_TOKEN, Call
from valetkey.broker.core.patterns import PathPattern
from valetkey.broker.core.permission import Asking, Permission, permission
from valetkey.broker.core.risk import UNRATED, Risk
from valetkey.contracts.mcp import message_patterns
from valetkey.contracts.settings import Settings
from valetkey.contracts.times import from_rfc3339

Expected = Literal["permit", "approve", "deny", "error", "open"]


class PartyCase(Settings, frozen=True, kw_only=True):
    """Somebody, as the broker would know them. ``agent`` is for workloads."""

    issuer: str
    subject: str
    roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    agent: bool = False


class McpCase(Settings, frozen=True, kw_only=True):
    """Messages of MCP, as in a route."""

    methods: tuple[str, ...]
    tools: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("methods must not be empty")
        message_patterns(self.methods, self.tools)


class CallCase(Settings, frozen=True, kw_only=True):
    """Calls: a method and a path or pattern, and the messages that they carry."""

    method: str
    path: str
    mcp: McpCase | None = None

    def __post_init__(self) -> None:
        if not METHOD.fullmatch(self.method):
            raise ValueError("method must be an HTTP method in capitals")
        PathPattern.parse(self.path)

    def compiled(self) -> tuple[Call, ...]:
        messages = [None] if self.mcp is None else [
            (message,) for message in message_patterns(self.mcp.methods, self.mcp.tools)
        ]  # fmt: skip
        path, methods = PathPattern.parse(self.path), frozenset({self.method})
        return tuple(Call(methods, path, message) for message in messages)


class PolicyCase(Settings, frozen=True, kw_only=True):
    """One request and what is expected: the decision, and the ids of the policies that make it.

    ``now`` is a time as in ``2027-01-15T08:00:00Z``. Left out, ``calls`` are any on the target, and
    ``policies`` are not compared. ``risk`` is that of the parties. ``approve`` is a
    permit that needs an approval; of several scopes the decision is a permit only if all are
    permitted.
    """

    name: str
    target: str
    actor: PartyCase
    expect: Expected
    now: str
    scopes: tuple[str, ...]
    user: PartyCase | None = None
    window: bool = False
    risk: Risk = UNRATED
    calls: tuple[CallCase, ...] = ()
    policies: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        from_rfc3339(self.now)
        if not self.scopes or not all(SCOPE_TOKEN.fullmatch(scope) for scope in self.scopes):
            raise ValueError("scopes must be a non-empty list of scope tokens (RFC 6749 §3.3)")
        if self.user is not None and self.user.agent:
            raise ValueError("a user is no agent")


class PolicyCases(Settings, frozen=True, kw_only=True):
    """A file of cases.

    ``settings`` is the broker's settings file (for its targets), ``policies`` are files or
    directories of policies: both from the directory that the file is in.
    """

    settings: Path
    policies: tuple[Path, ...]
    cases: tuple[PolicyCase, ...]

    def __post_init__(self) -> None:
        if not self.policies or not self.cases:
            raise ValueError("policies and cases must not be empty")
        names = [case.name for case in self.cases]
        if len(set(names)) != len(names):
            raise ValueError("two cases have the same name")


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What the policies said to a case. ``wrong`` says in words what differs; empty: nothing."""

    name: str
    outcome: Expected
    policy_ids: tuple[str, ...]
    wrong: str


_NO_TARGET: Final = "no target of the settings"


def run_cases(policies: Policies, cases: Sequence[PolicyCase]) -> list[CaseResult]:
    """Every case, asked."""
    return [_run(policies, case) for case in cases]


def _run(policies: Policies, case: PolicyCase) -> CaseResult:
    if case.target not in policies.places:
        return CaseResult(case.name, "deny", (), f"{case.target!r} is {_NO_TARGET}")
    asking = Asking(
        target=case.target,
        actor=_principal(case.actor, user=False),
        user=None if case.user is None else _principal(case.user, user=True),
        scopes=case.scopes,
        calls=tuple(call for written in case.calls for call in written.compiled()),
        windowed=frozenset(case.scopes) if case.window else frozenset(),
        now=from_rfc3339(case.now),
        risk=case.risk,
    )
    found = permission(policies, asking)
    outcome: Expected
    if not isinstance(found, Permission):
        outcome = found.outcome
    elif found.scopes != case.scopes:
        outcome = "deny"
    else:
        outcome = "approve" if found.approvals else "permit"
    return CaseResult(case.name, outcome, found.policy_ids, _wrong(case, outcome, found.policy_ids))


def _wrong(case: PolicyCase, outcome: Expected, policy_ids: tuple[str, ...]) -> str:
    by = f" by {', '.join(policy_ids)}" if policy_ids else ""
    if outcome != case.expect:
        return f"expected {case.expect}, got {outcome}{by}"
    if case.policies is not None and set(case.policies) != set(policy_ids):
        expected = ", ".join(case.policies) or "none"
        return f"expected {case.expect} by {expected}, got it{by or ' by none'}"
    return ""


def _principal(party: PartyCase, *, user: bool) -> Principal:
    return Principal(
        "User" if user else "Agent" if party.agent else "Workload",
        party.issuer,
        party.subject,
        frozenset(party.roles),
        frozenset(party.groups),
    )
