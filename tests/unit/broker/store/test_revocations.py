"""Revocations: by token and by transaction, over restarts, until they are moot."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.integration.broker_support import Clock
from valetkey.broker.core.grants.narrowing import End
from valetkey.broker.settings import MAX_TTL
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database, StoreError
from valetkey.broker.store.revocations import (
    FOREVER,
    LONGEST_LIFE,
    Revocations,
    subject_value,
)
from valetkey.contracts.signals import Signal


class Heard:
    """What sidecars would be told."""

    def __init__(self) -> None:
        self.signals: list[Signal] = []

    async def publish(self, connection: AsyncConnection, signal: Signal) -> str:
        assert connection.in_transaction()
        self.signals.append(signal)
        return "jti"

    async def publish_all(self, connection: AsyncConnection, signals: Sequence[Signal]) -> None:
        for signal in signals:
            await self.publish(connection, signal)


async def rows(database: Database) -> int:
    async with database.read() as connection:
        query = text("SELECT count(*) FROM revocations")
        return int((await connection.execute(query)).scalar_one())


async def test_a_token_and_its_transaction(database: Database, changes: Changes) -> None:
    revocations = Revocations(database, changes, Heard(), clock=Clock(1000))
    await revocations.revoke(jti="j1", txn="t1", expires=1100, descendants=1200)
    for jti, txn, expected in (
        ("j1", "t1", True),
        ("j2", "t1", True),
        ("j1", "t2", True),
        ("j2", "t2", False),
        ("t1", "j1", False),  # a kind of its own: ids do not mix
    ):
        assert revocations.is_revoked(jti, txn) is expected, (jti, txn)


async def test_loaded_again(database: Database, changes: Changes) -> None:
    clock = Clock(1000)
    first = Revocations(database, changes, Heard(), clock=clock)
    await first.revoke(jti="j1", txn="t1", expires=1100, descendants=1200)
    second = Revocations(database, changes, Heard(), clock=clock)
    assert not second.is_revoked("j1", "t1")
    await second.load()
    assert second.is_revoked("j1", "x")
    assert second.is_revoked("x", "t1")


async def test_revoked_twice_keeps_the_later_expiry(database: Database, changes: Changes) -> None:
    clock = Clock(1000)
    revocations = Revocations(database, changes, Heard(), clock=clock)
    await revocations.revoke(jti="j1", txn="t1", expires=1100, descendants=1500)
    await revocations.revoke(jti="j2", txn="t1", expires=1100, descendants=1200)
    clock.now = 1300
    await revocations.sweep()
    assert revocations.is_revoked("x", "t1")
    assert not revocations.is_revoked("j1", "x")
    again = Revocations(database, changes, Heard(), clock=clock)
    await again.load()
    assert again.is_revoked("x", "t1")


async def test_swept_when_moot(database: Database, changes: Changes) -> None:
    clock = Clock(1000)
    revocations = Revocations(database, changes, Heard(), clock=clock)
    await revocations.revoke(jti="j1", txn="t1", expires=1100, descendants=1200)
    clock.now = 1099
    assert await revocations.sweep() == 0
    clock.now = 1100
    assert await revocations.sweep() == 1
    assert (await rows(database), len(revocations)) == (1, 1)
    clock.now = 1200
    await revocations.sweep()
    assert (await rows(database), len(revocations)) == (0, 0)


async def test_a_write_that_fails_is_an_error_and_still_counts(
    database: Database, changes: Changes
) -> None:
    """The caller is not told 200, and the token is refused all the same."""
    revocations = Revocations(database, changes, Heard(), clock=Clock(1000))
    async with database.write() as connection:
        await connection.execute(text("DROP TABLE revocations"))
    with pytest.raises(StoreError) as failed:
        await revocations.revoke(jti="j1", txn="t1", expires=1100, descendants=1200)
    assert revocations.is_revoked("j1", "x")
    assert failed.value.code.name == "service.unavailable"


async def end(
    revocations: Revocations, changes: Changes, database: Database, *what: str, until: float = 5000
) -> None:
    async with database.write() as connection:
        await revocations.end(connection, what[0], what[1], until=until)  # type: ignore[arg-type]
    await changes.catch_up()


class Undone(Exception):  # noqa: N818
    """Something went wrong behind it in the same transaction."""


async def undone(revocations: Revocations, database: Database) -> None:
    async with database.write() as connection:
        await revocations.end(connection, "target", "v", until=FOREVER)
        raise Undone


KINDS = ("jti", "txn", "hash", "grant", "target", "subject", "key")


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind(database: Database, changes: Changes, kind: str) -> None:
    clock = Clock(1000)
    revocations = Revocations(database, changes, Heard(), clock=clock)
    await end(revocations, changes, database, kind, "v")
    for other in KINDS:
        assert revocations.blocks(other, "v") is (other == kind)  # type: ignore[arg-type]
        assert revocations.refuses(other, "v", issued_at=2000) is (other == kind)  # type: ignore[arg-type]
    assert not revocations.blocks(kind, "w")  # type: ignore[arg-type]
    assert revocations.ended_grants == (frozenset({"v"}) if kind == "grant" else frozenset())
    assert revocations.any_hash is (kind == "hash")
    again = Revocations(database, changes, Heard(), clock=clock)
    await again.load()
    assert again.blocks(kind, "v")  # type: ignore[arg-type]
    assert again.ended_grants == revocations.ended_grants
    assert again.any_hash == revocations.any_hash


async def test_in_a_transaction_that_fails_it_counts_for_a_while(
    database: Database, changes: Changes
) -> None:
    """Nobody can say whether it was committed: the answer is no, until that is known."""
    clock = Clock(1000)
    revocations = Revocations(database, changes, Heard(), clock=clock)

    with pytest.raises(Undone):
        await undone(revocations, database)
    await changes.catch_up()
    assert revocations.blocks("target", "v")
    assert await rows(database) == 0
    clock.advance(3601)
    await revocations.sweep()
    assert not revocations.blocks("target", "v")


async def test_lifted_it_still_refuses_what_is_older(database: Database, changes: Changes) -> None:
    clock = Clock(1000)
    revocations = Revocations(database, changes, Heard(), clock=clock)
    await end(revocations, changes, database, "grant", "g", until=FOREVER)
    async with database.write() as connection:
        await revocations.lift(connection, "grant", "g", at=1500, until=5100)
        assert revocations.blocks("grant", "g"), "not before it is committed"
    assert revocations.blocks("grant", "g")
    await changes.catch_up()
    assert not revocations.blocks("grant", "g")
    assert revocations.ended_grants == frozenset()
    assert revocations.refuses("grant", "g", issued_at=1500)
    assert not revocations.refuses("grant", "g", issued_at=1501)
    clock.now = 5100
    await revocations.sweep()
    assert not revocations.refuses("grant", "g", issued_at=1500)
    assert await rows(database) == 0


async def test_ended_again_it_blocks_again(database: Database, changes: Changes) -> None:
    revocations = Revocations(database, changes, Heard(), clock=Clock(1000))
    await end(revocations, changes, database, "grant", "g", until=FOREVER)
    async with database.write() as connection:
        await revocations.lift(connection, "grant", "g", at=1500, until=5100)
    await changes.catch_up()
    await end(revocations, changes, database, "grant", "g", until=4000)
    assert revocations.blocks("grant", "g")
    again = Revocations(database, changes, Heard(), clock=Clock(1000))
    await again.load()
    assert again.blocks("grant", "g")
    async with database.read() as connection:
        until = (await connection.execute(text("SELECT expires_at FROM revocations"))).scalar_one()
    assert until == 5100, "never shorter than it was"


async def test_lifting_what_was_never_ended_changes_nothing(
    database: Database, changes: Changes
) -> None:
    revocations = Revocations(database, changes, Heard(), clock=Clock(1000))
    async with database.write() as connection:
        await revocations.lift(connection, "grant", "g", at=1500, until=5100)
    await changes.catch_up()
    assert len(revocations) == 0


def test_a_subject_is_known_by_its_issuer_too() -> None:
    names = [("a", "bc"), ("ab", "c"), ("", "abc"), ("abc", "")]
    assert len({subject_value(*name) for name in names}) == len(names)
    assert all(len(subject_value(*name)) == 43 for name in names)


async def test_sidecars_are_told(database: Database, changes: Changes) -> None:
    heard = Heard()
    revocations = Revocations(database, changes, heard, clock=Clock(1000))
    async with database.write() as connection:
        for kind in ("jti", "txn", "hash", "grant", "target", "key"):
            await revocations.end(connection, kind, "v", until=2000, txn="inc", reason="leaked")  # type: ignore[arg-type]
        await revocations.end_subject(connection, "https://idp", "bot", until=2000, txn="inc")
    told = [(signal.kind, signal.issuer, signal.value) for signal in heard.signals]
    assert told == [
        *((kind, "", "v") for kind in ("token", "txn", "hash", "grant", "target", "key")),
        ("subject", "https://idp", "bot"),
    ]
    assert {(signal.txn, signal.at) for signal in heard.signals} == {("inc", 1000)}
    await changes.catch_up()
    assert revocations.blocks("subject", subject_value("https://idp", "bot"))


async def test_what_is_stored_is_not_told_again(database: Database, changes: Changes) -> None:
    clock, heard = Clock(1000), Heard()
    revocations = Revocations(database, changes, heard, clock=clock)
    first = {"jti": "j1", "txn": "t1", "expires": 1100.0}
    assert await revocations.revoke(**first, descendants=1200)
    clock.now = 1010
    assert not await revocations.revoke(**first, descendants=1210)
    other = Revocations(database, changes, heard, clock=clock)  # a replica that has not heard yet
    assert not await other.revoke(**first, descendants=1210)
    assert other.is_revoked("j1", "x")
    assert [signal.value for signal in heard.signals] == ["j1", "t1"]
    # Another token of the transaction is one more thing to remember.
    assert await revocations.revoke(jti="j2", txn="t1", expires=1150, descendants=1210)
    assert len(heard.signals) == 4


async def test_what_was_not_written_is_tried_again(
    database: Database, changes: Changes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it counts in memory is no reason to call it done."""
    heard = Heard()
    revocations = Revocations(database, changes, heard, clock=Clock(1000))

    async def fails(*_: object) -> str:
        raise OSError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(heard, "publish", fails)
        with pytest.raises(StoreError):
            await revocations.revoke(jti="j1", txn="t1", expires=1100, descendants=1200)
    assert revocations.is_revoked("j1", "x")
    assert await rows(database) == 0
    assert await revocations.revoke(jti="j1", txn="t1", expires=1100, descendants=1200)
    assert await rows(database) == 2


