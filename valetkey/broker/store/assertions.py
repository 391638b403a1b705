"""Self-signed client assertions that were used, durably: a replay fails over a restart too.

Each use waits for a commit, and a commit waits for the disk. What arrives while one is under way
shares the next: as many uses as there are callers cost one wait.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Final

from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.store.database import Database, StoreError
from valetkey.broker.store.schema import USED_ASSERTIONS

# Two variables a row; SQLite takes 32,766 of them in one statement.
_BATCH: Final = 1000


class UsedAssertions:
    """The unique key in the database decides who was first. ``clock`` gives epoch seconds."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        # Those that wait for the next commit, each once: a second use of a key has lost already.
        self._waiting: dict[bytes, tuple[float, asyncio.Future[bool]]] = {}
        self._writing: asyncio.Task[None] | None = None

    async def use(self, issuer: str, jti: str, *, expires: float) -> bool:
        """Whether this is the first use. ``expires`` is when the assertion is surely refused.

        Raises `StoreError`.
        """
        key = _key(issuer, jti)
        if key in self._waiting:
            return False
        first: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[key] = (expires, first)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write(), name="used assertions")
        return await first

    async def use_within(
        self, connection: AsyncConnection, issuer: str, jti: str, expires: float
    ) -> bool:
        """As `use`, within a transaction of the caller's."""
        row = {"id": _key(issuer, jti), "expires_at": expires}
        new = self._database.insert(USED_ASSERTIONS).values(row).on_conflict_do_nothing()
        return bool((await connection.execute(new)).rowcount)

    async def sweep(self) -> None:
        expired = delete(USED_ASSERTIONS).where(USED_ASSERTIONS.c.expires_at <= self._clock())
        async with self._database.write() as connection:
            await connection.execute(expired)

    async def _write(self) -> None:
        """Commit what waits, until nothing does."""
        try:
            while self._waiting:
                keys = list(self._waiting)[:_BATCH]
                await self._commit({key: self._waiting.pop(key) for key in keys})
        finally:
            self._writing = None

    async def _commit(self, batch: dict[bytes, tuple[float, asyncio.Future[bool]]]) -> None:
        rows = [{"id": key, "expires_at": expires} for key, (expires, _) in batch.items()]
        statement = self._database.insert(USED_ASSERTIONS).on_conflict_do_nothing()
        try:
            async with self._database.write() as connection:
                # Rows beside the statement: it is compiled once, however many there are.
                new = await connection.execute(statement.returning(USED_ASSERTIONS.c.id), rows)
                inserted = set(new.scalars())
        except StoreError as error:
            for _, first in batch.values():
                if not first.done():  # its caller may have gone
                    first.set_exception(StoreError(error.error))
            return
        except BaseException:
            for _, first in batch.values():
                first.cancel()
            raise
        for key, (_, first) in batch.items():
            if not first.done():
                first.set_result(key in inserted)


def _key(issuer: str, jti: str) -> bytes:
    # `jti` is only unique within its issuer; the length keeps two splits apart.
    return hashlib.sha256(f"{len(issuer)}:{issuer}{jti}".encode()).digest()
