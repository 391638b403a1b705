"""The sidecar's settings file, as types. What each key means stands beside it.

`valetkey.proxy.core.compilation.compile_snapshot` turns a loaded `ProxySettings` into the immutable
snapshot that decisions are made on; everything that needs more than one key to judge is refused
there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, field

from valetkey.contracts.settings import Duration, Settings, Size, duration, pattern, size
from valetkey.contracts.spiffe_id import SpiffeId

Name = Annotated[str, pattern(r"[a-z0-9][a-z0-9._-]{0,62}")]
HeaderName = Annotated[str, pattern(r"[A-Za-z0-9-]{1,64}")]
Scope = Annotated[str, pattern(r"[\x21\x23-\x5B\x5D-\x7E]+")]  # RFC 6749 §3.3
Method = Annotated[str, pattern(r"[A-Z][A-Z-]{0,31}")]
NamePattern = Annotated[str, pattern(r"[^*]*\*?[^*]*"), Meta(min_length=1, max_length=256)]
# RFC 9110 §7.8: a protocol's name, and a version if it has one; names are compared in lower case.
UpgradeProtocol = Annotated[
    str, pattern(r"[!#$%&'*+.^_`|~0-9a-z-]{1,64}(/[!#$%&'*+.^_`|~0-9a-z-]{1,64})?")
]


class SpiffeIdentitySettings(Settings, frozen=True, kw_only=True):
    """SVIDs of the SPIFFE Workload API; needs ``valetkey[spiffe]`` to be installed.

    ``socket`` is the agent's. ``id`` is the SPIFFE ID to take where the agent has several for this
    process. ``audience`` is whom the tokens are for: the broker or collector that they go to, if
    left out.
    """

    socket: Annotated[str, pattern(r"unix:///[^\x00-\x20?#%]+")]
    id: str | None = None
    audience: Annotated[str, Meta(min_length=1)] | None = None

    def __post_init__(self) -> None:
        if self.id is not None:
            SpiffeId.parse(self.id)


class IdentitySettings(Settings, frozen=True, kw_only=True):
    """Where the workload's own identity comes from: one of the two.

    ``file`` is a token file, re-read when it changes. ``spiffe`` is an agent's Workload API.
    """

    file: Path | None = None
    spiffe: SpiffeIdentitySettings | None = None

    def __post_init__(self) -> None:
        if (self.file is None) == (self.spiffe is None):
            raise ValueError("give one of file and spiffe")


class WorkloadSettings(Settings, frozen=True, kw_only=True):
    """The workload beside this sidecar.

    ``subject_header`` names the request header that may bring a user's token; then the user is
    the subject and the workload the actor (RFC 8693 §1.1).
    """

    identity: IdentitySettings
    subject_header: HeaderName = "X-Valetkey-Subject"


class FeedSettings(Settings, frozen=True, kw_only=True):
    """How the sidecar follows what the broker says has ended, and what it does without.

    Not heard from for ``tolerance``, the feed counts as lost. ``lost: short`` then uses each
    credential for ``short_lived`` at most from when it came, so that the broker is asked that
    often; ``lost: deny`` lets no call leave that needs one (503 ``feed.lost``).
    """

    tolerance: Duration = duration(60)
    lost: Literal["short", "deny"] = "short"
    short_lived: Duration = duration(10)

    def __post_init__(self) -> None:
        if self.tolerance < 3 or self.short_lived < 1:
            raise ValueError("tolerance is 3s at least, short_lived 1s")


class BrokerSettings(Settings, frozen=True, kw_only=True):
    """The broker. Plain HTTP is accepted for loopback only.

    ``url`` is its issuer identifier. ``mtls_url`` is where it takes client certificates; with it,
    exchanges go there with the workload's X.509-SVID (``identity: {spiffe: …}``). ``revalidate``
    is how often it is asked whether credentials in use are still good: the longest that a revoked
    one goes on being used where the feed does not say so at once. ``feed`` is that feed; ``null``
    does without. ``ca_file`` stands for the system's roots, and is taken up anew when it changes.
    """

    url: str
    mtls_url: str | None = None
    ca_file: Path | None = None
    timeout: Duration = duration(5)
    revalidate: Duration = duration(5)
    feed: FeedSettings | None = field(default_factory=FeedSettings)


class CollectorSettings(Settings, frozen=True, kw_only=True):
    """The collector. Plain HTTP is accepted for loopback only.

    ``identity`` is the token that the collector gets: one of its own audience, so that it could
    use it nowhere else. Without it, the workload's token is shown, the one that the broker takes.
    """

    url: str
    identity: IdentitySettings | None = None
    ca_file: Path | None = None
    timeout: Duration = duration(10)
    batch: Annotated[int, Meta(ge=1, le=10_000)] = 1000


class SpoolSettings(Settings, frozen=True, kw_only=True):
    """Where events wait until the collector has them.

    ``max_size`` bounds the disk; what happens at the bound is each route's ``spool_full``.
    ``commit_every`` is the group commit: what a power loss can cost at most.
    """

    dir: Path
    segment_size: Size = size(2 << 20)
    max_size: Size = size(1 << 30)
    commit_every: Duration = duration(0.005)


class ListenerSettings(Settings, frozen=True, kw_only=True):
    """One address that takes calls: ``host:port``, or ``unix:/path``.

    ``mode: reverse``: the workload calls this address as if it were the target; ``target`` gives
    the whole listener to one. ``mode: forward``: what ``HTTP_PROXY`` and ``HTTPS_PROXY`` name;
    each call says where it goes, and targets are matched by scheme, host and port of their url.
    ``mode: transparent``: connections that redirect rules of the kernel lead here (Linux); the host
    is the TLS server name or Host, the port the one that the connection was for, and targets are
    matched as in forward mode.

    ``token_file`` holds a token that every call must bring in ``Proxy-Authorization`` (Basic, as
    the password, or Bearer); it is read again when it changes. On a Unix socket, ``uids`` are the
    users whose processes may connect (SO_PEERCRED; none listed: whoever the file's mode lets in),
    and ``socket_mode`` is that mode. ``connections`` bounds this listener beside
    ``limits.connections``, which is for all of them.
    """

    bind: str
    mode: Literal["reverse", "forward", "transparent"] = "reverse"
    target: Name | None = None
    token_file: Path | None = None
    uids: tuple[Annotated[int, Meta(ge=0)], ...] = ()
    socket_mode: Annotated[str, pattern(r"0[0-7]{3}")] = "0600"
    connections: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None


class PassthroughSettings(Settings, frozen=True, kw_only=True):
    """A host without routes that tunnels may go to: opaque, without a credential, on record.

    ``host`` is a name or ``*.`` and a domain (every name below it). ``allow_networks`` lists the
    CIDRs that it may resolve to besides public addresses.
    """

    host: str
    ports: Annotated[tuple[Annotated[int, Meta(ge=1, le=65_535)], ...], Meta(min_length=1)] = (443,)
    allow_networks: tuple[str, ...] = ()


class GivenAuthoritySettings(Settings, frozen=True, kw_only=True):
    """A CA of your own, PEM files.

    ``certificate`` holds the CA's certificate first; where it is an intermediate, its issuers
    follow, the root last. ``key`` is not encrypted, P-256, P-384 or RSA, and closed to others
    (0600, or 0640 where root owns it).
    """

    certificate: Path
    key: Path


class InterceptionSettings(Settings, frozen=True, kw_only=True):
    """TLS interception: tunnels to targets with routes are opened, under a CA that clients trust.

    Without ``ca`` one is made at the start. Its key stays in the process, unless ``key_file`` says
    where to keep it (with its certificate, mode 0600) for the next start. For the clients are
    written: ``certificate_file`` (PEM: what they must trust), ``bundle_file`` (the same and the
    system's roots) and ``truststore_file`` (the same as PKCS #12, for Java;
    ``truststore_password`` protects nothing secret). ``system_roots`` is the file with the
    system's roots, if it is not where systems usually have it. ``leaf_lifetime`` is how long a
    made certificate is valid at most.
    """

    ca: GivenAuthoritySettings | None = None
    key_file: Path | None = None
    certificate_file: Path | None = None
    bundle_file: Path | None = None
    truststore_file: Path | None = None
    truststore_password: Annotated[str, Meta(min_length=6)] = "changeit"  # noqa: S105 - Java's
    system_roots: Path | None = None
    leaf_lifetime: Duration = duration(86_400)


class AdminSettings(Settings, frozen=True, kw_only=True):
    """``/healthz``, ``/readyz``, ``/metrics``."""

    bind: str = "127.0.0.1:7071"


class CredentialSettings(Settings, frozen=True, kw_only=True):
    """How the credential is put into the call.

    ``bearer``: ``Authorization: Bearer``. ``dpop``: ``Authorization: DPoP`` with a proof per
    request (RFC 9449). ``header``: the token alone in the header called ``name``. ``txn_token``: a
    transaction token in ``Txn-Token``, for services of the trust domain that is the audience.
    """

    kind: Literal["bearer", "dpop", "header", "txn_token"]
    name: HeaderName | None = None


class PoolSettings(Settings, frozen=True, kw_only=True):
    """Connections to one target. Idle ones are closed after ``idle``."""

    size: Annotated[int, Meta(ge=1, le=65_535)] = 256
    idle: Duration = duration(30)


class TargetSettings(Settings, frozen=True, kw_only=True):
    """A system that calls go to.

    ``prefix`` (one segment, stripped) and ``hosts`` choose the target on listeners that are not
    given to one. ``allow_networks`` lists the CIDRs that its name may resolve to besides public
    addresses. ``pass_headers`` and ``pass_parameters`` let through headers and query parameters
    that are otherwise dropped as credentials, or refused because a target may take another
    method, path or host from them (``X-HTTP-Method-Override``, ``_method``).

    ``tells_apart`` lists by what two paths are two to this target: ``case`` (``/A`` is not ``/a``),
    ``last_slash`` (``/a/`` is not ``/a``). What is not listed, it may ignore: a call is then
    refused where, without it, a narrower route than the one that matches would get the path.
    """

    url: str
    audience: str
    credential: CredentialSettings
    prefix: Annotated[str, pattern(r"/[A-Za-z0-9._~-]+")] | None = None
    hosts: tuple[str, ...] = ()
    ca_file: Path | None = None
    allow_networks: tuple[str, ...] = ()
    pass_headers: tuple[HeaderName, ...] = ()
    pass_parameters: tuple[str, ...] = ()
    tells_apart: tuple[Literal["case", "last_slash"], ...] = ()
    pool: PoolSettings = field(default_factory=PoolSettings)


class McpMatchSettings(Settings, frozen=True, kw_only=True):
    """Messages of MCP over streamable HTTP (JSON-RPC 2.0), read from the body of a POST.

    ``methods`` are JSON-RPC methods; ``response`` stands for messages without one (answers to
    requests of the server). ``tools`` are the tools that ``tools/call`` may name; left out: any.
    Each is a name, or has one ``*`` for any run of characters.

    Of two routes of one path, the one with the narrower pattern wins; where neither is narrower,
    the settings are refused. Lists of tools in the answers show only tools that some route of the
    path lets the workload call. ``limits.message`` bounds the body.
    """

    methods: Annotated[tuple[NamePattern, ...], Meta(min_length=1)]
    tools: Annotated[tuple[NamePattern, ...], Meta(min_length=1)] | None = None


class MatchSettings(Settings, frozen=True, kw_only=True):
    """Methods and a path: literal segments, ``{name}`` for one segment, a trailing ``{rest*}``.

    With ``mcp``, the method is POST (and may be left out), and the body decides too.
    """

    path: Annotated[str, Meta(pattern=r"^/")]
    methods: tuple[Method, ...] = ()
    mcp: McpMatchSettings | None = None


class RouteTimeoutSettings(Settings, frozen=True, kw_only=True):
    """Time limits of one route in place of those in ``timeouts``.

    A long poll needs a longer ``first_byte`` than other calls.
    """

    first_byte: Duration | None = None
    stall: Duration | None = None
    stream: Duration | None = None


class RouteLimitSettings(Settings, frozen=True, kw_only=True):
    """Bounds on the calls of one route, below those in ``limits``.

    ``head_size`` and ``headers`` are of the request's head, ``body_size`` is of its body (unset: of
    any size). A body of unknown length is cut off where it exceeds that, so that the target sees
    that it is not whole. ``body_rate`` stands for ``limits.body_rate``; ``0B`` for none.
    """

    head_size: Size | None = None
    headers: Annotated[int, Meta(ge=1, le=1000)] | None = None
    body_size: Size | None = None
    body_rate: Size | None = None


class RouteApprovalSettings(Settings, frozen=True, kw_only=True):
    """Calls of the route need a person's yes; each waits for it this long before it is refused."""

    hold: Duration = duration(20)


