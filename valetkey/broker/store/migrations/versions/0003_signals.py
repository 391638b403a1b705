"""The feed: signals, the streams that follow them, what was acknowledged when."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "signals",
        sa.Column("seq", _SEQUENCE, nullable=False, autoincrement=True),
        sa.Column("jti", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("value", sa.String(2048), nullable=False),
        sa.Column("issuer", sa.String(512), nullable=False),
        sa.Column("txn", sa.String(256), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("published_at", sa.Float, nullable=False),
        sa.Column("stream", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_signals"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_signals_jti", "signals", ["jti"], unique=True)
    op.create_index("ix_signals_txn", "signals", ["txn"])
    op.create_table(
        "feed_streams",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("owner_issuer", sa.String(512), nullable=False),
        sa.Column("owner_subject", sa.String(1024), nullable=False),
        sa.Column("owner_key", sa.String(64), nullable=False),
        sa.Column("description", sa.String(256), nullable=False),
        sa.Column("events_requested", sa.Text, nullable=False),
        sa.Column("excluded", sa.Text, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("status_reason", sa.String(256), nullable=False),
        sa.Column("push_url", sa.String(2048), nullable=False),
        sa.Column("push_authorization", sa.LargeBinary, nullable=True),
        sa.Column("start", sa.BigInteger, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("contacted_at", sa.Float, nullable=False),
        sa.Column("lease", sa.String(64), nullable=False),
        sa.Column("lease_until", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_feed_streams"),
    )
    op.create_index(
        "ix_feed_streams_owner_issuer_owner_subject",
        "feed_streams",
        ["owner_issuer", "owner_subject"],
    )
    op.create_index("ix_feed_streams_contacted_at", "feed_streams", ["contacted_at"])
    op.create_table(
        "signal_acks",
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("stream", sa.String(64), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("seq", "stream", name="pk_signal_acks"),
    )


def downgrade() -> None:
    op.drop_table("signal_acks")
    op.drop_table("feed_streams")
    op.drop_table("signals")
