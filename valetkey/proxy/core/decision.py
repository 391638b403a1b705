"""May this call leave? The one place that says yes.

    decide(facts, snapshot, principal) -> Deny | NeedsMessage | NeedsCredential
    (NeedsMessage: read it, put it into the facts, and decide again)
    NeedsCredential.admit(credential, now) -> Permit | Deny
    decide_tunnel(host, port, snapshot) -> Target | TunnelPermit | Deny

A `Permit` can only be made in this module, and the function that opens the way to a target takes
one: no permit, no upstream. There is no default, zero value or exception that means yes.
"""

from __future__ import annotations

import hashlib
from typing import Final

from valetkey.contracts import codes
from valetkey.contracts.codes import Code
from valetkey.contracts.errors import CallerError
from valetkey.contracts.secret import Secret
from valetkey.proxy.core.authority import origin_of
from valetkey.proxy.core.cache_policy import CacheKey
from valetkey.proxy.core.credential import Credential
from valetkey.proxy.core.entry import Entry
from valetkey.proxy.core.json_rpc import Message
from valetkey.proxy.core.mcp_routes import McpEndpoint
from valetkey.proxy.core.path import check_query, drop_parameters, split_path
from valetkey.proxy.core.snapshot import Passthrough, Route, Snapshot, Target


class RequestFacts:
    """What of a request counts for the decision, whatever protocol brought it.

    ``protocol`` is what the connection is to be switched to, in lower case: HTTP/1's Upgrade (RFC
    9110 §7.8), ``:protocol`` of later versions (RFC 8441 §4; the method then is GET, as §5 maps
    it). Empty: an ordinary request.
    """

    __slots__ = (
        "authority", "listener_target", "message", "method", "origin", "path", "protocol", "query",
        "subject_token",
    )  # fmt: skip

    def __init__(
        self,
        method: str,
        authority: str,
        path: str,
        query: str | None = None,
        subject_token: Secret | None = None,
        listener_target: str | None = None,
        origin: str = "",
        protocol: str = "",
    ) -> None:
        self.method = method
        self.authority = authority  # host, lower case, with :port if it was given
        self.path = path  # as received, without query
        self.query = query  # None: no question mark at all
        self.subject_token = subject_token
        self.listener_target = listener_target
        self.origin = origin  # scheme://host[:port] where the call said so itself, else empty
        self.protocol = protocol
        self.message: Message | None = None
        """The message of MCP in the body: set once it was asked for (`NeedsMessage`) and read."""


class Principal:
    """The workload that this sidecar speaks for, as of now.

    Keys for its own calls are made once per route: they only change with principal or snapshot,
    and then there is a new `Principal`.
    """

    __slots__ = ("_keys", "epoch", "subject", "tenant")

    def __init__(self, tenant: str, subject: str, epoch: int = 0) -> None:
        self.tenant = tenant
        self.subject = subject
        self.epoch = epoch
        self._keys: dict[Route, CacheKey] = {}

    def key(self, route: Route, policy_digest: str) -> CacheKey:
        """The key of the workload's own credential for a route."""
        key = self._keys.get(route)
        if key is None:
            key = self._keys[route] = self._make(route, policy_digest, self.subject, ())
        return key

    def key_for_user(self, route: Route, policy_digest: str, token: Secret) -> CacheKey:
        """The key of a credential for a user: by digest, since nobody here verified the token."""
        digest = hashlib.sha256(token.reveal().encode()).hexdigest()
        return self._make(route, policy_digest, f"token:{digest}", (self.subject,))

    def _make(
        self, route: Route, policy_digest: str, subject: str, actors: tuple[str, ...]
    ) -> CacheKey:
        target = route.target
        return CacheKey(
            tenant=self.tenant,
            subject=subject,
            actors=actors,
            audience=target.audience,
            resource=target.url,
            details=route.details,
            scopes=route.scope,
            endpoint=target.endpoint,
            thumbprint=target.thumbprint,
            policy_digest=policy_digest,
            epoch=self.epoch,
        )


class Deny:
    """The call may not leave. ``reason`` is for the record, ``code`` for the caller.

    ``path`` is the path at the target (its prefix taken off), once there is a target. ``approval``
    is the id of what people have to approve.
    """

    __slots__ = ("approval", "code", "path", "reason", "route", "target")

    def __init__(
        self,
        code: Code,
        reason: str = "",
        target: Target | None = None,
        route: Route | None = None,
        path: str = "",
        approval: str = "",
    ) -> None:
        self.approval = approval
        self.code = code
        self.path = path
        self.reason = reason
        self.target = target
        self.route = route


_MINT: Final = object()