# --- what was issued up to a time -----------------------------------------------------------------


async def end_before(revocations: Revocations, database: Database, at: float) -> bool:
    async with database.write_in_turn() as connection:
        ends = {"g": End("r", at, closes=False)}
        return await revocations.end_before(connection, "grant", ends) == ["g"]


async def test_what_was_issued_before_is_refused_and_new_ones_are_not(
    database: Database, changes: Changes
) -> None:
    heard = Heard()
    clock = Clock(1000.5)
    revocations = Revocations(database, changes, heard, clock=clock)
    assert await end_before(revocations, database, 1000.5)
    restarted = Revocations(database, changes, heard, clock=clock)
    await restarted.load()
    for each in (revocations, restarted):
        assert each.refuses("grant", "g", issued_at=1000)
        assert not each.refuses("grant", "g", issued_at=1001)
        assert not each.refuses("grant", "h", issued_at=1000)
        assert not each.blocks("grant", "g")
        assert each.ended_grants == frozenset()
    (signal,) = heard.signals
    assert (signal.kind, signal.value, signal.at, signal.reason) == ("grant", "g", 1000.5, "r")


async def test_the_same_again_and_less_is_told_to_nobody(
    database: Database, changes: Changes
) -> None:
    heard = Heard()
    revocations = Revocations(database, changes, heard, clock=Clock(1000))
    told = [await end_before(revocations, database, at) for at in (1000, 1000, 990, 1010)]
    assert told == [True, False, False, True]
    assert len(heard.signals) == 2
    await changes.catch_up()
    assert revocations.refuses("grant", "g", issued_at=1010)
    assert not revocations.refuses("grant", "g", issued_at=1011)


