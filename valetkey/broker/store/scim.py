"""Users and groups in the database: written by provisioning clients, read for every decision.

Invariants:

- A change, its entry among the administrators' actions, and the word to the replicas are one
  transaction.
- A row changes only from the version that was read; who comes second reads again, or is told.
- Groups in groups have no circle and are at most `MAX_DEPTH` deep: this is checked when a member is
  added, in the one order in which all replicas write, so that what a decision reads is bounded and
  whole.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import Row, Select, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.core.scim_keys import Kind, Pinned, name_key
from valetkey.broker.store.admin_actions import AdminActions
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database
from valetkey.broker.store.schema import SCIM_MEMBERS, SCIM_RESOURCES
from valetkey.broker.store.scim_subjects import ScimSubjects, Seen, Subject
from valetkey.broker.trust.admins import Admin

TOPIC: Final = "scim"
MAX_DEPTH: Final = 8
# Values in one IN (…): SQLite takes 32,766 of them, PostgreSQL 32,767.
_CHUNK: Final = 5000

_R: Final = SCIM_RESOURCES.c
_M: Final = SCIM_MEMBERS.c


@dataclass(frozen=True, slots=True)
class Record:
    """A user or group as stored. ``document`` holds the attributes that have no column.

    ``name`` is the ``userName`` or ``displayName`` as written. Times are seconds since the epoch.
    """

    id: str
    kind: Kind
    name: str
    external_id: str | None
    active: bool
    document: Mapping[str, Any]
    version: int
    created_at: float
    modified_at: float


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A member of a group, or a group of a user."""

    id: str
    kind: Kind
    name: str


class Taken(Exception):  # noqa: N818 - reads as what it is
    """Another resource of the kind has this name or external id."""


class Outdated(Exception):  # noqa: N818 - reads as what it is
    """The resource is not of the version that was read, or is gone."""


class MembersInvalid(Exception):  # noqa: N818 - reads as what it is
    """Members that do not exist, or groups that would hold themselves or be nested too deeply."""


Ends = Callable[
    [AsyncConnection, Record, Record | None, Collection[Seen]], Awaitable[frozenset[Subject]]
]
"""Ends the subjects that a user was before and is no longer; gives them.

Within the transaction, with the user before and after (``None``: deleted) and those seen.
"""


