"""A database that was restored from a backup: what it may have forgotten is ended.

A backup knows nothing of what came after it: a revocation, an incident, a grant that was taken
back, a use that was spent. Left alone, the database would give back what somebody had taken away.
What can't be known is treated as ended.

Invariants:

- All of it is one transaction: whatever ends the process, either nothing was changed or all was.
- No token that was issued before counts after it: no signing key of the backup is kept, so neither
  one that was revoked after the backup signs again.
- Nothing that gives more than the grants file gives by itself outlives it, but what ``keep`` names.
- It runs where no broker does (`store.alone`). One that knows the backup as a copy (`store.home`)
  does not start before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Literal, NamedTuple, get_args

from sqlalchemy import ColumnElement, Table, Update, delete, or_, select, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.store.admin_actions import AdminActions
from valetkey.broker.store.alone import Reasons, alone, connected, refusing
from valetkey.broker.store.database import Database
from valetkey.broker.store.epochs import EVERYBODY
from valetkey.broker.store.home import move, place_of
from valetkey.broker.store.schema import (
    APPROVALS,
    DEFERRALS,
    EPOCHS,
    FEED_STREAMS,
    GRANT_USES,
    GRANTS,
    HOME,
    NOTICES,
    SCIM_RESOURCES,
    SIGNING_KEYS,
    STATUS_ENTRIES,
    WINDOWS,
)
from valetkey.contracts import codes
from valetkey.sql.settings import PostgresSettings

Kept = Literal["grants", "windows", "approvals", "uses", "users"]
KEPT: Final[tuple[Kept, ...]] = get_args(Kept)
REASONS: Final = Reasons(
    no_database=codes.RESTORED_NO_DATABASE,
    in_use=codes.RESTORED_IN_USE,
    database=codes.RESTORED_DATABASE,
)
_ACTOR: Final = "system:restored"


class Ended(NamedTuple):
    """How much of a kind was ended."""

    kind: str
    number: int


class Ending(NamedTuple):
    """What is ended besides all tokens.

    ``counted`` says how many uses the grants of the file give that count them, by id. ``keep``
    names what surely nobody ended since the backup. With ``attest`` everybody must attest itself
    anew, as after an incident about each subject.
    """

    counted: Mapping[str, int]
    keep: Collection[Kept]
    attest: bool


async def restored(
    url: str,
    ending: Ending | None,
    *,
    reason: str,
    clock: Callable[[], float],
    limits: PostgresSettings,
) -> list[Ended]:
    """End what the backup in the database ``url`` may have forgotten the end of.

    From then on brokers start on it where it is. ``ending`` is ``None`` for a database that was
    moved, with all that it ever had: nothing is ended. ``clock`` gives seconds since the epoch.
    Raises `ConfigError`, of these `alone.Refused` where the database is not as it must be.
    """
    async with connected(url, limits, REASONS, read=True) as connection:
        await alone(connection, REASONS, [])
        with refusing(REASONS, None):
            await connection.execute(select(true()))
    # An older backup is brought up to this version, as a broker that starts would do.
    opened = await Database.open(url, limits)
    try:
        place = await place_of(opened)
    finally:
        await opened.close()
    async with connected(url, limits, REASONS, read=False) as connection:
        await alone(connection, REASONS, _TABLES)
        database, now = Database(connection.engine, None), clock()
        await database.take_turn(connection)
        found: list[Ended] = []
        details: dict[str, Any] = {}
        if ending is not None:
            found = await _end(connection, database, ending, now, reason)
            details = {
                "ended": {ended.kind: ended.number for ended in found},
                "kept": sorted(ending.keep),
                "attest": ending.attest,
            }
        await move(connection, database, place, now=now)
        await AdminActions(database, clock=lambda: now).record(
            connection,
            actor=_ACTOR,
            action="database.moved" if ending is None else "database.restored",
            subject="database",
            reason=reason,
            details=details,
        )
        await connection.commit()
        return found


async def _end(
    connection: AsyncConnection, database: Database, ending: Ending, now: float, reason: str
) -> list[Ended]:
    keep = ending.keep
    found = [
        await _delete(connection, "signing keys", SIGNING_KEYS),
        # Who polls is told that there is no such stream, drops everything, and begins anew.
        # Who is pushed to is told nothing of that, and keeps its stream.
        await _delete(connection, "streams", FEED_STREAMS, FEED_STREAMS.c.push_url == ""),
        # A list that nobody keeps is an answer that verifiers must refuse on.
        await _delete(connection, "status entries", STATUS_ENTRIES),
        await _delete(connection, "deferral codes", DEFERRALS),
    ]
    if "windows" not in keep:
        found.append(await _count(connection, "windows", _close_windows(now, reason)))
    if "grants" not in keep:
        found.append(await _count(connection, "grants made by API", _end_grants(now, reason)))
    if "approvals" not in keep:
        waiting = await _count(connection, "approvals", _expire_requests(now))
        given = await _count(connection, "approvals", _revoke_approvals(now))
        found.append(Ended("approvals", waiting.number + given.number))
        await connection.execute(delete(NOTICES))  # about what nobody can decide on any more
    if "uses" not in keep:
        found.append(await _spend(connection, database, ending.counted, now))
    if "users" not in keep:
        found.append(await _count(connection, "provisioned users", _deactivate()))
    if ending.attest:
        await _attest(connection, database, now, reason)
    return found


_TABLES: Final = (
    SIGNING_KEYS, FEED_STREAMS, STATUS_ENTRIES, DEFERRALS, WINDOWS, GRANTS, APPROVALS, NOTICES,
    GRANT_USES, SCIM_RESOURCES, EPOCHS, HOME,
)  # fmt: skip


async def _delete(
    connection: AsyncConnection, kind: str, table: Table, which: ColumnElement[bool] | None = None
) -> Ended:
    gone = delete(table) if which is None else delete(table).where(which)
    return Ended(kind, (await connection.execute(gone)).rowcount)


async def _count(connection: AsyncConnection, kind: str, change: Update) -> Ended:
    return Ended(kind, (await connection.execute(change)).rowcount)


def _close_windows(now: float, reason: str) -> Update:
    return (
        update(WINDOWS)
        .where(WINDOWS.c.closed_at.is_(None))
        .values(closed_at=now, closed_by=_ACTOR, closed_by_issuer="", closed_reason=reason)
    )


def _end_grants(now: float, reason: str) -> Update:
    return (
        update(GRANTS)
        .where(GRANTS.c.ended_at.is_(None))
        .values(ended_at=now, ended_by=_ACTOR, ended_by_issuer="", ended_reason=reason)
    )


def _expire_requests(now: float) -> Update:
    """Somebody may have said no."""
    waits = (APPROVALS.c.decision == "pending") & (APPROVALS.c.expires_at > now)
    return update(APPROVALS).where(waits).values(expires_at=now, open_digest=None)


def _revoke_approvals(now: float) -> Update:
    """It may have been used."""
    left = or_(APPROVALS.c.uses_left.is_(None), APPROVALS.c.uses_left > 0)
    given = (APPROVALS.c.decision == "approved") & (APPROVALS.c.until > now) & left
    return update(APPROVALS).where(given).values(decision="revoked", decided_at=now)


async def _spend(
    connection: AsyncConnection, database: Database, counted: Mapping[str, int], now: float
) -> Ended:
    """Count every use of these grants as spent: nobody knows how many are."""
    spent = 0
    by_api = select(GRANTS.c.id, GRANTS.c.max_uses).where(
        GRANTS.c.ended_at.is_(None), GRANTS.c.max_uses.is_not(None)
    )
    kept = {row.id: row.max_uses for row in await connection.execute(by_api)}
    for grant, most in {**counted, **kept}.items():
        used = database.insert(GRANT_USES).values(grant_id=grant, uses=most, used_at=now)
        used = used.on_conflict_do_update(
            index_elements=[GRANT_USES.c.grant_id],
            set_={"uses": most, "used_at": now},
            where=GRANT_USES.c.uses < most,
        )
        spent += (await connection.execute(used)).rowcount
    return Ended("counted grants", spent)


def _deactivate() -> Update:
    """Until somebody provisions them again, who may have deactivated some of them."""
    columns = SCIM_RESOURCES.c
    return (
        update(SCIM_RESOURCES)
        .where(columns.kind == "User", columns.active)
        .values(active=False, version=columns.version + 1)
    )


async def _attest(connection: AsyncConnection, database: Database, now: float, reason: str) -> None:
    issuer, subject = EVERYBODY
    longest = int(getattr(EPOCHS.c.reason.type, "length", 0))
    row = database.insert(EPOCHS).values(
        issuer=issuer,
        subject=subject,
        epoch=0,
        bumped_at=now,
        reason=reason[:longest],
        attest_after=now,
    )
    row = row.on_conflict_do_update(
        index_elements=[EPOCHS.c.issuer, EPOCHS.c.subject],
        set_={name: row.excluded[name] for name in ("bumped_at", "reason", "attest_after")},
    )
    await connection.execute(row)