class RouteSettings(Settings, frozen=True, kw_only=True):
    """A match on one target, with the scopes that it needs.

    ``upgrade`` lists the protocols, in lower case, that a call may switch to (RFC 9110 §7.8):
    ``websocket``, for example. ``per_request`` asks the broker for one credential per call, bound
    to its exact method and path. ``approval`` (``required``: with a ``hold`` of 20 s) lets calls
    wait for the person that the broker's policy asks for, implies ``per_request``, and lets no call
    out that nobody approved. ``audit: durable`` waits until the decision is on disk.
    ``spool_full`` is what happens when the record can't be kept: ``deny``, or ``record_gap`` (the
    call goes on and the number of unrecorded events is recorded later).

    ``scrub_answers`` looks through the bodies of answers, as they stream, for the credential that
    was sent, and overwrites it. The target is asked for answers without a content coding and not
    for ranges; one that encodes nevertheless is refused.
    """

    id: Name
    target: Name
    match: MatchSettings
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)]
    upgrade: tuple[UpgradeProtocol, ...] = ()
    timeouts: RouteTimeoutSettings = field(default_factory=RouteTimeoutSettings)
    limits: RouteLimitSettings = field(default_factory=RouteLimitSettings)
    scrub_answers: bool = False
    per_request: bool = False
    approval: Literal["required"] | RouteApprovalSettings | None = None
    audit: Literal["buffered", "durable"] = "buffered"
    spool_full: Literal["deny", "record_gap"] = "deny"


