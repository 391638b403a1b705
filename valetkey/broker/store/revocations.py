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

from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database
from valetkey.broker.store.schema import REVOCATIONS

Kind = Literal["jti", "txn"]
_TOPIC: Final = "revocation"
_JTI: Final[Kind] = "jti"
_TXN: Final[Kind] = "txn"


class Revocations:
    """``clock`` gives seconds since the epoch."""

    def __init__(self, database: Database, changes: Changes, *, clock: Callable[[], float]) -> None:
        self._database = database
        self._changes = changes
        changes.subscribe(_TOPIC, self._changed)
        self._clock = clock
        self._expiries: dict[tuple[str, str], float] = {}

    def __len__(self) -> int:
        return len(self._expiries)

    async def load(self) -> None:
        """Read what an earlier run revoked. Called before the first request."""
        columns = REVOCATIONS.c
        query = select(columns.kind, columns.value, columns.expires_at)
        async with self._database.read() as connection:
            for kind, value, expires in await connection.execute(query):
                self._expiries[kind, value] = expires

    async def _changed(self, key: str) -> None:
        """A replica (or this one) revoked something."""
        kind, _, value = key.partition(":")
        columns = REVOCATIONS.c
        query = select(columns.expires_at).where(columns.kind == kind, columns.value == value)
        async with self._database.read() as connection:
            expires = (await connection.execute(query)).scalar()
        if expires is not None:
            self._expiries[kind, value] = max(expires, self._expiries.get((kind, value), 0.0))

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
        change = self._database.insert(REVOCATIONS).values(
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
        async with self._database.write() as connection:
            await connection.execute(change)
            for kind, value, _ in rows:
                await self._changes.publish(connection, _TOPIC, f"{kind}:{value}")

    async def sweep(self) -> int:
        """Forget what has expired; says how many rows that were."""
        now = self._clock()
        expired = [key for key, until in self._expiries.items() if until <= now]
        for key in expired:
            del self._expiries[key]
        async with self._database.write() as connection:
            await connection.execute(delete(REVOCATIONS).where(REVOCATIONS.c.expires_at <= now))
        return len(expired)
