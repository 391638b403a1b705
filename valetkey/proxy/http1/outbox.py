"""Writes of one turn of the event loop, sent together at its end.

A turn handles a batch of readable sockets. Written at once, each small message would wake its
receiver by itself, and on loopback the waking is most of what a write costs; written one right
after the other, the first wakes it and the rest find it awake. Nothing waits for a timer: the
flush is the very next thing that the loop does.

It is also where the record comes before the deed: what a turn appended to the spool is kept, in
one write, before the first byte of the turn leaves (`Outbox.kept`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from valetkey.proxy.audit.spool import Spool

# From this size on a write goes out at once: one turn can read 32 times 256 KiB from one socket
# (libuv's loop), and only what the transport has got can make it stop that.
LARGE: Final = 16 << 10


class Flushable(Protocol):
    """A connection with bytes to send."""

    def flush(self) -> None: ...
    def discard(self) -> None: ...


class Outbox:
    """The connections that have something to send in this turn."""

    __slots__ = ("_loop", "_spool", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, spool: Spool) -> None:
        self._loop = loop
        self._spool = spool
        self._waiting: list[Flushable] = []
        spool.on_failure = self._discard

    def add(self, connection: Flushable) -> None:
        """Have a connection flushed; called once per turn and connection."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(connection)

    def kept(self) -> bool:
        """Whether the record has all that was done so far. Asked before each write.

        If it can't have it, what all connections were about to send is thrown away with them.
        """
        spool = self._spool
        return spool.kept == spool.seq or spool.keep()

    def _discard(self) -> None:
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.discard()

    def _flush(self) -> None:
        if not self.kept():
            return
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.flush()
