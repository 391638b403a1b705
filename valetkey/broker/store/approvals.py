"""Approvals in the database, which decides every race: merging, voting, using.

Invariants:

- Requests of one digest that are open at the same time are one row, whatever replicas they came to
  (a unique key).
- A use is taken by one conditional UPDATE. When it says that nothing was left, there was nothing.
- A vote, the action that puts it on record and the notices of it are one transaction.
- Nothing of this is remembered outside the database: a broker that is killed forgets nothing.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import (
    ColumnElement,
    RowMapping,
    and_,
    delete,
    func,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.core.approvals import (
    Approval,
    Identity,
    Request,
    State,
    Terms,
    Vote,
    Voter,
)
from valetkey.broker.store.admin_actions import AdminActions
from valetkey.broker.store.database import Database
from valetkey.broker.store.schema import APPROVAL_VOTES, APPROVALS
from valetkey.broker.trust.admins import Admin
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError

Announce = Callable[[AsyncConnection, str, "Entry", float], Awaitable[None]]
"""Puts a notice of an event and its approval in line: ``(connection, event, entry, now)``."""

Claim = Callable[[AsyncConnection], Awaitable[object]]
"""Uses up something else in the same transaction; an exception undoes all of it."""

# Each round is one transaction that saw somebody else get in between.
_ROUNDS: Final = 5
_ID_BYTES: Final = 16
# A token lives for a whole second at least; no use is spent on one that could not.
_LEAST_LIFE: Final = 1.0
_A: Final = APPROVALS.c


class _Decided(Exception):  # noqa: N818 - it is what happened
    """Somebody decided in between: look again, and undo what was done on the old sight."""


class Taken(NamedTuple):
    """One use of an approval. ``single_use``: the uses are counted."""

    id: str
    single_use: bool
    until: float


class Waiting(NamedTuple):
    """It is before people. ``opened``: by this very request."""

    id: str
    expires_at: float
    opened: bool


class Denied(NamedTuple):
    """A no that still stands."""

    id: str


@dataclass(frozen=True, slots=True)
class Entry:
    """An approval as it is listed. ``purpose`` is what the asking side wrote: untrusted."""

    approval: Approval
    purpose: str
    used: int


class Approvals:
    """``open_limit`` bounds what one workload can have open at once."""

    def __init__(
        self, database: Database, actions: AdminActions, announce: Announce, *, open_limit: int
    ) -> None:
        self._database = database
        self._actions = actions
        self._announce = announce
        self._open_limit = open_limit

    # --- asking -------------------------------------------------------------------------------

    async def take_or_open(
        self,
        request: Request,
        *,
        purpose: str,
        expires: float,
        valid: float,
        now: float,
        claim: Claim | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Taken | Waiting | Denied:
        """A use of an approval of this request, or else the request before people.

        ``expires`` (how long it waits) and ``valid`` (how long a yes may count) are in seconds.
        ``claim`` is what else the token uses up, in the same transaction: both or neither. An
        exception of ``check``, called at the end of it, undoes all of it. Raises `StoreError`, and
        `CallerError` where the workload has too much open.
        """
        digest = request.digest()
        for _ in range(_ROUNDS):
            with contextlib.suppress(_Decided):
                async with self._database.write() as connection:
                    if claim is not None:
                        # First of all: who holds rows never waits for the order of changes.
                        await self._database.take_turn(connection)
                    taken = await self._take(connection, _A.digest == digest, now)
                    if taken is not None:
                        if claim is not None:
                            await claim(connection)
                        check()
                        return taken
                    denied = await self._standing_denial(connection, digest, now)
                    if denied is not None:
                        return denied
                    waiting = await self._open(
                        connection, request, digest, purpose, expires, valid, now
                    )
                    check()
                    return waiting
        raise CallerError(codes.SERVICE_UNAVAILABLE, "the approval kept changing")

    async def take(
        self, connection: AsyncConnection, approval: str, digest: str, *, now: float
    ) -> Taken | None:
        """One use of this approval, if it is of that request and there is one left."""
        return await self._take(connection, and_(_A.id == approval, _A.digest == digest), now)

    @staticmethod
    async def _take(
        connection: AsyncConnection, which: ColumnElement[bool], now: float
    ) -> Taken | None:
        usable = and_(
            which,
            _A.decision == "approved",
            _A.until >= now + _LEAST_LIFE,
            or_(_A.uses_left.is_(None), _A.uses_left > 0),
        )
        first = select(_A.id).where(usable).order_by(_A.until, _A.id).limit(1).scalar_subquery()
        statement = (
            update(APPROVALS)
            # What is asked again here holds for the row as it is when its turn comes.
            .where(_A.id == first, usable)
            .values(uses_left=_A.uses_left - 1, used=_A.used + 1)
            .returning(_A.id, _A.uses_left, _A.until)
        )
        row = (await connection.execute(statement)).first()
        return None if row is None else Taken(row.id, row.uses_left is not None, row.until)

    @staticmethod
    async def _standing_denial(
        connection: AsyncConnection, digest: str, now: float
    ) -> Denied | None:
        """A no stands as long as the request would have waited: asking again changes nothing."""
        query = (
            select(_A.id)
            .where(_A.digest == digest, _A.decision == "denied", _A.expires_at > now)
            .order_by(_A.decided_at.desc())
            .limit(1)
        )
        found = (await connection.execute(query)).scalar()
        return None if found is None else Denied(found)

    async def _open(
        self,
        connection: AsyncConnection,
        request: Request,
        digest: str,
        purpose: str,
        expires: float,
        valid: float,
        now: float,
    ) -> Waiting:
        """Join the open request of this digest, or open it. Raises `_Decided`."""
        stale = update(APPROVALS).where(_A.open_digest == digest, _A.expires_at <= now)
        await connection.execute(stale.values(open_digest=None))
        open_ = select(_A.id, _A.expires_at).where(_A.open_digest == digest)
        row = (await connection.execute(open_)).first()
        if row is not None:
            return Waiting(row.id, row.expires_at, opened=False)
        await self._check_limit(connection, request.client, now)
        approval = Approval(
            id="apr_" + secrets.token_urlsafe(_ID_BYTES),
            request=request,
            opened_at=now,
            expires_at=now + expires,
            valid=valid,
        )
        values = {
            "id": approval.id,
            "digest": digest,
            "open_digest": digest,
            "client_issuer": request.client.issuer,
            "client_subject": request.client.subject,
            "request": msgspec.json.encode(request).decode(),
            "purpose": purpose,
            "opened_at": now,
            "expires_at": approval.expires_at,
            "valid": valid,
            "decision": "pending",
            "uses_left": None,
            "used": 0,
            "until": 0.0,
            "decided_at": 0.0,
        }
        statement = self._database.insert(APPROVALS).values(values)
        statement = statement.on_conflict_do_nothing(index_elements=[_A.open_digest])
        if (await connection.execute(statement)).rowcount:
            # Whoever decided on the one before did so before this row could be there: what was
            # not to be seen when it was looked for is now, and makes this one superfluous.
            settled = select(_A.id).where(_A.digest == digest, _A.id != approval.id)
            if (await connection.execute(settled.where(_settled(now)).limit(1))).first():
                raise _Decided
            await self._announce(connection, "requested", Entry(approval, purpose, 0), now)
            return Waiting(approval.id, approval.expires_at, opened=True)
        row = (await connection.execute(open_)).first()
        if row is None:
            raise _Decided
        return Waiting(row.id, row.expires_at, opened=False)

    async def _check_limit(self, connection: AsyncConnection, client: Identity, now: float) -> None:
        count = select(func.count()).where(
            _A.client_issuer == client.issuer,
            _A.client_subject == client.subject,
            _A.open_digest.is_not(None),
            _A.expires_at > now,
        )
        if (await connection.execute(count)).scalar_one() >= self._open_limit:
            raise CallerError(
                codes.SERVICE_RATE_LIMITED, f"{client.subject} has {self._open_limit} requests open"
            )

    # --- deciding -----------------------------------------------------------------------------

    async def approve(
        self,
        approval: str,
        admin: Admin,
        voter: Voter,
        *,
        reason: str,
        uses: int | None,
        until: float | None,
        now: float,
    ) -> Entry:
        """One person's yes. Raises `CallerError`, `StoreError`."""
        async with self._database.write() as connection:
            before = await self._locked(connection, approval)
            after = before.approval.approve(voter, now=now, reason=reason, uses=uses, until=until)
            vote = after.votes[-1]
            await self._keep(connection, after, vote)
            await self._actions.record(
                connection,
                actor=admin,
                action="approval.approve",
                subject=approval,
                reason=reason,
                details={
                    "digest": after.request.digest(),
                    "uses": vote.terms.uses,
                    "until": vote.terms.until,
                    "decision": after.decision,
                },
            )
            entry = replace(before, approval=after)
            if after.decision == "approved":
                await self._announce(connection, "approved", entry, now)
        return entry

    async def deny(
        self, approval: str, admin: Admin, voter: Voter, *, reason: str, now: float
    ) -> Entry:
        """One person's no, which ends it. Raises `CallerError`, `StoreError`."""
        async with self._database.write() as connection:
            before = await self._locked(connection, approval)
            after = before.approval.deny(voter, now=now, reason=reason)
            await self._keep(connection, after, after.votes[-1])
            await self._record_end(connection, admin, "approval.deny", after, reason)
            entry = replace(before, approval=after)
            await self._announce(connection, "denied", entry, now)
        return entry

    async def revoke(self, approval: str, admin: Admin, *, reason: str, now: float) -> Entry:
        """Take back the uses that are left. Raises `CallerError`, `StoreError`."""
        async with self._database.write() as connection:
            before = await self._locked(connection, approval)
            after = before.approval.revoke(now=now)
            await self._keep(connection, after, None)
            await self._record_end(connection, admin, "approval.revoke", after, reason)
            entry = replace(before, approval=after)
            await self._announce(connection, "revoked", entry, now)
        return entry

    async def _record_end(
        self, connection: AsyncConnection, admin: Admin, action: str, after: Approval, reason: str
    ) -> None:
        await self._actions.record(
            connection,
            actor=admin,
            action=action,
            subject=after.id,
            reason=reason,
            details={"digest": after.request.digest(), "decision": after.decision},
        )

    async def _locked(self, connection: AsyncConnection, approval: str) -> Entry:
        """The approval, which nobody else changes before this transaction ends."""
        # First of all, as the record of the action takes it too: see `take_or_open`.
        await self._database.take_turn(connection)
        query = select(APPROVALS).where(_A.id == approval).with_for_update()
        row = (await connection.execute(query)).mappings().first()
        if row is None:
            raise CallerError(codes.SERVICE_NOT_FOUND, "no such approval")
        (entry,) = await _entries(connection, [row])
        return entry

    async def _keep(
        self, connection: AsyncConnection, approval: Approval, vote: Vote | None
    ) -> None:
        if vote is not None:
            values = {
                "approval": approval.id,
                "issuer": vote.voter.issuer,
                "subject": vote.voter.subject,
                "approves": vote.approves,
                "reason": vote.reason,
                "at": vote.at,
                "uses": vote.terms.uses,
                "until": vote.terms.until,
            }
            key = [APPROVAL_VOTES.c.approval, APPROVAL_VOTES.c.issuer, APPROVAL_VOTES.c.subject]
            statement = self._database.insert(APPROVAL_VOTES).values(values)
            statement = statement.on_conflict_do_update(index_elements=key, set_=values)
            await connection.execute(statement)
        if approval.decision == "pending":
            return
        change = {
            "decision": approval.decision,
            "open_digest": None,
            "uses_left": approval.uses_left,
            "until": approval.until,
            "decided_at": approval.decided_at,
        }
        await connection.execute(update(APPROVALS).where(_A.id == approval.id).values(change))

    # --- looking ------------------------------------------------------------------------------

    async def get(self, approval: str) -> Entry | None:
        """One approval. Raises `StoreError`."""
        async with self._database.read() as connection:
            row = (
                (await connection.execute(select(APPROVALS).where(_A.id == approval)))
                .mappings()
                .first()
            )
            if row is None:
                return None
            (entry,) = await _entries(connection, [row])
            return entry

    async def page(
        self, *, state: State | None, before: tuple[float, str] | None, limit: int, now: float
    ) -> list[Entry]:
        """The newest first; ``before`` is time and id of the last one of the page before."""
        query = select(APPROVALS).order_by(_A.opened_at.desc(), _A.id.desc()).limit(limit)
        if state is not None:
            query = query.where(_in_state(state, now))
        if before is not None:
            query = query.where(tuple_(_A.opened_at, _A.id) < before)
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).mappings().all()
            return await _entries(connection, rows)

    async def count_open(self, now: float) -> int:
        query = select(func.count()).select_from(APPROVALS).where(_in_state("pending", now))
        async with self._database.read() as connection:
            return int((await connection.execute(query)).scalar_one())

    async def waiting(self, now: float) -> tuple[int, float]:
        """How many are before people, and since when the oldest (``now`` where there is none)."""
        query = select(func.count(), func.min(_A.opened_at)).where(_in_state("pending", now))
        async with self._database.read() as connection:
            count, oldest = (await connection.execute(query)).one()
        return count, now if oldest is None else oldest

    async def sweep(self, *, before: float, now: float) -> None:
        """Forget what was over before that time; let go of what has expired."""
        stale = update(APPROVALS).where(_A.open_digest.is_not(None), _A.expires_at <= now)
        over = and_(_A.expires_at < before, _A.until < before)
        gone = select(_A.id).where(over)
        async with self._database.write() as connection:
            await connection.execute(stale.values(open_digest=None))
            await connection.execute(
                delete(APPROVAL_VOTES).where(APPROVAL_VOTES.c.approval.in_(gone))
            )
            await connection.execute(delete(APPROVALS).where(over))


