"""An accepted connection of which nothing was read: its bytes are for whoever takes the socket.

A transport of asyncio reads from its first moment on, and what it read no TLS engine gets any more.
So as long as it is open who will read, this stands in for a transport: it can say a few bytes of
refusal, wait for the peer to take them, and close.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Final

_DISCARDED: Final = 1 << 16


class Unread(asyncio.Transport):
    """The transport side of it. ``lost`` is called, later, when it was closed here."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        peer: tuple[str, int],
        lost: Callable[[Exception | None], None],
    ) -> None:
        super().__init__({"socket": sock, "peername": peer})
        self._loop = loop
        self._sock: socket.socket | None = sock
        self._lost = lost
        self._draining = False

    def release(self) -> socket.socket:
        """The socket, with all that the peer sent; what is done here after that has no effect."""
        sock, self._sock = self._sock, None
        assert sock is not None, "released or closed before"
        return sock

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._sock is not None:
            # A connection over which nothing was sent yet has room for it. A peer that has left
            # can't be told.
            with contextlib.suppress(OSError):
                self._sock.send(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """No more will be sent. What the peer still sends is thrown away until it ends, too.

        Closed with unread bytes in its buffer, a socket sends RST, and the peer's TCP may then
        throw away what it was told (RFC 2525 §2.17).
        """
        if self._sock is not None and not self._draining:
            with contextlib.suppress(OSError):  # not connected any more
                self._sock.shutdown(socket.SHUT_WR)
            self._draining = True
            self._loop.add_reader(self._sock, self._discard)

    def _discard(self) -> None:
        assert self._sock is not None
        try:
            ended = not self._sock.recv(_DISCARDED)
        except BlockingIOError:
            return
        except OSError:
            ended = True
        if ended:
            self.close()

    def is_closing(self) -> bool:
        return self._sock is None

    def close(self) -> None:
        sock, self._sock = self._sock, None
        if sock is None:
            return
        if self._draining:
            self._loop.remove_reader(sock)
        sock.close()
        self._loop.call_soon(self._lost, None)

    def abort(self) -> None:
        self.close()

    def pause_reading(self) -> None:
        """Nothing is read here."""

    def resume_reading(self) -> None:
        """Nothing is read here."""

    def is_reading(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0
