"""A key is as old as its first use, whoever asks, until nobody has used it for long."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text

from tests.integration.broker_support import Clock
from valetkey.broker.core.rate_limit import RateLimit
from valetkey.broker.store.database import Database
from valetkey.broker.store.seen_keys import KEPT, SeenKeys
from valetkey.contracts.errors import CallerError

WHO = ("https://idp", "bot")


async def count(database: Database) -> int:
    async with database.read() as connection:
        query = text("SELECT count(*) FROM seen_keys")
        return int((await connection.execute(query)).scalar_one())


def seen(database: Database, clock: Clock, most: int = 1000) -> SeenKeys:
    new = RateLimit(rate=most / 3600, burst=most, callers=10, timer=clock)
    return SeenKeys(database, new, clock=clock, timer=clock)


async def test_since_its_first_use(database: Database) -> None:
    clock = Clock(1000)
    keys = seen(database, clock)
    assert await keys.note(*WHO, "k", limited=True) == 1000
    clock.advance(50)
    assert await keys.note(*WHO, "k", limited=True) == 1000
    assert await seen(database, clock).note(*WHO, "k", limited=True) == 1000
    assert await keys.note(*WHO, "l", limited=True) == 1050


async def test_of_one_subject(database: Database) -> None:
    clock = Clock(1000)
    keys = seen(database, clock)
    await keys.note("a", "bc", "k", limited=True)
    clock.advance(1)
    for who in (("ab", "c"), ("a", "b"), ("https://idp", "bc")):
        assert await keys.note(*who, "k", limited=True) == 1001
    assert await keys.note("a", "bck", "", limited=True) == 1001


async def test_one_in_use_is_never_forgotten(database: Database) -> None:
    clock = Clock(1000)
    keys = seen(database, clock)
    for _ in range(400):
        await keys.note(*WHO, "k", limited=True)
        await keys.sweep()
        clock.advance(86_400)
    assert await keys.note(*WHO, "k", limited=True) == 1000


async def test_one_that_nobody_uses_is(database: Database) -> None:
    clock = Clock(1000)
    keys = seen(database, clock)
    await keys.note(*WHO, "k", limited=True)
    clock.advance(KEPT)
    await keys.sweep()
    assert await count(database) == 1
    clock.advance(1)
    await keys.sweep()
    assert await count(database) == 0
    assert await keys.note(*WHO, "k", limited=True) == 1000 + KEPT + 1


async def test_one_that_was_shown_and_never_noted_leaves_nothing(database: Database) -> None:
    clock = Clock(1000)
    keys = seen(database, clock)
    for key in range(20):
        assert await keys.since(*WHO, f"k{key}") == 1000
    clock.advance(50)
    assert await keys.since(*WHO, "k0") == 1000, "this replica remembers it for now"
    assert await count(database) == 0


async def test_one_is_as_old_as_it_was_when_it_was_shown_first(database: Database) -> None:
    clock = Clock(1000)
    one, other = seen(database, clock), seen(database, clock)
    await one.since(*WHO, "k")
    clock.advance(50)
    assert await other.since(*WHO, "k") == 1050
    assert await one.note(*WHO, "k", limited=True) == 1000
    assert await other.note(*WHO, "k", limited=True) == 1000
    assert await other.since(*WHO, "k") == 1000
    assert await seen(database, clock).since(*WHO, "k") == 1000


async def test_one_is_never_younger_than_this_replica_knows_it(database: Database) -> None:
    clock = Clock(1000)
    one, other = seen(database, clock), seen(database, clock)
    await one.since(*WHO, "k")
    clock.advance(50)
    assert await other.note(*WHO, "k", limited=True) == 1050
    assert await one.note(*WHO, "k", limited=True) == 1000


async def test_new_ones_of_a_subject_are_limited(database: Database) -> None:
    clock = Clock(1000)
    keys = seen(database, clock, most=3)
    for key in "abc":
        await keys.note(*WHO, key, limited=True)
    with pytest.raises(CallerError) as raised:
        await keys.note(*WHO, "d", limited=True)
    assert raised.value.code.name == "actor.too_many_keys"
    assert await count(database) == 3
    # Those that are known, those of others and those that somebody vouches for are not.
    await keys.note(*WHO, "a", limited=True)
    assert await seen(database, clock, most=3).note(*WHO, "b", limited=True) == 1000
    await keys.note("https://idp", "other", "d", limited=True)
    await keys.note(*WHO, "certificate", limited=False)
    clock.advance(1200)
    await keys.note(*WHO, "d", limited=True)
    with pytest.raises(CallerError):
        await keys.note(*WHO, "e", limited=True)


async def test_one_that_is_known_is_not_new_after_a_restart(database: Database) -> None:
    clock = Clock(1000)
    for _ in range(3):
        assert await seen(database, clock, most=1).note(*WHO, "k", limited=True) == 1000


async def test_many_at_once_are_noted_together(database: Database) -> None:
    clock = Clock(1000)
    keys = seen(database, clock, most=150)
    commits = 0
    write = database.write

    def counted():
        nonlocal commits
        commits += 1
        return write()

    database.write = counted  # type: ignore[method-assign]
    asked = [keys.note(*WHO, f"k{n}", limited=True) for n in range(200)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    database.write = write  # type: ignore[method-assign]
    assert commits <= 2
    assert answers.count(1000.0) == 150, "as many new keys as the subject may have"
    assert sum(isinstance(answer, CallerError) for answer in answers) == 50
    assert await count(database) == 150
    clock.advance(5)
    other = seen(database, clock)
    known = [n for n, answer in enumerate(answers) if answer == 1000.0]
    since = await asyncio.gather(*(other.since(*WHO, f"k{n}") for n in known))
    noted = await asyncio.gather(*(other.note(*WHO, f"k{n}", limited=True) for n in known))
    assert since == noted == [1000.0] * 150
