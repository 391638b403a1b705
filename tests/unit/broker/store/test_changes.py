"""Changes: in order, to every replica, with or without a nudge, and never lost between two looks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest_asyncio
from sqlalchemy import text

from tests.support.waiting import until
from valetkey.broker.store import changes as module
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database


class Heard:
    """What a replica was told."""

    def __init__(self, changes: Changes) -> None:
        self.keys: list[str] = []
        changes.subscribe("thing", self._note)

    async def _note(self, key: str) -> None:
        self.keys.append(key)


async def publish(changes: Changes, database: Database, *keys: str) -> None:
    async with database.write() as connection:
        for key in keys:
            await changes.publish(connection, "thing", key)


@pytest_asyncio.fixture
async def replica(database_url: str, database: Database) -> AsyncIterator[Changes]:
    """Another replica over the same database, following."""
    other = await Database.open(database_url)
    followed = Changes(other)
    await followed.load()
    task = asyncio.ensure_future(followed.run())
    yield followed
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await other.close()


async def test_in_the_order_of_publication_once(database: Database, changes: Changes) -> None:
    heard = Heard(changes)
    await publish(changes, database, "a", "b")
    await publish(changes, database, "c")
    await changes.catch_up()
    await changes.catch_up()
    assert heard.keys == ["a", "b", "c"]


async def test_what_was_before_the_load_is_not_told(database: Database, changes: Changes) -> None:
    await publish(changes, database, "old")
    later = Changes(database)
    await later.load()
    heard = Heard(later)
    await publish(later, database, "new")
    await later.catch_up()
    assert heard.keys == ["new"]


async def test_a_change_that_is_rolled_back_was_none(database: Database, changes: Changes) -> None:
    heard = Heard(changes)
    with contextlib.suppress(ZeroDivisionError):
        async with database.write() as connection:
            await changes.publish(connection, "thing", "never")
            raise ZeroDivisionError
    await changes.catch_up()
    assert heard.keys == []


async def test_other_replicas_hear_of_it(
    database: Database, changes: Changes, replica: Changes
) -> None:
    heard = Heard(replica)
    await publish(changes, database, "a")
    await until(lambda: heard.keys == ["a"], "the change is heard of")


async def test_many_publishers_at_once_lose_nothing(
    database: Database, changes: Changes, replica: Changes
) -> None:
    heard = Heard(replica)
    keys = [str(number) for number in range(60)]
    await asyncio.gather(*(publish(changes, database, key) for key in keys))
    await until(lambda: len(heard.keys) == len(keys), "all changes are heard of")
    assert sorted(heard.keys) == sorted(keys)


async def test_more_than_one_read_takes(database: Database, changes: Changes, monkeypatch) -> None:
    monkeypatch.setattr(module, "_BATCH", 3)
    heard = Heard(changes)
    await publish(changes, database, *"abcdefgh")
    await changes.catch_up()
    assert heard.keys == list("abcdefgh")


async def test_swept_once_nobody_can_be_behind(database: Database, changes: Changes) -> None:
    await publish(changes, database, "a", "b")
    await changes.catch_up()
    await changes.sweep()
    async with database.write() as connection:
        await connection.execute(text("UPDATE changes SET at = 1 WHERE key = 'a'"))
    await changes.sweep()
    async with database.read() as connection:
        left = (await connection.execute(text("SELECT key FROM changes"))).scalars().all()
    assert left == ["b"]


async def test_a_number_is_not_given_twice(database: Database, changes: Changes) -> None:
    await publish(changes, database, "a")
    async with database.write() as connection:
        await connection.execute(text("DELETE FROM changes"))
    heard = Heard(changes)
    await changes.load()
    await publish(changes, database, "b")
    await changes.catch_up()
    assert heard.keys == ["b"]