class ScimStore:
    """``ends`` is called within the transaction that changes what a user is known by, or ends it.

    ``clock`` gives seconds since the epoch.
    """

    def __init__(
        self,
        database: Database,
        changes: Changes,
        actions: AdminActions,
        *,
        clock: Callable[[], float],
        ends: Ends,
    ) -> None:
        self._database = database
        self._changes = changes
        self._actions = actions
        self._ends = ends
        self.subjects = ScimSubjects(database, clock=clock)

    # --- reading ---------------------------------------------------------------------------------
    async def get(self, kind: Kind, id_: str) -> Record | None:
        """Raises `StoreError`, as everything here does."""
        rows = await self._records(select(SCIM_RESOURCES).where(_R.kind == kind, _R.id == id_))
        return rows[0] if rows else None

    async def find(self, kind: Kind, by: Pinned) -> list[Record]:
        """What the pinned value leads to: one at most."""
        column = {
            "id": _R.id == by.value,
            "name": _R.name_key == name_key(by.value),
            "external_id": _R.external_id == by.value,
        }[by.column]
        return await self._records(select(SCIM_RESOURCES).where(_R.kind == kind, column))

    async def count(self, kind: Kind) -> int:
        async with self._database.read() as connection:
            counted = select(func.count()).select_from(SCIM_RESOURCES).where(_R.kind == kind)
            return (await connection.execute(counted)).scalar_one()

    async def page(self, kind: Kind, *, offset: int, limit: int) -> list[Record]:
        """The oldest first."""
        query = select(SCIM_RESOURCES).where(_R.kind == kind).order_by(_R.created_at, _R.id)
        return await self._records(query.offset(offset).limit(limit))

    async def active_users(self, *, since: str = "", after: str = "", limit: int) -> list[Record]:
        """By id, from ``since`` on or the next ones ``after``."""
        query = select(SCIM_RESOURCES).where(_R.kind == "User", _R.active).order_by(_R.id)
        query = query.where(_R.id > after) if after else query.where(_R.id >= since)
        return await self._records(query.limit(limit))

    async def members(self, groups: Collection[str]) -> dict[str, list[Neighbour]]:
        """The direct members of each group."""
        of: dict[str, list[Neighbour]] = {}
        for chunk in _chunks(groups):
            query = (
                select(_M.group_id, _R.id, _R.kind, _R.name)
                .join_from(SCIM_MEMBERS, SCIM_RESOURCES, _R.id == _M.member_id)
                .where(_M.group_id.in_(chunk))
                .order_by(_M.member_id)
            )
            async with self._database.read() as connection:
                for group, id_, kind, name in await connection.execute(query):
                    of.setdefault(group, []).append(Neighbour(id_, kind, name))
        return of

    async def groups(self, members: Collection[str]) -> dict[str, list[Neighbour]]:
        """The groups that each is a direct member of."""
        of: dict[str, list[Neighbour]] = {}
        for chunk in _chunks(members):
            query = (
                select(_M.member_id, _R.id, _R.kind, _R.name)
                .join_from(SCIM_MEMBERS, SCIM_RESOURCES, _R.id == _M.group_id)
                .where(_M.member_id.in_(chunk))
                .order_by(_M.group_id)
            )
            async with self._database.read() as connection:
                for member, id_, kind, name in await connection.execute(query):
                    of.setdefault(member, []).append(Neighbour(id_, kind, name))
        return of

    async def all_groups(self, user: str) -> frozenset[str]:
        """The names of the groups of a user, direct and through other groups."""
        names: dict[str, str] = {}
        level = {user}
        while level:
            found = await self.groups(level)
            level = set()
            for neighbours in found.values():
                for group in neighbours:
                    if group.id not in names:
                        names[group.id] = group.name
                        level.add(group.id)
        return frozenset(names.values())

    # --- writing ---------------------------------------------------------------------------------
    async def create(self, record: Record, members: frozenset[str], *, actor: Admin) -> None:
        """Raises `Taken`, `MembersInvalid`."""
        async with self._database.write() as connection:
            await self._database.take_turn(connection)
            try:
                await connection.execute(insert(SCIM_RESOURCES).values(_row(record)))
            except IntegrityError as error:
                raise Taken from error
            await self._add_members(connection, record.id, members)
            await self._told(connection, record, "create", actor, {"members": len(members)})
        await self._changes.catch_up()

    async def replace(
        self,
        before: Record,
        after: Record,
        *,
        members: tuple[frozenset[str], frozenset[str]] | None = None,
        actor: Admin,
    ) -> None:
        """Put ``after`` where ``before`` was read. ``members`` are those before and after.

        Raises `Outdated`, `Taken`, `MembersInvalid`.
        """
        had, has = members or (frozenset(), frozenset())
        async with self._database.write() as connection:
            await self._database.take_turn(connection)
            change = (
                update(SCIM_RESOURCES)
                .where(_R.id == before.id, _R.kind == before.kind, _R.version == before.version)
                .values(_row(after))
            )
            try:
                result = await connection.execute(change)
            except IntegrityError as error:
                raise Taken from error
            if result.rowcount != 1:
                raise Outdated
            for chunk in _chunks(had - has):
                gone = delete(SCIM_MEMBERS).where(_M.group_id == after.id, _M.member_id.in_(chunk))
                await connection.execute(gone)
            await self._add_members(connection, after.id, has - had)
            details = {
                "changed": sorted(_differences(before, after)),
                "added": len(has - had),
                "removed": len(had - has),
            }
            await self._told(connection, after, "update", actor, details)
            if before.kind == "User" and before.active:
                await self._end(connection, before, after)
        await self._changes.catch_up()

    async def delete(self, record: Record, *, actor: Admin) -> None:
        """Raises `Outdated`."""
        async with self._database.write() as connection:
            await self._database.take_turn(connection)
            gone = delete(SCIM_RESOURCES).where(
                _R.id == record.id, _R.kind == record.kind, _R.version == record.version
            )
            if (await connection.execute(gone)).rowcount != 1:
                raise Outdated
            await connection.execute(
                delete(SCIM_MEMBERS).where(or_(_M.group_id == record.id, _M.member_id == record.id))
            )
            await self._told(connection, record, "delete", actor, {})
            if record.kind == "User":
                await self._end(connection, record, None)
        await self._changes.catch_up()

    async def _end(self, connection: AsyncConnection, before: Record, after: Record | None) -> None:
        """End the subjects that the user is no longer.

        After the change was published: a replica that knows the new epochs has forgotten what it
        knew of the user before it, so that nothing is issued on both.
        """
        if after is not None and after.active and _names(before) == _names(after):
            return
        seen = await self.subjects.of(connection, before.id)
        ended = await self._ends(connection, before, after, seen)
        await self.subjects.forget(connection, before.id, None if after is None else ended)

    async def _told(
        self,
        connection: AsyncConnection,
        record: Record,
        verb: str,
        actor: Admin,
        details: Mapping[str, Any],
    ) -> None:
        kind = record.kind.lower()
        await self._actions.record(
            connection,
            actor=actor,
            action=f"{kind}.{verb}",
            subject=f"{kind}:{record.id}",
            reason="SCIM",
            details={"name": record.name, "active": record.active, **details},
        )
        await self._changes.publish(connection, TOPIC, f"{kind}:{record.id}")

    async def _add_members(
        self, connection: AsyncConnection, group: str, members: frozenset[str]
    ) -> None:
        if not members:
            return
        kinds: dict[str, Kind] = {}
        for chunk in _chunks(members):
            query = select(_R.id, _R.kind).where(_R.id.in_(chunk))
            kinds |= dict((await connection.execute(query)).all())
        if len(kinds) < len(members):
            raise MembersInvalid("a member is no user or group of this directory")
        groups = {id_ for id_, kind in kinds.items() if kind == "Group"}
        if groups:
            await self._check_nesting(connection, group, groups)
        for chunk in _chunks(members):
            rows = [{"group_id": group, "member_id": member} for member in chunk]
            await connection.execute(
                self._database.insert(SCIM_MEMBERS).values(rows).on_conflict_do_nothing()
            )

    async def _check_nesting(
        self, connection: AsyncConnection, group: str, members: set[str]
    ) -> None:
        above = await self._levels(connection, {group}, up=True, forbidden=set())
        below = await self._levels(connection, members, up=False, forbidden={group})
        if above + below > MAX_DEPTH:
            raise MembersInvalid(f"groups would be nested more than {MAX_DEPTH} deep")

    async def _levels(
        self, connection: AsyncConnection, start: set[str], *, up: bool, forbidden: set[str]
    ) -> int:
        """How many levels of groups there are from ``start`` on, itself counted."""
        level, depth = set(start), 0
        while level:
            if level & forbidden:
                raise MembersInvalid("a group would be a member of itself")
            depth += 1
            if depth > MAX_DEPTH:
                return depth
            found: set[str] = set()
            for chunk in _chunks(level):
                query = (
                    select(_M.group_id).where(_M.member_id.in_(chunk))
                    if up
                    else select(_M.member_id)
                    .join_from(SCIM_MEMBERS, SCIM_RESOURCES, _R.id == _M.member_id)
                    .where(_M.group_id.in_(chunk), _R.kind == "Group")
                )
                found |= {id_ for (id_,) in await connection.execute(query)}
            # A group may be reached on two ways of other lengths; the longer one counts.
            level = found
        return depth

    async def _records(self, query: Select[Any]) -> list[Record]:
        async with self._database.read() as connection:
            return [_record(row) for row in await connection.execute(query)]


