"""Epochs grow one by one, are the same at all replicas, and hold a subject while they change."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.broker.store.test_revocations import Heard
from valetkey.broker.core.containment import Epoch
from valetkey.broker.store import epochs as module
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database
from valetkey.broker.store.epochs import Epochs

WHO = ("https://idp", "bot")


async def bump(
    epochs: Epochs, database: Database, *who: str, at: float = 1000, attest: bool = True
) -> int:
    issuer, subject = who or WHO
    async with database.write() as connection:
        return await epochs.bump(connection, issuer, subject, at=at, reason="leaked", attest=attest)


class Undone(Exception):  # noqa: N818
    """Something went wrong behind it in the same transaction."""


async def undone(epochs: Epochs, database: Database) -> None:
    async with database.write() as connection:
        await epochs.bump(connection, *WHO, at=1000, reason="r", attest=True)
        raise Undone


async def test_one_by_one(database: Database, changes: Changes) -> None:
    epochs = Epochs(database, changes, Heard())
    assert epochs.of(*WHO) == Epoch(0, 0.0)
    assert [await bump(epochs, database, at=1000 + n) for n in range(3)] == [1, 2, 3]
    await changes.catch_up()
    assert epochs.of(*WHO) == Epoch(3, 1002)
    assert epochs.of("https://idp", "other") == Epoch()
    assert epochs.of("https://other", "bot") == Epoch()
    assert len(epochs) == 1


async def test_loaded_again(database: Database, changes: Changes) -> None:
    await bump(Epochs(database, changes, Heard()), database)
    again = Epochs(database, changes, Heard())
    await again.load()
    assert again.of(*WHO) == Epoch(1, 1000)


async def test_the_time_to_attest_after_only_grows(database: Database, changes: Changes) -> None:
    epochs = Epochs(database, changes, Heard())
    await bump(epochs, database, at=2000)
    await bump(epochs, database, at=1500)
    await bump(epochs, database, at=3000, attest=False)
    await changes.catch_up()
    assert epochs.of(*WHO) == Epoch(3, 2000)


async def test_without_attestation(database: Database, changes: Changes) -> None:
    epochs = Epochs(database, changes, Heard())
    await bump(epochs, database, attest=False)
    await changes.catch_up()
    assert epochs.of(*WHO) == Epoch(1, 0.0)


async def test_sidecars_are_told(database: Database, changes: Changes) -> None:
    heard = Heard()
    epochs = Epochs(database, changes, heard)
    async with database.write() as connection:
        await epochs.bump(connection, *WHO, at=1000, reason="leaked", attest=True, txn="inc")
    (signal,) = heard.signals
    assert (signal.kind, signal.issuer, signal.value) == ("subject", *WHO)
    assert (signal.epoch, signal.txn, signal.reason, signal.at) == (1, "inc", "leaked", 1000)


async def test_held_until_it_is_in_force(database: Database, changes: Changes) -> None:
    epochs = Epochs(database, changes, Heard())
    async with database.write() as connection:
        await epochs.bump(connection, *WHO, at=1000, reason="r", attest=True)
        assert epochs.of(*WHO) == Epoch(0, 0.0, held=True)
    assert epochs.of(*WHO).held, "committed, but this replica has not read it back"
    await changes.catch_up()
    assert epochs.of(*WHO) == Epoch(1, 1000)


async def test_a_write_that_fails_holds_for_a_while(
    database: Database, changes: Changes, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = Epochs(database, changes, Heard())

    with pytest.raises(Undone):
        await undone(epochs, database)
    await changes.catch_up()
    assert epochs.of(*WHO) == Epoch(0, 0.0, held=True)
    monkeypatch.setattr(module, "HELD", 0.0)
    with pytest.raises(Undone):
        await undone(epochs, database)
    assert epochs.of(*WHO) == Epoch(0, 0.0)


async def test_bumped_at_once_by_two_replicas(database: Database, changes: Changes) -> None:
    other = Changes(database)
    await other.load()
    one, two = Epochs(database, changes, Heard()), Epochs(database, other, Heard())
    numbers = await asyncio.gather(
        *(bump(epochs, database) for epochs in (one, two) for _ in range(5))
    )
    assert sorted(numbers) == list(range(1, 11))
    await changes.catch_up()
    await other.catch_up()
    assert one.of(*WHO) == two.of(*WHO) == Epoch(10, 1000)


async def test_a_name_too_long_for_a_change(database: Database, changes: Changes) -> None:
    epochs = Epochs(database, changes, Heard())
    long = ("https://" + "i" * 400, "s" * 900)
    await bump(epochs, database, *long)
    await bump(epochs, database)
    await changes.catch_up()
    assert epochs.of(*long) == epochs.of(*WHO) == Epoch(1, 1000)


async def test_a_long_reason_is_cut(database: Database, changes: Changes) -> None:
    epochs = Epochs(database, changes, Heard())
    async with database.write() as connection:
        await epochs.bump(connection, *WHO, at=1, reason="r" * 5000, attest=True)