class OperatorFileSettings(Settings, frozen=True, kw_only=True):
    """What the operator of a cluster sets for the sidecars in it, as one file.

    Keys as in the sidecar's file, in which the injector gives every other section.
    """

    targets: Annotated[dict[Name, TargetSettings], Meta(min_length=1)]
    routes: Annotated[tuple[RouteSettings, ...], Meta(min_length=1)]
    passthrough: tuple[PassthroughSettings, ...] = ()


class NarrowedMatchSettings(Settings, frozen=True, kw_only=True):
    """The part of an operator's route that is kept: what is left out is as there."""

    path: Annotated[str, Meta(pattern=r"^/")] | None = None
    methods: Annotated[tuple[Method, ...], Meta(min_length=1)] | None = None
    mcp: McpMatchSettings | None = None


class NarrowedRouteSettings(Settings, frozen=True, kw_only=True):
    """A route of the operator's, ``within``, or a part of it. What is left out is as there.

    Everything that is said must be as strict as there, or stricter: a path inside its path, some of
    its methods, messages, scopes and protocols, no more of a bound and no longer a wait (of
    ``body_rate`` no less; ``0B`` bounds nothing). ``per_request``, ``scrub_answers``, ``approval``,
    ``audit: durable`` and ``spool_full: deny`` can be added, and not be taken away.

    The operator's id stays the one on record, in metrics and to the broker.
    """

    within: Name
    match: NarrowedMatchSettings = field(default_factory=NarrowedMatchSettings)
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)] | None = None
    upgrade: tuple[UpgradeProtocol, ...] | None = None
    timeouts: RouteTimeoutSettings = field(default_factory=RouteTimeoutSettings)
    limits: RouteLimitSettings = field(default_factory=RouteLimitSettings)
    scrub_answers: bool | None = None
    per_request: bool | None = None
    approval: Literal["required"] | RouteApprovalSettings | None = None
    audit: Literal["buffered", "durable"] | None = None
    spool_full: Literal["deny", "record_gap"] | None = None


