"""``/v1/approvals``: what is before people, and their decisions."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Final

import msgspec
from aiohttp import web

from valetkey.broker.api.admin import (
    AdminApi,
    ContentInvalid,
    answer,
    page_answer,
    read_json,
    read_page,
)
from valetkey.broker.core.approval_document import document_of
from valetkey.broker.core.approvals import MAX_USES, STATES, Voter
from valetkey.broker.store.approvals import Approvals, Entry
from valetkey.broker.trust.admins import Admin
from valetkey.broker.trust.people import People
from valetkey.broker.trust.tokens import Clock
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.contracts.times import from_rfc3339

PATH: Final = "/v1/approvals"
Reason = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]


class Approving(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A yes: neither ``uses`` nor ``until`` for one use, ``until`` alone for any number by then.

    ``until`` is a time (RFC 3339).
    """

    reason: Reason
    uses: Annotated[int, msgspec.Meta(ge=1, le=MAX_USES)] | None = None
    until: str | None = None


class Reasoned(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A no, or a yes taken back."""

    reason: Reason


class ApprovalsApi:
    """Viewers list, approvers decide; approvers and operators revoke."""

    def __init__(
        self, approvals: Approvals, api: AdminApi, people: People, *, clock: Clock
    ) -> None:
        self._approvals = approvals
        self._people = people
        self._api = api
        self._clock = clock

    def add_routes(self, router: web.UrlDispatcher) -> None:
        guard = self._api.guard
        router.add_get(PATH, guard("viewer", self._list))
        router.add_get(PATH + "/{id}", guard("viewer", self._show))
        router.add_post(PATH + "/{id}/approve", guard("approver", self._approve))
        router.add_post(PATH + "/{id}/deny", guard("approver", self._deny))
        router.add_post(PATH + "/{id}/revoke", guard("viewer", self._revoke))

    async def _list(self, request: web.Request, _admin: Admin) -> web.Response:
        page = read_page(request, known=("state",))
        state = request.query.get("state")
        if state is not None and state not in STATES:
            raise ContentInvalid(f"state is one of {', '.join(STATES)}")
        entries = await self._approvals.page(
            state=state,
            before=_cursor(page.after),
            limit=page.limit,
            now=self._clock(),
        )
        more = len(entries) == page.limit
        last = entries[-1].approval if more else None
        return page_answer(
            [self._document(entry) for entry in entries],
            f"{last.opened_at!r}:{last.id}" if last is not None else "",
        )

    async def _show(self, request: web.Request, _admin: Admin) -> web.Response:
        entry = await self._approvals.get(request.match_info["id"])
        if entry is None:
            raise CallerError(codes.SERVICE_NOT_FOUND, "no such approval")
        return answer(self._document(entry))

    async def _approve(self, request: web.Request, admin: Admin) -> web.Response:
        said = await read_json(request, Approving)
        entry = await self._approvals.approve(
            request.match_info["id"],
            admin,
            await self._voter(admin),
            reason=said.reason,
            uses=said.uses,
            until=_time(said.until),
            now=self._clock(),
        )
        return answer(self._document(entry))

    async def _deny(self, request: web.Request, admin: Admin) -> web.Response:
        said = await read_json(request, Reasoned)
        entry = await self._approvals.deny(
            request.match_info["id"],
            admin,
            await self._voter(admin),
            reason=said.reason,
            now=self._clock(),
        )
        return answer(self._document(entry))

    async def _revoke(self, request: web.Request, admin: Admin) -> web.Response:
        if admin.roles.isdisjoint({"approver", "operator"}):
            raise CallerError(codes.SERVICE_FORBIDDEN, "neither approver nor operator")
        said = await read_json(request, Reasoned)
        entry = await self._approvals.revoke(
            request.match_info["id"], admin, reason=said.reason, now=self._clock()
        )
        return answer(self._document(entry))

    async def _voter(self, admin: Admin) -> Voter:
        """With what their token and the directory say of them. Raises `CallerError`."""
        known = await self._people.of_approver(admin.issuer, admin.subject, admin.claims)
        if not known.active:
            raise CallerError(codes.SERVICE_FORBIDDEN, "the directory says inactive")
        voter = Voter.of(admin.issuer, admin.subject, admin.claims)
        return replace(voter, roles=voter.roles | known.roles, groups=voter.groups | known.groups)

    def _document(self, entry: Entry) -> dict[str, object]:
        return document_of(
            entry.approval, purpose=entry.purpose, used=entry.used, now=self._clock()
        )


def _time(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return from_rfc3339(text)
    except ValueError as error:
        raise ContentInvalid(f"until: {error}") from error


def _cursor(after: str) -> tuple[float, str] | None:
    if not after:
        return None
    time, _, approval = after.partition(":")
    try:
        return float(time), approval
    except ValueError as error:
        raise ContentInvalid("after is not the next of a page") from error
