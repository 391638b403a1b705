"""Grants made by API, in the database.

Invariants:

- A grant is created and revoked in one transaction with the record of who did it and why, with the
  change that other replicas hear of, and (revoked) with the signal to sidecars.
- An id stands for one grant for as long as it is kept: it is never given to another one, so that
  what was said of it stays true of every token that names it. One that was in the grants file may
  be made by API: what was minted under the former ends with that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Row, Select, and_, delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.core.grants import GrantSettings
from valetkey.broker.core.grants.form import document_of
from valetkey.broker.core.grants.narrowing import REUSED, End
from valetkey.broker.core.grants.state import State
from valetkey.broker.store.admin_actions import Actor, AdminActions
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database, in_parts
from valetkey.broker.store.revocations import Revocations
from valetkey.broker.store.schema import FILE_GRANTS, GRANT_USES, GRANTS, WINDOWS
from valetkey.broker.store.signals import Signals
from valetkey.broker.store.windows import KEPT, WindowStore
from valetkey.contracts import settings
from valetkey.contracts.signals import Signal

TOPIC: Final = "grants"


@dataclass(frozen=True, slots=True)
class Ended:
    """When a grant was revoked, by whom and why. ``at`` is in seconds since the epoch."""

    at: float
    by: str
    by_issuer: str
    reason: str


@dataclass(frozen=True, slots=True)
class StoredGrant:
    """A grant made by API, with who made it and who ended it. ``uses`` as of the reading."""

    written: GrantSettings
    created_at: float
    created_by: str
    created_by_issuer: str
    ended: Ended | None
    uses: int


@dataclass(frozen=True, slots=True)
class GrantFilter:
    """Which grants are listed: for a workload by any of these patterns, for a target, in a state.

    ``None``: all.
    """

    workloads: Sequence[str] | None = None
    target: str | None = None
    state: State | None = None


class GrantStore:
    """``clock`` gives seconds since the epoch."""

    def __init__(
        self,
        database: Database,
        changes: Changes,
        actions: AdminActions,
        signals: Signals,
        revocations: Revocations,
        windows: WindowStore,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._changes = changes
        self._actions = actions
        self._signals = signals
        self._revocations = revocations
        self._windows = windows
        self._clock = clock

    async def create(self, written: GrantSettings, actor: Actor) -> tuple[StoredGrant, bool]:
        """Store a grant; ``False``: it, or another of this id, was there before.

        The caller compares. Raises `StoreError`.
        """
        text, now = _text(written), self._clock()
        row = {
            "id": written.id,
            "document": text,
            "workload": written.workload,
            "target": written.target,
            "not_before": written.not_before and written.not_before.timestamp(),
            "not_after": written.not_after and written.not_after.timestamp(),
            "max_uses": written.max_uses,
            "created_at": now,
            "created_by": actor.subject,
            "created_by_issuer": actor.issuer,
            "ended_by": "",
            "ended_by_issuer": "",
            "ended_reason": "",
        }
        new = self._database.insert(GRANTS).values(row).on_conflict_do_nothing()
        of_file = select(FILE_GRANTS.c.id).where(FILE_GRANTS.c.id == written.id)
        async with self._database.write_in_turn() as connection:
            created = bool((await connection.execute(new)).rowcount)
            if created:
                if (await connection.execute(of_file)).first() is not None:
                    end = End(REUSED, now, closes=False)
                    await self._revocations.end_before(connection, "grant", {written.id: end})
                await self._actions.record(
                    connection,
                    actor=actor,
                    action="grant.create",
                    subject=f"grant:{written.id}",
                    reason=written.reason,
                    details=document_of(written),
                )
                await self._changes.publish(connection, TOPIC, written.id)
            stored = await _one(connection, written.id)
        assert stored is not None, "inserted, or in the way of the insert"
        return stored, created

    async def end(self, grant_id: str, actor: Actor, reason: str) -> StoredGrant | None:
        """Revoke a grant and close its windows; one that is revoked stays as it is.

        ``None``: there is none of this id. Raises `StoreError`.
        """
        now = self._clock()
        change = (
            update(GRANTS)
            .where(GRANTS.c.id == grant_id, GRANTS.c.ended_at.is_(None))
            .values(
                ended_at=now,
                ended_by=actor.subject,
                ended_by_issuer=actor.issuer,
                ended_reason=reason,
            )
        )
        async with self._database.write() as connection:
            # First of all, as everywhere: who holds rows never waits for the order of changes.
            await self._database.take_turn(connection)
            if (await connection.execute(change)).rowcount:
                await self._actions.record(
                    connection,
                    actor=actor,
                    action="grant.revoke",
                    subject=f"grant:{grant_id}",
                    reason=reason,
                )
                await self._windows.close_all(
                    connection, grant_id, actor, "the grant was revoked", now=now
                )
                await self._changes.publish(connection, TOPIC, grant_id)
                signal = Signal(kind="grant", value=grant_id, at=now, reason=reason)
                await self._signals.publish(connection, signal)
            return await _one(connection, grant_id)

    async def get(self, grant_id: str) -> StoredGrant | None:
        async with self._database.read() as connection:
            return await _one(connection, grant_id)

    async def ids(self, among: Iterable[str]) -> set[str]:
        """Which of these ids are taken by a grant made by API."""
        wanted = list(among)
        found: set[str] = set()
        async with self._database.read() as connection:
            for some in in_parts(wanted):
                query = select(GRANTS.c.id).where(GRANTS.c.id.in_(some))
                found |= set((await connection.execute(query)).scalars())
        return found

    async def standing(self, *, since: float) -> list[StoredGrant]:
        """All that can still give something, and what ended later than ``since``."""
        query = _query().where(
            or_(GRANTS.c.ended_at.is_(None), GRANTS.c.ended_at > since),
            or_(GRANTS.c.not_after.is_(None), GRANTS.c.not_after > since),
            or_(~_used_up(), GRANT_USES.c.used_at > since),
        )
        async with self._database.read() as connection:
            return [_stored(row) for row in await connection.execute(query)]

    async def page(self, wanted: GrantFilter, *, after: str, limit: int) -> list[StoredGrant]:
        """Grants in the order of their ids, those behind ``after``."""
        query = _query().where(GRANTS.c.id > after).order_by(GRANTS.c.id).limit(limit)
        if wanted.workloads is not None:
            query = query.where(GRANTS.c.workload.in_(wanted.workloads))
        if wanted.target is not None:
            query = query.where(GRANTS.c.target == wanted.target)
        if wanted.state is not None:
            query = query.where(_in_state(wanted.state, self._clock()))
        async with self._database.read() as connection:
            return [_stored(row) for row in await connection.execute(query)]

    async def sweep(self) -> None:
        """Forget what ended longer than `KEPT` ago, with its uses and windows."""
        before = self._clock() - KEPT
        used_up = (
            select(GRANT_USES.c.grant_id)
            .join(GRANTS, GRANTS.c.id == GRANT_USES.c.grant_id)
            .where(_used_up(), GRANT_USES.c.used_at < before)
        )
        old = or_(GRANTS.c.ended_at < before, GRANTS.c.not_after < before, GRANTS.c.id.in_(used_up))
        async with self._database.write() as connection:
            gone = list((await connection.execute(select(GRANTS.c.id).where(old))).scalars())
            for ids in in_parts(gone):
                # An id may have gone on to a grant of the file, whose uses and windows these are.
                of_file = FILE_GRANTS.c.id.in_(ids) & FILE_GRANTS.c.gone_at.is_(None)
                taken = set(
                    (await connection.execute(select(FILE_GRANTS.c.id).where(of_file))).scalars()
                )
                done = [each for each in ids if each not in taken]
                await connection.execute(delete(GRANTS).where(GRANTS.c.id.in_(ids)))
                for column in (GRANT_USES.c.grant_id, WINDOWS.c.grant_id):
                    await connection.execute(delete(column.table).where(column.in_(done)))


def _query() -> Select[Any]:
    uses = GRANTS.outerjoin(GRANT_USES, GRANTS.c.id == GRANT_USES.c.grant_id)
    return select(GRANTS, GRANT_USES.c.uses).select_from(uses)


def _used_up() -> ColumnElement[bool]:
    uses = func.coalesce(GRANT_USES.c.uses, 0)
    return and_(GRANTS.c.max_uses.is_not(None), uses >= GRANTS.c.max_uses)


def _in_state(state: State, now: float) -> ColumnElement[bool]:
    """`core.grants.state.state_of`, as a condition on rows."""
    revoked = GRANTS.c.ended_at.is_not(None)
    expired = and_(GRANTS.c.not_after.is_not(None), GRANTS.c.not_after <= now)
    pending = and_(GRANTS.c.not_before.is_not(None), GRANTS.c.not_before > now)
    used_up = _used_up()
    match state:
        case "revoked":
            return revoked
        case "expired":
            return and_(~revoked, expired)
        case "used_up":
            return and_(~revoked, ~expired, used_up)
        case "pending":
            return and_(~revoked, ~expired, ~used_up, pending)
        case "active":
            return and_(~revoked, ~expired, ~used_up, ~pending)


async def _one(connection: AsyncConnection, grant_id: str) -> StoredGrant | None:
    row = (await connection.execute(_query().where(GRANTS.c.id == grant_id))).first()
    return None if row is None else _stored(row)


def _text(written: GrantSettings) -> str:
    return msgspec.json.encode(document_of(written), order="deterministic").decode()


def _stored(row: Row[Any]) -> StoredGrant:
    ended = None
    if row.ended_at is not None:
        ended = Ended(row.ended_at, row.ended_by, row.ended_by_issuer, row.ended_reason)
    return StoredGrant(
        written=settings.convert(GrantSettings, msgspec.json.decode(row.document)),
        created_at=row.created_at,
        created_by=row.created_by,
        created_by_issuer=row.created_by_issuer,
        ended=ended,
        uses=row.uses or 0,
    )
