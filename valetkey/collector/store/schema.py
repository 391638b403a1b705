"""The collector's tables. Times are milliseconds since the epoch, hashes hex SHA-256.

`EVENTS.raw` is the record; everything else finds events, or says what is known about those that
are not here. Rows of `EVENTS` are never changed and never deleted.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from valetkey.collector.store.dialects import CURSOR

METADATA: Final = MetaData(
    naming_convention={
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)


def _partial(condition: str, *columns: str, **more: Any) -> Index:
    """An index of the rows that it is asked for: every index slows the insert."""
    where = text(condition)
    return Index(None, *columns, sqlite_where=where, postgresql_where=where, **more)


# A source belongs to the identity that wrote it first.
SOURCES: Final = Table(
    "sources",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("source", Text, nullable=False),
    Column("issuer", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("first_seen", BigInteger, nullable=False),
    UniqueConstraint("source"),
)

# `high` is the highest event known to exist, `head_*` the highest one that is stored.
BOOTS: Final = Table(
    "boots",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("source_id", ForeignKey("sources.id"), nullable=False),
    Column("boot", Text, nullable=False),
    Column("first_seen", BigInteger, nullable=False),
    Column("last_seen", BigInteger, nullable=False),
    Column("last_time", Text, nullable=False, server_default=""),
    Column("count", BigInteger, nullable=False, server_default="0"),
    Column("high", BigInteger, nullable=False, server_default="0"),
    Column("acked", BigInteger, nullable=False, server_default="0"),
    Column("head_seq", BigInteger, nullable=False, server_default="0"),
    Column("head_hash", Text, nullable=False, server_default=""),
    UniqueConstraint("source_id", "boot"),
)

# `cursor` is the order of arrival. `answers`: see `core.columns`.
EVENTS: Final = Table(
    "events",
    METADATA,
    Column("cursor", CURSOR, primary_key=True),
    Column("boot_id", ForeignKey("boots.id"), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("hash", Text, nullable=False),
    Column("received", BigInteger, nullable=False),
    Column("type", Text, nullable=False),
    Column("workload", Text, nullable=False),
    Column("route", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("decision", Text, nullable=False),
    Column("code", Text, nullable=False),
    Column("answers", BigInteger, nullable=False),
    Column("raw", LargeBinary, nullable=False),
    Column("time", BigInteger, nullable=False, server_default="0"),
    Column("jti", Text, nullable=False, server_default=""),
    Column("txn", Text, nullable=False, server_default=""),
    Column("approval", Text, nullable=False, server_default=""),
    Column("more", Text, nullable=False, server_default=""),
    UniqueConstraint("boot_id", "seq"),
    _partial("answers > 0", "boot_id", "answers"),
    _partial("workload <> ''", "workload"),
    _partial("decision = 'denied'", "decision"),
    _partial("code <> ''", "code"),
    # With the cursor that a span of times stands for (SQLite has it in every index).
    Index(None, "time", postgresql_include=["cursor"]),
    _partial("jti <> ''", "jti"),
    _partial("txn <> ''", "txn"),
    _partial("approval <> ''", "approval"),
    # Gone through from end to end: few calls go on with another credential. Its text may be longer
    # than PostgreSQL takes into an index.
    _partial("more <> ''", "more").ddl_if(dialect="sqlite"),
    _partial("more <> ''", "cursor").ddl_if(dialect="postgresql"),
    # An INTEGER PRIMARY KEY is never given twice, not even after its row is gone.
    sqlite_autoincrement=True,
)

# What was missing when it was first noticed. Closed when nothing of it is missing any more:
# `lost` of its events were declared lost, the others arrived.
GAPS: Final = Table(
    "gaps",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("boot_id", ForeignKey("boots.id"), nullable=False),
    Column("first", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False),
    Column("opened", BigInteger, nullable=False),
    Column("closed", BigInteger, nullable=True),
    Column("lost", BigInteger, nullable=False, server_default="0"),
    Index(None, "boot_id"),
)

# What of the open gaps is still missing (`core.coverage`).
HOLES: Final = Table(
    "holes",
    METADATA,
    Column("boot_id", ForeignKey("boots.id"), primary_key=True, autoincrement=False),
    Column("first", BigInteger, primary_key=True, autoincrement=False),
    Column("last", BigInteger, nullable=False),
    Column("gap_id", ForeignKey("gaps.id"), nullable=False),
)

# Losses that a sidecar stated; first and last are 0 where the events never got numbers.
DECLARATIONS: Final = Table(
    "declarations",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("boot_id", ForeignKey("boots.id"), nullable=False),
    Column("first", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False),
    Column("lost", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("seen", BigInteger, nullable=False),
    Index(None, "boot_id"),
)

BREAKS: Final = Table(
    "breaks",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("boot_id", ForeignKey("boots.id"), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("seen", BigInteger, nullable=False),
    UniqueConstraint("boot_id", "seq"),
)

# Another text under an id that is on record. Repeats are counted, not added.
CONFLICTS: Final = Table(
    "conflicts",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("source", Text, nullable=False),
    Column("boot", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("kept_hash", Text, nullable=False),
    Column("refused_hash", Text, nullable=False),
    Column("issuer", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("first_seen", BigInteger, nullable=False),
    Column("last_seen", BigInteger, nullable=False),
    Column("times", BigInteger, nullable=False),
    UniqueConstraint("source", "boot", "seq", "refused_hash"),
)

# All events up to `cursor` are in the stream, the last of them as its message `sequence`.
HANDOFFS: Final = Table(
    "handoffs",
    METADATA,
    Column("stream", Text, primary_key=True),
    Column("cursor", BigInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("updated", BigInteger, nullable=False),
)
