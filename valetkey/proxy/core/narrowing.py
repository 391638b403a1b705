"""Two layers of settings become one: the operator's, and what its owner leaves of them.

The owner of a workload, or of its namespace, lists parts of the operator's routes. What comes out
is a snapshot like any other, made once: a call costs the same as without a second layer.

Invariants:

- Whatever call the narrowed snapshot lets out, the operator's alone would let out too, on the route
  that the owner named, to the same target, with these scopes or more, and with demands that are no
  stricter (approval, record, bounds, protocols, what is looked through).
- A route that would break this is not taken, and named with the operator's.
- What no route of the owner has is refused, also where a wider one is around it: where the operator
  has a route of its own, the owner's wide one has a hole.

The path must lie within the operator's route as that is looked up: the operator's narrowest route
around it is the one that is named, none lies across, and a reader that ignores case, last slash or
path parameters finds nothing else (`routing.RouteTree.holder`). With MCP the same holds for methods
and tools (`mcp_routes.McpEndpoint.holders`).

The broker has the last word on scopes; this is what the sidecar does before it asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from valetkey.contracts import codes
from valetkey.contracts.codes import SettingsCode
from valetkey.contracts.errors import ConfigError, SettingsRefused
from valetkey.contracts.mcp import NameInvalid, message_patterns
from valetkey.contracts.settings import Duration, Size
from valetkey.proxy.core.compilation import Endpoints, add_endpoint, add_route, make_targets
from valetkey.proxy.core.mcp_routes import McpEndpoint
from valetkey.proxy.core.patterns import PatternError, parse_pattern
from valetkey.proxy.core.snapshot import Route, Snapshot, Target
from valetkey.proxy.settings import (
    MatchSettings,
    NarrowedRouteSettings,
    OwnerFileSettings,
    PassthroughSettings,
    ProxySettings,
    RouteApprovalSettings,
    RouteLimitSettings,
    RouteSettings,
    RouteTimeoutSettings,
)

T = TypeVar("T")

_POST: Final = "POST"


@dataclass(frozen=True, slots=True)
class Withheld:
    """A route, or passthrough host, of the owner that is not in force.

    ``route`` is its key path in the owner's file, ``within`` the operator's that it names.
    """

    route: str
    within: str
    code: SettingsCode
    reason: str

    def __str__(self) -> str:
        return f"{self.route} (within {self.within!r}): {self.reason}"


def narrow(
    operator: Snapshot,
    file: OwnerFileSettings | None,
    targets: Iterable[str] | None,
    *,
    thumbprint: str,
) -> tuple[Snapshot, tuple[Withheld, ...]]:
    """The operator's snapshot narrowed to the routes of an owner's file, and to some targets.

    Routes that allow more, or can't be compiled, are left out and returned; so are such hosts.
    ``targets`` that the operator has not are none. ``thumbprint`` as in `compile_snapshot`.
    """
    settings = operator.settings
    kept = set(settings.targets) if targets is None else set(targets)
    if file is None:
        routes = tuple(route for route in settings.routes if route.target in kept)
        reduced = msgspec.structs.replace(settings, routes=routes)
        return _build(operator, reduced, _identity(routes), thumbprint), ()
    withheld: list[Withheld] = []
    passthrough = _kept_hosts(settings.passthrough, file.passthrough, withheld)
    made = _merged(operator, file, kept, withheld)
    while True:
        effective = msgspec.structs.replace(
            settings,
            routes=tuple(item for _, item in made.values()),
            passthrough=passthrough,
        )
        try:
            return _build(operator, effective, made, thumbprint), tuple(withheld)
        except _Unusable as error:
            # What was made with it is thrown away: of a route with many messages, some were added.
            within, _ = made.pop(error.where)
            withheld.append(Withheld(error.where, within, codes.SETTINGS_INVALID, str(error)))


def closed(operator: Snapshot, *, thumbprint: str) -> Snapshot:
    """What is in force while nobody knows what the owner leaves: nothing may leave."""
    settings = msgspec.structs.replace(operator.settings, routes=(), passthrough=())
    return Snapshot(
        settings,
        make_targets(settings, thumbprint),
        (),
        around=operator,
        unmatched=codes.SETTINGS_OWNER_UNUSABLE,
    )


# --- one route ------------------------------------------------------------------------------------

_Made = dict[str, tuple[str, RouteSettings]]


class _Unusable(Exception):  # noqa: N818 - never leaves this module
    """The route at this key path can't be compiled beside those before it."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(message)
        self.where = where


