"""Who administrators are to us, and what they did."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

from aiohttp import web

from valetkey.broker.api.admin import (
    ContentInvalid,
    answer,
    page_answer,
    read_page,
    whole_number,
)
from valetkey.broker.part import Foundation, Part
from valetkey.broker.trust.admins import Admin
from valetkey.contracts.times import rfc3339

# Fewer than a signed 64-bit column may hold.
_SEQ_DIGITS: Final = 18


class AdministrationPart(Part):
    """``/v1/admin/whoami``, ``/v1/admin/actions``, ``/v1/admin/actions/verify``."""

    name = "administration"

    def __init__(self, base: Foundation) -> None:
        self._guard = base.admin.guard
        self._actions = base.actions

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/v1/admin/whoami", self._guard("viewer", self._whoami))
        router.add_get("/v1/admin/actions", self._guard("viewer", self._list))
        router.add_get("/v1/admin/actions/verify", self._guard("viewer", self._verify))

    async def _whoami(self, _request: web.Request, admin: Admin) -> web.Response:
        return answer(
            {"issuer": admin.issuer, "subject": admin.subject, "roles": sorted(admin.roles)}
        )

    async def _list(self, request: web.Request, _admin: Admin) -> web.Response:
        """The newest first."""
        page = read_page(request)
        before = whole_number(page.after, digits=_SEQ_DIGITS)
        if page.after and before is None:
            raise ContentInvalid("after is not the next of a page")
        actions = await self._actions.page(before=before, limit=page.limit)
        more = len(actions) == page.limit
        items = [{**asdict(action), "at": rfc3339(action.at)} for action in actions]
        return page_answer(items, str(actions[-1].seq) if more else "")

    async def _verify(self, _request: web.Request, _admin: Admin) -> web.Response:
        """Whether the chain of actions holds."""
        return answer(await self._actions.verify())
