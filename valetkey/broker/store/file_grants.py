"""What stood in the grants file last, in the database: what ends in it is told, over restarts too.

Invariants:

- What a grant gave and gives no more is revoked (the tokens that were issued until then, for as
  long as one can live), and sidecars hear of it, in the transaction that records the new file: both
  are there, or neither.
- An id that comes to stand for another grant brings no token of the former back.
- The record takes nothing away from a replica. Each gives what its own file says, and whoever read
  another file, started with one, or stops says itself until when it gave what the file holds no
  more. So replicas with different files tell each difference when one of them changes, starts or
  stops, and not in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from sqlalchemy import Row, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.core.grants import GrantSettings
from valetkey.broker.core.grants.form import document_of
from valetkey.broker.core.grants.narrowing import (
    GONE,
    NARROWED,
    REUSED,
    End,
    end_of,
    what_decides,
)
from valetkey.broker.store.database import Database, in_parts
from valetkey.broker.store.revocations import Revocations
from valetkey.broker.store.schema import FILE_GRANTS, GRANTS, WINDOWS
from valetkey.broker.store.windows import KEPT, WindowStore
from valetkey.contracts import settings

# Who closes the windows of a grant that left the file.
_ACTOR: Final = "system:grants_file"


class FileGrants:
    """``clock`` gives seconds since the epoch."""

    def __init__(
        self,
        database: Database,
        revocations: Revocations,
        windows: WindowStore,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._revocations = revocations
        self._windows = windows
        self._clock = clock

    async def record(
        self, file: Mapping[str, GrantSettings], ended: Mapping[str, End], *, at: float
    ) -> list[str]:
        """Put a file in the place of the one on record; gives the ids of what was told to end.

        ``ended`` is what is known to have ended, by the grant's id. ``at`` (seconds since the
        epoch) is the time since when ``file`` decides at this replica: what the record holds and
        ``file`` does not, or what another grant of an id gave, ends with it. The caller lets
        `Changes.catch_up` run after it. Raises `StoreError`.
        """
        texts = await asyncio.to_thread(_texts, file)
        async with self._database.write_in_turn() as connection:
            known = {row.id: row for row in await connection.execute(select(FILE_GRANTS))}
            standing = {name: row for name, row in known.items() if row.gone_at is None}
            changed = [
                name
                for name, text in texts.items()
                if name not in standing or standing[name].document != text
            ]
            ends = dict(ended)
            for name, row in standing.items():
                if texts.get(name) != row.document:
                    end = _end_of(row, file.get(name), at=at)
                    ends |= {name: end} if end is not None else {}
            new = [name for name in changed if name not in standing]
            for name in await self._used_before(connection, new, known):
                ends[name] = End(REUSED, at, closes=True)
            told = await self._end(connection, ends)
            await self._put(connection, {name: texts[name] for name in changed}, at=at)
            await self._let_go(connection, [name for name in standing if name not in file], at=at)
        return told

    async def leave(self, file: Mapping[str, GrantSettings], *, at: float) -> list[str]:
        """A replica with this file stops: what it gave and the record holds no more ends now.

        Gives the ids of what was told to end. The record stays. Raises `StoreError`.
        """
        texts = await asyncio.to_thread(_texts, file)
        async with self._database.write_in_turn() as connection:
            ends: dict[str, End] = {}
            for row in await connection.execute(select(FILE_GRANTS)):
                gone = row.gone_at is not None
                if row.id in file and (gone or row.document != texts[row.id]):
                    end = end_of(file[row.id], None if gone else _read(row), at=at)
                    ends |= {row.id: end} if end is not None else {}
            return await self._end(connection, ends)

    async def sweep(self) -> None:
        """Forget grants that left the file longer than `KEPT` ago. Raises `StoreError`."""
        old = delete(FILE_GRANTS).where(FILE_GRANTS.c.gone_at < self._clock() - KEPT)
        async with self._database.write() as connection:
            await connection.execute(old)

    async def _used_before(
        self, connection: AsyncConnection, new: list[str], known: Mapping[str, Row[Any]]
    ) -> list[str]:
        """Which of these ids a grant had that left the file, or one that was made by API."""
        found = [name for name in new if name in known]
        others = [name for name in new if name not in known]
        for some in in_parts(others):
            made = await connection.execute(select(GRANTS.c.id).where(GRANTS.c.id.in_(some)))
            found += made.scalars()
        return found

    async def _end(self, connection: AsyncConnection, ends: Mapping[str, End]) -> list[str]:
        """Gives the ids, in order, of what was told to end."""
        query = select(WINDOWS.c.grant_id).where(WINDOWS.c.closed_at.is_(None)).distinct()
        for name in (await connection.execute(query)).scalars().all() if ends else ():
            end = ends.get(name)
            if end is not None and end.closes:
                now = self._clock()
                await self._windows.close_all(connection, name, _ACTOR, end.reason, now=now)
        return sorted(await self._revocations.end_before(connection, "grant", ends))

    async def _put(
        self, connection: AsyncConnection, texts: Mapping[str, str], *, at: float
    ) -> None:
        rows = [
            {"id": name, "document": text, "recorded_at": at, "gone_at": None}
            for name, text in texts.items()
        ]
        change = self._database.insert(FILE_GRANTS)
        new = change.excluded
        change = change.on_conflict_do_update(
            index_elements=[FILE_GRANTS.c.id],
            set_={
                "document": new.document,
                "recorded_at": new.recorded_at,
                "gone_at": new.gone_at,
            },
        )
        if rows:
            await connection.execute(change, rows)

    async def _let_go(self, connection: AsyncConnection, names: list[str], *, at: float) -> None:
        for some in in_parts(names):
            of_these = update(FILE_GRANTS).where(FILE_GRANTS.c.id.in_(some))
            await connection.execute(of_these.values(gone_at=at))


def _end_of(row: Row[Any], after: GrantSettings | None, *, at: float) -> End | None:
    before = _read(row)
    if before is None:
        return End(GONE if after is None else NARROWED, at, closes=True)
    return end_of(before, after, at=at)


def _texts(file: Mapping[str, GrantSettings]) -> dict[str, str]:
    return {
        name: msgspec.json.encode(
            document_of(what_decides(written)), order="deterministic"
        ).decode()
        for name, written in file.items()
    }


def _read(row: Row[Any]) -> GrantSettings | None:
    """The grant as it was recorded; ``None``: by a broker that writes grants in another way."""
    try:
        return settings.convert(GrantSettings, msgspec.json.decode(row.document))
    except msgspec.MsgspecError:
        return None
