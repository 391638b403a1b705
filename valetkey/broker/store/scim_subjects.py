"""Whose tokens a user came with, for when they are to end: noted before anything is issued.

Where a token names its user by another claim than ``sub``, only what came says which subjects the
user is. Invariants:

- A subject is noted of the very state of the user that it was found by. Who changed meanwhile is
  looked up again: what ends a user's subjects ends all that anything was issued for.
- A note outlasts every token that rests on it, and ends by itself (`KEPT`).
- A user has at most `MOST` of them: a claim that so many share names nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from sqlalchemy import delete, func, not_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.store.database import Database
from valetkey.broker.store.schema import SCIM_RESOURCES, SCIM_SUBJECTS

# How long a note may be relied on by who remembers it, and how old one is when it is renewed.
NOTED_FOR: Final = 1800.0
# Twice that, and the longest life of a token (`settings.MAX_TTL`), with time to spare for clocks.
KEPT: Final = 3 * 3600.0
MOST: Final = 64

_R: Final = SCIM_RESOURCES.c
_S: Final = SCIM_SUBJECTS.c

Subject = tuple[str, str]
"""Issuer and ``sub`` of a token."""


class Seen(NamedTuple):
    """A subject with what its tokens named the user by."""

    issuer: str
    subject: str
    value: str


class Crowded(Exception):  # noqa: N818 - reads as what it is
    """The user came with tokens of as many subjects as are remembered."""


class ScimSubjects:
    """``clock`` gives seconds since the epoch."""

    def __init__(self, database: Database, *, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    async def note(self, user: str, version: int, seen: Seen) -> bool:
        """Whether it is noted; not so where the active user is no longer of that version.

        It may be relied on for `NOTED_FOR` seconds. Raises `Crowded`, `StoreError`.
        """
        now = self._clock()
        known = select(_S.noted_at).where(
            _S.user_id == user,
            _S.issuer == seen.issuer,
            _S.subject == seen.subject,
            _S.value == seen.value,
        )
        async with self._database.read() as connection:
            noted_at = (await connection.execute(known)).scalar()
        if noted_at is not None and noted_at > now - NOTED_FOR:
            return True
        async with self._database.write() as connection:
            # Whoever changes the user waits for this, and then ends this subject as well.
            same = select(_R.id).where(_R.id == user, _R.version == version, _R.active)
            if (await connection.execute(same.with_for_update())).first() is None:
                return False
            this = (_S.issuer == seen.issuer) & (_S.subject == seen.subject)
            others = select(func.count()).where(_S.user_id == user, not_(this))
            if (await connection.execute(others)).scalar_one() >= MOST:
                raise Crowded
            new = self._database.insert(SCIM_SUBJECTS).values(
                user_id=user, noted_at=now, **seen._asdict()
            )
            await connection.execute(
                new.on_conflict_do_update(
                    index_elements=[_S.user_id, _S.issuer, _S.subject],
                    set_={"value": seen.value, "noted_at": now},
                )
            )
        return True

    @staticmethod
    async def of(connection: AsyncConnection, user: str) -> list[Seen]:
        """All of a user, within the transaction that changed it."""
        query = select(_S.issuer, _S.subject, _S.value).where(_S.user_id == user)
        return [Seen(*row) for row in await connection.execute(query)]

    @staticmethod
    async def forget(
        connection: AsyncConnection, user: str, ended: Collection[Subject] | None = None
    ) -> None:
        """Those that ended, or all of the user."""
        gone = delete(SCIM_SUBJECTS).where(_S.user_id == user)
        if ended is not None:
            gone = gone.where(tuple_(_S.issuer, _S.subject).in_(sorted(ended)))
        await connection.execute(gone)

    async def sweep(self) -> None:
        """Forget those that no token can rest on any more. Raises `StoreError`."""
        old = delete(SCIM_SUBJECTS).where(_S.noted_at < self._clock() - KEPT)
        async with self._database.write() as connection:
            await connection.execute(old)
