from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from tests.support.collector import CollectorBench
from valetkey.collector.app import build_app
from valetkey.collector.store.database import Database, open_database


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await asyncio.to_thread(open_database, tmp_path / "events.db")
    yield opened
    await opened.close()


@pytest.fixture
def bench(tmp_path: Path) -> CollectorBench:
    return CollectorBench(tmp_path)


@pytest.fixture
async def client(bench: CollectorBench) -> AsyncIterator[TestClient]:
    """The service in this process, on a loopback port."""
    opened = await asyncio.to_thread(open_database, bench.database)
    app = build_app(bench.settings(), opened)
    async with TestClient(TestServer(app)) as client:
        yield client
