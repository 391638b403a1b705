"""What policies permit of a request: every scope, for every call, for everybody concerned.

A request may stand for many calls: a path pattern, any tool of a kind, or no details at all. A
policy is asked about each kind of call that it could tell apart from another.

Invariants:

- A scope is permitted only if every question about it is answered with a permit: for each call, for
  the acting workload, and for the user that it acts for.
- What a request leaves open is left out of the context (`cedar_schema.OPEN`), and where a policy
  reads it, nothing is permitted.
- Where a policy names a tool, a request for many tools is asked about that tool by itself; where it
  names a route, a request that lies only partly in the route, or only to a target that reads paths
  laxly (without case, the last slash, parameters), is not permitted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from valetkey.broker.core.cedar import Policies, Principal, Slice, Verdict
from valetkey.broker.core.cedar_text import ApprovalRule
from valetkey.broker.core.grants import Call
from valetkey.broker.core.risk import UNRATED, Risk, highest
from valetkey.contracts.mcp import METHOD_TOOLS_CALL, MessagePattern

# Distinct questions for one request, of about 0.1 ms each. Requests have one to ten.
MAX_QUESTIONS: Final = 256
# MCP, streamable HTTP: messages are sent by POST; GET opens a stream, DELETE ends a session.
_WITHOUT_MESSAGE: Final = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
_DAY: Final = 86_400


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks for what on a target. ``now`` is in seconds since the epoch.

    ``windowed`` are the scopes that a grant with an open deployment window gives.
    """

    target: str
    actor: Principal
    user: Principal | None
    scopes: tuple[str, ...]
    calls: tuple[Call, ...]
    now: float
    windowed: frozenset[str] = frozenset()
    risk: Risk = UNRATED
    """The highest of the parties'."""


@dataclass(frozen=True, slots=True)
class Permission:
    """What is permitted: at least one scope. ``policy_ids`` decided it."""

    scopes: tuple[str, ...]
    policy_ids: tuple[str, ...]
    approvals: tuple[ApprovalRule, ...]


class _Place(NamedTuple):
    """One kind of call: the entities that it lies in, and what is known of it."""

    parents: tuple[tuple[str, str], ...]
    known: tuple[tuple[str, str], ...]


def permission(policies: Policies, asking: Asking) -> Permission | Verdict:
    """What of the scopes is permitted, or the first verdict that says why nothing is."""
    slice_ = policies.of_target(asking.target)
    places = _places(slice_, asking.calls)
    if places is None:
        return Verdict("open", errors=("only a part of the request lies in a route",))
    principals = [asking.actor] if asking.user is None else [asking.actor, asking.user]
    scopes: list[str] = []
    names: set[str] = set()
    approvals: dict[ApprovalRule, None] = {}
    refusal: Verdict | None = None
    shared = _shared(slice_, asking)
    by_scope = slice_.reads & {"scope", "window"}
    told_apart = len(asking.scopes) if by_scope else 1
    if len(places) * len(principals) * told_apart > MAX_QUESTIONS:
        return Verdict("open", errors=("the request has more kinds of calls than are asked about",))
    for scope in asking.scopes:
        context = shared
        if by_scope:
            own = {"scope": scope, "window": scope in asking.windowed}
            context = {**shared, **{name: own[name] for name in by_scope}}
        verdict = _of_scope(policies, slice_, principals, places, context)
        if verdict.outcome == "permit":
            scopes.append(scope)
            names.update(verdict.policy_ids)
            approvals.update(dict.fromkeys(verdict.approvals))
        elif refusal is None:
            refusal = verdict
    if not scopes:
        return refusal or Verdict("deny")
    return Permission(tuple(scopes), tuple(sorted(names)), tuple(approvals))


def _of_scope(
    policies: Policies,
    slice_: Slice,
    principals: Sequence[Principal],
    places: Sequence[_Place],
    context: Mapping[str, Any],
) -> Verdict:
    names: set[str] = set()
    approvals: dict[ApprovalRule, None] = {}
    for principal in principals:
        for place in places:
            of_call = {**context, **dict(place.known)} if place.known else context
            verdict = policies.evaluate(slice_, principal, place.parents, of_call)
            if verdict.outcome != "permit":
                return verdict
            names.update(verdict.policy_ids)
            approvals.update(dict.fromkeys(verdict.approvals))
    return Verdict("permit", tuple(names), tuple(approvals))


