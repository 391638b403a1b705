"""What changed, told to every replica: a table in the same transaction, and a nudge to look at it.

Invariants:

- A change is published in the transaction that makes it: both are there, or neither.
- Changes are numbered in the order in which they were committed, so a reader that has seen number
  ``n`` has seen all before it. (PostgreSQL would hand out numbers in another order than it commits
  in; a lock held to the end of the transaction prevents that.)
- A replica that has not lately seen that it knows of every change is not current, and answers
  nothing that rests on what it knows: `Changes.require_current`.
- Who publishes waits until its own replica has applied the change. The others are told by NOTIFY,
  and look by themselves every `SWEEP` seconds in case they were not.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from sqlalchemy import delete, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.store.database import Database, StoreError
from valetkey.broker.store.schema import CHANGES
from valetkey.contracts import codes
from valetkey.contracts.errors import ValetkeyError
from valetkey.contracts.logs import Log

Handler = Callable[[str], Awaitable[None]]

SWEEP: Final = 0.5
# How long what was applied last counts as all that there is, seconds: some sweeps, as one may wait
# for a database that is busy, and much less than anything lives that a revocation could end.
CURRENT_FOR: Final = 5.0
# How long a look may take, seconds: one that hangs is left for another while that is still in time.
_READ_WITHIN: Final = CURRENT_FOR / 2
# How long a change stays to be read: much longer than any replica can be cut off and live on.
KEPT: Final = 86_400.0
_CHANNEL: Final = "valetkey_changes"
_BATCH: Final = 1000


class NotCurrent(ValetkeyError):  # noqa: N818 - reads as what it is
    """This replica may lack what others ended: nobody is told that anything counts."""

    def __init__(self, age: float) -> None:
        super().__init__(codes.SERVICE_UNAVAILABLE, f"changes were last applied {age:.1f} s ago")


class Changes:
    """One per replica. Handlers are called in the order of the changes, one at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._handlers: dict[str, list[Handler]] = {}
        self._seen = 0
        self._applying = asyncio.Lock()
        self._nudged = asyncio.Event()
        self._log = Log("broker.changes")
        self.applied_at = -math.inf
        """Monotonic time at which everything was last known to be applied."""

    @property
    def applying(self) -> bool:
        """Whether changes are being applied: of one transaction, some may be and others not yet."""
        return self._applying.locked()

    def age(self) -> float:
        """Seconds since everything was last known to be applied."""
        return time.monotonic() - self.applied_at

    def is_current(self) -> bool:
        """Whether everything was applied that was committed until a moment ago. Asks nobody."""
        return self.age() <= CURRENT_FOR

    def require_current(self) -> None:
        """Raises `NotCurrent`."""
        if not self.is_current():
            raise NotCurrent(self.age())

    def subscribe(self, topic: str, handler: Handler) -> None:
        """Have ``handler`` called with the key of each change of a topic. Idempotent handlers."""
        self._handlers.setdefault(topic, []).append(handler)

    async def load(self) -> None:
        """Begin behind the last change. Called before stores read their state."""
        async with self._database.read() as connection:
            self._seen = (await connection.execute(select(func.max(CHANGES.c.seq)))).scalar() or 0
        self.applied_at = time.monotonic()

    async def publish(self, connection: AsyncConnection, topic: str, key: str) -> None:
        """Announce a change from inside the transaction that makes it."""
        await self.publish_all(connection, topic, [key])

    async def publish_all(
        self, connection: AsyncConnection, topic: str, keys: Sequence[str]
    ) -> None:
        """Announce changes of one topic, in this order."""
        if not keys:
            return
        await self._database.take_turn(connection)
        now = time.time()
        rows = [{"topic": topic, "key": key, "at": now} for key in keys]
        await connection.execute(insert(CHANGES), rows)
        if self._database.postgres:
            await connection.execute(text(f"NOTIFY {_CHANNEL}"))

    async def catch_up(self) -> None:
        """Apply what was committed up to now. Raises `StoreError`."""
        async with self._applying:
            while True:
                query = (
                    select(CHANGES.c.seq, CHANGES.c.topic, CHANGES.c.key)
                    .where(CHANGES.c.seq > self._seen)
                    .order_by(CHANGES.c.seq)
                    .limit(_BATCH)
                )
                began = time.monotonic()
                async with self._database.read(within=_READ_WITHIN) as connection:
                    rows = (await connection.execute(query)).all()
                for seq, topic, key in rows:
                    for handler in self._handlers.get(topic, ()):
                        await handler(key)
                    self._seen = seq
                if len(rows) < _BATCH:
                    self.applied_at = began
                    return

    async def run(self) -> None:
        """Follow the changes of all replicas until cancelled.

        What can't be read, or not be applied, is tried again and again: until that succeeds, this
        replica is no longer current. A change is never passed over.
        """
        self._nudged.set()  # what happened while the others loaded
        listener = asyncio.ensure_future(self._listen()) if self._database.postgres else None
        try:
            while True:
                # Not `wait_for`, which in Python 3.11 may lose a cancellation (CPython gh-86296).
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SWEEP):
                        await self._nudged.wait()
                self._nudged.clear()
                try:
                    await self.catch_up()
                except StoreError as error:
                    self._log.warning("changes_unread", reason=error.reason)
                except Exception as error:  # noqa: BLE001 - none of them may end it
                    reason = error.reason if isinstance(error, ValetkeyError) else ""
                    self._log.error(
                        "changes_unapplied", error_type=type(error).__name__, reason=reason
                    )
        finally:
            if listener is not None:
                listener.cancel()
                await asyncio.wait([listener])

    async def sweep(self) -> None:
        """Forget changes that nobody can be behind of any more."""
        old = delete(CHANGES).where(CHANGES.c.at < time.time() - KEPT, CHANGES.c.seq <= self._seen)
        async with self._database.write() as connection:
            await connection.execute(old)

    async def _listen(self) -> None:
        """Hold a connection that PostgreSQL nudges us through; get another when it is lost."""
        while True:
            try:
                await self._database.hear(_CHANNEL, self._nudge)
            except StoreError as error:
                self._log.warning("changes_unheard", reason=error.reason)
            except Exception as error:  # noqa: BLE001 - without it, each change takes half a second
                self._log.error("changes_unheard", reason=f"{type(error).__name__}: {error}")
            await asyncio.sleep(SWEEP)

    def _nudge(self) -> None:
        self._nudged.set()