async def test_it_is_kept_for_as_long_as_a_token_can_live(
    database: Database, changes: Changes
) -> None:
    clock = Clock(1000)
    revocations = Revocations(database, changes, Heard(), clock=clock)
    await end_before(revocations, database, 1000)
    clock.now = 1000 + MAX_TTL - 1
    assert await revocations.sweep() == 0
    clock.now = 1000 + MAX_TTL
    assert (await revocations.sweep(), await rows(database)) == (1, 0)


@pytest.mark.parametrize("first", ["suspended", "ended"])
async def test_a_suspension_is_not_weakened_nor_shortened(
    database: Database, changes: Changes, first: str
) -> None:
    clock = Clock(1000)
    revocations = Revocations(database, changes, Heard(), clock=clock)

    async def suspend() -> None:
        async with database.write_in_turn() as connection:
            await revocations.end(connection, "grant", "g", until=FOREVER)

    if first == "suspended":
        await suspend()
        assert not await end_before(revocations, database, 1000)
    else:
        assert await end_before(revocations, database, 1000)
        await suspend()
    await changes.catch_up()
    restarted = Revocations(database, changes, Heard(), clock=clock)
    await restarted.load()
    clock.now = 1000 + 10 * MAX_TTL
    for each in (revocations, restarted):
        await each.sweep()
        assert each.blocks("grant", "g")
        assert each.refuses("grant", "g", issued_at=clock.now)
        assert each.ended_grants == {"g"}


