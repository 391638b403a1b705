"""The collector's settings. Every default is the closed one.

Invariants, checked while loading:

- Plain HTTP is served on loopback only, or behind a terminator that the settings name as such.
- Somebody can write: at least one issuer has ``use: workload``. Nobody reads unless named.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta
from sqlalchemy import URL
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from valetkey.collector.nats_settings import NatsSettings
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.fetch import is_loopback
from valetkey.contracts.issuer import IssuerSettings
from valetkey.contracts.service import TlsSettings, address
from valetkey.contracts.settings import Settings, Size, size
from valetkey.sql.settings import PostgresSettings

_SQLITE: Final = "sqlite+aiosqlite"
_POSTGRES: Final = "postgresql+asyncpg"


class ReaderSettings(Settings, frozen=True, kw_only=True):
    """Who may read the record: exactly this subject of exactly this issuer."""

    issuer: Annotated[str, Meta(min_length=1)]
    subject: Annotated[str, Meta(min_length=1)]


class CollectorSettings(Settings, frozen=True, kw_only=True):
    """``config/collector.yaml``.

    ``tls`` is a certificate and key, or ``terminated``: something in front of the collector
    speaks TLS, and nothing else can reach it. ``issuers`` are those whose tokens count at all;
    sidecars write with tokens of ``use: workload``. An empty ``readers`` lets nobody read.

    ``database`` is an SQLite file (``sqlite+aiosqlite:///FILE``), for one collector, or PostgreSQL
    (``postgresql+asyncpg://USER:PASSWORD@HOST/NAME``), which any number of collectors share. It is
    a database of the collector's own, not the broker's. With ``nats`` the record is handed on to
    a JetStream stream as well.
    """

    issuers: tuple[IssuerSettings, ...]
    bind: str = "127.0.0.1:7090"
    tls: TlsSettings | Literal["terminated"] | None = None
    database: str = "sqlite+aiosqlite:////var/lib/valetkey/collector.db"
    postgres: PostgresSettings = msgspec.field(default_factory=PostgresSettings)
    nats: NatsSettings | None = None
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
        database_url(self.database)
        if self.nats is not None and self.nats.answer >= self.postgres.idle_in_transaction:
            raise ValueError("nats.answer must be shorter than postgres.idle_in_transaction")


def database_url(url: str) -> URL:
    """The database: a file for SQLite, or PostgreSQL. Raises `ValueError`."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ValueError("database is not an SQLAlchemy URL") from error
    if parsed.drivername == _POSTGRES and parsed.database:
        return parsed
    if parsed.drivername != _SQLITE or not parsed.database or parsed.database == ":memory:":
        raise ValueError(f"database must be {_SQLITE}:///FILE or {_POSTGRES}://…/NAME")
    return parsed
