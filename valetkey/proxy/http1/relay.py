"""Opaque bytes both ways between two connections, once nobody reads them any more.

Each side stops the other's reading while it can't take more. An end of one direction is passed on
as such where the transports can (TCP; not TLS), so that half-closed protocols work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, cast

from valetkey.contracts import codes
from valetkey.contracts.codes import Code
from valetkey.proxy.http1.reset import reset
from valetkey.proxy.http1.unsent import unsent

_NEVER: Final = float("inf")


class Relay:
    """Two transports, taken over from whoever set them up. `ended` is called once, at the end.

    ``idle`` seconds may pass without a byte; ``stall`` seconds without a side's taking what is
    there for it, or without a byte once one direction has ended. Whoever watches asks `overdue`,
    and calls `cut`.
    """

    __slots__ = ("_ended", "_idle", "code", "deadline", "outcome", "stall", "target", "workload")

    def __init__(
        self,
        workload: asyncio.Transport,
        target: asyncio.Transport,
        *,
        idle: float,
        stall: float,
        ended: Callable[[Relay], None],
    ) -> None:
        self._idle = idle
        self.stall = stall
        self._ended: Callable[[Relay], None] | None = ended
        self.deadline = 0.0
        self.outcome = ""
        self.code: Code | None = None
        self.workload = Side(self, workload)
        self.target = Side(self, target)
        self.workload.other = self.target
        self.target.other = self.workload

    def start(
        self, early: bytes = b"", *, ended: bool = False, said: bytes = b"", said_all: bool = False
    ) -> None:
        """Take both transports over.

        ``early`` came from the target already, or its end did; ``said`` from the workload.
        """
        self.progressed()
        for side in (self.workload, self.target):
            side.transport.set_protocol(cast("asyncio.Protocol", side))
        if early:
            self.target.data_received(early)
        if ended:
            self.target.eof_received()
        if said:
            self.workload.data_received(said)
        if said_all:
            self.workload.eof_received()
        for side in (self.workload, self.target):
            if side.other.full:
                side.other.stuck(self.deadline - self._idle)
            else:
                side.read_on()

    @property
    def sent(self) -> int:
        """Bytes from the workload."""
        return self.workload.count

    @property
    def received(self) -> int:
        """Bytes from the target."""
        return self.target.count

    def progressed(self) -> None:
        self.deadline = time.monotonic() + self._idle

    def half_closed(self) -> None:
        """One direction has ended; the other must move, or end too."""
        self._idle = min(self._idle, self.stall)
        self.progressed()

    def overdue(self, now: float) -> Code | None:
        """What it is to be cut for, if nothing moved for too long. ``now`` is monotonic."""
        if self.workload.is_stuck(now):
            return codes.REQUEST_TIMEOUT
        if self.target.is_stuck(now):
            return codes.TARGET_TIMEOUT
        return codes.STREAM_IDLE if now >= self.deadline else None

    def cut(self, outcome: str, code: Code | None = None) -> None:
        """End it now, so that neither side can take it for a clean end."""
        self.finish(outcome, code)
        for side in (self.workload, self.target):
            reset(side.transport)

    def finish(self, outcome: str, code: Code | None = None) -> None:
        """It is over; what was written still goes out."""
        ended, self._ended = self._ended, None
        if ended is not None:
            self.outcome = outcome
            self.code = code
            ended(self)


class Side:
    """One of the two: an `asyncio.Protocol` by its methods."""

    __slots__ = ("_unsent", "count", "ended", "full", "other", "relay", "stuck_at", "transport")

    other: Side

    def __init__(self, relay: Relay, transport: asyncio.Transport) -> None:
        self.relay = relay
        self.transport = transport
        self.count = 0
        self.ended = False
        self.full = False
        """Whether it does not take what was written; set beforehand if that is so at the start."""
        self.stuck_at = _NEVER
        """Until when it may go on not taking it."""
        self._unsent = 0

    def read_on(self) -> None:
        """Read again, if there is something to come."""
        if not self.ended and not self.transport.is_closing():
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self.count += len(data)
        self.relay.progressed()
        if not self.other.transport.is_closing():
            self.other.transport.write(data)

    def eof_received(self) -> bool | None:
        self.ended = True
        this, other = self.transport, self.other.transport
        # TLS has no half-closed connections here: an end of one direction is the end of both.
        if (
            self.other.ended
            or not this.can_write_eof()
            or not other.can_write_eof()
            or other.is_closing()
        ):
            self.relay.finish("completed")
            other.close()
            return None
        other.write_eof()
        self.relay.half_closed()
        return True

    def stuck(self, now: float) -> None:
        """It does not take more, since ``now`` (monotonic)."""
        self.stuck_at = now + self.relay.stall
        self._unsent = unsent(self.transport)

    def is_stuck(self, now: float) -> bool:
        """Whether it took nothing at all for too long; see `http1.unsent`."""
        if now < self.stuck_at:
            return False
        before = self._unsent
        self.stuck(now)
        return self._unsent >= before

    def pause_writing(self) -> None:
        self.full = True
        self.stuck(time.monotonic())
        if not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        self.full = False
        self.stuck_at = _NEVER
        self.relay.progressed()
        self.other.read_on()

    def connection_lost(self, exc: Exception | None) -> None:
        relay = self.relay
        if self is relay.workload:
            relay.finish("client_closed")
        elif exc is None:
            relay.finish("completed")
        else:
            relay.finish("cut", codes.TARGET_CLOSED)
        if exc is None:
            self.other.transport.close()
        else:
            reset(self.other.transport)
