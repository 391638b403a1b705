"""Where the database is, so that a copy of it is known as one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "home",
        sa.Column("only", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("place", sa.String(128), nullable=False),
        sa.Column("since", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("only", name="pk_home"),
    )


def downgrade() -> None:
    op.drop_table("home")