class Permit:
    """This one call may go to this target with this credential. Only this module makes one."""

    __slots__ = (
        "credential", "dropped", "endpoint", "path", "request_target", "route", "target",
    )  # fmt: skip

    def __init__(
        self,
        mint: object,
        route: Route,
        credential: Credential,
        path: str,
        request_target: str,
        dropped: tuple[str, ...],
        endpoint: McpEndpoint[Route] | None = None,
    ) -> None:
        if mint is not _MINT:
            raise TypeError("a Permit is made by the decision alone")
        self.route = route
        self.target = route.target
        self.endpoint = endpoint
        """The MCP endpoint on whose path the call is."""
        self.credential = credential
        self.path = path
        self.request_target = request_target
        self.dropped = dropped


class NeedsCredential:
    """A route allows the call; a credential for ``key`` decides whether it leaves."""

    __slots__ = ("dropped", "endpoint", "facts", "key", "path", "request_target", "route")

    def __init__(
        self,
        facts: RequestFacts,
        route: Route,
        key: CacheKey,
        path: str,
        request_target: str,
        dropped: tuple[str, ...],
        endpoint: McpEndpoint[Route] | None = None,
    ) -> None:
        self.facts = facts
        self.route = route
        self.key = key
        self.path = path
        self.request_target = request_target
        self.dropped = dropped
        self.endpoint = endpoint

    def admit(self, credential: Credential, now: float, *, fresh: bool = False) -> Permit | Deny:
        """Decide again, with a credential. ``now`` is on the credential's monotonic clock.

        ``fresh`` says that the credential was fetched for this very call: it then serves it even
        if its lifetime, less skew, has already run out.
        """
        if credential.key is not self.key and credential.key != self.key:
            return Deny(
                codes.PROXY_INTERNAL, "a credential for another key", self.route.target, self.route
            )
        if now >= credential.expires_at and not fresh:
            return Deny(
                codes.BROKER_UNAVAILABLE,
                "the cached credential has expired",
                self.route.target,
                self.route,
            )
        if self.route.needs_approval and not credential.approval:
            return Deny(
                codes.APPROVAL_NOT_ASKED,
                "a credential that nobody approved",
                self.route.target,
                self.route,
                self.path,
            )
        return Permit(
            _MINT,
            self.route,
            credential,
            self.path,
            self.request_target,
            self.dropped,
            self.endpoint,
        )


class NeedsMessage:
    """The path is an MCP endpoint: the message in the body decides."""

    __slots__ = ("endpoint", "facts", "path", "target")

    def __init__(
        self, facts: RequestFacts, target: Target, path: str, endpoint: McpEndpoint[Route]
    ) -> None:
        self.facts = facts
        self.target = target
        self.path = path
        self.endpoint = endpoint


def decide(
    facts: RequestFacts, snapshot: Snapshot, principal: Principal
) -> NeedsCredential | NeedsMessage | Deny:
    """Find target and route of a call, and the credential that it needs."""
    path = facts.path
    try:
        segments = split_path(path)
    except CallerError as error:
        return Deny(error.code, error.reason)
    if facts.origin:
        target, start = snapshot.origins.get(facts.origin), 0
    else:
        target, start = snapshot.find_target(facts.listener_target, facts.authority, segments)
    if target is None:
        return Deny(codes.TARGET_NO_MATCH, "no target for this origin, listener, prefix or host")
    if start:
        # By its slash, not by its length: the prefix may have been sent percent-encoded.
        path = path[path.index("/", 1) :]
    found = target.routes.match(facts.method, segments, start)
    if found is None:
        return Deny(snapshot.unmatched, "no route for this method and path", target, path=path)
    if (";" in path or "%3" in path) and target.routes.match(
        facts.method, _bare(segments), start
    ) is not found:
        # Servlet containers cut path parameters before they map the path (RFC 3986 §3.3).
        return _ambiguous("path parameters lead to another route", target, found, path)
    if target.routes.shadows(facts.method, segments, start, found):
        return _ambiguous("read laxly, the path is another route's", target, found, path)
    if facts.protocol and (isinstance(found, McpEndpoint) or facts.protocol not in found.upgrade):
        shown = None if isinstance(found, McpEndpoint) else found
        return Deny(codes.REQUEST_UPGRADE, "the route lists no such protocol", target, shown, path)
    endpoint: McpEndpoint[Route] | None = None
    if isinstance(found, McpEndpoint):
        endpoint = found
        message = facts.message
        if message is None:
            return NeedsMessage(facts, target, path, endpoint)
        route = endpoint.match(message)
        if route is None:
            reason = "no route for this method or tool"
            return Deny(codes.MCP_NO_MATCH, reason, target, path=path)
    else:
        route = found
        if target.has_mcp and facts.method != "POST":
            # GET for an event stream, DELETE for a session: their answers are looked through too.
            beside = target.routes.match("POST", segments, start)
            endpoint = beside if isinstance(beside, McpEndpoint) else None
            if endpoint is None and any(
                isinstance(near, McpEndpoint)
                for near in target.routes.read_laxly("POST", segments, start)
            ):
                # Whose answers would not be looked through.
                return _ambiguous("read laxly, an MCP endpoint has the path", target, route, path)
            if endpoint is not None and facts.protocol:
                reason = "a tunnel beside an MCP endpoint could not be looked through"
                return Deny(codes.REQUEST_UPGRADE, reason, target, route, path)
    request_target = path
    dropped: tuple[str, ...] = ()
    query = facts.query
    if query is not None:
        try:
            check_query(query)
            query, names = drop_parameters(
                query, target.credential_parameters, target.override_parameters
            )
        except CallerError as error:
            return Deny(error.code, error.reason, target, route, path)
        dropped = tuple(names)
        request_target = f"{path}?{query}"
    key = (
        principal.key(route, snapshot.policy_digest)
        if facts.subject_token is None
        else principal.key_for_user(route, snapshot.policy_digest, facts.subject_token)
    )
    if route.per_request:
        key = key._replace(details=route.exact_details(facts.method, path, facts.message))
    return NeedsCredential(facts, route, key, path, request_target, dropped, endpoint)


