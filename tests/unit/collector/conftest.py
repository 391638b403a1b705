"""A migrated database of the test's own: SQLite, and PostgreSQL for what has `ON_BOTH`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from sqlalchemy import make_url

from tests.support.collector import CollectorBench
from tests.support.postgres import Postgres
from valetkey.collector.app import build_app
from valetkey.collector.store.database import Database
from valetkey.collector.store.open import open_database
from valetkey.collector.store.server import open_server
from valetkey.sql.settings import PostgresSettings


@pytest.fixture(scope="session")
def _migrated(postgres: Postgres) -> str:
    """A database that new ones are copied from, so that each test need not migrate."""
    url = make_url(postgres.database())
    open_server(url, PostgresSettings())
    assert url.database
    return url.database


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if getattr(request, "param", "sqlite") == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'collector.db'}"
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.database(template=request.getfixturevalue("_migrated"))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = await _open(database_url)
    yield opened
    await opened.close()


@pytest.fixture
def bench(tmp_path: Path) -> CollectorBench:
    return CollectorBench(tmp_path)


@pytest.fixture
async def client(bench: CollectorBench, database_url: str) -> AsyncIterator[TestClient]:
    """The service in this process, on a loopback port."""
    app = build_app(bench.settings(database=database_url), await _open(database_url))
    async with TestClient(TestServer(app)) as client:
        yield client


async def _open(url: str) -> Database:
    return await asyncio.to_thread(open_database, make_url(url), PostgresSettings())
