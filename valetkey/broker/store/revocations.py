"""What was revoked: in the database for restarts, in memory for the check on every call.

Invariants:

- A revocation is in the database before it is acknowledged, and counts in memory from before that
  write: whatever fails in between, the token is refused.
- It is forgotten only when the token has expired anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from sqlalchemy import delete, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from valetkey.broker.store.database import StoreError
from valetkey.broker.store.schema import REVOCATIONS

Kind = Literal["jti", "txn"]
_JTI: Final[Kind] = "jti"
_TXN: Final[Kind] = "txn"


class Revocations:
    """``clock`` gives seconds since the epoch."""

    def __init__(self, engine: AsyncEngine, *, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self._expiries: dict[tuple[str, str], float] = {}

    def __len__(self) -> int:
        return len(self._expiries)

    async def load(self) -> None:
        """Read what an earlier run revoked. Called before the first request."""
        columns = REVOCATIONS.c
        query = select(columns.kind, columns.value, columns.expires_at)
        async with self._engine.connect() as connection:
            for kind, value, expires in await connection.execute(query):
                self._expiries[kind, value] = expires

    def is_revoked(self, jti: str, txn: str) -> bool:
        """Whether the token, or the transaction that it belongs to, was revoked."""
        return (_JTI, jti) in self._expiries or (_TXN, txn) in self._expiries

    async def revoke(self, *, jti: str, txn: str, expires: float, descendants: float) -> None:
        """Revoke one token and all of its transaction.

        ``expires`` is the token's own expiry, ``descendants`` the latest that a token of the same
        transaction can have. Raises `StoreError`; the token is refused all the same.
        """
        rows = [(_JTI, jti, expires), (_TXN, txn, max(expires, descendants))]
        now = self._clock()
        for kind, value, until in rows:
            self._expiries[kind, value] = max(until, self._expiries.get((kind, value), 0.0))
        change = insert(REVOCATIONS).values(
            [
                {"kind": kind, "value": value, "revoked_at": now, "expires_at": until}
                for kind, value, until in rows
            ]
        )
        change = change.on_conflict_do_update(
            index_elements=[REVOCATIONS.c.kind, REVOCATIONS.c.value],
            set_={"expires_at": change.excluded.expires_at},
            where=REVOCATIONS.c.expires_at < change.excluded.expires_at,
        )
        try:
            async with self._engine.begin() as connection:
                await connection.execute(change)
        except SQLAlchemyError as error:
            raise StoreError(error) from error

    async def sweep(self) -> int:
        """Forget what has expired; says how many rows that were."""
        now = self._clock()
        expired = [key for key, until in self._expiries.items() if until <= now]
        for key in expired:
            del self._expiries[key]
        async with self._engine.begin() as connection:
            await connection.execute(delete(REVOCATIONS).where(REVOCATIONS.c.expires_at <= now))
        return len(expired)
