"""Opaque bytes both ways between two connections, once nobody reads them any more.

Each side stops the other's reading while it can't take more. An end of one direction is passed on
as such where the transport can (TCP; not TLS), so that half-closed protocols work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import cast

from valetkey.contracts.codes import Code


class Relay:
    """Two transports, taken over from whoever set them up. `ended` is called once, at the end.

    ``deadline`` (monotonic) moves with every byte; whoever watches it calls `cut`.
    """

    __slots__ = ("_ended", "_idle", "code", "deadline", "outcome", "target", "workload")

    def __init__(
        self,
        workload: asyncio.Transport,
        target: asyncio.Transport,
        *,
        idle: float,
        ended: Callable[[Relay], None],
    ) -> None:
        self._idle = idle
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
            if not side.other.full and not side.transport.is_closing():
                side.transport.resume_reading()

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

    def cut(self, outcome: str, code: Code | None = None) -> None:
        """End it now, so that neither side can take it for a clean end."""
        self.code = code
        self.finish(outcome)
        for side in (self.workload, self.target):
            side.transport.abort()

    def finish(self, outcome: str) -> None:
        """It is over; what was written still goes out."""
        ended, self._ended = self._ended, None
        if ended is not None:
            self.outcome = outcome
            ended(self)


class Side:
    """One of the two: an `asyncio.Protocol` by its methods."""

    __slots__ = ("count", "ended", "full", "other", "relay", "transport")

    other: Side

    def __init__(self, relay: Relay, transport: asyncio.Transport) -> None:
        self.relay = relay
        self.transport = transport
        self.count = 0
        self.ended = False
        self.full = False

    def data_received(self, data: bytes) -> None:
        self.count += len(data)
        self.relay.progressed()
        if not self.other.transport.is_closing():
            self.other.transport.write(data)

    def eof_received(self) -> bool | None:
        self.ended = True
        other = self.other
        if other.ended or not other.transport.can_write_eof() or other.transport.is_closing():
            self.relay.finish("completed")
            other.transport.close()
            return None
        other.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        self.full = True
        if not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        self.full = False
        self.relay.progressed()
        if not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        relay = self.relay
        if self is relay.workload:
            relay.finish("client_closed")
        else:
            relay.finish("completed" if exc is None else "cut")
        if exc is None:
            self.other.transport.close()
        else:
            self.other.transport.abort()
