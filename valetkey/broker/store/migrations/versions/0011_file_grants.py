"""Grants as they last stood in the grants file."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "file_grants",
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("recorded_at", sa.Float, nullable=False),
        sa.Column("gone_at", sa.Float, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_file_grants"),
    )


def downgrade() -> None:
    op.drop_table("file_grants")
