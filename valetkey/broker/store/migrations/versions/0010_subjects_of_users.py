"""By what a user's subjects named the user, and when they last did."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nobody knows by what those of before were found: none of them survives a change of its user.
    op.add_column(
        "scim_subjects", sa.Column("value", sa.String(512), nullable=False, server_default="")
    )
    op.add_column(
        "scim_subjects", sa.Column("noted_at", sa.Float, nullable=False, server_default="0")
    )
    op.execute(sa.text("UPDATE scim_subjects SET noted_at = :now").bindparams(now=time.time()))
    op.create_index("ix_scim_subjects_noted_at", "scim_subjects", ["noted_at"])


def downgrade() -> None:
    op.drop_index("ix_scim_subjects_noted_at", "scim_subjects")
    op.drop_column("scim_subjects", "noted_at")
    op.drop_column("scim_subjects", "value")
