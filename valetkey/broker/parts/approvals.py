"""Approvals: the API for people, the gate in front of the token endpoint, notices."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.api.approvals import ApprovalsApi
from valetkey.broker.approval_gate import ApprovalGate
from valetkey.broker.notify.courier import Channel, Courier
from valetkey.broker.notify.email import Email
from valetkey.broker.notify.webhook import Webhook
from valetkey.broker.part import Foundation, Part
from valetkey.broker.store.approvals import Approvals, Entry
from valetkey.broker.store.database import StoreError
from valetkey.broker.store.deferrals import Deferrals
from valetkey.broker.store.notices import Notices
from valetkey.contracts.logs import Log

# How often those that wait are counted, seconds: more often than anybody scrapes.
_LOOK: Final = 5.0


class ApprovalsPart(Part):
    """``gate`` is what the token endpoint asks."""

    name = "approvals"

    def __init__(self, base: Foundation) -> None:
        settings = base.config.approvals
        self._clock = base.clock
        self._metrics = base.metrics
        self._database = base.database
        self._settings = settings
        self._log = Log("broker.approvals")
        self._notices = Notices(base.database)
        self.courier = Courier(
            self._notices,
            base.metrics,
            link=settings.notices.link,
            give_up_after=settings.notices.give_up_after,
            clock=base.clock,
        )
        self.approvals = Approvals(
            base.database, base.actions, self._announce, open_limit=settings.open
        )
        self._deferrals = Deferrals(base.database, base.sealer, interval=settings.interval)
        self.gate = ApprovalGate(
            base.database,
            self.approvals,
            self._deferrals,
            settings,
            base.uses,
            base.metrics,
            issuer=base.config.issuer,
            clock=base.clock,
        )
        self._api = ApprovalsApi(self.approvals, base.admin, base.people, clock=base.clock)

    def add_routes(self, router: web.UrlDispatcher) -> None:
        self._api.add_routes(router)

    async def load(self) -> None:
        self.courier.open(await asyncio.to_thread(self._channels))

    def _channels(self) -> list[Channel]:
        """Reads secrets from files. Raises `ConfigError`."""
        notices = self._settings.notices
        channels: list[Channel] = [Webhook(webhook) for webhook in notices.webhooks]
        channels += [Email(email) for email in notices.email]
        return channels

    async def run(self) -> None:
        async with asyncio.TaskGroup() as work:
            work.create_task(self.courier.run())
            work.create_task(self._watch())

    async def _watch(self) -> None:
        """Keep the gauges what the database says, whichever replica changed it."""
        while True:
            try:
                now = self._clock()
                count, oldest = await self.approvals.waiting(now)
            except StoreError as error:
                # What was last seen stays; that the database does not answer is said elsewhere.
                self._log.warning("approvals_uncounted", reason=error.reason)
            else:
                self._metrics.approvals_waiting.set(count)
                self._metrics.approvals_longest_wait.set(max(0.0, now - oldest))
            await asyncio.sleep(_LOOK)

    async def sweep(self) -> None:
        now = self._clock()
        await self._deferrals.sweep(now)
        await self._notices.sweep(now - self._settings.notices.give_up_after)
        await self.approvals.sweep(before=now - self._settings.kept, now=now)

    async def _announce(
        self, connection: AsyncConnection, event: str, entry: Entry, now: float
    ) -> None:
        self._database.after_commit(connection, self._metrics.approvals.labels(event).inc)
        await self.courier.announce(connection, event, entry, now)
