"""Settings become a snapshot: whatever needs more than one key of them to judge is judged here.

What can't be used is refused with its key path, and nothing is made of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Final

from valetkey.contracts.errors import ConfigError
from valetkey.contracts.mcp import METHOD_TOOLS_CALL, NameInvalid, message_patterns
from valetkey.proxy.core.headers import (
    HOP_BY_HOP,
    normal,
)
from valetkey.proxy.core.mcp_routes import McpEndpoint
from valetkey.proxy.core.patterns import PatternError, parse_pattern
from valetkey.proxy.core.snapshot import FRAMING, Route, Snapshot, Target, split_origin
from valetkey.proxy.settings import (
    InterceptionSettings,
    LimitSettings,
    MatchSettings,
    ProxySettings,
    RouteApprovalSettings,
    RouteLimitSettings,
    RouteSettings,
)

_LEAF_LIFETIMES: Final = (600, 30 * 86_400)
# RFC 9110 §9.3.8: TRACE answers with the request, the injected credential in it (TRACK: the same
# in old IIS). §9.3.6: what follows an answer to CONNECT is no HTTP. RFC 9113 §3.4: nor behind PRI.
_NO_ROUTE: Final = frozenset({"TRACE", "TRACK", "CONNECT", "PRI"})
# With the body of a message that was read here, the expectation of it was met.
_MET: Final = frozenset({"expect"})
# The details are part of the token, and that of a header; common servers take 8 KiB of it.
_MAX_DETAILS: Final = 4096
# What a call may never switch to: messages would then pass that nobody here reads.
_NO_UPGRADE: Final = frozenset({"h2", "h2c", "http", "tls"})
_MCP_METHODS: Final = ("POST",)

Endpoints = dict[tuple[Target, Sequence[object]], McpEndpoint[Route]]


def compile_snapshot(settings: ProxySettings, *, thumbprint: str) -> Snapshot:
    """Settings as a snapshot. ``thumbprint`` is of this process's proof key.

    Raises `ConfigError` with the key path of what can't be used.
    """
    broker_tls, broker_host, _ = split_origin(settings.broker.url, "broker.url")
    _require_tls(broker_tls, broker_host, "broker.url")
    if settings.broker.mtls_url is not None:
        if not split_origin(settings.broker.mtls_url, "broker.mtls_url")[0]:
            raise ConfigError("broker.mtls_url: certificates need https")
        if settings.workload.identity.spiffe is None:
            raise ConfigError("broker.mtls_url: workload.identity has no certificates; use spiffe")
    if settings.collector is not None:
        tls, host, _ = split_origin(settings.collector.url, "collector.url")
        _require_tls(tls, host, "collector.url")
    if settings.limits.messages < settings.limits.message:
        raise ConfigError(
            "limits.messages: less than limits.message, so no such message could come"
        )
    if settings.interception is not None:
        _check_interception(settings.interception)
    subject = normal(settings.workload.subject_header)
    if subject in HOP_BY_HOP | FRAMING:
        raise ConfigError(f"workload.subject_header: {subject!r} can't carry a token")
    targets = make_targets(settings, thumbprint)
    routes = tuple(_compile_routes(settings, targets))
    for index, listener in enumerate(settings.listeners):
        where = f"listeners.{index}"
        if listener.target is not None and listener.target not in targets:
            raise ConfigError(f"{where}.target: no target {listener.target!r}")
        if listener.target is not None and listener.mode != "reverse":
            raise ConfigError(f"{where}.target: in {listener.mode} mode, calls name their target")
        unix = listener.bind.startswith("unix:")
        if listener.uids and not unix:
            raise ConfigError(f"{where}.uids: only a Unix socket tells who its peer is")
        if listener.mode == "transparent" and unix:
            raise ConfigError(f"{where}.bind: nothing redirects to a Unix socket")
        if listener.mode == "transparent" and listener.token_file is not None:
            raise ConfigError(f"{where}.token_file: who knows of no proxy brings it no token")
    return Snapshot(settings, targets, routes)


def make_targets(settings: ProxySettings, thumbprint: str) -> dict[str, Target]:
    """The targets, without routes. Raises `ConfigError`."""
    endpoint = settings.broker.url.rstrip("/") + "/token"
    return {
        name: Target(
            name,
            target,
            endpoint=endpoint,
            thumbprint=thumbprint,
            subject=settings.workload.subject_header,
        )
        for name, target in settings.targets.items()
    }


def _check_interception(settings: InterceptionSettings) -> None:
    if settings.ca is not None and settings.key_file is not None:
        raise ConfigError("interception.key_file: a given CA (interception.ca) has a key already")
    shortest, longest = _LEAF_LIFETIMES
    if not shortest <= settings.leaf_lifetime <= longest:
        raise ConfigError("interception.leaf_lifetime: between 10m and 30d")
    files = {
        "ca.certificate": settings.ca.certificate if settings.ca else None,
        "ca.key": settings.ca.key if settings.ca else None,
        "system_roots": settings.system_roots,
        "key_file": settings.key_file,
        "certificate_file": settings.certificate_file,
        "bundle_file": settings.bundle_file,
        "truststore_file": settings.truststore_file,
    }
    # One written over another would lose a key, or publish it.
    seen: dict[PurePath, str] = {}
    for key, path in files.items():
        if path is not None and seen.setdefault(path, key) != key:
            raise ConfigError(f"interception.{key}: the same file as interception.{seen[path]}")


def _compile_routes(settings: ProxySettings, targets: dict[str, Target]) -> list[Route]:
    routes: list[Route] = []
    endpoints: Endpoints = {}
    seen: set[str] = set()
    for index, item in enumerate(settings.routes):
        where = f"routes.{index}"
        if item.id in seen:
            raise ConfigError(f"{where}.id: {item.id!r} is taken")
        seen.add(item.id)
        routes.append(add_route(item, settings, targets, endpoints, where))
    return routes


def add_route(
    item: RouteSettings,
    settings: ProxySettings,
    targets: dict[str, Target],
    endpoints: Endpoints,
    where: str,
) -> Route:
    """Make a route and add it to its target. Raises `ConfigError`; some of it may be added then.

    ``where`` is its key path. ``endpoints`` holds the MCP endpoints of these targets.
    """
    target = targets.get(item.target)
    if target is None:
        raise ConfigError(f"{where}.target: no target {item.target!r}")
    _check_route(item, settings, where)
    try:
        route = Route(item, target, settings.timeouts, settings.limits)
        if item.match.mcp is None:
            target.routes.add(route.methods, route.pattern, route)
        else:
            endpoint = _endpoint(endpoints, route, settings.limits.message)
            endpoint.add(route.messages, route)
    except (PatternError, NameInvalid) as error:
        raise ConfigError(f"{where}.match: {error}") from error
    if route.messages and len(route.details) > _MAX_DETAILS:
        raise ConfigError(
            f"{where}.match.mcp: too many names for one credential; use * or more routes"
        )
    return route


def _check_route(item: RouteSettings, settings: ProxySettings, where: str) -> None:
    _check_match(item.match, f"{where}.match")
    _check_limits(item.limits, settings.limits, f"{where}.limits")
    if item.upgrade and item.scrub_answers:
        raise ConfigError(f"{where}.scrub_answers: what goes through a tunnel is not read")
    for protocol in item.upgrade:
        if protocol.partition("/")[0] in _NO_UPGRADE:
            raise ConfigError(f"{where}.upgrade: {protocol!r} can't be allowed")
    if isinstance(item.approval, RouteApprovalSettings) and not 0 <= item.approval.hold <= 600:
        raise ConfigError(f"{where}.approval.hold: between 0s and 10m")
    if item.upgrade and item.match.mcp is not None:
        raise ConfigError(f"{where}.upgrade: what goes through a tunnel is no message of MCP")
    if "websocket" in item.upgrade and "GET" not in item.match.methods:
        raise ConfigError(f"{where}.upgrade: websocket needs the method GET (RFC 6455 §4.1)")


def _check_limits(own: RouteLimitSettings, general: LimitSettings, where: str) -> None:
    """A bound that another one always comes before would never be met."""
    for name in ("head_size", "headers"):
        most = getattr(own, name)
        if most is not None and most > getattr(general, name):
            raise ConfigError(f"{where}.{name}: more than limits.{name}")


def _check_match(match: MatchSettings, where: str) -> None:
    for method in _NO_ROUTE.intersection(match.methods):
        raise ConfigError(f"{where}.methods: no route can allow {method}")
    mcp = match.mcp
    if mcp is None:
        if not match.methods:
            raise ConfigError(f"{where}.methods: at least one is needed")
        return
    if match.methods not in {(), ("POST",)}:
        raise ConfigError(f"{where}.methods: messages of MCP come by POST and nothing else")
    try:
        patterns = message_patterns(mcp.methods, mcp.tools or ())
    except NameInvalid as error:
        raise ConfigError(f"{where}.mcp: {error}") from error
    if mcp.tools and not any(pattern.calls_tools for pattern in patterns):
        raise ConfigError(f"{where}.mcp.tools: {METHOD_TOOLS_CALL} is not among the methods")


def _endpoint(endpoints: Endpoints, route: Route, limit: int) -> McpEndpoint[Route]:
    """The MCP endpoint at a route's path, made where it is the first. Raises `PatternError`."""
    place = (route.target, parse_pattern(route.pattern))
    endpoint = endpoints.get(place)
    if endpoint is None:
        endpoint = endpoints[place] = add_endpoint(route.target, route.pattern, limit)
    return endpoint


def add_endpoint(target: Target, pattern: str, limit: int) -> McpEndpoint[Route]:
    """An MCP endpoint without routes, which takes no message. Raises `PatternError`."""
    others = target.headers.for_reading()
    endpoint: McpEndpoint[Route] = McpEndpoint(others.without(_MET), others, limit)
    target.routes.add(_MCP_METHODS, pattern, endpoint)
    target.has_mcp = True
    return endpoint


def _require_tls(tls: bool, host: str, where: str) -> None:
    """Tokens travel on this connection: in the clear only inside this host."""
    if not tls and host not in {"127.0.0.1", "localhost", "[::1]"}:
        raise ConfigError(f"{where}: plain http is accepted for loopback only")
