"""Users and groups as SCIM clients see them: from what is stored, and by filter (RFC 7644 §3.4)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from scim2_models import Context, Meta, NotFoundException, Reference, ScimFilter, TooManyException

from valetkey.broker.core.scim import Group, Member, Membership, User, pinned
from valetkey.broker.core.scim_keys import Kind
from valetkey.broker.store.scim import Neighbour, Record, ScimStore

# A filter that nothing indexed answers is tried on each resource, up to this many.
MAX_SCANNED: Final = 20_000
_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Loaded:
    """A resource as read, with the ids of the members that it had (none for a user)."""

    record: Record
    members: frozenset[str]
    model: User | Group


def version_of(record: Record) -> str:
    """The entity tag: weak, since ``groups`` of a user change without the user."""
    return f'W/"{record.version}"'


class Reading:
    """The resources of one kind. ``base`` is the URL of ``/scim/v2``."""

    def __init__(self, store: ScimStore, kind: Kind, *, base: str) -> None:
        self._store = store
        self._kind = kind
        self._base = base

    async def one(self, id_: str) -> Loaded:
        """Raises `SCIMException` (404)."""
        record = await self._store.get(self._kind, id_)
        if record is None:
            raise NotFoundException
        return (await self._models([record]))[0]

    async def page(self, *, offset: int, limit: int) -> tuple[int, list[Loaded]]:
        """How many there are, and some of them, the oldest first."""
        total = await self._store.count(self._kind)
        return total, await self._models(
            await self._store.page(self._kind, offset=offset, limit=limit)
        )

    async def matching(self, expression: ScimFilter[Any]) -> list[Loaded]:
        """Raises `SCIMException` where too many would have to be looked at."""
        by = pinned(self._kind, expression)
        if by is not None:
            return _filtered(expression, await self._models(await self._store.find(self._kind, by)))
        if await self._store.count(self._kind) > MAX_SCANNED:
            raise TooManyException
        matching: list[Loaded] = []
        offset = 0
        while True:
            records = await self._store.page(self._kind, offset=offset, limit=_BATCH)
            loaded = await self._models(records)
            matching += await asyncio.to_thread(_filtered, expression, loaded)
            if len(records) < _BATCH:
                return matching
            offset += _BATCH

    async def _models(self, records: Sequence[Record]) -> list[Loaded]:
        ids = [record.id for record in records]
        if self._kind == "User":
            groups = await self._store.groups(ids)
            return [self._user(record, groups.get(record.id, ())) for record in records]
        members = await self._store.members(ids)
        return [self._group(record, members.get(record.id, ())) for record in records]

    def _user(self, record: Record, groups: Sequence[Neighbour]) -> Loaded:
        user = User.model_validate({**self._common(record), "userName": record.name})
        user.active = record.active
        user.groups = [
            Membership(value=group.id, ref=self._reference(group), display=group.name)
            for group in groups
        ] or None
        user.meta = self._meta(record)
        return Loaded(record, frozenset(), user)

    def _group(self, record: Record, members: Sequence[Neighbour]) -> Loaded:
        group = Group.model_validate({**self._common(record), "displayName": record.name})
        group.members = [
            Member(value=member.id, ref=self._reference(member), type=member.kind)
            for member in members
        ] or None
        group.meta = self._meta(record)
        return Loaded(record, frozenset(member.id for member in members), group)

    @staticmethod
    def _common(record: Record) -> dict[str, Any]:
        return {**record.document, "id": record.id, "externalId": record.external_id}

    def _meta(self, record: Record) -> Meta:
        return Meta(
            resource_type=record.kind,
            created=datetime.fromtimestamp(record.created_at, UTC),
            last_modified=datetime.fromtimestamp(record.modified_at, UTC),
            location=f"{self._base}/{record.kind}s/{record.id}",
            version=version_of(record),
        )

    def _reference(self, neighbour: Neighbour) -> Reference[Any]:
        return Reference[Any](f"{self._base}/{neighbour.kind}s/{neighbour.id}")


def document_of(model: User | Group) -> dict[str, Any]:
    """What of a resource is stored as JSON: all that has no column of its own."""
    known = {"schemas", "id", "meta", "groups", "members", "active", "externalId"}
    known.add("userName" if isinstance(model, User) else "displayName")
    dumped = model.model_dump(scim_ctx=Context.DEFAULT)
    return {name: value for name, value in dumped.items() if name not in known}


def _filtered(expression: Any, loaded: Sequence[Loaded]) -> list[Loaded]:
    return [one for one in loaded if expression.match(one.model)]
