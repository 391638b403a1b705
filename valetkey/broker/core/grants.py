"""Grants: which workload may have which scopes on which target, as written and as compiled.

Invariants:

- Nothing is allowed that no grant names. An empty grants list, an empty scope list and an empty
  condition list are errors, never "everything".
- A scope is granted for a request only if *every* authorization detail of the request is covered
  by a grant that holds this very scope: two grants never combine into something that neither
  gives (the details of one with the scopes of the other).
- The digest names the policy: same grants and targets, same digest, in whatever order written.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from valetkey.broker.core.patterns import PathPattern, PatternInvalid, WorkloadPattern
from valetkey.contracts import codes
from valetkey.contracts.codes import Code
from valetkey.contracts.jose import b64url
from valetkey.contracts.mcp import ANY, MessagePattern, message_patterns
from valetkey.contracts.oauth import HttpCallDetails
from valetkey.contracts.settings import Duration, Settings

# RFC 6749 §3.3: scope-token = 1*( %x21 / %x23-5B / %x5D-7E )
SCOPE_TOKEN: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,256}")
# RFC 9110 §5.6.2 token; the methods themselves are case-sensitive (§9.1).
METHOD: Final = re.compile(r"[A-Z][A-Z-]{0,31}")
_GRANT_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


class McpConditionSettings(Settings, frozen=True, kw_only=True):
    """Messages of MCP that a grant is good for, as in the sidecar's routes.

    ``methods`` are JSON-RPC methods, ``tools`` the tools of ``tools/call`` (left out: any). Each
    is a name, or has one ``*`` for any run of characters.
    """

    methods: tuple[str, ...]
    tools: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.methods or (self.tools is not None and not self.tools):
            raise ValueError("methods and tools are non-empty lists; leave tools out for any")
        patterns = message_patterns(self.methods, self.tools or ())
        if self.tools and not any(pattern.calls_tools for pattern in patterns):
            raise ValueError("tools without tools/call among the methods")


class ConditionSettings(Settings, frozen=True, kw_only=True):
    """Calls that a grant is good for: these methods on the paths of this pattern.

    With ``mcp``, only calls that carry such a message; without, whatever they carry.
    """

    methods: tuple[str, ...]
    path: str
    mcp: McpConditionSettings | None = None

    def __post_init__(self) -> None:
        if not self.methods or not all(METHOD.fullmatch(method) for method in self.methods):
            raise ValueError("methods must be a non-empty list of HTTP methods in capitals")
        PathPattern.parse(self.path)


class GrantSettings(Settings, frozen=True, kw_only=True):
    """One grant as the grants file writes it.

    ``workload`` is the exact subject of the workload's token, or has one ``*`` for exactly one
    segment; ``issuer`` is the exact issuer of that token. ``on_behalf_of: users`` lets the
    workload also act for a user; ``nobody`` lets it act only for itself. With ``conditions`` every
    request must say in ``authorization_details`` what it will call, and one condition must cover
    it. ``ttl`` can only shorten the target's lifetime.
    """

    id: str
    workload: str
    issuer: str
    target: str
    scopes: tuple[str, ...]
    on_behalf_of: Literal["users", "nobody"] = "nobody"
    conditions: tuple[ConditionSettings, ...] | None = None
    ttl: Duration | None = None

    def __post_init__(self) -> None:
        if not _GRANT_ID.fullmatch(self.id):
            raise ValueError("id must be lower-case letters, digits, '.', '_' and '-'")
        WorkloadPattern.parse(self.workload)
        if not self.scopes or not all(SCOPE_TOKEN.fullmatch(scope) for scope in self.scopes):
            raise ValueError("scopes must be a non-empty list of scope tokens (RFC 6749 §3.3)")
        if self.conditions is not None and not self.conditions:
            raise ValueError("conditions is empty: leave it out, or say what the grant is good for")
        if self.ttl is not None and self.ttl < 1:
            raise ValueError("ttl must be at least 1s")


class GrantsFile(Settings, frozen=True, kw_only=True):
    """The grants file."""

    grants: tuple[GrantSettings, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """A system that calls go to. ``ttl`` is in seconds and already has the default filled in."""

    name: str
    audience: str
    resource: str
    credential: Literal["bearer", "dpop"]
    ttl: float


class PolicyInvalid(ValueError):  # noqa: N818 - reads as what it is
    """Grants that contradict each other or the settings."""


@dataclass(frozen=True, slots=True)
class Call:
    """Calls over HTTP: these methods on every path of this pattern.

    ``messages`` says that they carry one of these messages of MCP; ``None``: whatever they carry.
    """

    methods: frozenset[str]
    path: PathPattern
    messages: tuple[MessagePattern, ...] | None = None

    @classmethod
    def all_of(cls, details: HttpCallDetails) -> tuple[Call, ...]:
        """One per method and message, so that each may be covered by another grant or condition.

        Raises `PatternInvalid` for a path that is none, `NameInvalid` for such a message.
        """
        read = PathPattern.literal if details.exact else PathPattern.parse
        path = read(details.path)
        messages: list[tuple[MessagePattern, ...] | None] = [None]
        if details.mcp is not None:
            messages = [
                (message,)
                for message in message_patterns(
                    details.mcp.methods, details.mcp.tools, exact=details.exact
                )
            ]
        return tuple(
            cls(frozenset({method}), path, message)
            for method in dict.fromkeys(details.actions)
            for message in messages
        )

    def includes(self, other: Call) -> bool:
        return (
            other.methods <= self.methods
            and self.path.includes(other.path)
            and self._includes_messages(other.messages)
        )

    def _includes_messages(self, others: tuple[MessagePattern, ...] | None) -> bool:
        """Whether each of these messages is one of ours; any message at all is only in any."""
        if self.messages is None:
            return True
        return others is not None and all(
            any(own.includes(other) for own in self.messages) for other in others
        )


@dataclass(frozen=True, slots=True)
class Grant:
    """A grant ready to be asked. ``conditions`` is ``None`` for any call on the target."""

    id: str
    workload: WorkloadPattern
    issuer: str
    scopes: frozenset[str]
    for_users: bool
    conditions: tuple[Call, ...] | None
    ttl: float | None

    def covers(self, call: Call) -> bool:
        """Whether one condition includes the call whole; without conditions, always."""
        return self.conditions is None or any(own.includes(call) for own in self.conditions)


@dataclass(frozen=True, slots=True)
class Granted:
    """What the grants give of what was asked. ``ttl`` is the shortest that a used grant names."""

    scopes: tuple[str, ...]
    grant_ids: tuple[str, ...]
    ttl: float | None


@dataclass(frozen=True, slots=True)
class Policy:
    """All grants by target, with the targets by audience. One immutable snapshot."""

    targets: Mapping[str, Target]
    grants: Mapping[str, tuple[Grant, ...]]
    digest: str
    count: int
    _exact: Mapping[tuple[str, str, str], tuple[Grant, ...]] = field(repr=False)
    _wild: Mapping[tuple[str, str], tuple[Grant, ...]] = field(repr=False)

    @classmethod
    def compile(
        cls, file: GrantsFile, targets: Iterable[Target], *, issuers: frozenset[str]
    ) -> Policy:
        """``issuers`` are the issuers trusted for workloads. Raises `PolicyInvalid`."""
        by_name = {target.name: target for target in targets}
        if not file.grants:
            raise PolicyInvalid("grants is empty: nobody could ever get a token")
        seen: set[str] = set()
        grants: dict[str, list[Grant]] = {name: [] for name in by_name}
        for written in file.grants:
            if written.id in seen:
                raise PolicyInvalid(f"grant {written.id}: the id is used twice")
            seen.add(written.id)
            if written.target not in by_name:
                raise PolicyInvalid(f"grant {written.id}: no target {written.target!r} in settings")
            if written.issuer not in issuers:
                raise PolicyInvalid(
                    f"grant {written.id}: {written.issuer!r} is no issuer that settings trust for "
                    "workloads"
                )
            grants[written.target].append(_compile(written))
        exact: dict[tuple[str, str, str], list[Grant]] = {}
        wild: dict[tuple[str, str], list[Grant]] = {}
        for name, of_target in grants.items():
            for grant in of_target:
                if grant.workload.exact:
                    exact.setdefault((name, grant.issuer, grant.workload.text), []).append(grant)
                else:
                    wild.setdefault((name, grant.issuer), []).append(grant)
        return cls(
            targets={target.audience: target for target in by_name.values()},
            grants={name: tuple(of_target) for name, of_target in grants.items()},
            digest=_digest(file, by_name),
            count=len(file.grants),
            _exact={key: tuple(value) for key, value in exact.items()},
            _wild={key: tuple(value) for key, value in wild.items()},
        )

    def grant(
        self,
        target: Target,
        *,
        issuer: str,
        workload: str,
        for_user: bool,
        scopes: Sequence[str],
        calls: Sequence[Call],
    ) -> Granted | Code:
        """What of ``scopes`` the workload gets on ``target`` for ``calls``, or why nothing."""
        of_workload = [
            *self._exact.get((target.name, issuer, workload), ()),
            *(g for g in self._wild.get((target.name, issuer), ()) if g.workload.matches(workload)),
        ]
        usable = [grant for grant in of_workload if grant.for_users or not for_user]
        if not usable:
            return codes.GRANT_MISSING
        held = [grant for grant in usable if not grant.scopes.isdisjoint(scopes)]
        if not held:
            return codes.GRANT_SCOPE
        given: list[str] = []
        used: dict[str, Grant] = {}
        for scope in dict.fromkeys(scopes):
            holders = [grant for grant in held if scope in grant.scopes]
            needed = _covering(holders, calls)
            if needed:
                given.append(scope)
                used.update({grant.id: grant for grant in needed})
        if not given:
            return codes.GRANT_CONDITION
        ttls = [grant.ttl for grant in used.values() if grant.ttl is not None]
        return Granted(tuple(given), tuple(used), min(ttls, default=None))


def _covering(holders: Sequence[Grant], calls: Sequence[Call]) -> list[Grant]:
    """The grants that together cover every call; empty if one is left uncovered."""
    if not calls:
        return [grant for grant in holders if grant.conditions is None]
    covering: list[Grant] = []
    for call in calls:
        of_call = [grant for grant in holders if grant.covers(call)]
        if not of_call:
            return []
        covering += of_call
    return covering


def _compile(written: GrantSettings) -> Grant:
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
        scopes=frozenset(written.scopes),
        for_users=written.on_behalf_of == "users",
        conditions=conditions,
        ttl=written.ttl,
    )


def _canonical(condition: ConditionSettings) -> list[Any]:
    """A condition in one form; one without `mcp` keeps the form that it always had."""
    form: list[Any] = [sorted(set(condition.methods)), condition.path]
    if condition.mcp is not None:
        form += [sorted(set(condition.mcp.methods)), sorted(set(condition.mcp.tools or (ANY,)))]
    return form


def _digest(file: GrantsFile, targets: Mapping[str, Target]) -> str:
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
            }
            for target in targets.values()
        },
    }
    encoded = msgspec.json.encode(canonical, order="deterministic")
    return b64url(hashlib.sha256(encoded).digest())
