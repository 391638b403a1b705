"""Sources, boots, events, and what is known of events that are missing."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sources",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("issuer", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("first_seen", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sources"),
        sa.UniqueConstraint("source", name="uq_sources_source"),
    )
    op.create_table(
        "boots",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("source_id", sa.Integer, nullable=False),
        sa.Column("boot", sa.Text, nullable=False),
        sa.Column("first_seen", sa.BigInteger, nullable=False),
        sa.Column("last_seen", sa.BigInteger, nullable=False),
        sa.Column("last_time", sa.Text, nullable=False, server_default=""),
        sa.Column("count", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("high", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("acked", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("head_seq", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("head_hash", sa.Text, nullable=False, server_default=""),
        sa.ForeignKeyConstraint(["source_id"], ["sources.id"], name="fk_boots_source_id"),
        sa.PrimaryKeyConstraint("id", name="pk_boots"),
        sa.UniqueConstraint("source_id", "boot", name="uq_boots_source_id_boot"),
    )
    op.create_table(
        "events",
        sa.Column(
            "cursor",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            primary_key=True,
            nullable=False,
        ),
        sa.Column("boot_id", sa.Integer, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.Text, nullable=False),
        sa.Column("received", sa.BigInteger, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("workload", sa.Text, nullable=False),
        sa.Column("route", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("decision", sa.Text, nullable=False),
        sa.Column("code", sa.Text, nullable=False),
        sa.Column("answers", sa.BigInteger, nullable=False),
        sa.Column("raw", sa.LargeBinary, nullable=False),
        sa.ForeignKeyConstraint(["boot_id"], ["boots.id"], name="fk_events_boot_id"),
        sa.UniqueConstraint("boot_id", "seq", name="uq_events_boot_id_seq"),
        sqlite_autoincrement=True,
    )
    for columns, condition in (
        (["boot_id", "answers"], "answers > 0"),
        (["workload"], "workload <> ''"),
        (["decision"], "decision = 'denied'"),
        (["code"], "code <> ''"),
    ):
        where = sa.text(condition)
        op.create_index(
            f"ix_events_{'_'.join(columns)}",
            "events",
            columns,
            sqlite_where=where,
            postgresql_where=where,
        )
    op.create_table(
        "gaps",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("boot_id", sa.Integer, nullable=False),
        sa.Column("first", sa.BigInteger, nullable=False),
        sa.Column("last", sa.BigInteger, nullable=False),
        sa.Column("opened", sa.BigInteger, nullable=False),
        sa.Column("closed", sa.BigInteger, nullable=True),
        sa.Column("lost", sa.BigInteger, nullable=False, server_default="0"),
        sa.ForeignKeyConstraint(["boot_id"], ["boots.id"], name="fk_gaps_boot_id"),
        sa.PrimaryKeyConstraint("id", name="pk_gaps"),
    )
    op.create_index("ix_gaps_boot_id", "gaps", ["boot_id"])
    op.create_table(
        "holes",
        sa.Column("boot_id", sa.Integer, nullable=False),
        sa.Column("first", sa.BigInteger, nullable=False),
        sa.Column("last", sa.BigInteger, nullable=False),
        sa.Column("gap_id", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(["boot_id"], ["boots.id"], name="fk_holes_boot_id"),
        sa.ForeignKeyConstraint(["gap_id"], ["gaps.id"], name="fk_holes_gap_id"),
        sa.PrimaryKeyConstraint("boot_id", "first", name="pk_holes"),
    )
    op.create_table(
        "declarations",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("boot_id", sa.Integer, nullable=False),
        sa.Column("first", sa.BigInteger, nullable=False),
        sa.Column("last", sa.BigInteger, nullable=False),
        sa.Column("lost", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("seen", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["boot_id"], ["boots.id"], name="fk_declarations_boot_id"),
        sa.PrimaryKeyConstraint("id", name="pk_declarations"),
    )
    op.create_index("ix_declarations_boot_id", "declarations", ["boot_id"])
    op.create_table(
        "breaks",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("boot_id", sa.Integer, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("seen", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["boot_id"], ["boots.id"], name="fk_breaks_boot_id"),
        sa.PrimaryKeyConstraint("id", name="pk_breaks"),
        sa.UniqueConstraint("boot_id", "seq", name="uq_breaks_boot_id_seq"),
    )
    op.create_table(
        "conflicts",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("boot", sa.Text, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("kept_hash", sa.Text, nullable=False),
        sa.Column("refused_hash", sa.Text, nullable=False),
        sa.Column("issuer", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("first_seen", sa.BigInteger, nullable=False),
        sa.Column("last_seen", sa.BigInteger, nullable=False),
        sa.Column("times", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_conflicts"),
        sa.UniqueConstraint(
            "source", "boot", "seq", "refused_hash",
            name="uq_conflicts_source_boot_seq_refused_hash",
        ),
    )


def downgrade() -> None:
    for table in (
        "conflicts", "breaks", "declarations", "holes", "gaps", "events", "boots", "sources",
    ):
        op.drop_table(table)
