"""The record of the grants file: what ended since it was written is told, once. On both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import select, text, update

from tests.integration.broker_support import Clock
from tests.unit.broker.core.test_grants import file_of, grant
from tests.unit.broker.store.test_revocations import Heard
from valetkey.broker.core.grants import GrantSettings
from valetkey.broker.core.grants.narrowing import GONE, NARROWED, REUSED, ends_between
from valetkey.broker.store.admin_actions import AdminActions
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database
from valetkey.broker.store.file_grants import FileGrants
from valetkey.broker.store.revocations import FOREVER, Revocations
from valetkey.broker.store.schema import FILE_GRANTS
from valetkey.broker.store.windows import KEPT, WindowStore

File = dict[str, GrantSettings]


def file(*names: str, **changes: Any) -> File:
    return {each.id: each for name in names for each in file_of([grant(name, **changes)]).grants}


class Replica:
    """What one replica holds of the record; a restart is another one of these."""

    def __init__(self, database: Database, changes: Changes, heard: Heard, clock: Clock) -> None:
        self.database = database
        self.heard = heard
        self.clock = clock
        self.revocations = Revocations(database, changes, heard, clock=clock)
        windows = WindowStore(
            database,
            changes,
            AdminActions(database, clock=clock),
            heard,  # type: ignore[arg-type]
            clock=clock,
            window_id=lambda: "win:1",
        )
        self.store = FileGrants(database, self.revocations, windows, clock=clock)
        self.current: File = {}

    async def start(self, written: File) -> list[str]:
        self.current = written
        return await self.store.record(written, {}, at=self.clock())

    async def change(self, written: File) -> list[str]:
        before, self.current = self.current, written
        ends = ends_between(before, written, at=self.clock())
        return await self.store.record(written, ends, at=self.clock())

    async def stop(self) -> list[str]:
        return await self.store.leave(self.current, at=self.clock())


@pytest_asyncio.fixture
async def two(database: Database, changes: Changes) -> AsyncIterator[tuple[Replica, Replica]]:
    heard, clock = Heard(), Clock(1000)
    yield (Replica(database, changes, heard, clock), Replica(database, changes, heard, clock))


async def test_the_first_file_ends_nothing(two: tuple[Replica, Replica]) -> None:
    one, _ = two
    assert await one.start(file("a", "b")) == []
    assert await one.change(file("a", "b", "c")) == []
    assert one.heard.signals == []


async def test_what_left_and_what_was_narrowed_since_the_last_start(
    two: tuple[Replica, Replica],
) -> None:
    one, again = two
    await one.start(file("a", "b", "c", "d"))
    one.clock.now = 1010.5
    assert await again.start(file("c") | file("d", reason="x") | file("b", ttl="1s")) == ["a", "b"]
    told = [(signal.value, signal.reason, signal.at) for signal in again.heard.signals]
    assert told == [("a", GONE, 1010.5), ("b", NARROWED, 1010.5)]
    for name in "ab":
        assert again.revocations.refuses("grant", name, issued_at=1010)
        assert not again.revocations.refuses("grant", name, issued_at=1011)
        assert not again.revocations.blocks("grant", name)
    one.clock.now = 1020
    assert await one.start(file("c") | file("d") | file("b", ttl="1s")) == []


async def test_an_id_comes_back(two: tuple[Replica, Replica]) -> None:
    one, _ = two
    for number, (written, told) in enumerate(
        [(file("a"), []), (file("b"), ["a"]), (file("a", "b"), ["a"]), (file("a", "b"), [])]
    ):
        one.clock.now = 1000 + number
        assert await one.change(written) == told, number
    assert [signal.reason for signal in one.heard.signals] == [GONE, REUSED]


async def test_each_replica_tells_of_its_own_change(two: tuple[Replica, Replica]) -> None:
    one, other = two
    for each in two:
        await each.start(file("a"))
    one.clock.now = 1010
    assert await one.change(file("a", ttl="1s")) == ["a"]
    one.clock.now = 1020
    assert await other.change(file("a", ttl="1s")) == ["a"]
    assert await other.change(file("a", ttl="1s")) == []
    assert one.revocations.refuses("grant", "a", issued_at=1010)
    assert other.revocations.refuses("grant", "a", issued_at=1020)


async def test_at_the_same_time_it_is_told_once(two: tuple[Replica, Replica]) -> None:
    for each in two:
        await each.start(file("a"))
    assert [await each.change(file("b")) for each in two] == [["a"], []]


async def test_who_stops_tells_what_others_have_ended(two: tuple[Replica, Replica]) -> None:
    one, other = two
    for each in two:
        await each.start(file("a", "b", "c"))
    await one.change(file("b") | file("c", ttl="1s"))
    one.clock.now = 1010
    assert await one.stop() == []
    assert await other.stop() == ["a", "c"]
    assert await other.stop() == []
    assert await one.start(file("b") | file("c", ttl="1s")) == []


async def test_a_suspension_stays(two: tuple[Replica, Replica]) -> None:
    one, _ = two
    await one.start(file("a"))
    async with one.database.write_in_turn() as connection:
        await one.revocations.end(connection, "grant", "a", until=FOREVER)
    one.clock.now = 1010
    for written in (file("b"), file("a", "b"), file("a", ttl="1s") | file("b")):
        assert await one.change(written) == []
        assert one.revocations.blocks("grant", "a")


async def test_what_cant_be_read_any_more_has_ended(two: tuple[Replica, Replica]) -> None:
    one, _ = two
    await one.start(file("a", "b"))
    async with one.database.write() as connection:
        await connection.execute(update(FILE_GRANTS).values(document='{"id": "a", "new": 1}'))
    one.clock.now = 1010
    assert await one.start(file("a", "b")) == ["a", "b"]
    one.clock.now = 1020
    assert await one.start(file("a", "b")) == []


async def test_a_failure_leaves_neither_record_nor_end(two: tuple[Replica, Replica]) -> None:
    one, _ = two
    await one.start(file("a", "b"))

    async def fails(*_: Any) -> str:
        raise RuntimeError

    one.clock.now = 1010
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(one.heard, "publish", fails)
        with pytest.raises(RuntimeError):
            await one.start(file("b"))
    async with one.database.read() as connection:
        gone = (await connection.execute(select(FILE_GRANTS.c.gone_at))).scalars().all()
        revoked = (await connection.execute(text("SELECT count(*) FROM revocations"))).scalar()
    assert (gone, revoked) == ([None, None], 0)
    assert await one.start(file("b")) == ["a"]


async def test_swept_when_nobody_asks_any_more(two: tuple[Replica, Replica]) -> None:
    one, _ = two
    await one.start(file("a", "b"))
    await one.change(file("b"))
    for now, left in ((1000 + KEPT, {"a", "b"}), (1001 + KEPT, {"b"})):
        one.clock.now = now
        await one.store.sweep()
        async with one.database.read() as connection:
            assert set((await connection.execute(select(FILE_GRANTS.c.id))).scalars()) == left


async def test_more_than_a_statement_takes(two: tuple[Replica, Replica]) -> None:
    one, _ = two
    names = [f"g{number}" for number in range(12_000)]
    form = file("a")["a"]
    many = {name: type(form)(**{**_fields(form), "id": name}) for name in names}
    assert await one.start(many) == []
    assert await one.start({name: many[name] for name in names[:-3]}) == sorted(names[-3:])


def _fields(form: GrantSettings) -> dict[str, Any]:
    return {name: getattr(form, name) for name in form.__struct_fields__}
