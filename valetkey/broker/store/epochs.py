"""Epochs of subjects: in the database for all replicas, in memory for the check on every call.

Invariants:

- An epoch only grows, one by one, and so does the time after which a subject must have attested
  itself (`core.containment`).
- From before a bump is written until it is known to be in force, the subject is held: it gets
  nothing, and nothing of it counts. If the write fails, that passes; a bump that was not
  acknowledged may or may not be in force.
"""

from __future__ import annotations

import time
from typing import Final

from sqlalchemy import case, select
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.core.containment import Epoch
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database
from valetkey.broker.store.revocations import Publisher
from valetkey.broker.store.schema import CHANGES, EPOCHS
from valetkey.contracts.signals import Signal

_TOPIC: Final = "epoch"
_NONE: Final = Epoch()
# Who stands for every subject: what it must have attested after, all must (`store.restored`). No
# issuer has an empty name.
EVERYBODY: Final = ("", "")
_MAX_KEY: Final = int(getattr(CHANGES.c.key.type, "length", 0))
_MAX_REASON: Final = int(getattr(EPOCHS.c.reason.type, "length", 0))
# How long a subject is held for a bump of which nothing is heard any more, seconds.
HELD: Final = 60.0


class Epochs:
    """The epochs of all subjects that ever had an incident: those of all others are 0."""

    def __init__(self, database: Database, changes: Changes, signals: Publisher) -> None:
        self._database = database
        self._changes = changes
        self._signals = signals
        changes.subscribe(_TOPIC, self._changed)
        self._epochs: dict[tuple[str, str], Epoch] = {}
        self._held: dict[tuple[str, str], float] = {}

    def __len__(self) -> int:
        return len(self._epochs)

    async def load(self) -> None:
        """Read them all. Called before the first request."""
        query = select(EPOCHS.c.issuer, EPOCHS.c.subject, EPOCHS.c.epoch, EPOCHS.c.attest_after)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
        self._epochs = {
            (issuer, subject): Epoch(number, after) for issuer, subject, number, after in rows
        }

    def of(self, issuer: str, subject: str) -> Epoch:
        """The subject's epoch as far as this replica knows it."""
        key = (issuer, subject)
        epoch = self._epochs.get(key, _NONE)
        everybody = self._epochs.get(EVERYBODY)
        if everybody is not None and everybody.attest_after > epoch.attest_after:
            epoch = Epoch(epoch.number, everybody.attest_after)
        if self._held:
            until = self._held.get(key)
            if until is not None:
                if time.monotonic() < until:
                    return Epoch(epoch.number, epoch.attest_after, held=True)
                # Status lists are made in threads, which may come here at the same time.
                self._held.pop(key, None)
        return epoch

    async def bump(
        self,
        connection: AsyncConnection,
        issuer: str,
        subject: str,
        *,
        at: float,
        reason: str,
        attest: bool,
        txn: str = "",
    ) -> int:
        """Raise the epoch within a transaction of the caller's; gives the new one.

        With ``attest`` the subject must attest itself anew, after ``at`` (seconds since the
        epoch). Sidecars are told, with ``txn``. The caller lets `Changes.catch_up` run after the
        transaction.
        """
        self._held[issuer, subject] = time.monotonic() + HELD
        columns = EPOCHS.c
        change = self._database.insert(EPOCHS).values(
            issuer=issuer,
            subject=subject,
            epoch=1,
            bumped_at=at,
            reason=reason[:_MAX_REASON],
            attest_after=at if attest else 0.0,
        )
        new = change.excluded
        later = case(
            (columns.attest_after < new.attest_after, new.attest_after),
            else_=columns.attest_after,
        )
        change = change.on_conflict_do_update(
            index_elements=[columns.issuer, columns.subject],
            set_={
                "epoch": columns.epoch + 1,
                "bumped_at": new.bumped_at,
                "reason": new.reason,
                "attest_after": later,
            },
        ).returning(columns.epoch)
        number = int((await connection.execute(change)).scalar_one())
        key = f"{issuer}\n{subject}"
        # One that is too long to be named in a change has all of them read again.
        await self._changes.publish(connection, _TOPIC, key if len(key) <= _MAX_KEY else "")
        signal = Signal(
            kind="subject",
            value=subject,
            issuer=issuer,
            at=at,
            txn=txn,
            reason=reason,
            epoch=number,
        )
        await self._signals.publish(connection, signal)
        return number

    async def _changed(self, key: str) -> None:
        if not key:
            await self.load()
            self._held.clear()
            return
        issuer, _, subject = key.partition("\n")
        query = select(EPOCHS.c.epoch, EPOCHS.c.attest_after).where(
            EPOCHS.c.issuer == issuer, EPOCHS.c.subject == subject
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).first()
        if row is not None:
            self._epochs[issuer, subject] = Epoch(*row)
            self._held.pop((issuer, subject), None)
