"""The collector's settings. Every default is the closed one.

Invariants, checked while loading:

- Plain HTTP is served on loopback only, or behind a terminator that the settings name as such.
- Somebody can write: at least one issuer has ``use: workload``. Nobody reads unless named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from msgspec import Meta
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from valetkey.contracts.errors import ConfigError
from valetkey.contracts.fetch import is_loopback
from valetkey.contracts.issuer import IssuerSettings
from valetkey.contracts.service import TlsSettings, address
from valetkey.contracts.settings import Settings, Size, size

_DRIVER: Final = "sqlite+aiosqlite"


class ReaderSettings(Settings, frozen=True, kw_only=True):
    """Who may read the record: exactly this subject of exactly this issuer."""

    issuer: Annotated[str, Meta(min_length=1)]
    subject: Annotated[str, Meta(min_length=1)]


class CollectorSettings(Settings, frozen=True, kw_only=True):
    """``config/collector.yaml``.

    ``tls`` is a certificate and key, or ``terminated``: something in front of the collector
    speaks TLS, and nothing else can reach it. ``issuers`` are those whose tokens count at all;
    sidecars write with tokens of ``use: workload``. An empty ``readers`` lets nobody read.
    """

    issuers: tuple[IssuerSettings, ...]
    bind: str = "127.0.0.1:7090"
    tls: TlsSettings | Literal["terminated"] | None = None
    database: str = "sqlite+aiosqlite:////var/lib/valetkey/collector.db"
    readers: tuple[ReaderSettings, ...] = ()
    max_batch_bytes: Size = size(8 << 20)
    verified_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def __post_init__(self) -> None:
        if any(issuer.use == "admin" for issuer in self.issuers):
            raise ValueError("issuers: use: admin is the broker's; name who may read in readers")
        try:
            host, _ = address(self.bind)
        except ConfigError as error:
            raise ValueError(f"bind: {error}") from error
        if self.tls is None and not is_loopback(host):
            raise ValueError(
                f"bind {self.bind} is not loopback: give tls a certificate and key, or set "
                "tls: terminated if something in front of the collector speaks TLS"
            )
        if not any(issuer.use == "workload" for issuer in self.issuers):
            raise ValueError("issuers: none has use: workload, so no sidecar could deliver")
        for issuer in self.issuers:
            if issuer.kind not in {"oidc", "spiffe"} or issuer.discovery:
                raise ValueError(
                    f"issuer {issuer.issuer}: kind: {issuer.kind} or discovery are for the broker; "
                    "here pin the keys by jwks_file or jwks_url"
                )
        known = {issuer.issuer for issuer in self.issuers}
        for reader in self.readers:
            if reader.issuer not in known:
                raise ValueError(f"readers: {reader.issuer} is not one of the issuers")
        if self.max_batch_bytes < 1:
            raise ValueError("max_batch_bytes must be positive")
        database_file(self.database)


def database_file(url: str) -> Path:
    """The SQLite file that the URL names. Raises `ValueError`."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ValueError("database is not an SQLAlchemy URL") from error
    if parsed.drivername != _DRIVER or not parsed.database or parsed.database == ":memory:":
        raise ValueError(f"database must be {_DRIVER}:///FILE")
    return Path(parsed.database)
