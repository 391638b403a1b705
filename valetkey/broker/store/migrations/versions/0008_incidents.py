"""Incidents, and what issuers were asked to rotate because of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "incidents",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("value", sa.String(1024), nullable=False),
        sa.Column("issuer", sa.String(512), nullable=False),
        sa.Column("subject_issuer", sa.String(512), nullable=False),
        sa.Column("subject", sa.String(1024), nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("source", sa.String(128), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("evidence", sa.Text, nullable=False),
        sa.Column("opened_at", sa.Float, nullable=False),
        sa.Column("opened_by", sa.Text, nullable=False),
        sa.Column("renewed_at", sa.Float, nullable=False),
        sa.Column("contained_at", sa.Float, nullable=True),
        sa.Column("attested_at", sa.Float, nullable=True),
        sa.Column("closed_at", sa.Float, nullable=True),
        sa.Column("closed_by", sa.Text, nullable=False),
        sa.Column("close_reason", sa.Text, nullable=False),
        sa.Column("forced", sa.Boolean, nullable=False),
        sa.Column("open_key", sa.LargeBinary(32), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_incidents"),
    )
    op.create_index("ux_incidents_open_key", "incidents", ["open_key"], unique=True)
    op.create_index("ix_incidents_opened_at", "incidents", ["opened_at"])
    op.create_table(
        "incident_rotations",
        sa.Column("incident", sa.String(64), nullable=False),
        sa.Column("rotator", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("next_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("incident", "rotator", name="pk_incident_rotations"),
    )


def downgrade() -> None:
    op.drop_table("incident_rotations")
    op.drop_table("incidents")