def _shared(slice_: Slice, asking: Asking) -> dict[str, Any]:
    """The attributes that are the same for every call, as far as any policy reads them."""
    context: dict[str, Any] = {}
    reads = slice_.reads
    if "environment" in reads:
        context["environment"] = slice_.target.environment
    if "risk" in reads:
        context["risk"] = highest(slice_.target.risk, asking.risk)
    if "actor" in reads:
        context["actor"] = _party(asking.actor)
    if "user" in reads and asking.user is not None:
        context["user"] = _party(asking.user)
    if "now" in reads:
        # In whole seconds, as tokens have it: equal questions within one have one answer.
        now = datetime.fromtimestamp(math.floor(asking.now), UTC)
        text = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        context["now"] = {"__extn": {"fn": "datetime", "arg": text}}
    if "weekday" in reads:
        context["weekday"] = (math.floor(asking.now / _DAY) + 3) % 7 + 1  # the epoch: a Thursday
    return context


def _party(principal: Principal) -> dict[str, Any]:
    return {
        "issuer": principal.issuer,
        "subject": principal.subject,
        "agent": principal.kind == "Agent",
        "roles": sorted(principal.roles),
        "groups": sorted(principal.groups),
    }


def _places(slice_: Slice, calls: Sequence[Call]) -> list[_Place] | None:
    """All kinds of calls that the policies tell apart; ``None`` if a route holds a part of one."""
    places: dict[_Place, None] = {}
    for call in calls or (None,):
        parents = _parents(slice_, call)
        if parents is None:
            return None
        http = _http(call)
        for tool, message in _messages(slice_, call):
            lies_in = parents if not tool else (*parents, ("Tool", f"{slice_.target.name}/{tool}"))
            known = {**http, **message}
            read = tuple((name, value) for name, value in known.items() if name in slice_.reads)
            places[_Place(lies_in, read)] = None
    return list(places)


def _parents(slice_: Slice, call: Call | None) -> tuple[tuple[str, str], ...] | None:
    parents = [("Target", slice_.target.name)]
    for name, route in slice_.routes:
        if call is not None and route.includes(call):
            parents.append(("Route", name))
        elif call is None or route.may_meet(call):
            return None
    return tuple(parents)


def _http(call: Call | None) -> dict[str, str]:
    if call is None:
        return {}
    known = {}
    if len(call.methods) == 1:
        (known["method"],) = call.methods
    if call.path.plain is not None:
        known["path"] = call.path.plain
    return known


def _messages(slice_: Slice, call: Call | None) -> Iterator[tuple[str, dict[str, str]]]:
    """The kinds of messages that a call may carry.

    Each is a tool that policies name (or none), and what is known of the message.
    """
    if call is not None and call.messages is None and call.methods <= _WITHOUT_MESSAGE:
        yield "", {"mcp_method": "", "mcp_tool": ""}
        return
    for message in (call.messages if call is not None else None) or (None,):
        if message is None or message.calls_tools:
            for tool in slice_.tools:
                if message is None or message.tool.matches(tool):
                    yield tool, {"mcp_method": METHOD_TOOLS_CALL, "mcp_tool": tool}
        if message is None:
            yield "", {}
        elif not _is_only(message, slice_.tools):
            yield "", _known_of(message)


def _is_only(message: MessagePattern, tools: Sequence[str]) -> bool:
    """Whether the message is the call of one of these tools, and can be no other."""
    return (
        message.method.exact
        and message.calls_tools
        and message.tool.exact
        and str(message.tool) in tools
    )


def _known_of(message: MessagePattern) -> dict[str, str]:
    known = {}
    if message.method.exact:
        known["mcp_method"] = str(message.method)
        if message.calls_tools and message.tool.exact:
            known["mcp_tool"] = str(message.tool)
    if not message.calls_tools:
        known["mcp_tool"] = ""
    return known
