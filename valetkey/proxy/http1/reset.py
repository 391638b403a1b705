"""Ending a connection so that its peer can't take it for a clean end."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final

# struct linger: on, for no time at all. The close then sends RST (socket(7), SO_LINGER).
_RESET: Final = struct.pack("ii", 1, 0)


def reset(transport: asyncio.Transport) -> None:
    """Close with RST, not FIN. What was written and not sent is lost."""
    if not transport.is_closing():
        peer = transport.get_extra_info("socket")
        if peer is not None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()
