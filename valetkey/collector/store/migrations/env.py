"""Alembic environment: migrates over the connection that `store.database` passes in."""

from __future__ import annotations

from alembic import context

from valetkey.collector.store.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transaction_per_migration=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
