"""A migrated database of the test's own: SQLite; the store's tests take PostgreSQL as well."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path / 'broker.db'}"


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await Database.open(database_url)
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def changes(database: Database) -> Changes:
    followed = Changes(database)
    await followed.load()
    return followed
