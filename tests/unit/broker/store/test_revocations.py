"""Revocations: by token and by transaction, over restarts, until they are moot."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from tests.integration.broker_support import Clock
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database, StoreError
from valetkey.broker.store.revocations import Revocations


async def rows(database: Database) -> int:
    async with database.read() as connection:
        query = text("SELECT count(*) FROM revocations")
        return int((await connection.execute(query)).scalar_one())


async def test_a_token_and_its_transaction(database: Database, changes: Changes) -> None:
    revocations = Revocations(database, changes, clock=Clock(1000))
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
    first = Revocations(database, changes, clock=clock)
    await first.revoke(jti="j1", txn="t1", expires=1100, descendants=1200)
    second = Revocations(database, changes, clock=clock)
    assert not second.is_revoked("j1", "t1")
    await second.load()
    assert second.is_revoked("j1", "x")
    assert second.is_revoked("x", "t1")


async def test_revoked_twice_keeps_the_later_expiry(database: Database, changes: Changes) -> None:
    clock = Clock(1000)
    revocations = Revocations(database, changes, clock=clock)
    await revocations.revoke(jti="j1", txn="t1", expires=1100, descendants=1500)
    await revocations.revoke(jti="j2", txn="t1", expires=1100, descendants=1200)
    clock.now = 1300
    await revocations.sweep()
    assert revocations.is_revoked("x", "t1")
    assert not revocations.is_revoked("j1", "x")
    again = Revocations(database, changes, clock=clock)
    await again.load()
    assert again.is_revoked("x", "t1")


async def test_swept_when_moot(database: Database, changes: Changes) -> None:
    clock = Clock(1000)
    revocations = Revocations(database, changes, clock=clock)
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
    revocations = Revocations(database, changes, clock=Clock(1000))
    async with database.write() as connection:
        await connection.execute(text("DROP TABLE revocations"))
    with pytest.raises(StoreError) as failed:
        await revocations.revoke(jti="j1", txn="t1", expires=1100, descendants=1200)
    assert revocations.is_revoked("j1", "x")
    assert failed.value.code.name == "service.unavailable"