def _settled(now: float) -> ColumnElement[bool]:
    """Whether the same request, asked again, opens nothing: a use is left, or a no stands."""
    return or_(
        and_(_in_state("approved", now), _A.until >= now + _LEAST_LIFE),
        and_(_A.decision == "denied", _A.expires_at > now),
    )


def _in_state(state: State, now: float) -> ColumnElement[bool]:
    """`Approval.state` as a condition."""
    spent = _A.uses_left == 0
    unspent = or_(_A.uses_left.is_(None), _A.uses_left > 0)
    match state:
        case "pending":
            return and_(_A.decision == "pending", _A.expires_at > now)
        case "expired":
            return and_(_A.decision == "pending", _A.expires_at <= now)
        case "approved":
            return and_(_A.decision == "approved", unspent, _A.until > now)
        case "ended":
            return and_(_A.decision == "approved", unspent, _A.until <= now)
        case "used":
            return and_(_A.decision == "approved", spent)
        case "denied" | "revoked":
            return _A.decision == state


async def _entries(connection: AsyncConnection, rows: Sequence[RowMapping]) -> list[Entry]:
    """Approvals with their votes, in the order of the rows."""
    ids = [row["id"] for row in rows]
    query = (
        select(APPROVAL_VOTES)
        .where(APPROVAL_VOTES.c.approval.in_(ids))
        .order_by(APPROVAL_VOTES.c.at, APPROVAL_VOTES.c.subject)
    )
    votes: dict[str, list[Vote]] = {}
    for row in (await connection.execute(query)).mappings():
        votes.setdefault(row["approval"], []).append(
            Vote(
                Identity(row["issuer"], row["subject"]),
                approves=bool(row["approves"]),
                reason=row["reason"],
                at=row["at"],
                terms=Terms(row["uses"], row["until"]),
            )
        )
    return [_entry(row, votes.get(row["id"], [])) for row in rows]


def _entry(row: RowMapping, votes: Sequence[Vote]) -> Entry:
    known: dict[str, Any] = {
        name: row[name]
        for name in ("id", "opened_at", "expires_at", "valid", "decision", "uses_left", "until")
    }
    request = msgspec.json.decode(row["request"], type=Request)
    approval = Approval(**known, request=request, decided_at=row["decided_at"], votes=tuple(votes))
    return Entry(approval, row["purpose"], row["used"])
