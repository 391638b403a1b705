"""Writes of one turn of the event loop, sent together at its end.

A turn handles a batch of readable sockets. Written at once, each small message would wake its
receiver by itself, and on loopback the waking is most of what a write costs; written one right
after the other, the first wakes it and the rest find it awake. Nothing waits for a timer: the
flush is the very next thing that the loop does.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

# From this size on a write goes out at once: one turn can read 32 times 256 KiB from one socket
# (libuv's loop), and only what the transport has got can make it stop that.
LARGE: Final = 16 << 10


class Flushable(Protocol):
    """A connection with bytes to send."""

    def flush(self) -> None: ...


class Outbox:
    """The connections that have something to send in this turn."""

    __slots__ = ("_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[Flushable] = []

    def add(self, connection: Flushable) -> None:
        """Have a connection flushed; called once per turn and connection."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(connection)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.flush()
