"""Self-signed client assertions that were used, durably: a replay fails over a restart too."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from sqlalchemy import delete, insert
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from valetkey.broker.store.database import StoreError
from valetkey.broker.store.schema import USED_ASSERTIONS


class UsedAssertions:
    """The unique key in the database decides who was first. ``clock`` gives epoch seconds."""

    def __init__(self, engine: AsyncEngine, *, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock

    async def use(self, issuer: str, jti: str, *, expires: float) -> bool:
        """Whether this is the first use. ``expires`` is when the assertion is surely refused.

        Raises `StoreError`.
        """
        # `jti` is only unique within its issuer; the length keeps two splits apart.
        key = hashlib.sha256(f"{len(issuer)}:{issuer}{jti}".encode()).digest()
        try:
            async with self._engine.begin() as connection:
                await connection.execute(insert(USED_ASSERTIONS).values(id=key, expires_at=expires))
        except IntegrityError:
            return False
        except SQLAlchemyError as error:
            raise StoreError(error) from error
        return True

    async def sweep(self) -> None:
        expired = delete(USED_ASSERTIONS).where(USED_ASSERTIONS.c.expires_at <= self._clock())
        async with self._engine.begin() as connection:
            await connection.execute(expired)
