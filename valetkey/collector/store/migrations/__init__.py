"""Alembic's home: run by `store.database`, never by hand."""
