"""Incidents and what issuers were asked to rotate, in the database.

Invariants:

- While an incident is open there is no second one about the same thing: a unique key says so.
- Who waits to see a subject attest itself, or whom open ones are about, is known in memory, so that
  exchanges ask nobody.
- A rotation is asked for in the transaction that opens the incident. Who carries it out holds it
  for `CLAIMED` seconds; after that, another one tries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import Select, and_, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.core.incidents import Exposure, Incident
from valetkey.broker.store.changes import Changes, Handler
from valetkey.broker.store.database import Database
from valetkey.broker.store.schema import INCIDENT_ROTATIONS, INCIDENTS

_TOPIC: Final = "incident"
CLAIMED: Final = 60.0
_FIELDS: Final = tuple(Incident.__dataclass_fields__)
_COLUMNS: Final = [INCIDENTS.c[name] for name in _FIELDS]

ASKED: Final = "asked"
DONE: Final = "done"


@dataclass(frozen=True, slots=True)
class Rotation:
    """What one issuer was asked to replace. ``detail`` is what it did, or why it could not yet."""

    incident: str
    rotator: str
    state: str
    detail: str
    attempts: int
    at: float


class Incidents:
    """``clock`` gives seconds since the epoch."""

    def __init__(self, database: Database, changes: Changes, *, clock: Callable[[], float]) -> None:
        self._database = database
        self._changes = changes
        self._clock = clock
        self._awaited: dict[tuple[str, str], set[str]] = {}
        self._open: dict[tuple[str, str], set[str]] = {}
        changes.subscribe(_TOPIC, self._changed)

    async def load(self) -> None:
        """Read whom open ones are about. Called before the first request."""
        async with self._database.read() as connection:
            found = await _all(connection, _select().where(INCIDENTS.c.closed_at.is_(None)))
        for incident in found:
            self._note(incident)

    def on_change(self, handler: Handler) -> None:
        """Have ``handler`` called with an incident's id when a replica changed it."""
        self._changes.subscribe(_TOPIC, handler)

    # --- opening, changing, closing -----------------------------------------------------------

    async def add(self, connection: AsyncConnection, incident: Incident) -> Incident | None:
        """Open it, within a transaction; the one that is open already is given back instead."""
        key = _open_key(incident.kind, incident.issuer, incident.value)
        row = {**asdict(incident), "open_key": key}
        new = self._database.insert(INCIDENTS).values(row).on_conflict_do_nothing()
        while not (await connection.execute(new)).rowcount:
            known = await _all(connection, _select().where(INCIDENTS.c.open_key == key))
            if known:
                return known[0]
        await self._changes.publish(connection, _TOPIC, incident.id)
        return None

    async def change(self, connection: AsyncConnection, id_: str, **values: Any) -> bool:
        """Set columns of one that is open; whether it was open.

        Within a transaction that took its turn before any row.
        """
        change = (
            update(INCIDENTS)
            .where(INCIDENTS.c.id == id_, INCIDENTS.c.closed_at.is_(None))
            .values(**values)
        )
        if not (await connection.execute(change)).rowcount:
            return False
        await self._changes.publish(connection, _TOPIC, id_)
        return True

    async def close(
        self, connection: AsyncConnection, id_: str, unchanged: Mapping[str, Any], **values: Any
    ) -> bool:
        """As `change`, if these columns are still so; then another one may be opened about it."""
        same = [
            INCIDENTS.c[name].is_(None) if value is None else INCIDENTS.c[name] == value
            for name, value in unchanged.items()
        ]
        query = select(INCIDENTS.c.id).where(INCIDENTS.c.id == id_, *same)
        if (await connection.execute(query)).first() is None:
            return False
        return await self.change(connection, id_, open_key=None, **values)

    # --- reading ------------------------------------------------------------------------------

    async def get(self, id_: str) -> Incident | None:
        async with self._database.read() as connection:
            found = await _all(connection, _select().where(INCIDENTS.c.id == id_))
        return found[0] if found else None

    async def get_open(self, connection: AsyncConnection, exposure: Exposure) -> Incident | None:
        """The open one about this, within a transaction."""
        key = _open_key(exposure.kind, exposure.issuer, exposure.value)
        found = await _all(connection, _select().where(INCIDENTS.c.open_key == key))
        return found[0] if found else None

    async def page(
        self, *, state: str, before: tuple[float, str] | None, limit: int
    ) -> list[Incident]:
        """The newest first, older than ``before`` (time and id); ``state`` open, closed or all."""
        columns = INCIDENTS.c
        query = _select().order_by(columns.opened_at.desc(), columns.id.desc()).limit(limit)
        if state == "open":
            query = query.where(columns.closed_at.is_(None))
        elif state == "closed":
            query = query.where(columns.closed_at.is_not(None))
        if before is not None:
            at, id_ = before
            older = and_(columns.opened_at == at, columns.id < id_)
            query = query.where(or_(columns.opened_at < at, older))
        async with self._database.read() as connection:
            return await _all(connection, query)

    async def uncontained(self, *, since: float, limit: int) -> list[Incident]:
        """Those from ``since`` on that sidecars may still have to acknowledge, the newest first."""
        columns = INCIDENTS.c
        query = _select().where(columns.contained_at.is_(None), columns.renewed_at > since)
        query = query.order_by(INCIDENTS.c.opened_at.desc()).limit(limit)
        async with self._database.read() as connection:
            return await _all(connection, query)

    async def note_contained(self, id_: str, at: float) -> bool:
        """Note when all sidecars had acknowledged, if nobody did so before."""
        change = (
            update(INCIDENTS)
            .where(INCIDENTS.c.id == id_, INCIDENTS.c.contained_at.is_(None))
            .values(contained_at=at)
        )
        async with self._database.write() as connection:
            return bool((await connection.execute(change)).rowcount)

    # --- attestation --------------------------------------------------------------------------

    def awaits(self, issuer: str, subject: str) -> bool:
        """Whether an open incident waits to see this subject attest itself."""
        return (issuer, subject) in self._awaited

    def is_open(self, issuer: str, subject: str) -> bool:
        """Whether an incident about this subject is open, attested or not."""
        return (issuer, subject) in self._open

    async def attested(self, issuer: str, subject: str, *, epoch: int) -> None:
        """The subject attested itself under this epoch. Raises `StoreError`."""
        columns = INCIDENTS.c
        waiting = and_(
            columns.subject_issuer == issuer,
            columns.subject == subject,
            # An incident that is newer than what the exchange was decided on waits on.
            columns.epoch <= epoch,
            columns.attested_at.is_(None),
            columns.closed_at.is_(None),
        )
        async with self._database.write_in_turn() as connection:
            ids = (await connection.execute(select(columns.id).where(waiting))).scalars().all()
            for id_ in ids:
                await self.change(connection, id_, attested_at=self._clock())
        await self._changes.catch_up()

    async def _changed(self, id_: str) -> None:
        incident = await self.get(id_)
        if incident is not None:
            self._note(incident)

    def _note(self, incident: Incident) -> None:
        _keep(self._open, incident, holds=incident.closed_at is None)
        _keep(self._awaited, incident, holds=incident.awaits_attestation)

    # --- rotations ----------------------------------------------------------------------------

    async def ask(
        self, connection: AsyncConnection, incident: str, rotators: Iterable[str]
    ) -> None:
        """Have these issuers rotate, within the transaction that opens the incident."""
        for rotator in rotators:
            row = {
                "incident": incident,
                "rotator": rotator,
                "state": ASKED,
                "detail": "",
                "attempts": 0,
                "at": self._clock(),
                "next_at": self._clock(),
            }
            asked = self._database.insert(INCIDENT_ROTATIONS).values(row)
            await connection.execute(
                asked.on_conflict_do_update(
                    index_elements=[INCIDENT_ROTATIONS.c.incident, INCIDENT_ROTATIONS.c.rotator],
                    set_={"state": ASKED, "next_at": asked.excluded.next_at},
                )
            )

    async def claim(self) -> tuple[Incident, Rotation] | None:
        """One rotation that is due, for this replica alone for a while."""
        columns, now = INCIDENT_ROTATIONS.c, self._clock()
        due = and_(columns.state == ASKED, columns.next_at <= now)
        query = select(columns.incident, columns.rotator).where(due).order_by(columns.next_at)
        async with self._database.read() as connection:
            if (await connection.execute(query.limit(1))).first() is None:
                return None
        async with self._database.write() as connection:
            row = (await connection.execute(query.limit(1))).first()
            if row is None:
                return None
            mine = (
                update(INCIDENT_ROTATIONS)
                .where(columns.incident == row.incident, columns.rotator == row.rotator, due)
                .values(next_at=now + CLAIMED, attempts=columns.attempts + 1)
            )
            if not (await connection.execute(mine)).rowcount:
                return None
        incident = await self.get(row.incident)
        rotations = await self.rotations([row.incident])
        claimed = [one for one in rotations if one.rotator == row.rotator]
        return (incident, claimed[0]) if incident is not None and claimed else None

    async def settle(self, rotation: Rotation, *, state: str, detail: str, again_in: float) -> None:
        """Note how a claimed rotation went; one that is still ``asked`` is due again then."""
        columns, now = INCIDENT_ROTATIONS.c, self._clock()
        change = (
            update(INCIDENT_ROTATIONS)
            .where(columns.incident == rotation.incident, columns.rotator == rotation.rotator)
            .values(state=state, detail=detail, at=now, next_at=now + again_in)
        )
        async with self._database.write_in_turn() as connection:
            await connection.execute(change)
            await self._changes.publish(connection, _TOPIC, rotation.incident)

    async def rotations(self, incidents: Sequence[str]) -> list[Rotation]:
        """What was asked for because of these."""
        columns = INCIDENT_ROTATIONS.c
        query = select(*(columns[name] for name in Rotation.__dataclass_fields__))
        query = query.where(columns.incident.in_(incidents)).order_by(columns.rotator)
        async with self._database.read() as connection:
            return [Rotation(*row) for row in await connection.execute(query)]


def _keep(of: dict[tuple[str, str], set[str]], incident: Incident, *, holds: bool) -> None:
    party = incident.party
    if party is None:
        return
    key = (party.issuer, party.subject)
    ids = of.setdefault(key, set())
    if holds:
        ids.add(incident.id)
    else:
        ids.discard(incident.id)
    if not ids:
        del of[key]


def _select() -> Select[Any]:
    return select(*_COLUMNS)


async def _all(connection: AsyncConnection, query: Select[Any]) -> list[Incident]:
    return [Incident(*row) for row in await connection.execute(query)]


def _open_key(kind: str, issuer: str, value: str) -> bytes:
    text = f"{kind}:{len(issuer)}:{issuer}{value}"
    return hashlib.sha256(text.encode()).digest()
