"""What a replica does not begin, because it could not answer in time.

A fleet that starts, or that comes from a replica that ended, asks at one moment for more than one
loop answers within its patience (sidecars wait 5 s). Who answers in the order of arrival then works
for clients that have gone, and each of them comes again: nobody is served, for as long as they
come. So while the loop is late, requests of sidecars are turned away at once, with 503. That costs
a fraction of an answer, what was begun is answered in time, and who was turned away comes back
after a random pause.

Administrators, probes and metrics are never turned away: whoever opens an incident must get in.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Middleware
from prometheus_client import Counter

from valetkey.broker.api import introspect, token
from valetkey.broker.api.ssf_wire import POLL_PATH, STREAMS_PATH
from valetkey.broker.api.wire import error_answer
from valetkey.contracts import codes
from valetkey.contracts.service import Handler, problem_response

# A request waits for the turn of the loop before its own and for its own: together well below 5 s.
LATE: Final = 1.0
_TICK: Final = 0.05
_BUSY: Final = 0.5
_OAUTH: Final = frozenset({token.PATH, introspect.PATH})


class Lateness:
    """By how much the loop is late: what comes now has waited for as long, or will.

    Only what it was busy with counts. A process that was stopped, or had no processor, is late too,
    and has nothing to turn away.
    """

    def __init__(self) -> None:
        self._look()

    def _look(self) -> None:
        self._due = time.monotonic() + _TICK  # not the loop's time, which stands while it works
        self._busy = time.thread_time()

    @property
    def seconds(self) -> float:
        late = time.monotonic() - self._due
        return late if late > 0 and time.thread_time() - self._busy >= _BUSY else 0.0

    async def run(self) -> None:
        """Look at the clock until cancelled."""
        while True:
            self._look()
            await asyncio.sleep(_TICK)


def turning_away(lateness: Lateness, turned_away: Counter) -> Middleware:
    """Answer 503 in place of what sidecars ask for while the loop is late."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        path = request.path
        oauth = path in _OAUTH
        if not (oauth or path == STREAMS_PATH or path.startswith(POLL_PATH)):
            return await handler(request)
        if lateness.seconds <= LATE:
            return await handler(request)
        turned_away.inc()
        code = codes.SERVICE_UNAVAILABLE
        return error_answer(code) if oauth else problem_response(code)

    return middleware
