"""What was revoked: in the database for restarts, in memory for the check on every call.

Kinds, and what their values are:

- ``jti``: one token.  ``txn``: all tokens of one transaction.
- ``hash``: the token whose SHA-256 is this one, base64url; nobody needs to know which it is.
- ``grant``: a grant's id.  ``target``: a target's audience.  ``subject``: see `subject_value`.
- ``key``: the RFC 7638 thumbprint of a key that tokens are bound to or signed with.

Invariants:

- A revocation is in the database before it is acknowledged, and counts in memory from before that
  write: whatever fails in between, the token is refused.
- It is told to sidecars in the transaction that makes it (`store.signals`).
- It is forgotten only when what it refuses has expired anyway.
- What refuses up to a time never takes the place of what refuses whenever issued, nor of a later
  time.
- What was lifted still refuses the tokens from before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from sqlalchemy import ColumnElement, case, delete, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database, in_parts
from valetkey.broker.store.schema import REVOCATIONS
from valetkey.contracts import es256
from valetkey.contracts.jose import MAX_TIME, b64url
from valetkey.contracts.signals import Kind as SignalKind
from valetkey.contracts.signals import Signal

Kind = Literal["jti", "txn", "hash", "grant", "target", "subject", "key"]
FOREVER: Final = float(MAX_TIME)
_TOPIC: Final = "revocation"
_SIGNALS: Final[dict[Kind, SignalKind]] = {
    "jti": "token",
    "hash": "hash",
    "txn": "txn",
    "grant": "grant",
    "target": "target",
    "key": "key",
}
# The key of a change after which all is read again, and of how many it does not take that.
_EVERYTHING: Final = ""
_SINGLY: Final = 50
_INDEXED: Final = frozenset({"grant", "hash"})
# The longest life of a token (`settings.MAX_TTL`).
LONGEST_LIFE: Final = 3600.0
# What is not committed yet counts in memory for as long at least as any token lives.
_PROVISIONAL: Final = LONGEST_LIFE


class Publisher(Protocol):
    """Tells sidecars what has ended."""

    async def publish(self, connection: AsyncConnection, signal: Signal) -> str: ...
    async def publish_all(self, connection: AsyncConnection, signals: Sequence[Signal]) -> None: ...


class UpTo(Protocol):
    """Up to which time of issue (seconds since the epoch) tokens are refused, and why."""

    @property
    def at(self) -> float: ...
    @property
    def reason(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Ending:
    """Until when it counts, and up to which time of issue (``None``: whenever)."""

    until: float
    issued_before: float | None


def subject_value(issuer: str, subject: str) -> str:
    """The value that stands for a subject: subjects are unique only within their issuer."""
    text = f"{len(issuer)}:{issuer}{subject}"  # the length keeps two splits apart
    return b64url(hashlib.sha256(text.encode()).digest())


def token_value(compact: str) -> str:
    """The value that stands for a token in kind ``hash``."""
    return b64url(hashlib.sha256(compact.encode()).digest())


def token_values(compact: str) -> tuple[str, str]:
    """Those of an ES256 token: as it is, and with the other signature that anybody can give it."""
    return token_value(compact), token_value(es256.twin(compact))


class Revocations:
    """``clock`` gives seconds since the epoch."""

    def __init__(
        self,
        database: Database,
        changes: Changes,
        signals: Publisher,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._changes = changes
        self._signals = signals
        changes.subscribe(_TOPIC, self._changed)
        self._clock = clock
        self._endings: dict[tuple[str, str], Ending] = {}
        self._grants: frozenset[str] = frozenset()
        self._hashes = 0

    def __len__(self) -> int:
        return len(self._endings)

    async def load(self) -> None:
        """Read what was revoked, by an earlier run before the first request."""
        columns = REVOCATIONS.c
        query = select(columns.kind, columns.value, columns.expires_at, columns.issued_before)
        async with self._database.read() as connection:
            for kind, value, until, issued_before in await connection.execute(query):
                self._endings[kind, value] = Ending(until, issued_before)
        self._index()

    # --- what counts --------------------------------------------------------------------------

    def is_revoked(self, jti: str, txn: str) -> bool:
        """Whether the token, or the transaction that it belongs to, was revoked."""
        return ("jti", jti) in self._endings or ("txn", txn) in self._endings

    def refuses(self, kind: Kind, value: str, *, issued_at: float) -> bool:
        """Whether a token that was issued then is refused for this."""
        ending = self._endings.get((kind, value))
        return ending is not None and (
            ending.issued_before is None or issued_at <= ending.issued_before
        )

    def blocks(self, kind: Kind, value: str) -> bool:
        """Whether no new token may be had for this."""
        ending = self._endings.get((kind, value))
        return ending is not None and ending.issued_before is None

    @property
    def ended_grants(self) -> frozenset[str]:
        """The grants under which no new token may be had."""
        return self._grants

    @property
    def any_hash(self) -> bool:
        """Whether tokens are revoked by their hash, so that looking one up makes sense."""
        return self._hashes > 0

    # --- changes ------------------------------------------------------------------------------

    async def revoke(self, *, jti: str, txn: str, expires: float, descendants: float) -> bool:
        """Revoke one token and all of its transaction; whether it was not so already.

        ``expires`` is the token's own expiry, ``descendants`` the latest that a token of the same
        transaction can have. What is stored already is not written, nor told to anybody, again.
        Raises `StoreError`; the token is refused all the same.
        """
        self._note("jti", jti, expires)
        self._note("txn", txn, max(expires, descendants))
        if await self._are_stored(("jti", jti), ("txn", txn), until=expires):
            return False
        async with self._database.write_in_turn() as connection:
            await self.end(connection, "jti", jti, until=expires)
            await self.end(connection, "txn", txn, until=max(expires, descendants))
        return True

    async def _are_stored(self, *endings: tuple[Kind, str], until: float) -> bool:
        """Whether all of these are in the database, for so long at least.

        What is in memory does not say that: it counts from before it is written. A transaction
        that was ended has had no new token since, so its row need not last longer than it does.
        """
        columns = REVOCATIONS.c
        query = select(columns.kind, columns.value).where(
            tuple_(columns.kind, columns.value).in_(endings),
            columns.issued_before.is_(None),
            columns.expires_at >= until,
        )
        async with self._database.read() as connection:
            return len((await connection.execute(query)).all()) == len(endings)

    async def end(
        self,
        connection: AsyncConnection,
        kind: Kind,
        value: str,
        *,
        until: float,
        txn: str = "",
        reason: str = "",
    ) -> None:
        """Revoke within a transaction of the caller's, up to ``until`` or longer if it was so.

        The transaction is one of `Database.write_in_turn`, or took its turn before any row.
        It counts at once on this replica, also if that transaction fails; the caller lets
        `Changes.catch_up` run after it. ``txn`` (an incident's id, say) and ``reason`` go with
        the signal. A subject is ended by `end_subject`.
        """
        await self._end(connection, kind, value, until)
        told = _SIGNALS.get(kind)
        if told is not None:
            signal = Signal(kind=told, value=value, at=self._clock(), txn=txn, reason=reason)
            await self._signals.publish(connection, signal)

    async def end_before(
        self, connection: AsyncConnection, kind: Kind, ends: Mapping[str, UpTo]
    ) -> list[str]:
        """Refuse the tokens that were issued up to a time; new ones may be had. ``ends`` by value.

        Within a transaction of the caller's, as `end`. Where that much is refused already, or more
        (new ones too, by an incident), it stays so and nobody is told again; gives the values of
        the others. A token says its time in whole seconds: those of the second that ``at`` is in
        are refused.
        """
        for value, end in ends.items():
            self.anticipate(kind, value, at=end.at)
        known = await self._stored(connection, kind, list(ends))
        told = [value for value, end in ends.items() if not _refuses_all(known.get(value), end)]
        columns, now = REVOCATIONS.c, self._clock()
        change = self._database.insert(REVOCATIONS)
        new = change.excluded
        change = change.on_conflict_do_update(
            index_elements=[columns.kind, columns.value],
            set_={
                "expires_at": _later(columns.expires_at, new.expires_at),
                # None, for whenever issued, is earlier than nothing and stays.
                "issued_before": _later(columns.issued_before, new.issued_before),
            },
        )
        rows = [
            {
                "kind": kind,
                "value": value,
                "revoked_at": now,
                "expires_at": ends[value].at + LONGEST_LIFE,
                "issued_before": ends[value].at,
            }
            for value in told
        ]
        if not rows:
            return []
        await connection.execute(change, rows)
        # Each change is read by itself: of many, it takes less to read everything again.
        keys = [f"{kind}:{value}" for value in told] if len(told) <= _SINGLY else [_EVERYTHING]
        await self._changes.publish_all(connection, _TOPIC, keys)
        signal_kind = _SIGNALS.get(kind)
        if signal_kind is not None:
            signals = [
                Signal(kind=signal_kind, value=value, at=ends[value].at, reason=ends[value].reason)
                for value in told
            ]
            await self._signals.publish_all(connection, signals)
        return told

    async def _stored(
        self, connection: AsyncConnection, kind: Kind, values: list[str]
    ) -> dict[str, Ending]:
        columns = REVOCATIONS.c
        query = select(columns.value, columns.expires_at, columns.issued_before)
        found: dict[str, Ending] = {}
        for some in in_parts(values):
            of_these = query.where(columns.kind == kind, columns.value.in_(some))
            for value, until, issued_before in await connection.execute(of_these):
                found[value] = Ending(until, issued_before)
        return found

    def anticipate(self, kind: Kind, value: str, *, at: float) -> None:
        """Have `end_before` count at this replica before it is written. Asks nobody."""
        known = self._endings.get((kind, value))
        ending = Ending(at + LONGEST_LIFE, at)
        if known is not None:
            before = known.issued_before
            ending = Ending(
                max(known.until, ending.until), None if before is None else max(before, at)
            )
        self._endings[kind, value] = ending

    async def end_subject(
        self,
        connection: AsyncConnection,
        issuer: str,
        subject: str,
        *,
        until: float,
        txn: str = "",
        reason: str = "",
    ) -> None:
        """Have nothing of a subject count, and give it nothing, whatever it attests."""
        await self._end(connection, "subject", subject_value(issuer, subject), until)
        signal = Signal(
            kind="subject",
            value=subject,
            issuer=issuer,
            at=self._clock(),
            txn=txn,
            reason=reason,
        )
        await self._signals.publish(connection, signal)

    async def _end(self, connection: AsyncConnection, kind: Kind, value: str, until: float) -> None:
        now = self._clock()
        self._note(kind, value, min(until, now + _PROVISIONAL))
        row = {"kind": kind, "value": value, "revoked_at": now, "expires_at": until}
        change = self._database.insert(REVOCATIONS).values(row)
        columns, new = REVOCATIONS.c, change.excluded
        change = change.on_conflict_do_update(
            index_elements=[columns.kind, columns.value],
            set_={
                "expires_at": _later(columns.expires_at, new.expires_at),
                "issued_before": None,
            },
        )
        await connection.execute(change)
        await self._changes.publish(connection, _TOPIC, f"{kind}:{value}")

    async def lift(
        self, connection: AsyncConnection, kind: Kind, value: str, *, at: float, until: float
    ) -> None:
        """Let new tokens be had again; those issued up to ``at`` stay refused, to ``until``.

        It counts once the transaction is committed and not before.
        """
        change = (
            update(REVOCATIONS)
            .where(REVOCATIONS.c.kind == kind, REVOCATIONS.c.value == value)
            .values(issued_before=at, expires_at=until)
        )
        await connection.execute(change)
        await self._changes.publish(connection, _TOPIC, f"{kind}:{value}")

    async def sweep(self) -> int:
        """Forget what has expired; says how many that were in memory."""
        now = self._clock()
        expired = [key for key, ending in self._endings.items() if ending.until <= now]
        for key in expired:
            del self._endings[key]
        self._index()
        async with self._database.write() as connection:
            await connection.execute(delete(REVOCATIONS).where(REVOCATIONS.c.expires_at <= now))
        return len(expired)

    async def _changed(self, key: str) -> None:
        """A replica (or this one) changed something: what is stored is what counts."""
        if key == _EVERYTHING:
            await self.load()
            return
        kind, _, value = key.partition(":")
        columns = REVOCATIONS.c
        query = select(columns.expires_at, columns.issued_before).where(
            columns.kind == kind, columns.value == value
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).first()
        if row is not None:
            ending = self._endings[kind, value] = Ending(*row)
            # Many grants may have ended up to a time at once: those block nothing.
            blocks = ending.issued_before is None
            if kind == "hash" or (kind == "grant" and blocks is not (value in self._grants)):
                self._index()

    def _note(self, kind: Kind, value: str, until: float) -> None:
        known = self._endings.get((kind, value))
        latest = until if known is None else max(until, known.until)
        self._endings[kind, value] = Ending(latest, None)
        if kind in _INDEXED:
            self._index()

    def _index(self) -> None:
        self._hashes = sum(kind == "hash" for kind, _ in self._endings)
        self._grants = frozenset(
            value
            for (kind, value), ending in self._endings.items()
            if kind == "grant" and ending.issued_before is None
        )


def _refuses_all(known: Ending | None, end: UpTo) -> bool:
    """Whether what is stored refuses these tokens already, for as long as one of them can live."""
    return (
        known is not None
        and known.until >= end.at + LONGEST_LIFE
        and (known.issued_before is None or known.issued_before >= end.at)
    )


def _later(stored: ColumnElement[float], new: ColumnElement[float]) -> ColumnElement[float]:
    """The later of two times; one that is stored as NULL stays."""
    return case((stored < new, new), else_=stored)
