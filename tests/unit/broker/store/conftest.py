"""What the store promises, it promises on both databases."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.postgres import Postgres
from valetkey.broker.store.database import Database


@pytest.fixture(scope="session")
def _migrated(postgres: Postgres) -> str:
    """A database that new ones are copied from, so that each test need not migrate."""
    url = postgres.database()

    async def migrate() -> None:
        await (await Database.open(url)).close()

    asyncio.run(migrate())
    return url.rpartition("/")[2]


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'broker.db'}"
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.database(template=request.getfixturevalue("_migrated"))
