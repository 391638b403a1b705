"""Signing keys in the database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.store.changes import Changes, Handler
from valetkey.broker.store.database import Database
from valetkey.broker.store.schema import SIGNING_KEYS

_TOPIC: Final = "keys"
_LOCK: Final = 0x76616C67


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
    """Reads and writes signing keys. Replicas share them: see `exclusive`."""

    def __init__(self, database: Database, changes: Changes) -> None:
        self._database = database
        self._changes = changes

    def on_change(self, handler: Handler) -> None:
        """Have ``handler`` called when a replica made or dropped keys."""
        self._changes.subscribe(_TOPIC, handler)

    async def all(self) -> list[StoredKey]:
        """Every key, the one that signs first at the front."""
        async with self._database.read() as connection:
            return await _all(connection)

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[KeysHeld]:
        """One transaction in which no other replica makes or drops keys; committed at its end."""
        async with self._database.write() as connection:
            if self._database.postgres:
                lock = text("SELECT pg_advisory_xact_lock(:lock)")
                await connection.execute(lock, {"lock": _LOCK})
            held = KeysHeld(connection)
            yield held
            if held.changed:
                await self._changes.publish(connection, _TOPIC, "")

    async def raise_longest_ttl(self, kids: Iterable[str], ttl: float) -> None:
        """Note that keys may from now on sign tokens that live ``ttl`` seconds."""
        change = (
            update(SIGNING_KEYS)
            .where(SIGNING_KEYS.c.kid.in_(list(kids)), SIGNING_KEYS.c.longest_ttl < ttl)
            .values(longest_ttl=ttl)
        )
        async with self._database.write() as connection:
            if (await connection.execute(change)).rowcount:
                await self._changes.publish(connection, _TOPIC, "")


class KeysHeld:
    """The keys, while nobody else may change them."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self.changed = False

    async def all(self) -> list[StoredKey]:
        return await _all(self._connection)

    async def add(self, key: StoredKey) -> None:
        row = {
            "kid": key.kid,
            "sealed": key.sealed,
            "public_jwk": key.public_jwk,
            "created_at": key.created_at,
            "signs_from": key.signs_from,
            "longest_ttl": key.longest_ttl,
        }
        await self._connection.execute(insert(SIGNING_KEYS).values(row))
        self.changed = True

    async def remove(self, kids: Iterable[str]) -> None:
        gone = delete(SIGNING_KEYS).where(SIGNING_KEYS.c.kid.in_(list(kids)))
        await self._connection.execute(gone)
        self.changed = True


async def _all(connection: AsyncConnection) -> list[StoredKey]:
    query = select(SIGNING_KEYS).order_by(SIGNING_KEYS.c.signs_from, SIGNING_KEYS.c.kid)
    return [StoredKey(**row) for row in (await connection.execute(query)).mappings()]
