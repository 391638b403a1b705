"""The feed of what has ended: a transmitter of the Shared Signals Framework 1.0."""

from __future__ import annotations

import asyncio
import secrets
from typing import Final

from aiohttp import web

from valetkey.broker.api import jwks, ssf
from valetkey.broker.api.ssf_poll import PollEndpoint
from valetkey.broker.api.ssf_wire import POLL_PATH, Callers
from valetkey.broker.core.rate_limit import RateLimit
from valetkey.broker.feed import Feed
from valetkey.broker.issuers.sets import SetIssuer
from valetkey.broker.part import Foundation, Part
from valetkey.broker.push import Pusher
from valetkey.broker.store.streams import FeedStreams
from valetkey.contracts.signals import fleet_audience

# A sidecar polls when something happened, and when a wait is over.
_RATE: Final = 50
_BURST: Final = 500
_LOOK: Final = 0.5


class SignalsPart(Part):
    """Streams, their management, poll and push."""

    name = "signals"

    def __init__(self, base: Foundation) -> None:
        config, feed = base.config, base.config.feed
        self._base = base
        self._streams = FeedStreams(base.database, base.changes, clock=base.clock)
        self.feed = Feed(
            base.signals, self._streams, base.metrics, clock=base.clock, timer=base.timer
        )
        sets = SetIssuer(base.ring, issuer=config.issuer)
        audience = fleet_audience(config.issuer)
        self._callers = Callers(
            base.clients,
            feed.receivers,
            RateLimit(rate=_RATE, burst=_BURST, callers=config.limits.callers, timer=base.timer),
            issuer=config.issuer,
        )
        self._poll = PollEndpoint(
            self.feed,
            base.changes,
            sets,
            audience=audience,
            wait=feed.wait,
            connection_age=feed.connection_age,
        )
        self._management = ssf.StreamEndpoints(
            self._streams,
            base.signals,
            base.sealer,
            issuer=config.issuer,
            audience=audience,
            most=feed.streams,
            timer=base.timer,
        )
        self._pusher = Pusher(
            self.feed,
            self._streams,
            sets,
            base.sealer,
            feed.receivers,
            base.metrics,
            holder=secrets.token_urlsafe(16),
        )
        base.metrics.watch_feed(waiting=lambda: float(self.feed.waiting))

    def add_routes(self, router: web.UrlDispatcher) -> None:
        ssf.add_metadata(router, self._base.config.issuer, jwks.PATH)
        self._management.add_routes(router, self._callers)
        router.add_post(POLL_PATH + "{stream}", self._callers.guard(self._poll.handle))

    async def load(self) -> None:
        await self.feed.load()

    async def run(self) -> None:
        async with (
            asyncio.TaskGroup() as work
        ):  # which waits until both have put down what they held
            work.create_task(self.feed.run())
            work.create_task(self._let_go())
            if self._pusher.has_receivers:
                work.create_task(self._pusher.run())

    async def _let_go(self) -> None:
        """Polls that wait are told at once when this replica would hear of nothing any more."""
        while True:
            await asyncio.sleep(_LOOK)
            if not self._base.changes.is_current():
                self.feed.wake()

    async def sweep(self) -> None:
        await self.feed.sweep()

    def stop(self) -> None:
        self.feed.close()
