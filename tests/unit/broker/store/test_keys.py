"""Signing keys come back as they were stored."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from valetkey.broker.store.keys import SigningKeyStore, StoredKey


def key(kid: str, signs_from: float, longest_ttl: float = 120) -> StoredKey:
    return StoredKey(kid, b"sealed-" + kid.encode(), "{}", 1.0, signs_from, longest_ttl)


async def test_in_order_of_signing(engine: AsyncEngine) -> None:
    store = SigningKeyStore(engine)
    assert await store.all() == []
    await store.add(key("b", 20))
    await store.add(key("a", 30))
    assert await store.all() == [key("b", 20), key("a", 30)]
    await store.remove(["b", "unknown"])
    assert await store.all() == [key("a", 30)]


async def test_the_longest_ttl_only_grows(engine: AsyncEngine) -> None:
    store = SigningKeyStore(engine)
    for kid in ("a", "b"):
        await store.add(key(kid, 1))
    await store.raise_longest_ttl(["a"], 300)
    await store.raise_longest_ttl(["a"], 60)
    assert [stored.longest_ttl for stored in await store.all()] == [300, 120]


async def test_a_kid_is_stored_once(engine: AsyncEngine) -> None:
    store = SigningKeyStore(engine)
    await store.add(key("a", 1))
    with pytest.raises(IntegrityError):
        await store.add(key("a", 2))


def test_repr_shows_no_ciphertext() -> None:
    assert "sealed-a" not in repr(key("a", 1))
