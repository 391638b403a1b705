"""The outbox: what people are still to be told, in the transaction that made it so.

Invariants:

- A notice is in the database as soon as what it tells of is, and stays until it was delivered or
  given up: at least once, over any restart.
- One replica sends it at a time: who claims it, for a while, by a conditional UPDATE. One that dies
  meanwhile loses the claim, and another sends it again under the same id.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import and_, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.store.database import Database
from valetkey.broker.store.schema import NOTICES

# Longer than any delivery may take.
CLAIM: Final = 120.0
_ID_BYTES: Final = 16
_N: Final = NOTICES.c


class Notice(NamedTuple):
    """One message for one place. ``attempts`` counts this one too."""

    id: str
    channel: str
    body: dict[str, Any]
    created_at: float
    attempts: int


class Notices:
    """The outbox of all replicas."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(
        self,
        connection: AsyncConnection,
        channels: Sequence[str],
        body: dict[str, Any],
        *,
        now: float,
    ) -> None:
        """Put a message in line for each channel, inside the transaction that it tells of."""
        text = msgspec.json.encode(body).decode()
        rows = [
            {
                "id": "msg_" + secrets.token_urlsafe(_ID_BYTES),
                "channel": channel,
                "body": text,
                "created_at": now,
                "due_at": now,
                "attempts": 0,
                "claimed_until": 0.0,
            }
            for channel in channels
        ]
        if rows:
            await connection.execute(insert(NOTICES).values(rows))

    async def claim(self, channel: str, *, now: float) -> Notice | None:
        """The channel's next message that is due, ours for `CLAIM` seconds. Raises `StoreError`."""
        due = and_(_N.channel == channel, _N.due_at <= now, _N.claimed_until <= now)
        async with self._database.read() as connection:
            query = select(_N.id).where(due).order_by(_N.due_at, _N.id).limit(1)
            found = (await connection.execute(query)).scalar()
        if found is None:
            return None  # the common case writes nothing
        statement = (
            update(NOTICES)
            .where(_N.id == found, due)
            .values(claimed_until=now + CLAIM, attempts=_N.attempts + 1)
            .returning(_N.id, _N.channel, _N.body, _N.created_at, _N.attempts)
        )
        async with self._database.write() as connection:
            row = (await connection.execute(statement)).first()
        if row is None:
            return None  # another replica was first
        body = msgspec.json.decode(row.body)
        return Notice(row.id, row.channel, body, row.created_at, row.attempts)

    async def done(self, notice: Notice) -> None:
        """It was delivered, or is given up. Raises `StoreError`."""
        async with self._database.write() as connection:
            await connection.execute(delete(NOTICES).where(_N.id == notice.id))

    async def again(self, notice: Notice, *, due_at: float) -> None:
        """Try it again then. Raises `StoreError`."""
        async with self._database.write() as connection:
            await connection.execute(
                update(NOTICES).where(_N.id == notice.id).values(due_at=due_at, claimed_until=0.0)
            )

    async def sweep(self, before: float) -> None:
        """Forget what is older: of channels that are no longer in settings, nobody gives it up."""
        async with self._database.write() as connection:
            await connection.execute(
                delete(NOTICES).where(_N.created_at < before, _N.claimed_until < before)
            )

    async def count(self) -> int:
        async with self._database.read() as connection:
            query = select(func.count()).select_from(NOTICES)
            return int((await connection.execute(query)).scalar_one())
