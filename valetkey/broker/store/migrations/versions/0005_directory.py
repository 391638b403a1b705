"""Users and groups of the directory."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "scim_resources",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("kind", sa.String(5), nullable=False),
        sa.Column("name", sa.String(512), nullable=False),
        sa.Column("name_key", sa.String(1024), nullable=False),
        sa.Column("external_id", sa.String(512), nullable=True),
        sa.Column("active", sa.Boolean, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("modified_at", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_scim_resources"),
    )
    for columns, unique in (
        (["kind", "name_key"], True),
        (["kind", "external_id"], True),
        (["kind", "created_at", "id"], False),
    ):
        op.create_index(
            f"ix_scim_resources_{'_'.join(columns)}", "scim_resources", columns, unique=unique
        )
    op.create_table(
        "scim_subjects",
        sa.Column("user_id", sa.String(36), nullable=False),
        sa.Column("issuer", sa.String(512), nullable=False),
        sa.Column("subject", sa.String(1024), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "issuer", "subject", name="pk_scim_subjects"),
    )
    op.create_table(
        "scim_members",
        sa.Column("group_id", sa.String(36), nullable=False),
        sa.Column("member_id", sa.String(36), nullable=False),
        sa.PrimaryKeyConstraint("group_id", "member_id", name="pk_scim_members"),
    )
    op.create_index("ix_scim_members_member_id", "scim_members", ["member_id"])


def downgrade() -> None:
    op.drop_table("scim_members")
    op.drop_table("scim_subjects")
    op.drop_table("scim_resources")
