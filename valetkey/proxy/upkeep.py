"""What is done for all that is open at once: deadlines are watched, and one day it all ends."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

from valetkey.contracts import codes

if TYPE_CHECKING:
    from valetkey.proxy.pep import EnforcementPoint

_SWEEP: Final = 0.25
_AT_ONCE: Final = 500


async def sweep(pep: EnforcementPoint) -> None:
    """Watch the deadlines of all connections until cancelled."""
    while True:
        await asyncio.sleep(_SWEEP)
        pep.streams.begin_sweep()
        now = time.monotonic()
        for count, connection in enumerate(list(pep.inbound), 1):
            if connection not in pep.inbound:
                continue  # lost while others had their turn
            call = connection.call
            if call is not None and now >= call.recheck_at:
                pep.streams.look(call, now)
                call = connection.call  # it may be over
            deadline = call.deadline if call is not None else connection.deadline
            if deadline and now >= deadline:
                connection.expired(now)
            if not count % _AT_ONCE:
                await asyncio.sleep(0)  # others have their turn between
        pep.tunnels.sweep(now)
        for count, call in enumerate(list(pep.tunnels.calls()), 1):
            if now >= call.recheck_at:
                pep.streams.look(call, now)
            if not count % _AT_ONCE:
                await asyncio.sleep(0)
        pep.ways.sweep(now)
        if pep.ways.has_retired:
            pep.ways.forget_retired(
                {call.needs.route.target for call in pep.calls() if call.needs is not None}
            )


async def drain(pep: EnforcementPoint, seconds: float) -> None:
    """No new calls; those under way get ``seconds`` to finish."""
    pep.draining = True
    for connection in list(pep.inbound):
        connection.drain()
    closed = pep.when_closed()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(closed.wait(), seconds)
    # What streams on, or waits, is over now, and on record as cut.
    for call in list(pep.calls()):
        call.fail(codes.PROXY_DRAINING, "the time to drain is over")
    await asyncio.sleep(0)
    for connection in list(pep.inbound):
        connection.transport.abort()
    pep.tunnels.cut(codes.PROXY_DRAINING)
    await pep.stop_tasks()
    pep.ways.close()
