"""A self-signed assertion is used once, whoever asks first."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import event, text

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


async def test_two_replicas_at_once(database: Database) -> None:
    replicas = [UsedAssertions(database, clock=Clock(1000)) for _ in range(2)]
    keys = [str(number) for number in range(50)]
    answers = await asyncio.gather(
        *(used.use("a", key, expires=1100) for used in replicas for key in keys)
    )
    assert [answers[n] + answers[n + 50] for n in range(50)] == [1] * 50


async def test_those_that_wait_share_a_commit(database: Database) -> None:
    used = UsedAssertions(database, clock=Clock(1000))
    commits = 0

    def count(*_args: object) -> None:
        nonlocal commits
        commits += 1

    event.listen(database.engine.sync_engine, "commit", count)
    answers = await asyncio.gather(*(used.use("a", str(n), expires=1100) for n in range(1500)))
    assert all(answers)
    assert commits == 2


async def test_a_caller_that_goes_does_not_take_others_along(database: Database) -> None:
    used = UsedAssertions(database, clock=Clock(1000))
    tasks = [asyncio.create_task(used.use("a", str(n), expires=1100)) for n in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    assert await asyncio.gather(tasks[0], tasks[2]) == [True, True]
    # It was on its way: whether it counted is not told, but it counts as used.
    assert not await used.use("a", "1", expires=1100)


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
    both = (used.use("a", key, expires=1100) for key in "jk")
    answers = await asyncio.gather(*both, return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoreError, StoreError]