def _merged(
    operator: Snapshot, file: OwnerFileSettings, kept: set[str], withheld: list[Withheld]
) -> _Made:
    """The owner's routes as the operator would have written them, by key path."""
    by_id = {route.id: route for route in operator.routes}
    settings = {route.id: route for route in operator.settings.routes}
    made: _Made = {}
    for index, item in enumerate(file.routes):
        where = f"routes.{index}"
        within = by_id.get(item.within)
        try:
            if within is None:
                raise _wider(where, f"the operator has no route {item.within!r}")
            if within.target.name not in kept:
                continue  # the pod does not want the target: nothing is wrong with the route
            merged = narrowed(settings[item.within], item, within, where)
            _check_place(merged, within, where)
        except SettingsRefused as error:
            withheld.append(Withheld(where, item.within, error.code, str(error)))
        else:
            made[where] = (item.within, merged)
    return made


def narrowed(
    operator: RouteSettings, own: NarrowedRouteSettings, within: Route, where: str
) -> RouteSettings:
    """The operator's route with what the owner says in place of it.

    ``within`` is the operator's route compiled, ``where`` the owner's key path. Raises
    `SettingsRefused` for what is less strict. The path is not looked at.
    """
    match, said = operator.match, own.match
    methods = match.methods
    if said.methods is not None:
        _subset(said.methods, within.methods, f"{where}.match.methods", operator.id)
        methods = said.methods
    mcp = match.mcp if said.mcp is None else said.mcp
    if mcp is not None:
        if _POST not in (said.methods or within.methods):
            raise _wider(f"{where}.match.mcp", f"{operator.id!r} has no POST")
        if said.methods is None or set(said.methods) == {_POST}:
            methods = ()
    if own.scopes is not None:
        _subset(own.scopes, within.scopes, f"{where}.scopes", operator.id)
    upgrade = operator.upgrade
    if own.upgrade is not None:
        _subset(own.upgrade, within.upgrade, f"{where}.upgrade", operator.id)
        upgrade = own.upgrade
    for key in ("scrub_answers", "per_request"):
        # An approval implies a credential per request, whatever the key says.
        if getattr(own, key) is False and getattr(operator, key):
            raise _wider(f"{where}.{key}", f"{operator.id!r} asks for it")
    if own.audit == "buffered" and within.durable:
        raise _wider(f"{where}.audit", f"{operator.id!r} waits for the disk")
    if own.spool_full == "record_gap" and not within.record_gap:
        raise _wider(f"{where}.spool_full", f"{operator.id!r} denies")
    return msgspec.structs.replace(
        operator,
        match=MatchSettings(
            path=match.path if said.path is None else said.path, methods=methods, mcp=mcp
        ),
        scopes=operator.scopes if own.scopes is None else own.scopes,
        upgrade=upgrade,
        timeouts=_timeouts(operator, own.timeouts, within, where),
        limits=_limits(operator, own.limits, within, where),
        scrub_answers=operator.scrub_answers or bool(own.scrub_answers),
        per_request=operator.per_request or bool(own.per_request),
        approval=_approval(operator, own, within, where),
        audit=own.audit or operator.audit,
        spool_full=own.spool_full or operator.spool_full,
    )


def _timeouts(
    operator: RouteSettings, own: RouteTimeoutSettings, within: Route, where: str
) -> RouteTimeoutSettings:
    said: dict[str, Duration] = {}
    for key in RouteTimeoutSettings.__struct_fields__:
        value = getattr(own, key)
        if value is not None:
            most = getattr(within, key)
            if value > most:
                raise _wider(f"{where}.timeouts.{key}", f"{operator.id!r} waits for {most:g} s")
            said[key] = value
    return msgspec.structs.replace(operator.timeouts, **said)


def _limits(
    operator: RouteSettings, own: RouteLimitSettings, within: Route, where: str
) -> RouteLimitSettings:
    said: dict[str, Size | int] = {}
    for key in ("head_size", "headers", "body_size"):
        value, most = getattr(own, key), getattr(operator.limits, key)
        if value is not None:
            if most is not None and value > most:
                raise _wider(f"{where}.limits.{key}", f"{operator.id!r} takes {most}")
            said[key] = value
    if own.body_rate is not None:
        # At no rate a byte is worth any time at all.
        pace = 1 / own.body_rate if own.body_rate else float("inf")
        if pace > within.pace:
            raise _wider(f"{where}.limits.body_rate", f"{operator.id!r} asks for more")
        said["body_rate"] = own.body_rate
    return msgspec.structs.replace(operator.limits, **said)


def _approval(
    operator: RouteSettings, own: NarrowedRouteSettings, within: Route, where: str
) -> RouteApprovalSettings | None:
    """An approval as its longest wait; the operator's where the owner says nothing of the time."""
    theirs = RouteApprovalSettings(hold=Duration(within.hold)) if within.needs_approval else None
    if own.approval is None:
        return theirs
    if own.approval == "required":
        return theirs or RouteApprovalSettings()
    if theirs is not None and own.approval.hold > theirs.hold:
        raise _wider(f"{where}.approval.hold", f"{operator.id!r} waits for {theirs.hold:g} s")
    return own.approval


