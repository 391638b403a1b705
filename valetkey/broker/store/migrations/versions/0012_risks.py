"""How risky transmitters say that subjects are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "subject_risks",
        sa.Column("issuer", sa.String(512), nullable=False),
        sa.Column("subject", sa.String(1024), nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("principal", sa.String(16), nullable=False),
        sa.Column("level", sa.String(8), nullable=False),
        sa.Column("seen_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("issuer", "subject", "source", "principal", name="pk_subject_risks"),
    )
    op.create_index("ix_subject_risks_expires_at", "subject_risks", ["expires_at"])


def downgrade() -> None:
    op.drop_table("subject_risks")
