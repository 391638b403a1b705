"""A key is as old as its first use, whoever asks, until nobody has used it for long."""

from __future__ import annotations

from sqlalchemy import text

from tests.integration.broker_support import Clock
from valetkey.broker.store.database import Database
from valetkey.broker.store.seen_keys import KEPT, SeenKeys

WHO = ("https://idp", "bot")


async def count(database: Database) -> int:
    async with database.read() as connection:
        query = text("SELECT count(*) FROM seen_keys")
        return int((await connection.execute(query)).scalar_one())


async def test_since_its_first_use(database: Database) -> None:
    clock = Clock(1000)
    keys = SeenKeys(database, clock=clock)
    assert await keys.since(*WHO, "k") == 1000
    clock.advance(50)
    assert await keys.since(*WHO, "k") == 1000
    assert await SeenKeys(database, clock=clock).since(*WHO, "k") == 1000
    assert await keys.since(*WHO, "l") == 1050


async def test_of_one_subject(database: Database) -> None:
    clock = Clock(1000)
    keys = SeenKeys(database, clock=clock)
    await keys.since("a", "bc", "k")
    clock.advance(1)
    for who in (("ab", "c"), ("a", "b"), ("https://idp", "bc")):
        assert await keys.since(*who, "k") == 1001
    assert await keys.since("a", "bck", "") == 1001


async def test_one_in_use_is_never_forgotten(database: Database) -> None:
    clock = Clock(1000)
    keys = SeenKeys(database, clock=clock)
    for _ in range(400):
        await keys.since(*WHO, "k")
        await keys.sweep()
        clock.advance(86_400)
    assert await keys.since(*WHO, "k") == 1000


async def test_one_that_nobody_uses_is(database: Database) -> None:
    clock = Clock(1000)
    keys = SeenKeys(database, clock=clock)
    await keys.since(*WHO, "k")
    clock.advance(KEPT)
    await keys.sweep()
    assert await count(database) == 1
    clock.advance(1)
    await keys.sweep()
    assert await count(database) == 0
    assert await keys.since(*WHO, "k") == 1000 + KEPT + 1
