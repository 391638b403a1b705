"""Changes for replicas, epochs of subjects, the log of administrators' actions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "changes",
        sa.Column("seq", _SEQUENCE, nullable=False, autoincrement=True),
        sa.Column("topic", sa.String(32), nullable=False),
        sa.Column("key", sa.String(512), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_changes"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "epochs",
        sa.Column("issuer", sa.String(512), nullable=False),
        sa.Column("subject", sa.String(1024), nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("bumped_at", sa.Float, nullable=False),
        sa.Column("reason", sa.String(256), nullable=False),
        sa.PrimaryKeyConstraint("issuer", "subject", name="pk_epochs"),
    )
    op.create_table(
        "admin_actions",
        sa.Column("seq", _SEQUENCE, nullable=False, autoincrement=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("actor", sa.String(1024), nullable=False),
        sa.Column("actor_issuer", sa.String(512), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(1024), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("details", sa.Text, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_admin_actions"),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    op.drop_table("admin_actions")
    op.drop_table("epochs")
    op.drop_table("changes")