async def test_lifted_later_it_refuses_up_to_then(database: Database, changes: Changes) -> None:
    revocations = Revocations(database, changes, Heard(), clock=Clock(1000))
    async with database.write_in_turn() as connection:
        await revocations.end(connection, "grant", "g", until=FOREVER)
    await end_before(revocations, database, 1000)
    async with database.write_in_turn() as connection:
        await revocations.lift(connection, "grant", "g", at=1100, until=1100 + MAX_TTL)
    assert not await end_before(revocations, database, 1050)
    await changes.catch_up()
    assert revocations.refuses("grant", "g", issued_at=1100)
    assert not revocations.refuses("grant", "g", issued_at=1101)
    assert revocations.ended_grants == frozenset()


async def test_it_counts_before_it_is_written(database: Database, changes: Changes) -> None:
    revocations = Revocations(database, changes, Heard(), clock=Clock(1000))
    async with database.write() as connection:
        await connection.execute(text("DROP TABLE revocations"))
    with pytest.raises(StoreError):
        await end_before(revocations, database, 1000)
    assert revocations.refuses("grant", "g", issued_at=1000)


@pytest.mark.parametrize("count", [50, 51, 15_000])
async def test_many_at_once_are_heard_at_another_replica(
    database: Database, changes: Changes, count: int
) -> None:
    """Of very many, no replica reads each by itself."""
    heard = Heard()
    revocations = Revocations(database, changes, heard, clock=Clock(1000))
    others = Changes(database)
    await others.load()
    other = Revocations(database, others, heard, clock=Clock(1000))
    ends = {f"g{number}": End("r", 1000, closes=False) for number in range(count)}
    async with database.write_in_turn() as connection:
        await revocations.end(connection, "grant", "g7", until=FOREVER)
        told = await revocations.end_before(connection, "grant", ends)
    assert (len(told), "g7" in told) == (count - 1, False)
    assert len(heard.signals) == count
    await asyncio.wait_for(others.catch_up(), 60)
    assert all(other.refuses("grant", value, issued_at=1000) for value in ends)
    assert [value for value in ends if other.blocks("grant", value)] == ["g7"]


def test_the_longest_life_is_that_of_the_settings() -> None:
    assert LONGEST_LIFE == MAX_TTL
