"""One connection to a target: bytes in, bytes out, and who they belong to.

A connection is lent to one call at a time. Idle, it must be silent: a byte or an end that arrives
then closes it, since it could otherwise be taken for the answer to the next call. The same goes
for what arrives after it was lent again and before anything of the next request was sent: it was
on its way already, and answers nothing (response queue poisoning).
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol, cast

from valetkey.proxy.http1.outbox import LARGE

if TYPE_CHECKING:
    from valetkey.proxy.http1.pool import Pool


class Borrower(Protocol):
    """The call that a connection is lent to."""

    def target_received(self, data: bytes) -> None: ...
    def target_unasked(self) -> None: ...
    def target_ended(self) -> None: ...
    def target_lost(self) -> None: ...
    def target_write_paused(self) -> None: ...
    def target_write_resumed(self) -> None: ...


class Place(Enum):
    """Where a connection stands in its pool's books."""

    DIALLED = auto()
    LENT = auto()
    IDLE = auto()
    GONE = auto()


class TargetConnection:
    """A transport to a target, its borrower, and since when it is idle.

    An `asyncio.Protocol` by its methods; compiled, it can have no interpreted base class.
    """

    __slots__ = (
        "_out",
        "asked",
        "borrower",
        "congested",
        "idle_since",
        "open",
        "place",
        "pool",
        "transport",
        "unsent",
        "used",
    )

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.borrower: Borrower | None = None
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.open = False
        self.congested = False
        """Whether the target does not take what was sent."""
        self.asked = False
        """Whether anything of its borrower's request was sent."""
        self.used = False
        """Whether it has carried a call before: only then can it be stale."""
        self.unsent = -1
        """What it had not taken when it was looked at last (`http1.unsent`); -1: nobody looked."""
        self.idle_since = 0.0
        self.place = Place.DIALLED
        self._out: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.open = True

    def data_received(self, data: bytes) -> None:
        if self.borrower is None:
            self.close()
        elif self.asked:
            self.borrower.target_received(data)
        else:
            self.borrower.target_unasked()

    def eof_received(self) -> bool | None:
        if self.borrower is None:
            self.close()
        else:
            self.borrower.target_ended()
        return None  # the transport closes itself: nothing more can be asked over it

    def connection_lost(self, _exc: Exception | None) -> None:
        self.open = False
        self.pool.lost(self)
        borrower, self.borrower = self.borrower, None
        if borrower is not None:
            borrower.target_lost()

    def pause_writing(self) -> None:
        self.congested = True
        if self.borrower is not None:
            self.borrower.target_write_paused()

    def resume_writing(self) -> None:
        self.congested = False
        if self.borrower is not None:
            self.borrower.target_write_resumed()

    def write(self, data: bytes) -> None:
        """Send at the end of this turn of the loop, or now what is large."""
        if not self._out:
            self.pool.outbox.add(self)
        self._out.append(data)
        if len(data) >= LARGE:
            self.flush()

    def flush(self) -> None:
        """Send now what was written."""
        out, self._out = self._out, []
        if out and self.open and self.pool.outbox.kept():
            self.asked = True
            self.transport.write(out[0] if len(out) == 1 else b"".join(out))

    def discard(self) -> None:
        """Give up what was written and not sent: its call is not on record."""
        self._out = []
        if self.open:
            self.transport.abort()

    def close(self) -> None:
        """Give the connection up; whatever is under way on it is over."""
        self.open = False
        self.borrower = None
        self.pool.lost(self)
        self.transport.abort()
