"""Signing keys come back as they were stored."""

from __future__ import annotations

import pytest

from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database, StoreError
from valetkey.broker.store.keys import SigningKeyStore, StoredKey


def key(kid: str, signs_from: float, longest_ttl: float = 120) -> StoredKey:
    return StoredKey(kid, b"sealed-" + kid.encode(), "{}", 1.0, signs_from, longest_ttl)


async def test_in_order_of_signing(database: Database, changes: Changes) -> None:
    store = SigningKeyStore(database, changes)
    assert await store.all() == []
    async with store.exclusive() as held:
        await held.add(key("b", 20))
        await held.add(key("a", 30))
        assert await held.all() == [key("b", 20), key("a", 30)]
    assert await store.all() == [key("b", 20), key("a", 30)]
    async with store.exclusive() as held:
        await held.remove(["b", "unknown"])
    assert await store.all() == [key("a", 30)]


async def test_the_longest_ttl_only_grows(database: Database, changes: Changes) -> None:
    store = SigningKeyStore(database, changes)
    async with store.exclusive() as held:
        for kid in ("a", "b"):
            await held.add(key(kid, 1))
    await store.raise_longest_ttl(["a"], 300)
    await store.raise_longest_ttl(["a"], 60)
    assert [stored.longest_ttl for stored in await store.all()] == [300, 120]


async def test_a_kid_is_stored_once_and_half_a_change_is_none(
    database: Database, changes: Changes
) -> None:
    store = SigningKeyStore(database, changes)
    async with store.exclusive() as held:
        await held.add(key("a", 1))

    async def both() -> None:
        async with store.exclusive() as held:
            await held.add(key("b", 2))
            await held.add(key("a", 2))

    with pytest.raises(StoreError, match="IntegrityError"):
        await both()
    assert await store.all() == [key("a", 1)]


async def test_replicas_hear_of_keys(database: Database, changes: Changes) -> None:
    heard: list[str] = []

    async def note(what: str) -> None:
        heard.append(what)

    store = SigningKeyStore(database, changes)
    store.on_change(note)
    async with store.exclusive() as held:
        await held.all()  # looking is no change
    async with store.exclusive() as held:
        await held.add(key("a", 1))
    await changes.catch_up()
    assert heard == [""]


def test_repr_shows_no_ciphertext() -> None:
    assert "sealed-a" not in repr(key("a", 1))
