"""What administrators did, with who and why: a hash chain in the database.

Invariants:

- An action is recorded in the transaction that makes the change: both are there, or neither.
- Each row's hash covers the row and the hash before it, so that a changed, removed or inserted
  row shows. (Rows cut off at the end show only against a hash kept elsewhere: the log line of
  each action has it.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec
from sqlalchemy import Row, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.store.database import Database
from valetkey.broker.store.schema import ADMIN_ACTIONS
from valetkey.contracts.logs import Log

_NONE: Final = "0" * 64
_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class AdminAction:
    """One action. ``at`` is in seconds since the epoch; ``details`` is what was changed."""

    seq: int
    at: float
    actor: str
    actor_issuer: str
    action: str
    subject: str
    reason: str
    details: dict[str, Any]
    hash: str


@dataclass(frozen=True, slots=True)
class ChainVerdict:
    """``broken_at`` is the first row that does not fit, or ``None``."""

    count: int
    head: str
    broken_at: int | None


class Actor(Protocol):
    """Who acts, by its token: an administrator, or a deployment that announces itself."""

    @property
    def issuer(self) -> str: ...
    @property
    def subject(self) -> str: ...


class AdminActions:
    """``clock`` gives seconds since the epoch."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._log = Log("broker.admin")

    async def record(
        self,
        connection: AsyncConnection,
        *,
        actor: Actor | str,
        action: str,
        subject: str,
        reason: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Append one action inside the transaction that makes the change.

        ``actor`` is who did it, or the part of the broker that acted by itself.
        """
        await self._database.take_turn(connection)
        last = select(ADMIN_ACTIONS.c.hash).order_by(ADMIN_ACTIONS.c.seq.desc()).limit(1)
        before = (await connection.execute(last)).scalar() or _NONE
        row: dict[str, Any] = {
            "at": float(self._clock()),  # as the column gives it back: the hash is over its text
            "actor": actor if isinstance(actor, str) else actor.subject,
            "actor_issuer": "" if isinstance(actor, str) else actor.issuer,
            "action": action,
            "subject": subject,
            "reason": reason,
            "details": msgspec.json.encode(details or {}, order="deterministic").decode(),
        }
        row["hash"] = _hash(before, row)
        await connection.execute(insert(ADMIN_ACTIONS).values(row))
        self._log.info(
            "admin_action",
            action=action,
            subject=subject,
            workload=row["actor"],
            issuer=row["actor_issuer"],
            hash=row["hash"],
        )

    async def page(self, *, before: int | None, limit: int) -> list[AdminAction]:
        """The newest actions first, those older than ``before``."""
        query = select(ADMIN_ACTIONS).order_by(ADMIN_ACTIONS.c.seq.desc()).limit(limit)
        if before is not None:
            query = query.where(ADMIN_ACTIONS.c.seq < before)
        async with self._database.read() as connection:
            return [_action(row) for row in await connection.execute(query)]

    async def verify(self) -> ChainVerdict:
        """Walk the whole chain."""
        head, count, seen = _NONE, 0, 0
        async with self._database.read() as connection:
            while True:
                query = (
                    select(ADMIN_ACTIONS)
                    .where(ADMIN_ACTIONS.c.seq > seen)
                    .order_by(ADMIN_ACTIONS.c.seq)
                    .limit(_BATCH)
                )
                rows = (await connection.execute(query)).all()
                for row in rows:
                    if _hash(head, row._asdict()) != row.hash:
                        return ChainVerdict(count, head, row.seq)
                    head, seen, count = row.hash, row.seq, count + 1
                if len(rows) < _BATCH:
                    return ChainVerdict(count, head, None)


def _hash(before: str, row: Mapping[str, Any]) -> str:
    """SHA-256 over the hash before and the row as a JSON list: no two rows read alike."""
    fields = [
        before,
        *(row[name] for name in ("at", "actor", "actor_issuer", "action", "subject", "reason")),
        row["details"],
    ]
    return hashlib.sha256(msgspec.json.encode(fields)).hexdigest()


def _action(row: Row[Any]) -> AdminAction:
    return AdminAction(
        seq=row.seq,
        at=row.at,
        actor=row.actor,
        actor_issuer=row.actor_issuer,
        action=row.action,
        subject=row.subject,
        reason=row.reason,
        details=msgspec.json.decode(row.details),
        hash=row.hash,
    )
