"""A self-signed assertion is used once, whoever asks first."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text

from tests.integration.broker_support import Clock
from valetkey.broker.store.assertions import UsedAssertions
from valetkey.broker.store.database import Database, StoreError


async def test_once_per_issuer(database: Database) -> None:
    used = UsedAssertions(database, clock=Clock(1000))
    assert await used.use("a", "bc", expires=1100)
    assert not await used.use("a", "bc", expires=1100)
    assert await used.use("ab", "c", expires=1100)
    assert not await UsedAssertions(database, clock=Clock(1000)).use("a", "bc", expires=1100)


async def test_one_of_many_at_once(database: Database) -> None:
    used = UsedAssertions(database, clock=Clock(1000))
    answers = await asyncio.gather(*(used.use("a", "j", expires=1100) for _ in range(20)))
    assert sum(answers) == 1


async def test_swept_when_it_could_not_count_anyway(database: Database) -> None:
    clock = Clock(1000)
    used = UsedAssertions(database, clock=clock)
    await used.use("a", "j", expires=1100)
    clock.now = 1099
    await used.sweep()
    assert not await used.use("a", "j", expires=1100)
    clock.now = 1100
    await used.sweep()
    assert await used.use("a", "j", expires=1200)


async def test_a_database_that_fails_says_neither_yes_nor_no(database: Database) -> None:
    used = UsedAssertions(database, clock=Clock(1000))
    async with database.write() as connection:
        await connection.execute(text("DROP TABLE used_assertions"))
    with pytest.raises(StoreError) as failed:
        await used.use("a", "j", expires=1100)
    assert failed.value.code.name == "service.unavailable"
