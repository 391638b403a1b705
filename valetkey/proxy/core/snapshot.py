"""What decisions are made on: immutable, complete, or not made at all (`core.compilation`).

A reload makes a new snapshot; calls in flight finish on the one they began with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from ipaddress import IPv6Network
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from valetkey.contracts import codes
from valetkey.contracts.codes import Code
from valetkey.contracts.diagnosis import DIAGNOSIS_HOST
from valetkey.contracts.errors import CallerError, ConfigError
from valetkey.contracts.mcp import MessagePattern, message_patterns
from valetkey.contracts.oauth import (
    DETAILS_HTTP_CALL,
    HttpCallDetails,
    McpDetails,
    canonical_details,
)
from valetkey.proxy.core.addresses import Network, parse_nat64, parse_networks
from valetkey.proxy.core.authority import (
    DEFAULT_PORTS,
    host_of,
    origin_of,
    settled_host,
    split_host,
)
from valetkey.proxy.core.bounds import Bounds
from valetkey.proxy.core.headers import (
    ALWAYS_MANAGED,
    CREDENTIAL_PARAMETERS,
    HOP_BY_HOP,
    OVERRIDE_PARAMETERS,
    HeaderPolicy,
    normal,
)
from valetkey.proxy.core.json_rpc import Message
from valetkey.proxy.core.mcp_routes import McpEndpoint
from valetkey.proxy.core.routing import RouteTree
from valetkey.proxy.settings import (
    CredentialSettings,
    LimitSettings,
    NetworkSettings,
    PassthroughSettings,
    ProxySettings,
    RouteApprovalSettings,
    RouteLimitSettings,
    RouteSettings,
    RouteTimeoutSettings,
    TargetSettings,
    TimeoutSettings,
)

FRAMING: Final = frozenset({"host", "content-length", "via", "expect"})


class Target:
    """A system that calls go to. Identity is by object: one per snapshot."""

    __slots__ = (
        "allowed", "audience", "authority", "credential_parameters", "endpoint", "has_mcp",
        "headers", "host", "inject", "name", "override_parameters", "port", "prefix", "routes",
        "settings", "thumbprint", "tls", "url",
    )  # fmt: skip

    def __init__(
        self, name: str, settings: TargetSettings, *, endpoint: str, thumbprint: str, subject: str
    ) -> None:
        where = f"targets.{name}"
        self.name = name
        self.settings = settings
        self.tls, self.host, self.port = split_origin(settings.url, f"{where}.url")
        default = DEFAULT_PORTS["https" if self.tls else "http"]
        self.authority = self.host if self.port == default else f"{self.host}:{self.port}"
        self.url = f"{'https' if self.tls else 'http'}://{self.authority}"
        self.audience = settings.audience
        self.prefix = settings.prefix or ""
        self.endpoint = endpoint
        self.inject = _injected_header(settings, where)
        self.thumbprint = thumbprint if settings.credential.kind == "dpop" else ""
        for passed in settings.pass_headers:
            if normal(passed) in ALWAYS_MANAGED | HOP_BY_HOP | {
                normal(self.inject or ""),
                normal(subject),
            }:
                raise ConfigError(f"{where}.pass_headers: {passed!r} can't be passed")
        self.headers = HeaderPolicy.of(
            injected=self.inject, subject_header=subject, passed=settings.pass_headers
        )
        parameters = frozenset(settings.pass_parameters)
        self.credential_parameters = CREDENTIAL_PARAMETERS - parameters
        self.override_parameters = OVERRIDE_PARAMETERS - parameters
        for parameter in parameters - CREDENTIAL_PARAMETERS - OVERRIDE_PARAMETERS:
            raise ConfigError(f"{where}.pass_parameters: {parameter!r} would pass anyway")
        self.routes: RouteTree[Route | McpEndpoint[Route]] = RouteTree(
            ignores_case="case" not in settings.tells_apart,
            ignores_last_slash="last_slash" not in settings.tells_apart,
        )
        self.has_mcp = False
        """Whether some path of it is an MCP endpoint."""
        try:
            self.allowed: tuple[Network, ...] = parse_networks(settings.allow_networks)
        except ValueError as error:
            raise ConfigError(f"{where}.allow_networks: {error}") from error
        if settings.ca_file is not None and not self.tls:
            raise ConfigError(f"{where}.ca_file: the target's url is not https")


class Route:
    """A match on one target, with the scopes that it needs."""

    __slots__ = (
        "bounds", "details", "durable", "first_byte", "headers", "hold", "id", "messages",
        "methods", "needs_approval", "pace", "pattern", "per_request", "record_gap", "scope",
        "scopes", "scrubs", "stall", "stream", "target", "upgrade",
    )  # fmt: skip

    def __init__(
        self,
        settings: RouteSettings,
        target: Target,
        timeouts: TimeoutSettings,
        limits: LimitSettings,
    ) -> None:
        self.id = settings.id
        self.target = target
        mcp = settings.match.mcp
        self.methods: tuple[str, ...] = ("POST",) if mcp is not None else settings.match.methods
        self.messages: tuple[MessagePattern, ...] = ()
        """The messages of MCP that it is for; none: it is for calls of any content."""
        details: McpDetails | None = None
        if mcp is not None:
            self.messages = message_patterns(mcp.methods, mcp.tools or ())
            details = _mcp_details(self.messages)
        self.pattern = settings.match.path
        self.scopes = tuple(sorted(set(settings.scopes)))
        self.scope = " ".join(self.scopes)
        self.upgrade = frozenset(settings.upgrade)
        """Protocols that a call may switch to."""
        own = settings.timeouts
        # Seconds; plain floats, since every call reads them.
        self.first_byte = _seconds(own.first_byte, timeouts.first_byte)
        self.stall = _seconds(own.stall, timeouts.stall)
        self.stream = _seconds(own.stream, timeouts.stream)
        rate = settings.limits.body_rate
        self.pace = _pace(limits.body_rate if rate is None else rate)
        self.bounds = _bounds(settings.limits)
        """What it takes of a call; None: whatever the sidecar takes."""
        self.scrubs = settings.scrub_answers
        """Whether bodies of answers are searched for the credential."""
        self.headers = target.headers.for_reading() if self.scrubs else target.headers
        self.hold = _hold(settings.approval)
        """Seconds that a call may wait for a person; negative: it needs none."""
        self.needs_approval = self.hold >= 0
        self.per_request = settings.per_request or self.needs_approval
        self.durable = settings.audit == "durable"
        self.record_gap = settings.spool_full == "record_gap"
        self.details = self._details(sorted(set(self.methods)), self.pattern, details, exact=False)

    def exact_details(self, method: str, path: str, message: Message | None) -> str:
        """Authorization details that name one request (RFC 9396), canonical."""
        mcp: McpDetails | None = None
        if message is not None:
            mcp = McpDetails((message.method,), (message.tool,) if message.tool else ())
        return self._details([method], path, mcp, exact=True)

    def _details(
        self, methods: Sequence[str], path: str, mcp: McpDetails | None, *, exact: bool
    ) -> str:
        return canonical_details(
            [
                HttpCallDetails(
                    type=DETAILS_HTTP_CALL,
                    locations=(self.target.audience,),
                    actions=tuple(methods),
                    identifier=self.id,
                    path=path,
                    exact=exact,
                    mcp=mcp,
                )
            ]
        )


class Passthrough:
    """Hosts that opaque tunnels may go to. ``wild`` hosts are those below a domain."""

    __slots__ = ("allowed", "host", "name", "ports", "wild")

    def __init__(self, settings: PassthroughSettings, where: str) -> None:
        self.name = settings.host
        self.wild = settings.host.startswith("*.")
        try:
            host, port = split_host(settings.host.removeprefix("*."))
            self.host = settled_host(host)
        except (CallerError, ValueError) as error:
            raise ConfigError(f"{where}.host: {settings.host!r} is no host name") from error
        if port:
            raise ConfigError(f"{where}.host: the port belongs into ports")
        self.ports = frozenset(settings.ports)
        try:
            self.allowed: tuple[Network, ...] = parse_networks(settings.allow_networks)
        except ValueError as error:
            raise ConfigError(f"{where}.allow_networks: {error}") from error


class Snapshot:
    """Everything that a decision depends on besides the request, the principal and the time."""

    __slots__ = (
        "_hosts", "_passthrough", "_prefixes", "diagnosis", "nat64", "origins", "pace",
        "policy_digest", "routes", "settings", "targets", "unmatched",
    )  # fmt: skip

    def __init__(
        self,
        settings: ProxySettings,
        targets: dict[str, Target],
        routes: tuple[Route, ...],
        *,
        around: Snapshot | None = None,
        unmatched: Code = codes.ROUTE_NO_MATCH,
    ) -> None:
        """``around``: the snapshot that this one narrows, which then counts for its digest too."""
        self.settings = settings
        self.targets = targets
        self.routes = routes
        self.policy_digest = _digest(settings)
        if around is not None:
            both = f"{around.policy_digest} {self.policy_digest}"
            self.policy_digest = hashlib.sha256(both.encode()).hexdigest()
        self.unmatched = unmatched
        """What a call to a target is told that no route of it matches."""
        self.pace = _pace(settings.limits.body_rate)
        """Seconds that each byte of a body is worth, until there is a route."""
        self.nat64 = _nat64(settings.network)
        """NAT64 prefixes that the settings state; None where they are to be found out."""
        self._prefixes: dict[str, Target] = {}
        self._hosts: dict[str, Target] = {}
        for target in targets.values():
            if target.prefix:
                if target.prefix in {"/.", "/.."}:
                    raise ConfigError(
                        f"targets.{target.name}.prefix: a dot segment matches nothing"
                    )
                self._claim(self._prefixes, target.prefix[1:], target, "prefix")
            for host in target.settings.hosts:
                self._claim(self._hosts, _host(host, target), target, "hosts")
        self.origins: dict[str, Target] = {}
        """Targets by what forward calls and tunnels name; empty without such a listener."""
        if any(listener.mode != "reverse" for listener in settings.listeners):
            for target in targets.values():
                if target.host == DIAGNOSIS_HOST:
                    raise ConfigError(
                        f"targets.{target.name}.url: {DIAGNOSIS_HOST} is the sidecar's own"
                    )
                self._claim(self.origins, target.url, target, "url")
        self.diagnosis = _diagnosis()
        """What tunnels to the reserved host are opened for: no call finds these in `origins`."""
        self._passthrough: dict[tuple[str, bool, int], Passthrough] = {}
        for index, item in enumerate(settings.passthrough):
            self._claim_passthrough(Passthrough(item, f"passthrough.{index}"), index)

    def find_passthrough(self, host: str, port: int) -> Passthrough | None:
        """The exact host, or the nearest domain with a wildcard."""
        found = self._passthrough.get((host, False, port))
        while found is None and "." in host:
            host = host.partition(".")[2]
            found = self._passthrough.get((host, True, port))
        return found

    def _claim_passthrough(self, item: Passthrough, index: int) -> None:
        if item.host == DIAGNOSIS_HOST:
            raise ConfigError(f"passthrough.{index}.host: {DIAGNOSIS_HOST} is the sidecar's own")
        for port in item.ports:
            origins = {origin_of(scheme, item.host, port) for scheme in DEFAULT_PORTS}
            if not item.wild and origins & self.origins.keys():
                raise ConfigError(
                    f"passthrough.{index}.host: {item.host}:{port} is a target; "
                    "an opaque tunnel would lead around its routes"
                )
            if self._passthrough.setdefault((item.host, item.wild, port), item) is not item:
                raise ConfigError(f"passthrough.{index}.host: {item.name}:{port} is listed twice")

    def find_target(
        self, listener_target: str | None, authority: str, segments: Sequence[str]
    ) -> tuple[Target | None, int]:
        """The target of a call, and how many leading segments were its prefix.

        In this order: the listener's own target, the path prefix, the Host.
        """
        if listener_target is not None:
            return self.targets.get(listener_target), 0
        # A bare `/tickets` has no path behind the prefix and is left to Host.
        if len(segments) > 1:
            target = self._prefixes.get(segments[0])
            if target is not None:
                return target, 1
        return self._hosts.get(authority), 0

    @staticmethod
    def _claim(table: dict[str, Target], name: str, target: Target, what: str) -> None:
        other = table.setdefault(name, target)
        if other is not target:
            raise ConfigError(
                f"targets.{target.name}.{what}: {name!r} already leads to {other.name!r}"
            )


def _diagnosis() -> dict[str, Target]:
    """Targets without routes, and in no table that calls are looked up in."""
    found = {}
    for scheme in DEFAULT_PORTS:
        url = f"{scheme}://{DIAGNOSIS_HOST}"
        settings = TargetSettings(
            url=url, audience=url, credential=CredentialSettings(kind="bearer")
        )
        found[url] = Target(DIAGNOSIS_HOST, settings, endpoint="", thumbprint="", subject="")
    return found


def _nat64(settings: NetworkSettings) -> tuple[IPv6Network, ...] | None:
    if settings.nat64 is None:
        return None
    try:
        return parse_nat64(settings.nat64)
    except ValueError as error:
        raise ConfigError(f"network.nat64: {error}") from error


def _pace(rate: int) -> float:
    """Seconds that a byte is worth at a rate in bytes per second; at none, all of them."""
    return 1 / rate if rate else float("inf")


def _bounds(limits: RouteLimitSettings) -> Bounds | None:
    if limits.head_size is None and limits.headers is None and limits.body_size is None:
        return None
    return Bounds(head_size=limits.head_size, fields=limits.headers, body_size=limits.body_size)


def _hold(settings: Literal["required"] | RouteApprovalSettings | None) -> float:
    """Seconds that a call may wait for a person; negative where it needs none."""
    if settings is None:
        return -1.0
    rules = RouteApprovalSettings() if settings == "required" else settings
    return float(rules.hold)


def _seconds(own: float | None, general: float) -> float:
    """A route's time limit, or the general one."""
    return float(general if own is None else own)