def _ambiguous(reason: str, target: Target, found: Route | McpEndpoint[Route], path: str) -> Deny:
    """Two readers of the path would take it for two operations."""
    shown = None if isinstance(found, McpEndpoint) else found
    return Deny(codes.REQUEST_AMBIGUOUS_PATH, reason, target, shown, path)


def admit(entry: Entry, presented: list[bytes], origin: str, host: str, port: int) -> Deny | None:
    """What an entry refuses, whatever the call asks for.

    ``presented``: values of ``Proxy-Authorization``; ``origin``: what the request target names, or
    empty; ``host`` and ``port``: what Host names (empty, 0: not given).
    """
    if entry.caller is not None and not entry.caller.admits(presented):
        return Deny(codes.CALLER_UNAUTHENTICATED, "no or a wrong Proxy-Authorization")
    if entry.forward and not origin:
        return Deny(codes.REQUEST_NO_ORIGIN, "origin-form on a forward listener")
    if entry.transparent:
        return _admit_redirected(entry, origin, host, port)
    if entry.origin and (
        (origin and origin != entry.origin)
        or host != entry.name
        or (port or entry.default_port) != entry.port
    ):
        return Deny(codes.REQUEST_MISDIRECTED, f"the tunnel is for {entry.origin}")
    return None


def _admit_redirected(entry: Entry, origin: str, host: str, port: int) -> Deny | None:
    """Host is all that names the target, so it must say the port that the connection was for."""
    if entry.destination is None:
        return Deny(codes.REQUEST_NOT_REDIRECTED, "the connection was opened to the listener")
    if entry.own:
        return Deny(codes.REQUEST_LOOP, "the sidecar's own connection was redirected to it")
    if not host:
        return Deny(codes.REQUEST_AMBIGUOUS_HOST, "no Host on a redirected connection")
    if (port or entry.default_port) != entry.port:
        return Deny(
            codes.REQUEST_AMBIGUOUS_HOST,
            f"Host says port {port or entry.default_port}, the connection was for {entry.port}",
        )
    if "://" in origin and origin != origin_of("http", host, entry.port):
        return Deny(codes.REQUEST_AMBIGUOUS_HOST, "an absolute-form for TLS, without TLS")
    return None


class TunnelPermit:
    """Opaque bytes may go to this host and port. Only this module makes one."""

    __slots__ = ("host", "passthrough", "port")

    def __init__(self, mint: object, passthrough: Passthrough, host: str, port: int) -> None:
        if mint is not _MINT:
            raise TypeError("a TunnelPermit is made by the decision alone")
        self.passthrough = passthrough
        self.host = host
        self.port = port


def decide_tunnel(
    host: str, port: int, snapshot: Snapshot, *, tls: bool = False
) -> Target | TunnelPermit | Deny:
    """What a tunnel to ``host:port`` is: one to open up for a target, opaque, or refused.

    A target's calls are decided one by one, so its tunnel has no permit of its own. A tunnel to
    the host for diagnosis is opened up as well, and every call inside is refused. ``tls`` says
    that TLS is what comes through it.
    """
    for scheme in ("https",) if tls else ("https", "http"):
        origin = origin_of(scheme, host, port)
        target = snapshot.origins.get(origin) or snapshot.diagnosis.get(origin)
        if target is not None:
            return target
    passthrough = snapshot.find_passthrough(host, port)
    if passthrough is None:
        return Deny(codes.TARGET_NO_MATCH, "no https target and no passthrough for this tunnel")
    return TunnelPermit(_MINT, passthrough, host, port)


def _bare(segments: list[str]) -> list[str]:
    return [segment.partition(";")[0] for segment in segments]
