"""``/scim/v2/Users`` and ``/scim/v2/Groups`` (RFC 7644 §3): one class serves both.

A change is made from the version that was read. Where another change came first it is made anew
from that, unless the client named the version it meant (``If-Match``).
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from aiohttp import web
from pydantic import ValidationError
from scim2_models import (
    Context,
    InvalidValueException,
    NotImplementedException,
    PatchOp,
    PreconditionFailedException,
    ResponseParameters,
    SearchRequest,
    UniquenessException,
)

from valetkey.broker.api import scim_wire as wire
from valetkey.broker.api.scim_reading import Loaded, Reading, document_of, version_of
from valetkey.broker.core.scim import Group, User
from valetkey.broker.core.scim_keys import Kind
from valetkey.broker.core.scim_patch import member_ids, patch_group, patch_user
from valetkey.broker.store.scim import MembersInvalid, Outdated, Record, ScimStore, Taken
from valetkey.broker.trust.admins import Admin

MAX_RESULTS: Final = 200
_ATTEMPTS: Final = 4
_LIST_RESPONSE: Final = "urn:ietf:params:scim:api:messages:2.0:ListResponse"
_QUERY: Final = frozenset(
    {"schemas", "filter", "startIndex", "count", "attributes", "excludedAttributes"}
)
_UNSUPPORTED: Final = frozenset({"sortBy", "sortOrder", "cursor"})


@dataclass(frozen=True, slots=True)
class _Messages:
    """Classes that the library makes for a kind, which it does by reading its own source."""

    model: Any
    patch: Any
    search: Any
    shape: Any


_MESSAGES: Final[Mapping[Kind, _Messages]] = {
    "User": _Messages(User, PatchOp[User], SearchRequest[User], ResponseParameters[User]),
    "Group": _Messages(Group, PatchOp[Group], SearchRequest[Group], ResponseParameters[Group]),
}

# What a change makes of a resource and of its members.
Changed = tuple[User | Group, frozenset[str]]


class Resources:
    """The resources of one kind. ``base`` is the URL of ``/scim/v2``."""

    def __init__(
        self, store: ScimStore, kind: Kind, *, base: str, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._reading = Reading(store, kind, base=base)
        self._kind = kind
        self._messages = _MESSAGES[kind]
        self._clock = clock

    # --- reading ---------------------------------------------------------------------------------
    async def query(self, request: web.Request, _admin: Admin) -> web.Response:
        return await self._search(request.query)

    async def search(self, request: web.Request, _admin: Admin) -> web.Response:
        """``POST …/.search`` (RFC 7644 §3.4.3)."""
        return await self._search(await wire.read_object(request))

    async def get(self, request: web.Request, _admin: Admin) -> web.Response:
        asked = self._shape(request)
        loaded = await self._reading.one(request.match_info["id"])
        version = version_of(loaded.record)
        if wire.none_match(request, version):
            return web.Response(status=304, headers={"ETag": version})
        return wire.answered(loaded.model, asked, context=Context.RESOURCE_QUERY_RESPONSE)

    async def _search(self, query: Mapping[str, Any]) -> web.Response:
        """RFC 7644 §3.4.2. Other parameters are other services' and passed over."""
        if query.keys() & _UNSUPPORTED:
            raise NotImplementedException(detail="neither sorting nor cursors are supported")
        asked = await wire.validated(
            self._messages.search,
            {name: value for name, value in query.items() if name in _QUERY},
            Context.SEARCH_REQUEST,
        )
        offset = asked.start_index_0 or 0
        count = MAX_RESULTS if asked.count is None else min(asked.count, MAX_RESULTS)
        if asked.filter is None:
            total, found = await self._reading.page(offset=offset, limit=count)
        else:
            matching = await self._reading.matching(asked.filter)
            total, found = len(matching), matching[offset : offset + count]
        resources = [
            loaded.model.model_dump(
                scim_ctx=Context.RESOURCE_QUERY_RESPONSE, response_parameters=asked
            )
            for loaded in found
        ]
        return wire.message(
            {
                "schemas": [_LIST_RESPONSE],
                "totalResults": total,
                "startIndex": offset + 1,
                "itemsPerPage": len(resources),
                "Resources": resources,
            }
        )

    def _shape(self, request: web.Request) -> ResponseParameters[Any]:
        """``attributes`` and ``excludedAttributes`` (RFC 7644 §3.9)."""
        names = ("attributes", "excludedAttributes")
        query = {name: request.query[name] for name in names if name in request.query}
        try:
            return cast("ResponseParameters[Any]", self._messages.shape.model_validate(query))
        except ValidationError as error:
            raise wire.first_of(error) from error

    # --- writing ---------------------------------------------------------------------------------
    async def post(self, request: web.Request, admin: Admin) -> web.Response:
        asked = self._shape(request)
        document = await wire.read_object(request)
        context = Context.RESOURCE_CREATION_REQUEST
        sent = await wire.validated(self._messages.model, document, context)
        if isinstance(sent, User) and sent.active is None:
            sent.active = True
        now = self._clock()
        record = self._record(str(uuid.uuid4()), sent, version=1, created=now)
        try:
            await self._store.create(record, _members_of(sent), actor=admin)
        except Taken as error:
            raise UniquenessException from error
        except MembersInvalid as error:
            raise InvalidValueException(detail=str(error)) from error
        made = await self._reading.one(record.id)
        context = Context.RESOURCE_CREATION_RESPONSE
        return wire.answered(made.model, asked, context=context, status=201)

    async def put(self, request: web.Request, admin: Admin) -> web.Response:
        asked = self._shape(request)
        document = await wire.read_object(request)
        context = Context.RESOURCE_REPLACEMENT_REQUEST
        sent = await wire.validated(self._messages.model, document, context)

        def change(before: Loaded) -> Changed:
            if isinstance(sent, User) and sent.active is None:
                # Nobody is let back in, or thrown out, by what was left out.
                kept: User = sent.model_copy(update={"active": before.record.active})
                return kept, frozenset()
            return sent, _members_of(sent)

        await self._change(request, admin, change)
        after = await self._reading.one(request.match_info["id"])
        return wire.answered(after.model, asked, context=Context.RESOURCE_REPLACEMENT_RESPONSE)

    async def patch(self, request: web.Request, admin: Admin) -> web.Response:
        asked = self._shape(request)
        document = await wire.read_object(request)
        patch = await wire.validated(self._messages.patch, document, Context.RESOURCE_PATCH_REQUEST)

        def change(before: Loaded) -> Changed:
            if isinstance(before.model, User):
                user = before.model.model_copy(update={"groups": None})
                return patch_user(user, patch), frozenset()
            group = before.model.model_copy(update={"members": None})
            return patch_group(group, before.members, patch)

        await self._change(request, admin, change)
        if self._kind == "Group" and not asked.attributes:
            # RFC 7644 §3.5.2: nothing has to be told, and a group may be large.
            return web.Response(status=204)
        after = await self._reading.one(request.match_info["id"])
        return wire.answered(after.model, asked, context=Context.RESOURCE_PATCH_RESPONSE)

    async def delete(self, request: web.Request, admin: Admin) -> web.Response:
        for _ in range(_ATTEMPTS):
            before = await self._reading.one(request.match_info["id"])
            wire.if_match(request, version_of(before.record))
            try:
                await self._store.delete(before.record, actor=admin)
            except Outdated:
                continue
            return web.Response(status=204)
        raise PreconditionFailedException

    async def _change(
        self, request: web.Request, admin: Admin, change: Callable[[Loaded], Changed]
    ) -> None:
        for _ in range(_ATTEMPTS):
            before = await self._reading.one(request.match_info["id"])
            wire.if_match(request, version_of(before.record))
            changed, members = await asyncio.to_thread(change, before)
            record = self._record(
                before.record.id,
                changed,
                version=before.record.version + 1,
                created=before.record.created_at,
            )
            if _same(before.record, record) and before.members == members:
                return  # RFC 7644 §3.5.2.1: no change, no new version
            try:
                await self._store.replace(
                    before.record, record, members=(before.members, members), actor=admin
                )
            except Outdated:
                continue
            except Taken as error:
                raise UniquenessException from error
            except MembersInvalid as error:
                raise InvalidValueException(detail=str(error)) from error
            return
        raise PreconditionFailedException

    def _record(self, id_: str, model: User | Group, *, version: int, created: float) -> Record:
        name = model.user_name if isinstance(model, User) else model.display_name
        if name is None:
            raise InvalidValueException(detail="the name is missing")
        return Record(
            id=id_,
            kind=self._kind,
            name=name,
            external_id=model.external_id,
            active=model.active is True if isinstance(model, User) else True,
            document=document_of(model),
            version=version,
            created_at=created,
            modified_at=self._clock(),
        )


def _members_of(sent: User | Group) -> frozenset[str]:
    return member_ids(sent.members or ()) if isinstance(sent, Group) else frozenset()


def _same(before: Record, after: Record) -> bool:
    return (before.name, before.external_id, before.active, before.document) == (
        after.name,
        after.external_id,
        after.active,
        after.document,
    )
