"""Revocations of every kind, epochs that demand attestation, keys that were seen."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_OLD_KINDS = "kind IN ('jti', 'txn') AND issued_before IS NULL"


def upgrade() -> None:
    with op.batch_alter_table("revocations") as batch:
        batch.alter_column("kind", existing_type=sa.String(3), type_=sa.String(16))
        batch.alter_column("value", existing_type=sa.String(64), type_=sa.String(512))
        batch.add_column(sa.Column("issued_before", sa.Float, nullable=True))
    with op.batch_alter_table("epochs") as batch:
        batch.add_column(
            sa.Column("attest_after", sa.Float, nullable=False, server_default=sa.text("0"))
        )
    op.create_table(
        "seen_keys",
        sa.Column("id", sa.LargeBinary(32), nullable=False),
        sa.Column("first_seen", sa.Float, nullable=False),
        sa.Column("last_seen", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_seen_keys"),
    )
    op.create_index("ix_seen_keys_last_seen", "seen_keys", ["last_seen"])


def downgrade() -> None:
    op.drop_table("seen_keys")
    with op.batch_alter_table("epochs") as batch:
        batch.drop_column("attest_after")
    # What the older broker does not know it could not enforce either.
    op.execute(f"DELETE FROM revocations WHERE NOT ({_OLD_KINDS})")
    with op.batch_alter_table("revocations") as batch:
        batch.drop_column("issued_before")
        batch.alter_column("value", existing_type=sa.String(512), type_=sa.String(64))
        batch.alter_column("kind", existing_type=sa.String(16), type_=sa.String(3))
