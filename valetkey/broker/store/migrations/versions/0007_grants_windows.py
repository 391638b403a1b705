"""Grants made by API, their uses, deployment windows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "grants",
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("workload", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("not_before", sa.Float, nullable=True),
        sa.Column("not_after", sa.Float, nullable=True),
        sa.Column("max_uses", sa.BigInteger, nullable=True),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("created_by", sa.String(1024), nullable=False),
        sa.Column("created_by_issuer", sa.String(512), nullable=False),
        sa.Column("ended_at", sa.Float, nullable=True),
        sa.Column("ended_by", sa.String(1024), nullable=False),
        sa.Column("ended_by_issuer", sa.String(512), nullable=False),
        sa.Column("ended_reason", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_grants"),
    )
    op.create_table(
        "grant_uses",
        sa.Column("grant_id", sa.String(128), nullable=False),
        sa.Column("uses", sa.BigInteger, nullable=False),
        sa.Column("used_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("grant_id", name="pk_grant_uses"),
    )
    op.create_table(
        "windows",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("grant_id", sa.String(128), nullable=False),
        sa.Column("announcement", sa.LargeBinary(32), nullable=False),
        sa.Column("opened_at", sa.Float, nullable=False),
        sa.Column("deadline", sa.Float, nullable=False),
        sa.Column("opened_by", sa.String(1024), nullable=False),
        sa.Column("opened_by_issuer", sa.String(512), nullable=False),
        sa.Column("closed_at", sa.Float, nullable=True),
        sa.Column("closed_by", sa.String(1024), nullable=False),
        sa.Column("closed_by_issuer", sa.String(512), nullable=False),
        sa.Column("closed_reason", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_windows"),
    )
    op.create_index("ix_windows_announcement", "windows", ["announcement"], unique=True)
    op.create_index("ix_windows_grant_id", "windows", ["grant_id"])
    op.create_index("ix_windows_deadline", "windows", ["deadline"])


def downgrade() -> None:
    op.drop_table("windows")
    op.drop_table("grant_uses")
    op.drop_table("grants")