def _mcp_details(patterns: Sequence[MessagePattern]) -> McpDetails:
    """The same patterns for the broker; which tools is said even where it is any."""
    return McpDetails(
        tuple(sorted({str(pattern.method) for pattern in patterns})),
        tuple(sorted({str(pattern.tool) for pattern in patterns if pattern.calls_tools})),
    )


def split_origin(url: str, where: str) -> tuple[bool, str, int]:
    """``(tls, host, port)`` of an origin URL. Raises `ConfigError`: no path, query, userinfo."""
    if not url.isascii() or not url.isprintable() or " " in url:
        # `urlsplit` drops what it does not like.
        raise ConfigError(f"{where}: not an http(s) origin in ASCII: {url!r}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    host = parts.hostname or ""
    if parts.scheme not in DEFAULT_PORTS or port == 0:
        raise ConfigError(f"{where}: not an http(s) origin: {url!r}")
    try:
        host = settled_host(f"[{host}]" if ":" in host else host)
    except ValueError as error:
        raise ConfigError(f"{where}: not an http(s) origin: {url!r}: {error}") from error
    if parts.username is not None or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ConfigError(f"{where}: an origin has no userinfo, path, query or fragment: {url!r}")
    return parts.scheme == "https", host, port or DEFAULT_PORTS[parts.scheme]


def _host(text: str, target: Target) -> str:
    """A host that a Host header can name; anything else would silently match nothing."""
    try:
        return host_of(text)
    except CallerError as error:
        raise ConfigError(f"targets.{target.name}.hosts: {text!r} is no host name") from error


def _injected_header(settings: TargetSettings, where: str) -> str | None:
    kind, name = settings.credential.kind, settings.credential.name
    if kind != "header":
        if name is not None:
            raise ConfigError(f"{where}.credential.name: only kind header has a name")
        return None
    if name is None:
        raise ConfigError(f"{where}.credential.name: kind header needs the header's name")
    if normal(name) in HOP_BY_HOP | FRAMING | {"cookie"}:
        raise ConfigError(f"{where}.credential.name: {name!r} can't carry a credential")
    return name


_NO_TIMEOUTS: Final = RouteTimeoutSettings()
_NO_LIMITS: Final = RouteLimitSettings()


def _digest(settings: ProxySettings) -> str:
    """SHA-256 over what decides: targets, routes, workload. Timeouts and ports are not policy."""
    policy = {
        "targets": {
            name: [
                target.url,
                target.audience,
                target.credential,
                target.prefix,
                target.hosts,
                sorted(target.tells_apart),
            ]
            for name, target in settings.targets.items()
        },
        "routes": [
            msgspec.structs.replace(
                route,
                timeouts=_NO_TIMEOUTS,
                limits=_NO_LIMITS,
                approval="required" if route.approval is not None else None,
            )
            if route.timeouts != _NO_TIMEOUTS
            or route.limits != _NO_LIMITS
            or route.approval is not None
            else route
            for route in settings.routes
        ],
        "subject_header": settings.workload.subject_header,
        "passthrough": settings.passthrough,
    }
    return hashlib.sha256(msgspec.json.encode(policy, order="deterministic")).hexdigest()
