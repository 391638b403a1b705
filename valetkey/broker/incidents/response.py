"""Opening and closing incidents: everything that one call does, in one transaction.

What the transaction holds: the incident, what it ends (in force at every replica within a second),
the subject's new epoch, the signals to sidecars, what issuers are asked to rotate, and who did it
and why. So a broker that is killed in the middle has done all of it or nothing, and what it
acknowledged it has done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.core.incidents import (
    LIFTED_WHEN_CLOSED,
    Exposure,
    Incident,
    is_again,
    lacks,
    may_close,
    measures,
)
from valetkey.broker.incidents.rotation import Rotates
from valetkey.broker.metrics import Metrics
from valetkey.broker.settings import MAX_TTL
from valetkey.broker.store.admin_actions import AdminActions
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database
from valetkey.broker.store.epochs import Epochs
from valetkey.broker.store.incidents import Incidents
from valetkey.broker.store.revocations import FOREVER, Kind, Revocations
from valetkey.broker.store.signals import Signals
from valetkey.broker.trust.admins import Admin
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.contracts.jose import LEEWAY
from valetkey.contracts.logs import Log
from valetkey.contracts.signals import Signal

MAX_REASON: Final = 1000
MAX_EVIDENCE: Final = 2000


@dataclass(frozen=True, slots=True)
class Report:
    """What somebody says has happened.

    ``source`` is the way it came (``admin``, ``revocation``, ``github``, ``ssf:NAME``), ``by`` who
    says it. ``evidence`` is where it was seen. ``seen_at`` (seconds since the epoch) is when.
    """

    exposure: Exposure
    source: str
    by: Admin | str
    reason: str
    evidence: str = ""
    seen_at: float | None = None

    @property
    def who(self) -> str:
        return f"{self.by.subject} of {self.by.issuer}" if isinstance(self.by, Admin) else self.by


class Response:
    """``clock`` gives seconds since the epoch, ``audiences`` are those of all targets."""

    def __init__(
        self,
        database: Database,
        changes: Changes,
        incidents: Incidents,
        revocations: Revocations,
        epochs: Epochs,
        signals: Signals,
        actions: AdminActions,
        rotators: Iterable[Rotates],
        metrics: Metrics,
        *,
        audiences: Iterable[str],
        clock: Callable[[], float],
        random_id: Callable[[], str],
    ) -> None:
        self._database = database
        self._changes = changes
        self._incidents = incidents
        self._revocations = revocations
        self._epochs = epochs
        self._signals = signals
        self._actions = actions
        self._rotators = tuple(rotators)
        self._metrics = metrics
        self._log = Log("broker.incidents")
        self._audiences = tuple(audiences)
        self._clock = clock
        self._random_id = random_id

    async def open(self, report: Report) -> tuple[Incident, bool]:
        """Open an incident, in force at this replica when this returns; whether anything was new.

        One that is open about the same thing stays the one; its subject is contained again if it
        had attested itself before this was seen, and contained at last if only this report says
        whose the thing is. Raises `StoreError`: it may be in force then.
        """
        async with self._database.write() as connection:
            incident, new = await self.open_within(connection, report)
        await self.opened(incident, new=new)
        return incident, new

    async def opened(self, incident: Incident, *, new: bool) -> None:
        """What comes after the transaction: be current before anybody is told."""
        await self._changes.catch_up()
        if new:
            self._metrics.incidents.labels(incident.source).inc()
            self._log.warning(
                "incident_opened",
                instance=incident.id,
                action=incident.kind,
                subject=incident.subject,
                issuer=incident.subject_issuer,
                reason=incident.reason,
            )

    async def open_within(
        self, connection: AsyncConnection, report: Report
    ) -> tuple[Incident, bool]:
        """As `open`, within a transaction of the caller's, who calls `opened` after it."""
        now = self._clock()
        # What has one order is written in one order: else two of these could wait for each other.
        await self._database.take_turn(connection)
        incident = self._made(report, now)
        evidence = incident.evidence
        known = await self._incidents.add(connection, incident)
        if known is not None:
            # In doubt about whose clock is right, it happened after the attestation.
            seen_at = now if report.seen_at is None else report.seen_at + LEEWAY
            if lacks(known, report.exposure):
                known = replace(
                    known, subject_issuer=incident.subject_issuer, subject=incident.subject
                )
            elif not is_again(known, at=seen_at):
                return known, False
            incident = replace(
                known,
                reason=incident.reason,
                evidence=known.evidence or incident.evidence,
                renewed_at=now,
                contained_at=None,
                attested_at=None,
            )
        epoch = await self._contain(connection, incident, report.exposure, now)
        incident = replace(incident, epoch=epoch)
        await self._incidents.change(
            connection,
            incident.id,
            subject_issuer=incident.subject_issuer,
            subject=incident.subject,
            epoch=epoch,
            reason=incident.reason,
            evidence=incident.evidence,
            renewed_at=now,
            contained_at=None,
            attested_at=None,
        )
        asked = [rotator.name for rotator in self._rotators if rotator.concerns(incident)]
        await self._incidents.ask(connection, incident.id, asked)
        await self._actions.record(
            connection,
            actor=report.by if isinstance(report.by, Admin) else f"system:{report.source}",
            action="incident.open" if known is None else "incident.renew",
            subject=f"incident:{incident.id}",
            reason=incident.reason,
            details={
                "kind": incident.kind,
                "value": incident.value,
                "issuer": incident.issuer,
                "contains": incident.subject,
                "contains_issuer": incident.subject_issuer,
                "epoch": epoch,
                "source": incident.source,
                "evidence": evidence,
            },
        )
        return incident, True

    async def close(
        self, incident: Incident, *, by: Admin, reason: str, force: bool
    ) -> Incident | None:
        """Close it; ``None`` if somebody else did. Raises `CallerError` where it may not be."""
        refused = may_close(incident, force=force)
        if refused:
            raise CallerError(codes.INCIDENT_OPEN, refused)
        now = self._clock()
        forced = incident.awaits_attestation
        async with self._database.write() as connection:
            await self._database.take_turn(connection)
            values = {
                "closed_at": now,
                "closed_by": f"{by.subject} of {by.issuer}",
                "close_reason": reason,
                "forced": forced,
            }
            unchanged = {"epoch": incident.epoch, "attested_at": incident.attested_at}
            if not await self._incidents.close(connection, incident.id, unchanged, **values):
                return None
            if incident.kind in LIFTED_WHEN_CLOSED:
                kind: Kind = "grant" if incident.kind == "grant" else "target"
                await self._revocations.lift(
                    connection, kind, incident.value, at=now, until=now + MAX_TTL
                )
            await self._actions.record(
                connection,
                actor=by,
                action="incident.force_close" if forced else "incident.close",
                subject=f"incident:{incident.id}",
                reason=reason,
                details={"attested_at": incident.attested_at},
            )
        await self._changes.catch_up()
        return await self._incidents.get(incident.id)

    def _made(self, report: Report, now: float) -> Incident:
        exposure = report.exposure
        party = exposure.party
        return Incident(
            id=f"inc_{self._random_id()}",
            kind=exposure.kind,
            value=exposure.value,
            issuer=exposure.issuer,
            subject_issuer=party.issuer if party else "",
            subject=party.subject if party else "",
            epoch=0,
            source=report.source,
            # PostgreSQL keeps no NUL, and what others write must not keep an incident from opening.
            reason=report.reason.replace("\0", "")[:MAX_REASON],
            evidence=report.evidence.replace("\0", "")[:MAX_EVIDENCE],
            opened_at=now,
            opened_by=report.who,
            renewed_at=now,
            contained_at=None,
            attested_at=None,
            closed_at=None,
            closed_by="",
            close_reason="",
            forced=False,
        )

    async def _contain(
        self, connection: AsyncConnection, incident: Incident, exposure: Exposure, now: float
    ) -> int:
        """End what has to end; gives the epoch that the subject has then, 0 without one."""
        txn, reason = incident.id, incident.reason
        for measure in measures(exposure, now=now, longest_life=MAX_TTL, forever=FOREVER):
            await self._revocations.end(
                connection, measure.kind, measure.value, until=measure.until, txn=txn, reason=reason
            )
        if incident.kind == "key" and any(
            rotator.name == "signing-keys" and rotator.concerns(incident)
            for rotator in self._rotators
        ):
            # Sidecars don't look at who signed: all that they hold may be under this key.
            for audience in self._audiences:
                signal = Signal(kind="target", value=audience, at=now, txn=txn, reason=reason)
                await self._signals.publish(connection, signal)
        party = incident.party
        if party is None:
            return 0
        return await self._epochs.bump(
            connection,
            party.issuer,
            party.subject,
            at=now,
            reason=reason,
            attest=True,
            txn=txn,
        )
