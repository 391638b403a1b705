"""Deployment windows in the database.

Invariants:

- A window is opened and closed in one transaction with the record of who did it, with the change
  that other replicas hear of, and (closed before its deadline) with the signal to sidecars.
- Each announcement opens one window of a grant, at whichever replica it arrives: the unique key in
  the database decides. Announced again, it gives the same window, and no new one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Row, delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.store.admin_actions import Actor, AdminActions
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database
from valetkey.broker.store.schema import WINDOWS
from valetkey.broker.store.signals import Signals
from valetkey.contracts.signals import Signal

TOPIC: Final = "windows"
# How long windows, and grants that ended, can be looked up, with who ended them and why; the record
# of administrators' actions stays.
KEPT: Final = 90 * 86_400.0
# Who closes what nobody closed.
_DEADLINE: Final = "system:deadline"


@dataclass(frozen=True, slots=True)
class StoredWindow:
    """A window. Times are in seconds since the epoch; ``closed_at`` is ``None`` until it is closed.

    Past its ``deadline`` it is closed, whether or not that was written down yet.
    """

    id: str
    grant_id: str
    opened_at: float
    deadline: float
    opened_by: str
    opened_by_issuer: str
    closed_at: float | None
    closed_by: str
    closed_by_issuer: str
    closed_reason: str

    def is_open(self, now: float) -> bool:
        return self.closed_at is None and now < self.deadline


class WindowStore:
    """``clock`` gives seconds since the epoch, ``window_id`` a new id that nobody can guess."""

    def __init__(
        self,
        database: Database,
        changes: Changes,
        actions: AdminActions,
        signals: Signals,
        *,
        clock: Callable[[], float],
        window_id: Callable[[], str],
    ) -> None:
        self._database = database
        self._changes = changes
        self._actions = actions
        self._signals = signals
        self._clock = clock
        self._window_id = window_id

    async def open(
        self, grant_id: str, actor: Actor, *, announcement: bytes, now: float, deadline: float
    ) -> tuple[StoredWindow, bool]:
        """Open a window; ``False``: this announcement opened it before.

        Raises `StoreError`.
        """
        row = {
            "id": self._window_id(),
            "grant_id": grant_id,
            "announcement": announcement,
            "opened_at": now,
            "deadline": deadline,
            "opened_by": actor.subject,
            "opened_by_issuer": actor.issuer,
            "closed_by": "",
            "closed_by_issuer": "",
            "closed_reason": "",
        }
        new = self._database.insert(WINDOWS).values(row)
        new = new.on_conflict_do_nothing(index_elements=[WINDOWS.c.announcement])
        async with self._database.write() as connection:
            opened = bool((await connection.execute(new)).rowcount)
            query = select(WINDOWS).where(WINDOWS.c.announcement == announcement)
            window = _window((await connection.execute(query)).one())
            if opened:
                await self._actions.record(
                    connection,
                    actor=actor,
                    action="window.open",
                    subject=f"window:{window.id}",
                    details={"grant": grant_id, "deadline": deadline},
                )
                await self._changes.publish(connection, TOPIC, window.id)
        return window, opened

    async def close(self, window_id: str, actor: Actor, reason: str) -> StoredWindow | None:
        """Close a window; one that is closed stays as it is. ``None``: there is none of this id.

        Raises `StoreError`.
        """
        async with self._database.write() as connection:
            await self._database.take_turn(connection)
            await self._close(connection, window_id, actor, reason, self._clock())
            return await _one(connection, window_id)

    async def close_all(
        self,
        connection: AsyncConnection,
        grant_id: str,
        actor: Actor | str,
        reason: str,
        *,
        now: float,
    ) -> None:
        """Close the windows of a grant, in the transaction that ends it, which took its turn.

        ``actor`` is who ended it, or the part of the broker that acted by itself.
        """
        query = select(WINDOWS.c.id).where(
            WINDOWS.c.grant_id == grant_id, WINDOWS.c.closed_at.is_(None)
        )
        for window_id in (await connection.execute(query)).scalars().all():
            await self._close(connection, window_id, actor, reason, now)

    async def close_overdue(self) -> None:
        """Put on record that windows closed by themselves. They gave nothing since then."""
        now = self._clock()
        query = select(WINDOWS.c.id).where(WINDOWS.c.closed_at.is_(None), WINDOWS.c.deadline <= now)
        async with self._database.read() as connection:
            overdue = (await connection.execute(query)).scalars().all()
        for window_id in overdue:
            async with self._database.write() as connection:
                await self._database.take_turn(connection)
                await self._close(connection, window_id, _DEADLINE, "its deadline passed", now)

    async def sweep(self) -> None:
        """Forget windows that closed longer than `KEPT` ago: no token of then opens another."""
        before = self._clock() - KEPT
        old = delete(WINDOWS).where(WINDOWS.c.closed_at < before, WINDOWS.c.deadline < before)
        async with self._database.write() as connection:
            await connection.execute(old)

    async def get(self, window_id: str) -> StoredWindow | None:
        async with self._database.read() as connection:
            return await _one(connection, window_id)

    async def open_ones(self) -> list[StoredWindow]:
        """All that are open now."""
        query = select(WINDOWS).where(
            WINDOWS.c.closed_at.is_(None), WINDOWS.c.deadline > self._clock()
        )
        async with self._database.read() as connection:
            return [_window(row) for row in await connection.execute(query)]

    async def page(
        self, *, grant_id: str | None, is_open: bool | None, after: str, limit: int
    ) -> list[StoredWindow]:
        """Windows in the order of their ids, those behind ``after``."""
        query = select(WINDOWS).where(WINDOWS.c.id > after).order_by(WINDOWS.c.id).limit(limit)
        if grant_id is not None:
            query = query.where(WINDOWS.c.grant_id == grant_id)
        now = self._clock()
        if is_open is True:
            query = query.where(WINDOWS.c.closed_at.is_(None), WINDOWS.c.deadline > now)
        if is_open is False:
            query = query.where(or_(WINDOWS.c.closed_at.is_not(None), WINDOWS.c.deadline <= now))
        async with self._database.read() as connection:
            return [_window(row) for row in await connection.execute(query)]

    async def _close(
        self,
        connection: AsyncConnection,
        window_id: str,
        actor: Actor | str,
        reason: str,
        now: float,
    ) -> None:
        change = (
            update(WINDOWS)
            .where(WINDOWS.c.id == window_id, WINDOWS.c.closed_at.is_(None))
            .values(
                closed_at=now,
                closed_by=actor if isinstance(actor, str) else actor.subject,
                closed_by_issuer="" if isinstance(actor, str) else actor.issuer,
                closed_reason=reason,
            )
        )
        if not (await connection.execute(change)).rowcount:
            return
        await self._actions.record(
            connection,
            actor=actor,
            action="window.close",
            subject=f"window:{window_id}",
            reason=reason,
        )
        await self._changes.publish(connection, TOPIC, window_id)
        if actor != _DEADLINE:  # what was minted by it ended with the deadline at the latest
            signal = Signal(kind="grant", value=window_id, at=now, reason=reason)
            await self._signals.publish(connection, signal)


async def _one(connection: AsyncConnection, window_id: str) -> StoredWindow | None:
    row = (await connection.execute(select(WINDOWS).where(WINDOWS.c.id == window_id))).first()
    return None if row is None else _window(row)


def _window(row: Row[Any]) -> StoredWindow:
    return StoredWindow(**{name: getattr(row, name) for name in StoredWindow.__dataclass_fields__})
