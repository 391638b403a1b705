"""From the URL in the settings to a migrated database."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL

from valetkey.collector.store.database import Database
from valetkey.collector.store.server import open_server
from valetkey.collector.store.sqlite import open_file
from valetkey.sql.settings import PostgresSettings


def open_database(url: URL, limits: PostgresSettings) -> Database:
    """Raises `ConfigError`. Blocks: call it before the loop runs."""
    if url.drivername.startswith("postgresql"):
        return open_server(url, limits)
    assert url.database is not None
    return open_file(Path(url.database))