class OwnerFileSettings(Settings, frozen=True, kw_only=True):
    """The file of who owns the workload: the calls that are left of what the operator allows.

    A call that is in none of these ``routes`` is refused. ``passthrough`` lists the hosts, as the
    operator writes them, that tunnels may still go to; left out: all of the operator's.
    """

    routes: Annotated[tuple[NarrowedRouteSettings, ...], Meta(min_length=1)]
    passthrough: tuple[str, ...] | None = None


class OwnerSettings(Settings, frozen=True, kw_only=True):
    """What whoever owns the workload, or its namespace, takes away from all other settings.

    ``file`` narrows routes; it is read again when it changes. Where it can't be used at the start,
    no call leaves (``settings.owner_unusable``). ``targets`` are the only ones that are kept, of
    those that there are.
    """

    file: Path | None = None
    targets: Annotated[tuple[Name, ...], Meta(min_length=1)] | None = None

    def __post_init__(self) -> None:
        if self.file is None and self.targets is None:
            raise ValueError("give file or targets, or both")


class NetworkSettings(Settings, frozen=True, kw_only=True):
    """The network that calls leave by.

    ``nat64`` lists its NAT64 prefixes (RFC 6052): an address in one is judged as the IPv4 address
    that it stands for. Unset, they are found out through ``ipv4only.arpa`` (RFC 7050) before a
    public IPv6 address is dialled, and while that fails, only IPv4 addresses and those in
    ``allow_networks`` are. An empty list says that there are none.
    """

    nat64: tuple[str, ...] | None = None


