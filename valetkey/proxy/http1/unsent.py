"""What was written to a peer that it has not taken yet: how much it is, and how much it may be.

A transport says that it can take more only after much of its buffer, and of the kernel's, is free
again: on loopback that is a megabyte, which a slow reader takes minutes for. The kernel knows at
each moment what is left (SIOCOUTQ, tcp(7) and unix(7)), and so tells a slow reader from one that
does not read.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from typing import Final

_MOST: Final = 256 << 10
_INT: Final = struct.Struct("i")
# Linux gives SIOCOUTQ the number of TIOCOUTQ. Elsewhere only the transport's own buffer is seen.
_SIOCOUTQ: Final = termios.TIOCOUTQ if sys.platform.startswith("linux") else 0


def unsent(transport: asyncio.Transport) -> int:
    """Bytes that were written and that the peer's kernel does not have (Unix socket: the peer)."""
    waiting = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if sock is None or not _SIOCOUTQ:
        return waiting
    try:
        queued = fcntl.ioctl(sock.fileno(), _SIOCOUTQ, bytes(_INT.size))
    except (OSError, ValueError):  # it is closed by now
        return waiting
    return waiting + int(_INT.unpack(queued)[0])


def bound(sock: socket.socket) -> None:
    """Let the kernel take no more of what is written than it needs to keep a fast peer busy.

    The send buffer of a TCP connection grows to 4 MiB (tcp(7), tcp_wmem), all of which would wait
    there for each peer that does not read. Measured on loopback: as fast as without the bound.
    """
    if sock.family != socket.AF_UNIX and hasattr(socket, "TCP_NOTSENT_LOWAT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MOST)
