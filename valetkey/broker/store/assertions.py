"""Self-signed client assertions that were used, durably: a replay fails over a restart too."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from sqlalchemy import delete

from valetkey.broker.store.database import Database
from valetkey.broker.store.schema import USED_ASSERTIONS


class UsedAssertions:
    """The unique key in the database decides who was first. ``clock`` gives epoch seconds."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    async def use(self, issuer: str, jti: str, *, expires: float) -> bool:
        """Whether this is the first use. ``expires`` is when the assertion is surely refused.

        Raises `StoreError`.
        """
        # `jti` is only unique within its issuer; the length keeps two splits apart.
        key = hashlib.sha256(f"{len(issuer)}:{issuer}{jti}".encode()).digest()
        first = self._database.insert(USED_ASSERTIONS).values(id=key, expires_at=expires)
        async with self._database.write() as connection:
            result = await connection.execute(first.on_conflict_do_nothing())
            return bool(result.rowcount)

    async def sweep(self) -> None:
        expired = delete(USED_ASSERTIONS).where(USED_ASSERTIONS.c.expires_at <= self._clock())
        async with self._database.write() as connection:
            await connection.execute(expired)