class LimitSettings(Settings, frozen=True, kw_only=True):
    """Bounds on what one caller can make the sidecar hold.

    ``message`` bounds a message of MCP that is read: the body of a call, and how much of an answer
    is held back to look for lists of tools (a larger one passes if it can't hold a list);
    ``messages`` bounds all of them that are held at once.

    ``body_rate`` is in bytes per second: by more than ``timeouts.stall`` a body may not fall
    behind it, so that one that trickles holds nothing for ever. It is asked of request bodies until
    the answer begins, of answers that announce their length, and of who reads answers or request
    bodies; not of streams. ``0B``: any progress is enough.

    Defaults follow common servers: nginx allows 4 × 8 KiB of head, Apache 100 header fields, and
    its mod_reqtimeout asks for 500 bytes per second.
    """

    head_size: Size = size(32 << 10)
    headers: Annotated[int, Meta(ge=1, le=1000)] = 100
    connections: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    credentials: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    message: Size = size(1 << 20)
    messages: Size = size(64 << 20)
    body_rate: Size = size(100)


class TimeoutSettings(Settings, frozen=True, kw_only=True):
    """How long each step may take.

    ``head``: from the first byte to the end of the request head. ``idle``: between requests of
    one connection. ``connect``: to the target, TLS included. ``first_byte``: from the end of the
    request to the response head. ``stall``: without any progress of a body. ``stream``: without a
    byte of an event stream (``text/event-stream``), of a connection that switched to another
    protocol, or of an opaque tunnel. ``drain``: calls in flight at SIGTERM.
    """

    head: Duration = duration(10)
    idle: Duration = duration(75)
    connect: Duration = duration(5)
    first_byte: Duration = duration(60)
    stall: Duration = duration(60)
    stream: Duration = duration(3600)
    drain: Duration = duration(15)


class ProxySettings(Settings, frozen=True, kw_only=True):
    """The whole file. ``instance`` names this sidecar in the record (default: the host's name)."""

    workload: WorkloadSettings
    broker: BrokerSettings
    spool: SpoolSettings
    listeners: Annotated[tuple[ListenerSettings, ...], Meta(min_length=1)]
    targets: Annotated[dict[Name, TargetSettings], Meta(min_length=1)]
    routes: Annotated[tuple[RouteSettings, ...], Meta(min_length=1)]
    passthrough: tuple[PassthroughSettings, ...] = ()
    owner: OwnerSettings | None = None
    collector: CollectorSettings | None = None
    interception: InterceptionSettings | None = None
    network: NetworkSettings = field(default_factory=NetworkSettings)
    admin: AdminSettings = field(default_factory=AdminSettings)
    instance: Annotated[str, pattern(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")] | None = None
    limits: LimitSettings = field(default_factory=LimitSettings)
    timeouts: TimeoutSettings = field(default_factory=TimeoutSettings)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
