"""The broker's settings. Every default is the closed one.

Invariants, checked while loading:

- Plain HTTP is served on loopback only, or behind a terminator that the settings name as such.
- No two targets share an audience, and none has the broker's own issuer identifier as audience:
  its tokens would be client assertions here.
- Client certificates come through a listener of their own, or in a header of a terminator that the
  settings name.
- Issuers of administrators are a list of their own; the broker's own tokens never administer it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from valetkey.broker.approval_settings import ApprovalsSettings
from valetkey.broker.authzen_settings import AuthzenSettings
from valetkey.broker.core.grants import Target
from valetkey.broker.core.places import TargetFacts
from valetkey.broker.core.rate_limit import RateLimit
from valetkey.broker.core.resources import ResourceInvalid, parse_resource
from valetkey.broker.core.risk import Risk
from valetkey.broker.core.roles import Role, RoleRule
from valetkey.broker.directory.settings import DirectorySettings
from valetkey.broker.feed_settings import FeedSettings
from valetkey.broker.incident_settings import IncidentSettings
from valetkey.broker.mtls_settings import MtlsSettings, check_certificates
from valetkey.broker.policy_settings import (
    ROUTE_NAME,
    AgentSettings,
    ClaimTablesSettings,
    RouteSettings,
    check_issuers,
)
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.fetch import is_loopback
from valetkey.contracts.issuer import IssuerSettings
from valetkey.contracts.oauth import Capability
from valetkey.contracts.service import TlsSettings, address
from valetkey.contracts.settings import Duration, Settings, duration
from valetkey.sql.settings import PostgresSettings

# RFC 9068 tokens are checked offline: what can't be called back must not live long.
MAX_TTL: Final = 3600.0
# draft-ietf-oauth-transaction-tokens, "Txn-Token Lifetime": minutes, or less.
MAX_TXN_TTL: Final = 300.0


class TargetSettings(Settings, frozen=True, kw_only=True):
    """A system that calls go to.

    ``audience`` is the ``aud`` of its tokens and what sidecars ask for. ``credential`` says
    whether they are bound to the caller's key (``dpop``) or client certificate (``mtls``).
    ``txn_token``: the audience is a trust domain, and gets transaction tokens, of at most 5m.
    ``resource`` (default: the audience) is the URI under which RFC 8707 resource indicators must
    lie. ``ttl`` replaces ``token_ttl``. ``requires`` lists what a sidecar must be able to enforce
    to get a credential for it at all. ``status_list`` gives its tokens a place in a status list,
    for verifiers that neither introspect nor follow the feed; each then costs a write.
    ``environment`` and ``risk`` are for policies to read (subjects that are riskier raise it),
    ``routes`` are calls that they name.
    """

    audience: str
    credential: Literal["bearer", "dpop", "mtls", "txn_token"]
    resource: str | None = None
    ttl: Duration | None = None
    requires: tuple[Capability, ...] = ()
    status_list: bool = False
    environment: str = ""
    risk: Risk = "unrated"
    routes: dict[str, RouteSettings] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.audience or not self.audience.isascii() or " " in self.audience:
            raise ValueError("audience must be a non-empty ASCII text without spaces")
        if self.resource is not None:
            try:
                parse_resource(self.resource)
            except ResourceInvalid as error:
                raise ValueError(f"resource: {error}") from error
        if self.ttl is not None:
            _check_ttl(self.ttl)
        if not all(ROUTE_NAME.fullmatch(name) for name in self.routes):
            raise ValueError("routes are named by lower-case letters, digits, '.', '_' and '-'")


class KeySettings(Settings, frozen=True, kw_only=True):
    """Rotation of signing keys: see ``broker/core/rotation.py``.

    ``publish_before`` is how long a key is in the JWK Set before it signs, ``overlap`` how long
    it stays after the last token under it has expired.
    """

    rotate_every: Duration = duration(86_400)
    publish_before: Duration = duration(600)
    overlap: Duration = duration(300)

    def __post_init__(self) -> None:
        if self.publish_before <= 0 or self.publish_before >= self.rotate_every:
            raise ValueError("publish_before must be positive and shorter than rotate_every")


class ResourceServerSettings(Settings, frozen=True, kw_only=True):
    """A caller (by its token's issuer and subject) that may introspect tokens for ``audiences``."""

    issuer: str
    subject: str
    audiences: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.issuer or not self.subject or not self.audiences or not all(self.audiences):
            raise ValueError("issuer, subject and audiences must not be empty")


class RoleSettings(Settings, frozen=True, kw_only=True):
    """Gives ``role`` to administrators of ``issuer``: these ``subjects``, or whose ``claims`` hold.

    Where both are given, both must hold. Each claim must have one of the values listed, or be a
    list that contains one. Roles: ``viewer`` reads, ``approver`` decides on approvals (and reads),
    ``operator`` grants, revokes and opens incidents (and reads), ``admin`` does all of that except
    approving, ``provisioner`` writes users and groups.
    """

    role: Role
    issuer: str
    subjects: tuple[str, ...] | None = None
    claims: dict[str, tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        if not self.subjects and not self.claims:
            raise ValueError("give subjects or claims, not empty: a rule must not hold for all")
        if self.subjects is not None and not all(self.subjects):
            raise ValueError("subjects must be a non-empty list of non-empty texts")
        if self.claims is not None and not all(
            name and values and all(values) for name, values in self.claims.items()
        ):
            raise ValueError("claims must name claims, each with a non-empty list of values")

    def compiled(self) -> RoleRule:
        claims: Mapping[str, tuple[str, ...]] = self.claims or {}
        return RoleRule(
            role=self.role,
            issuer=self.issuer,
            subjects=None if self.subjects is None else frozenset(self.subjects),
            claims={name: frozenset(values) for name, values in claims.items()},
        )


class AdminSettings(Settings, frozen=True, kw_only=True):
    """Who administers: ``issuers`` (``use: admin``) whose tokens count, ``roles`` for whom.

    Left out, the admin API refuses everybody.
    """

    issuers: tuple[IssuerSettings, ...]
    roles: tuple[RoleSettings, ...]

    def __post_init__(self) -> None:
        if not self.issuers or not self.roles:
            raise ValueError("issuers and roles must not be empty: leave admin out for no access")
        if any(issuer.use != "admin" for issuer in self.issuers):
            raise ValueError("issuers: each must have use: admin")
        names = [issuer.issuer for issuer in self.issuers]
        if len(set(names)) != len(names):
            raise ValueError("issuers: one is listed twice")
        for rule in self.roles:
            if rule.issuer not in names:
                raise ValueError(f"roles: {rule.issuer} is not among the admin issuers")


class DeploymentSettings(Settings, frozen=True, kw_only=True):
    """Whose tokens open deployment windows: ``issuers`` (``use: deployment``) of CI systems.

    Which identity opens which window is said by the grant. Left out, no window can be opened.
    """

    issuers: tuple[IssuerSettings, ...]

    def __post_init__(self) -> None:
        if not self.issuers:
            raise ValueError("issuers must not be empty: leave deployments out for none")
        if any(issuer.use != "deployment" for issuer in self.issuers):
            raise ValueError("issuers: each must have use: deployment")
        names = [issuer.issuer for issuer in self.issuers]
        if len(set(names)) != len(names):
            raise ValueError("issuers: one is listed twice")


class RateSettings(Settings, frozen=True, kw_only=True):
    """``rate`` requests a second for each caller, ``burst`` at once."""

    rate: int
    burst: int

    def __post_init__(self) -> None:
        if not 1 <= self.rate <= 1_000_000 or not 1 <= self.burst <= 1_000_000:
            raise ValueError("rate and burst must be positive")

    def of_callers(self, callers: int, timer: Callable[[], float]) -> RateLimit:
        """The limit, for at most so many callers at a time. ``timer``: as `RateLimit` has it."""
        return RateLimit(rate=self.rate, burst=self.burst, callers=callers, timer=timer)


class LimitSettings(Settings, frozen=True, kw_only=True):
    """Bounds on memory and on what one caller may ask for.

    A full replay memory refuses exchanges; it never forgets a proof. ``exchanges``, and
    ``revocations`` of tokens, are for each workload, ``introspections`` for each workload and
    resource server, ``admin`` for each administrator; ``callers`` is how many of each are counted
    at once. Each is counted by itself: a resource server that introspects for every call that it
    gets needs ``introspections`` above its rate of calls, and is held back by nothing else, unless
    it names signals of the feed that are not known here (those count as ``exchanges`` do).
    ``new_keys`` is with how many proof keys that it never had before a workload (all instances
    together) may get tokens at one replica, at once and then in each hour: each is remembered for
    90 days, and a sidecar makes one when it starts.
    """

    replay_proofs: int = 500_000
    verified_tokens: int = 10_000
    callers: int = 100_000
    new_keys: int = 5000
    exchanges: RateSettings = RateSettings(rate=500, burst=2000)
    introspections: RateSettings = RateSettings(rate=2000, burst=5000)
    revocations: RateSettings = RateSettings(rate=50, burst=200)
    admin: RateSettings = RateSettings(rate=20, burst=100)

    def __post_init__(self) -> None:
        if min(self.replay_proofs, self.verified_tokens, self.callers, self.new_keys) < 1:
            raise ValueError("limits must be positive")


class BrokerSettings(Settings, frozen=True, kw_only=True):
    """``config/broker.yaml``.

    ``issuer`` is the identifier in tokens and metadata, and the URL under which clients reach the
    endpoints. ``tls`` is a certificate and key, or ``terminated``: something in front of the
    broker speaks TLS, and nothing else can reach it. ``database`` is SQLite for one broker
    (``sqlite+aiosqlite:///FILE``) or PostgreSQL beneath many (``postgresql+asyncpg://…/NAME``).
    ``policies`` is a file of Cedar policies, or a directory of ``*.cedar`` files; left out, what a
    grant gives is permitted. ``claims`` says how tokens name roles and groups, ``agents`` which
    workloads are agents.
    """

    issuer: str
    master_key_file: Path
    grants_file: Path
    issuers: tuple[IssuerSettings, ...]
    targets: dict[str, TargetSettings]
    bind: str = "127.0.0.1:7080"
    tls: TlsSettings | Literal["terminated"] | None = None
    database: str = "sqlite+aiosqlite:////var/lib/valetkey/broker.db"
    postgres: PostgresSettings = msgspec.field(default_factory=PostgresSettings)
    token_ttl: Duration = duration(120)
    keys: KeySettings = msgspec.field(default_factory=KeySettings)
    mtls: MtlsSettings | None = None
    resource_servers: tuple[ResourceServerSettings, ...] = ()
    admin: AdminSettings | None = None
    approvals: ApprovalsSettings = msgspec.field(default_factory=ApprovalsSettings)
    deployments: DeploymentSettings | None = None
    policies: Path | None = None
    claims: tuple[ClaimTablesSettings, ...] = ()
    agents: tuple[AgentSettings, ...] = ()
    authzen: AuthzenSettings | None = None
    feed: FeedSettings = msgspec.field(default_factory=FeedSettings)
    directory: DirectorySettings | None = None
    limits: LimitSettings = msgspec.field(default_factory=LimitSettings)
    incidents: IncidentSettings = msgspec.field(default_factory=IncidentSettings)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def __post_init__(self) -> None:
        host = _bind_host(self.bind)
        if self.tls is None and not is_loopback(host):
            raise ValueError(
                f"bind {self.bind} is not loopback: give tls a certificate and key, or set "
                "tls: terminated if something in front of the broker speaks TLS"
            )
        _check_issuer(self.issuer)
        _check_ttl(self.token_ttl)
        for name, target in self.targets.items():
            ttl = self.token_ttl if target.ttl is None else target.ttl
            if target.credential == "txn_token" and ttl > MAX_TXN_TTL:
                raise ValueError(f"targets.{name}: a transaction token lives for 5m at most")
        if not self.targets:
            raise ValueError("targets is empty: no token could ever be minted")
        audiences = [target.audience for target in self.targets.values()]
        if len(set(audiences)) != len(audiences):
            raise ValueError("two targets have the same audience")
        if self.issuer in audiences:
            raise ValueError("a target has the broker's own issuer identifier as audience")
        check_certificates(
            self.mtls,
            self.issuers,
            main=self.bind,
            bound=[name for name, target in self.targets.items() if target.credential == "mtls"],
            has_tls=isinstance(self.tls, TlsSettings),
        )
        if not any(issuer.use == "workload" for issuer in self.issuers):
            raise ValueError("issuers: none has use: workload, so nobody could authenticate")
        if self.authzen:
            _check_points(self.authzen, self.workload_issuers(), self.admin)
        check_issuers((issuer.issuer for issuer in self.issuers), self.claims, self.agents)
        if any("/" in name for name in self.targets):
            raise ValueError("targets: a name has no '/': policies write target/route")
        if self.admin and any(issuer.issuer == self.issuer for issuer in self.admin.issuers):
            raise ValueError("admin.issuers: the broker's own tokens never administer it")
        for receiver in self.feed.receivers:
            if receiver.issuer not in self.workload_issuers():
                raise ValueError(f"feed.receivers: {receiver.issuer} is no issuer of workloads")
        if self.directory:
            self._check_directory(self.directory.issuers())
        if self.issuer in self.deployment_issuers():
            raise ValueError("deployments.issuers: the broker's own tokens open no windows")
        for issuer in self.issuers:
            if issuer.use in {"admin", "deployment"}:
                section = "admin" if issuer.use == "admin" else "deployments"
                raise ValueError(
                    f"issuer {issuer.issuer}: use: {issuer.use} belongs in {section}.issuers"
                )
            if issuer.use == "workload" and issuer.issuer == self.issuer:
                # What we mint is for targets: it must never authenticate a client here.
                raise ValueError("issuers: the broker is no issuer of workload tokens to itself")
            if issuer.kind == "spiffe" and issuer.audience != self.issuer:
                # draft-ietf-oauth-spiffe-client-auth §3.1: the same of a JWT-SVID, as a list of one
                raise ValueError(f"issuer {issuer.issuer}: audience must be {self.issuer}")
            if (
                issuer.use == "workload"
                and not issuer.reusable
                and (issuer.audience != self.issuer or issuer.audience_list)
            ):
                # RFC 7523bis: a self-signed assertion's aud is the issuer identifier, one string.
                raise ValueError(
                    f"issuer {issuer.issuer}: audience must be {self.issuer}, and not as a list"
                )

    def _check_directory(self, listed: frozenset[str]) -> None:
        trusted = {issuer.issuer for issuer in self.issuers}
        for issuer in sorted(listed - trusted):
            raise ValueError(f"directory: {issuer} is not among the issuers")

    def compiled_targets(self) -> tuple[Target, ...]:
        """The target registry with all defaults filled in."""
        return tuple(
            Target(
                name=name,
                audience=target.audience,
                resource=target.resource or target.audience,
                credential=target.credential,
                ttl=float(self.token_ttl if target.ttl is None else target.ttl),
                requires=tuple(sorted(set(target.requires))),
                status_list=target.status_list,
            )
            for name, target in self.targets.items()
        )

    def compiled_places(self) -> tuple[TargetFacts, ...]:
        """What policies can know of each target."""
        return tuple(
            TargetFacts(
                name=name,
                environment=target.environment,
                risk=target.risk,
                routes={route: made.compiled() for route, made in target.routes.items()},
            )
            for name, target in self.targets.items()
        )

    def deployment_issuers(self) -> frozenset[str]:
        """The issuers whose tokens can open deployment windows."""
        issuers = () if self.deployments is None else self.deployments.issuers
        return frozenset(issuer.issuer for issuer in issuers)

    def workload_issuers(self) -> frozenset[str]:
        return frozenset(issuer.issuer for issuer in self.issuers if issuer.use == "workload")


def _check_points(
    authzen: AuthzenSettings, workload_issuers: frozenset[str], admin: AdminSettings | None
) -> None:
    """An enforcement point of an issuer that is not trusted for its use could never ask."""
    administrators = {issuer.issuer for issuer in admin.issuers} if admin else set()
    for point in authzen.enforcement_points:
        known = administrators if point.use == "admin" else workload_issuers
        if point.issuer not in known:
            raise ValueError(
                f"authzen: {point.issuer} is not among the issuers of use: {point.use}"
            )


def longest_ttl(targets: Iterable[Target]) -> float:
    """Seconds that the longest-lived token can live."""
    return max(target.ttl for target in targets)


def _check_ttl(ttl: float) -> None:
    if not 1 <= ttl <= MAX_TTL:
        raise ValueError("a token's ttl is between 1s and 1h")


def _bind_host(bind: str) -> str:
    try:
        return address(bind)[0]
    except ConfigError as error:
        raise ValueError(f"bind: {error}") from error


def _check_issuer(issuer: str) -> None:
    """RFC 8414 §2: https, no query, no fragment; http only where it can't leave the machine."""
    try:
        parse_resource(issuer)
    except ResourceInvalid as error:
        raise ValueError(f"issuer: {error}") from error
    parts = urlsplit(issuer)
    if parts.path or not parts.hostname:
        raise ValueError("issuer must be a URL without a path, not even a slash")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname)):
        raise ValueError("issuer must be an https URL (http on loopback only)")
