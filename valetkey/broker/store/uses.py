"""Uses of grants that give only so many tokens: claimed in the database, across all replicas.

Invariants:

- A use is claimed before the token is minted, by one conditional write: of two replicas that want
  the last one, one gets it. Memory only ever saves the question.
- What was claimed is spent, whatever becomes of the answer: a grant gives no token too many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.core.grants import LiveGrants
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database
from valetkey.broker.store.schema import GRANT_USES
from valetkey.contracts import codes
from valetkey.contracts.errors import PolicyError

_TOPIC: Final = "grant_uses"


class UsesSpent(PolicyError):  # noqa: N818 - reads as what it is
    """A grant has no use left."""


class _LastUse(Exception):  # noqa: N818 - reads as what it is
    """A claim without a turn came upon the last use of a grant."""


class GrantUses:
    """Counts in the database, and in ``live`` as far as they are known.

    ``clock`` gives seconds since the epoch.
    """

    def __init__(
        self,
        database: Database,
        changes: Changes,
        live: LiveGrants,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._changes = changes
        self._live = live
        self._clock = clock
        changes.subscribe(_TOPIC, self._changed)

    async def load(self) -> None:
        """Read how often grants were used. Called before the first request."""
        query = select(GRANT_USES.c.grant_id, GRANT_USES.c.uses)
        async with self._database.read() as connection:
            for grant_id, uses in await connection.execute(query):
                self._live.count(grant_id, uses)

    async def claim(
        self, limited: Sequence[tuple[str, int]], check: Callable[[], None] = lambda: None
    ) -> bool:
        """Claim one use of each of these grants (id, most uses), or of none of them.

        An exception of ``check``, which is called once they are claimed, undoes that.
        ``False``: one was used up, which `LiveGrants` knows from now on. Raises `StoreError`.
        """
        try:
            counted = await self._claim_all(limited, check)
        except UsesSpent:
            return False
        for grant_id, uses in counted.items():
            self._live.count(grant_id, uses)
        return True

    async def _claim_all(
        self, limited: Sequence[tuple[str, int]], check: Callable[[], None]
    ) -> dict[str, int]:
        """Without a turn, for which all would wait, unless one turns out to be a last use."""
        try:
            async with self._database.write() as connection:
                counted = {
                    grant_id: await self._claim_spare(connection, grant_id, most)
                    for grant_id, most in limited
                }
                check()
                return counted
        except _LastUse:
            # Undone, so that no row is held: a last use is announced.
            async with self._database.write_in_turn() as connection:
                counted = await self.claim_in(connection, limited)
                check()
                return counted

    async def claim_in(
        self, connection: AsyncConnection, limited: Sequence[tuple[str, int]]
    ) -> dict[str, int]:
        """The same within a transaction that took its turn before any row.

        Gives the number of each use. Raises `UsesSpent`, which must undo the transaction.
        """
        counted = {
            grant_id: await self._claim(connection, grant_id, most) for grant_id, most in limited
        }
        for grant_id, most in limited:
            if counted[grant_id] == most:
                await self._changes.publish(connection, _TOPIC, grant_id)
        return counted

    async def _claim_spare(self, connection: AsyncConnection, grant_id: str, most: int) -> int:
        """As `_claim`, for a use that is not the last. Raises `_LastUse`."""
        use = await self._claim(connection, grant_id, most)
        if use == most:
            raise _LastUse
        return use

    async def _claim(self, connection: AsyncConnection, grant_id: str, most: int) -> int:
        """The number of this use."""
        first = self._database.insert(GRANT_USES).values(
            grant_id=grant_id, uses=1, used_at=self._clock()
        )
        claim = first.on_conflict_do_update(
            index_elements=[GRANT_USES.c.grant_id],
            set_={"uses": GRANT_USES.c.uses + 1, "used_at": first.excluded.used_at},
            where=GRANT_USES.c.uses < most,
        ).returning(GRANT_USES.c.uses)
        uses: int | None = (await connection.execute(claim)).scalar()
        if uses is None:
            self._live.count(grant_id, most)
            raise UsesSpent(codes.GRANT_USED_UP, f"the last use of {grant_id} was another's")
        return uses

    async def counts(self, grant_ids: Sequence[str]) -> dict[str, int]:
        """How often these grants were used; those that never were are left out."""
        query = select(GRANT_USES.c.grant_id, GRANT_USES.c.uses).where(
            GRANT_USES.c.grant_id.in_(grant_ids)
        )
        async with self._database.read() as connection:
            return {row.grant_id: row.uses for row in await connection.execute(query)}

    async def _changed(self, grant_id: str) -> None:
        for known, uses in (await self.counts([grant_id])).items():
            self._live.count(known, uses)
