"""The broker's tables, once, for every SQL database. Times are seconds since the epoch."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Column, Float, Index, LargeBinary, MetaData, String, Table, Text

METADATA: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# `sealed` is nonce and AES-256-GCM ciphertext of the PKCS #8 key; the kid is bound to it as AAD.
SIGNING_KEYS: Final = Table(
    "signing_keys",
    METADATA,
    Column("kid", String(64), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("public_jwk", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("signs_from", Float, nullable=False),
    Column("longest_ttl", Float, nullable=False),
)

# `kind` is jti or txn: one token, or all that descends from one transaction.
REVOCATIONS: Final = Table(
    "revocations",
    METADATA,
    Column("kind", String(3), primary_key=True),
    Column("value", String(64), primary_key=True),
    Column("revoked_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Index(None, "expires_at"),
)

# `id` is a digest of issuer and jti of a self-signed client assertion.
USED_ASSERTIONS: Final = Table(
    "used_assertions",
    METADATA,
    Column("id", LargeBinary(32), primary_key=True),
    Column("expires_at", Float, nullable=False),
    Index(None, "expires_at"),
)
