"""Takes notices out of the outbox to where they belong, until they arrive or are given up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final, Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.core.approval_document import document_of
from valetkey.broker.metrics import Metrics
from valetkey.broker.store.approvals import Entry
from valetkey.broker.store.database import StoreError
from valetkey.broker.store.notices import Notice, Notices
from valetkey.broker.trust.tokens import Clock
from valetkey.contracts.logs import Log
from valetkey.contracts.times import rfc3339

# How often the outbox is looked at for what another replica put there, or is due again.
_LOOK: Final = 1.0
_FIRST_RETRY: Final = 5.0
_LONGEST_RETRY: Final = 900.0


class Undelivered(Exception):  # noqa: N818 - it is what happened
    """An attempt failed; the message says how, without a secret."""


class Channel(Protocol):
    """One place that notices go to."""

    name: str

    async def deliver(self, notice: Notice, *, now: float) -> None:
        """One attempt. Raises `Undelivered`."""


class Courier:
    """``link`` has ``{id}`` where the approval's id goes, or is ``None``; times are in seconds."""

    def __init__(
        self,
        notices: Notices,
        metrics: Metrics,
        *,
        link: str | None,
        give_up_after: float,
        clock: Clock,
    ) -> None:
        self._notices = notices
        self._channels: dict[str, Channel] = {}
        self._metrics = metrics
        self._link = link
        self._give_up_after = give_up_after
        self._clock = clock
        self._news: dict[str, asyncio.Event] = {}
        self._log = Log("broker.notices")

    def open(self, channels: Sequence[Channel]) -> None:
        """Where notices go from now on. Called before the first request."""
        self._channels = {channel.name: channel for channel in channels}
        self._news = {channel.name: asyncio.Event() for channel in channels}

    async def announce(
        self, connection: AsyncConnection, event: str, entry: Entry, now: float
    ) -> None:
        """Put ``approval.<event>`` in line for every channel, in the transaction at hand."""
        if not self._channels:
            return
        approval = entry.approval
        data = document_of(approval, purpose=entry.purpose, used=entry.used, now=now)
        if self._link is not None:
            data["link"] = self._link.replace("{id}", approval.id)
        body = {
            "type": f"approval.{event}",
            "timestamp": rfc3339(now),
            "data": data,
        }
        await self._notices.put(connection, list(self._channels), body, now=now)
        for news in self._news.values():
            news.set()

    async def run(self) -> None:
        """Deliver until cancelled, to each channel by itself: none waits for another's answer."""
        if not self._channels:
            await asyncio.Event().wait()
        async with asyncio.TaskGroup() as group:
            for channel in self._channels.values():
                group.create_task(self._serve(channel), name=f"notices of {channel.name}")

    async def _serve(self, channel: Channel) -> None:
        news = self._news[channel.name]
        while True:
            try:
                while await self.deliver_one(channel):
                    pass
            except StoreError as error:
                self._log.warning("notices_unread", channel=channel.name, reason=error.reason)
            # Looked at again soon after the event too: the transaction may not be over yet.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), _LOOK)
                news.clear()
                await asyncio.sleep(0.05)

    async def deliver_one(self, channel: Channel) -> bool:
        """One attempt at what is due there next; whether there was any. Raises `StoreError`."""
        now = self._clock()
        notice = await self._notices.claim(channel.name, now=now)
        if notice is None:
            return False
        try:
            await channel.deliver(notice, now=now)
        except Undelivered as error:
            await self._failed(notice, str(error))
        else:
            self._metrics.notices.labels(notice.channel, "delivered").inc()
            await self._notices.done(notice)
        return True

    async def _failed(self, notice: Notice, why: str) -> None:
        now = self._clock()
        wait = min(_LONGEST_RETRY, _FIRST_RETRY * 2.0 ** (notice.attempts - 1))
        if now + wait - notice.created_at > self._give_up_after:
            self._metrics.notices.labels(notice.channel, "given_up").inc()
            self._log.error("notice_given_up", channel=notice.channel, key=notice.id, reason=why)
            await self._notices.done(notice)
            return
        self._metrics.notices.labels(notice.channel, "failed").inc()
        self._log.warning("notice_undelivered", channel=notice.channel, key=notice.id, reason=why)
        await self._notices.again(notice, due_at=now + wait)
