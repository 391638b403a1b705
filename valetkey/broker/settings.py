"""The broker's settings. Every default is the closed one.

Invariants, checked while loading:

- Plain HTTP is served on loopback only, or behind a terminator that the settings name as such.
- No two targets share an audience, and none has the broker's own issuer identifier as audience:
  its tokens would be client assertions here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from valetkey.broker.core.grants import Target
from valetkey.broker.core.resources import ResourceInvalid, parse_resource
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.issuer import IssuerSettings
from valetkey.contracts.service import TlsSettings, address
from valetkey.contracts.settings import Duration, Settings, duration

# RFC 9068 tokens are checked offline: what can't be called back must not live long.
MAX_TTL: Final = 3600.0


class TargetSettings(Settings, frozen=True, kw_only=True):
    """A system that calls go to.

    ``audience`` is the ``aud`` of its tokens and what sidecars ask for. ``credential`` says
    whether they are bound to the caller's key. ``resource`` (default: the audience) is the URI
    under which RFC 8707 resource indicators must lie. ``ttl`` replaces ``token_ttl``.
    """

    audience: str
    credential: Literal["bearer", "dpop"]
    resource: str | None = None
    ttl: Duration | None = None

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


class LimitSettings(Settings, frozen=True, kw_only=True):
    """Bounds on memory. A full replay memory refuses exchanges; it never forgets a proof."""

    replay_proofs: int = 500_000
    verified_tokens: int = 10_000

    def __post_init__(self) -> None:
        if self.replay_proofs < 1 or self.verified_tokens < 1:
            raise ValueError("limits must be positive")


class BrokerSettings(Settings, frozen=True, kw_only=True):
    """``config/broker.yaml``.

    ``issuer`` is the identifier in tokens and metadata, and the URL under which clients reach the
    endpoints. ``tls`` is a certificate and key, or ``terminated``: something in front of the
    broker speaks TLS, and nothing else can reach it. ``database`` is SQLite for one broker
    (``sqlite+aiosqlite:///FILE``) or PostgreSQL beneath many (``postgresql+asyncpg://…/NAME``).
    """

    issuer: str
    master_key_file: Path
    grants_file: Path
    issuers: tuple[IssuerSettings, ...]
    targets: dict[str, TargetSettings]
    bind: str = "127.0.0.1:7080"
    tls: TlsSettings | Literal["terminated"] | None = None
    database: str = "sqlite+aiosqlite:////var/lib/valetkey/broker.db"
    token_ttl: Duration = duration(120)
    keys: KeySettings = msgspec.field(default_factory=KeySettings)
    resource_servers: tuple[ResourceServerSettings, ...] = ()
    limits: LimitSettings = msgspec.field(default_factory=LimitSettings)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def __post_init__(self) -> None:
        host = _bind_host(self.bind)
        if self.tls is None and not _is_loopback(host):
            raise ValueError(
                f"bind {self.bind} is not loopback: give tls a certificate and key, or set "
                "tls: terminated if something in front of the broker speaks TLS"
            )
        _check_issuer(self.issuer)
        _check_ttl(self.token_ttl)
        if not self.targets:
            raise ValueError("targets is empty: no token could ever be minted")
        audiences = [target.audience for target in self.targets.values()]
        if len(set(audiences)) != len(audiences):
            raise ValueError("two targets have the same audience")
        if self.issuer in audiences:
            raise ValueError("a target has the broker's own issuer identifier as audience")
        if not any(issuer.use == "workload" for issuer in self.issuers):
            raise ValueError("issuers: none has use: workload, so nobody could authenticate")
        for issuer in self.issuers:
            if issuer.use == "workload" and issuer.issuer == self.issuer:
                # What we mint is for targets: it must never authenticate a client here.
                raise ValueError("issuers: the broker is no issuer of workload tokens to itself")
            if (
                issuer.use == "workload"
                and not issuer.reusable
                and (issuer.audience != self.issuer or issuer.audience_list)
            ):
                # RFC 7523bis: a self-signed assertion's aud is the issuer identifier, one string.
                raise ValueError(
                    f"issuer {issuer.issuer}: audience must be {self.issuer}, and not as a list"
                )

    def compiled_targets(self) -> tuple[Target, ...]:
        """The target registry with all defaults filled in."""
        return tuple(
            Target(
                name=name,
                audience=target.audience,
                resource=target.resource or target.audience,
                credential=target.credential,
                ttl=float(self.token_ttl if target.ttl is None else target.ttl),
            )
            for name, target in self.targets.items()
        )

    def workload_issuers(self) -> frozenset[str]:
        return frozenset(issuer.issuer for issuer in self.issuers if issuer.use == "workload")


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


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_issuer(issuer: str) -> None:
    """RFC 8414 §2: https, no query, no fragment; http only where it can't leave the machine."""
    try:
        parse_resource(issuer)
    except ResourceInvalid as error:
        raise ValueError(f"issuer: {error}") from error
    parts = urlsplit(issuer)
    if parts.path or not parts.hostname:
        raise ValueError("issuer must be a URL without a path, not even a slash")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.hostname)):
        raise ValueError("issuer must be an https URL (http on loopback only)")
