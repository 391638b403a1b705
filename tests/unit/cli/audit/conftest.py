from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.support.chain import Chain, batch
from valetkey.cli.main import main
from valetkey.collector.core.batch import read_batch
from valetkey.collector.store.sqlite import open_file
from valetkey.collector.store.writer import Identity, Writer


@pytest.fixture
def store(tmp_path: Path) -> Callable[..., Path]:
    """Store chains in a collector's database and give the file."""
    file = tmp_path / "collector.db"

    async def write(chains: tuple[Chain, ...], now: int) -> None:
        database = await asyncio.to_thread(open_file, file)
        for chain in chains:
            if chain.events:
                parsed = read_batch(batch(chain.events))
                await Writer(database).store(parsed, Identity("https://i", "agent"), now=now)
        await database.close()

    def stored(*chains: Chain, now: int = 1_793_500_000_000) -> Path:
        asyncio.run(write(chains, now))
        return file

    return stored


@pytest.fixture
def audit() -> Callable[..., Result]:
    """``valetkey audit …``."""
    return lambda *arguments: CliRunner().invoke(main, ["audit", *map(str, arguments)])


@pytest.fixture
def two_boots() -> tuple[Chain, Chain]:
    first = Chain(boot="00000000000000a1")
    first.boot_event()
    first.calls(2)
    second = Chain(boot="00000000000000b2")
    second.boot_event(first)
    second.calls(1)
    return first, second
