"""Signing keys in the database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from valetkey.broker.store.schema import SIGNING_KEYS


@dataclass(frozen=True, slots=True)
class StoredKey:
    """One row. ``sealed`` is ciphertext; ``public_jwk`` is JSON."""

    kid: str
    sealed: bytes = field(repr=False)
    public_jwk: str
    created_at: float
    signs_from: float
    longest_ttl: float


class SigningKeyStore:
    """Reads and writes signing keys."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def all(self) -> list[StoredKey]:
        """Every key, the one that signs first at the front."""
        query = select(SIGNING_KEYS).order_by(SIGNING_KEYS.c.signs_from, SIGNING_KEYS.c.kid)
        async with self._engine.connect() as connection:
            return [StoredKey(**row) for row in (await connection.execute(query)).mappings()]

    async def add(self, key: StoredKey) -> None:
        row = {
            "kid": key.kid,
            "sealed": key.sealed,
            "public_jwk": key.public_jwk,
            "created_at": key.created_at,
            "signs_from": key.signs_from,
            "longest_ttl": key.longest_ttl,
        }
        async with self._engine.begin() as connection:
            await connection.execute(insert(SIGNING_KEYS).values(row))

    async def raise_longest_ttl(self, kids: Iterable[str], ttl: float) -> None:
        """Note that keys may from now on sign tokens that live ``ttl`` seconds."""
        change = (
            update(SIGNING_KEYS)
            .where(SIGNING_KEYS.c.kid.in_(list(kids)), SIGNING_KEYS.c.longest_ttl < ttl)
            .values(longest_ttl=ttl)
        )
        async with self._engine.begin() as connection:
            await connection.execute(change)

    async def remove(self, kids: Iterable[str]) -> None:
        async with self._engine.begin() as connection:
            await connection.execute(delete(SIGNING_KEYS).where(SIGNING_KEYS.c.kid.in_(list(kids))))
