"""A self-signed assertion is used once, whoever asks first."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.integration.broker_support import Clock
from valetkey.broker.store.assertions import UsedAssertions
from valetkey.broker.store.database import StoreError


async def test_once_per_issuer(engine: AsyncEngine) -> None:
    used = UsedAssertions(engine, clock=Clock(1000))
    assert await used.use("a", "bc", expires=1100)
    assert not await used.use("a", "bc", expires=1100)
    assert await used.use("ab", "c", expires=1100)
    assert not await UsedAssertions(engine, clock=Clock(1000)).use("a", "bc", expires=1100)


async def test_one_of_many_at_once(engine: AsyncEngine) -> None:
    used = UsedAssertions(engine, clock=Clock(1000))
    answers = await asyncio.gather(*(used.use("a", "j", expires=1100) for _ in range(20)))
    assert sum(answers) == 1


async def test_swept_when_it_could_not_count_anyway(engine: AsyncEngine) -> None:
    clock = Clock(1000)
    used = UsedAssertions(engine, clock=clock)
    await used.use("a", "j", expires=1100)
    clock.now = 1099
    await used.sweep()
    assert not await used.use("a", "j", expires=1100)
    clock.now = 1100
    await used.sweep()
    assert await used.use("a", "j", expires=1200)


async def test_a_database_that_fails_says_neither_yes_nor_no(engine: AsyncEngine) -> None:
    used = UsedAssertions(engine, clock=Clock(1000))
    async with engine.begin() as connection:
        await connection.execute(text("DROP TABLE used_assertions"))
    with pytest.raises(StoreError) as failed:
        await used.use("a", "j", expires=1100)
    assert failed.value.code.name == "service.unavailable"