def _chunks(ids: Iterable[str]) -> Iterable[Sequence[str]]:
    ordered = sorted(ids)
    return [ordered[at : at + _CHUNK] for at in range(0, len(ordered), _CHUNK)]


def _row(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "kind": record.kind,
        "name": record.name,
        "name_key": name_key(record.name),
        "external_id": record.external_id,
        "active": record.active,
        "document": msgspec.json.encode(record.document, order="deterministic").decode(),
        "version": record.version,
        "created_at": record.created_at,
        "modified_at": record.modified_at,
    }


def _record(row: Row[Any]) -> Record:
    return Record(
        id=row.id,
        kind=row.kind,
        name=row.name,
        external_id=row.external_id,
        active=row.active,
        document=msgspec.json.decode(row.document),
        version=row.version,
        created_at=row.created_at,
        modified_at=row.modified_at,
    )


def _names(user: Record) -> tuple[str, str | None]:
    """What tokens may name a user by, beside the id that stays."""
    return user.name, user.external_id


def _differences(before: Record, after: Record) -> set[str]:
    """Names of what changed: values of people's attributes are nothing for the record."""
    changed = {
        name
        for name in before.document.keys() | after.document.keys()
        if before.document.get(name) != after.document.get(name)
    }
    for name in ("name", "external_id", "active"):
        if getattr(before, name) != getattr(after, name):
            changed.add(name)
    return changed
