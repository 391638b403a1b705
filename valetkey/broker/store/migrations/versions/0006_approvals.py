"""Approvals with their votes, deferral codes, and what people are still to be told."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "approvals",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("digest", sa.String(43), nullable=False),
        sa.Column("open_digest", sa.String(43), nullable=True),
        sa.Column("client_issuer", sa.String(512), nullable=False),
        sa.Column("client_subject", sa.String(1024), nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("opened_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("valid", sa.Float, nullable=False),
        sa.Column("decision", sa.String(8), nullable=False),
        sa.Column("uses_left", sa.Integer, nullable=True),
        sa.Column("used", sa.Integer, nullable=False),
        sa.Column("until", sa.Float, nullable=False),
        sa.Column("decided_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_approvals"),
    )
    op.create_index("ix_approvals_open_digest", "approvals", ["open_digest"], unique=True)
    op.create_index("ix_approvals_digest", "approvals", ["digest"])
    op.create_index("ix_approvals_opened_at", "approvals", ["opened_at"])
    op.create_table(
        "approval_votes",
        sa.Column("approval", sa.String(40), nullable=False),
        sa.Column("issuer", sa.String(512), nullable=False),
        sa.Column("subject", sa.String(1024), nullable=False),
        sa.Column("approves", sa.Boolean, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("uses", sa.Integer, nullable=True),
        sa.Column("until", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("approval", "issuer", "subject", name="pk_approval_votes"),
    )
    op.create_table(
        "deferrals",
        sa.Column("id", sa.LargeBinary(32), nullable=False),
        sa.Column("approval", sa.String(40), nullable=False),
        sa.Column("client_issuer", sa.String(512), nullable=False),
        sa.Column("client_subject", sa.String(1024), nullable=False),
        sa.Column("thumbprint", sa.String(64), nullable=False),
        sa.Column("request", sa.LargeBinary, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("interval", sa.Float, nullable=False),
        sa.Column("polled_at", sa.Float, nullable=False),
        sa.Column("redeemed_at", sa.Float, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_deferrals"),
    )
    op.create_index("ix_deferrals_expires_at", "deferrals", ["expires_at"])
    op.create_table(
        "notices",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("channel", sa.String(64), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("due_at", sa.Float, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("claimed_until", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_notices"),
    )
    op.create_index("ix_notices_due_at", "notices", ["due_at"])


def downgrade() -> None:
    op.drop_table("notices")
    op.drop_table("deferrals")
    op.drop_table("approval_votes")
    op.drop_table("approvals")