def _check_place(merged: RouteSettings, within: Route, where: str) -> None:
    """That all the calls are the operator's route's. Raises `SettingsRefused`."""
    methods = (_POST,) if merged.match.mcp is not None else merged.match.methods
    for method in methods:
        try:
            held = within.target.routes.holder(method, merged.match.path)
            others: set[Route] = {held} if isinstance(held, Route) else set()
            if isinstance(held, McpEndpoint):
                if merged.match.mcp is None:
                    raise _wider(f"{where}.match", f"{merged.match.path!r} takes messages of MCP")
                mcp = merged.match.mcp
                others = held.holders(message_patterns(mcp.methods, mcp.tools or ()))
        except (PatternError, NameInvalid) as error:
            raise _wider(f"{where}.match", str(error)) from error
        if others - {within}:
            names = ", ".join(sorted(repr(each.id) for each in others - {within}))
            raise _wider(
                f"{where}.match", f"{method} {merged.match.path!r} is the operator's {names}"
            )


def _subset(own: Iterable[T], theirs: Iterable[T], where: str, operator: str) -> None:
    more = sorted(str(each) for each in set(own) - set(theirs))
    if more:
        raise _wider(where, f"{operator!r} has no {', '.join(more)}")


def _wider(where: str, reason: str) -> SettingsRefused:
    return SettingsRefused(codes.SETTINGS_WIDENS, f"{where}: {reason}")


# --- all of them ----------------------------------------------------------------------------------


def _identity(routes: Iterable[RouteSettings]) -> _Made:
    return {f"routes.{index}": (route.id, route) for index, route in enumerate(routes)}


def _build(operator: Snapshot, settings: ProxySettings, made: _Made, thumbprint: str) -> Snapshot:
    """Raises `_Unusable` for the first route that can't be compiled."""
    targets = make_targets(settings, thumbprint)
    endpoints: Endpoints = {}
    routes: list[Route] = []
    for where, (_, item) in made.items():
        try:
            routes.append(add_route(item, settings, targets, endpoints, where))
        except ConfigError as error:
            raise _Unusable(where, str(error)) from error
    within = {route.id: route for route in operator.routes}
    _add_holes_of_messages(routes, within, endpoints)
    for name, target in targets.items():
        if any(route.target is target for route in routes):
            _add_holes(operator.targets[name], target, settings.limits.message)
    return Snapshot(settings, targets, tuple(routes), around=operator)


def _add_holes(theirs: Target, ours: Target, limit: int) -> None:
    """Where the operator has a route and the owner has none, nothing leaves.

    Not only beneath the owner's routes: to a lax reader a path may be another route's as well. At
    an MCP endpoint of the operator's stays one that takes nothing, since the answers to other
    methods are looked through because of it.
    """
    for method, pattern, route in list(theirs.routes.entries()):
        if ours.routes.has(method, pattern):
            continue
        if isinstance(route, McpEndpoint):
            add_endpoint(ours, pattern, limit)
        else:
            ours.routes.add((method,), pattern, None)


def _add_holes_of_messages(
    routes: Iterable[Route],
    within: Mapping[str, Route],
    endpoints: Endpoints,
) -> None:
    """The same for the methods and tools of an MCP endpoint."""
    for route in routes:
        if not route.messages:
            continue
        held = within[route.id].target.routes.holder(_POST, route.pattern)
        if isinstance(held, McpEndpoint):
            endpoint = endpoints[route.target, parse_pattern(route.pattern)]
            endpoint.add_holes(held, within[route.id], route.messages)


def _kept_hosts(
    theirs: tuple[PassthroughSettings, ...],
    own: tuple[str, ...] | None,
    withheld: list[Withheld],
) -> tuple[PassthroughSettings, ...]:
    """The operator's passthrough hosts that the owner keeps."""
    if own is None:
        return theirs
    known = {each.host for each in theirs}
    kept = set(own) & known
    # The narrower ones first: what is dropped for one's sake counts for those around it.
    for host in sorted(set(own), key=lambda each: (-each.count("."), each)):
        where = f"passthrough.{own.index(host)}"
        lost = sorted(
            each for each in known - kept if host.startswith("*.") and each.endswith(host[1:])
        )
        if host not in known:
            reason = f"{where}: the operator has no {host!r}"
        elif lost and lost != [host]:
            # Without it, the host would be one of those below the wildcard, under other rules.
            reason = f"{where}: {lost[0]!r} is below {host!r}: keep it too"
        else:
            continue
        kept.discard(host)
        withheld.append(Withheld(where, host, codes.SETTINGS_WIDENS, reason))
    return tuple(each for each in theirs if each.host in kept)
