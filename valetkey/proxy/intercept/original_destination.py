"""Where a redirected connection was going, as the kernel's connection tracking remembers it."""

from __future__ import annotations

import socket
import struct
from typing import Final

# linux/netfilter_ipv4.h, netfilter_ipv6/ip6_tables.h: SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST.
_SO_ORIGINAL_DST: Final = 80
_SOCKADDR_IN: Final = struct.Struct("!2xH4s8x")
_SOCKADDR_IN6: Final = struct.Struct("!2xH4x16s4x")


def original_destination(sock: socket.socket) -> tuple[str, int] | None:
    """Address and port that an accepted connection was opened to, before it was led here.

    None for one that was not redirected: it is not tracked, or was opened to this very listener.
    """
    local = sock.getsockname()
    name = str(local[0]).removeprefix("::ffff:")  # an IPv4 peer of a listener on both
    try:
        if ":" in name:
            raw = sock.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, _SOCKADDR_IN6.size)
            port, packed = _SOCKADDR_IN6.unpack(raw)
            family = socket.AF_INET6
        else:
            raw = sock.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN.size)
            port, packed = _SOCKADDR_IN.unpack(raw)
            family = socket.AF_INET
    except OSError:
        # ENOENT: no entry. ENOPROTOOPT: no connection tracking in this kernel or namespace.
        return None
    original = (socket.inet_ntop(family, packed), int(port))
    return original if original != (name, int(local[1])) else None
