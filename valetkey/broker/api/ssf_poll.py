"""Poll-based delivery (RFC 8936), with long polling: who waits costs a future and nothing else.

What many streams get at the same time is encoded once.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Sequence
from typing import Final

import msgspec
from aiohttp import web
from cachetools import LRUCache

from valetkey.broker.api.admin import read_json
from valetkey.broker.api.ssf_wire import Caller, PollRequest, SetError
from valetkey.broker.core.feed import Published
from valetkey.broker.feed import Feed, Followed
from valetkey.broker.issuers.sets import SetIssuer
from valetkey.broker.store.changes import Changes
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.contracts.logs import Log

# A SET is about 700 bytes; no answer should be large enough to be cut by something between.
MAX_EVENTS: Final = 100
_WAIT: Final = re.compile(r"\bwait=([0-9]{1,4})\b")


class PollEndpoint:
    """``POST /ssf/poll/{stream}``. ``audience`` is that of all sidecars' events.

    ``wait`` and ``connection_age`` in seconds; see `FeedSettings`. An answer without events says
    that nothing has ended: only a replica that is current may say so.
    """

    def __init__(
        self,
        feed: Feed,
        changes: Changes,
        sets: SetIssuer,
        *,
        audience: str,
        wait: float,
        connection_age: float,
    ) -> None:
        self._feed = feed
        self._changes = changes
        self._sets = sets
        self._audience = audience
        self._wait = wait
        self._connection_age = connection_age
        self._bodies: LRUCache[tuple[str, tuple[int, ...], bool], bytes] = LRUCache(256)
        self._log = Log("broker.feed")

    async def handle(self, request: web.Request, caller: Caller) -> web.Response:
        began = time.monotonic()
        asked = await read_json(request, PollRequest)
        self._changes.require_current()
        followed = await self._follow(request.match_info["stream"], caller)
        if asked.ack:
            await self._feed.acknowledge(followed, asked.ack)
        if asked.set_errs:
            self._note(asked.set_errs, followed)
            await self._feed.give_up(followed, asked.set_errs)
        self._feed.touch(followed)
        limit = MAX_EVENTS if asked.max_events is None else min(asked.max_events, MAX_EVENTS)
        waits = not asked.return_immediately and limit > 0
        events, more = await self._events(
            followed, caller, limit, self._patience(request) if waits else 0.0
        )
        response = web.Response(
            body=self._body(events, caller, more=more),
            headers={"Content-Type": "application/json", "Cache-Control": "no-store"},
        )
        if self._is_old(time.monotonic() - began):
            response.force_close()
        return response

    def _is_old(self, seconds: float) -> bool:
        """Whether the connection, which this poll kept for so long, has lived long enough.

        A poll follows the one before it at once. With a chance for each second connections last
        as long as they should on average, and those that began together don't end together.
        """
        return random.random() * self._connection_age < seconds  # noqa: S311

    async def _follow(self, stream: str, caller: Caller) -> Followed:
        followed = await self._feed.follow(stream)
        if followed is None or followed.stream.push_url or not caller.owns(followed.stream):
            # One answer for all three: whose streams there are is nobody else's business.
            raise CallerError(codes.FEED_NO_STREAM, "no such stream of this caller")
        return followed

    async def _events(
        self, followed: Followed, caller: Caller, limit: int, patience: float
    ) -> tuple[Sequence[Published], bool]:
        """What there is, or what comes while it may be waited for."""
        deadline = time.monotonic() + patience
        while True:
            self._changes.require_current()
            events: list[Published] = []
            more = False
            if self._feed.is_enabled(followed):  # SSF 1.0 §8.1.2: else nothing is sent
                events, more = await self._feed.pending(followed, limit)
            left = deadline - time.monotonic()
            if events or left <= 0 or self._feed.closed:
                return events, more
            if more:
                continue
            if not await self._feed.wait(followed, left):
                return [], False
            # It may have been ended, or changed, while this waited.
            followed = await self._follow(followed.stream.id, caller)

    def _patience(self, request: web.Request) -> float:
        """Seconds: ours, or less where the receiver prefers that (RFC 7240 §4.3)."""
        preferred = _WAIT.search(request.headers.get("Prefer", ""))
        return min(self._wait, float(preferred[1])) if preferred else self._wait

    def _note(self, errors: dict[str, SetError], followed: Followed) -> None:
        for jti, error in errors.items():
            self._log.error(
                "event_refused", jti=jti, code=error.err, subject=followed.stream.owner_subject
            )

    def _body(self, events: Sequence[Published], caller: Caller, *, more: bool) -> bytes:
        receiver = caller.receiver
        audience = self._audience if receiver is None else receiver.audience
        key = (audience, tuple(event.seq for event in events), more)
        body: bytes | None = self._bodies.get(key)
        if body is None:
            sets = {
                event.jti: self._sets.issue(
                    event, audience=audience, with_reason=receiver is not None
                )
                for event in events
            }
            body = self._bodies[key] = msgspec.json.encode({"sets": sets, "moreAvailable": more})
        return body
