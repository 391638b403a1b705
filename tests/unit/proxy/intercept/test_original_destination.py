"""What the kernel says of a redirected connection, read from its own structures."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any

import pytest

from valetkey.proxy.intercept.original_destination import original_destination


class Asked:
    """A socket that answers as netfilter does. ``level`` is what it must be asked at."""

    def __init__(self, local: tuple[Any, ...], level: int, answer: bytes | int) -> None:
        self.local = local
        self.level = level
        self.answer = answer

    def getsockname(self) -> tuple[Any, ...]:
        return self.local

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (self.level, 80)
        if isinstance(self.answer, int):
            raise OSError(self.answer, "")
        assert size == len(self.answer)
        return self.answer


def in4(address: str, port: int) -> bytes:
    """struct sockaddr_in."""
    return struct.pack("=H", socket.AF_INET) + port.to_bytes(2, "big") + socket.inet_aton(
        address
    ) + bytes(8)  # fmt: skip


def in6(address: str, port: int) -> bytes:
    """struct sockaddr_in6."""
    return (
        struct.pack("=H", socket.AF_INET6)
        + port.to_bytes(2, "big")
        + b"flow"
        + socket.inet_pton(socket.AF_INET6, address)
        + b"scop"
    )


V4 = ("127.0.0.1", 7073)
V6 = ("::1", 7073, 0, 0)
MAPPED = ("::ffff:127.0.0.1", 7073, 0, 0)
IP, IPV6 = socket.IPPROTO_IP, socket.IPPROTO_IPV6

TABLE = {
    "IPv4": (V4, IP, in4("203.0.113.7", 443), ("203.0.113.7", 443)),
    "IPv6": (V6, IPV6, in6("2001:db8::7", 65535), ("2001:db8::7", 65535)),
    "IPv4 at a listener on both": (MAPPED, IP, in4("203.0.113.7", 80), ("203.0.113.7", 80)),
    "the same port elsewhere": (V4, IP, in4("203.0.113.7", 7073), ("203.0.113.7", 7073)),
    "another port here": (V4, IP, in4("127.0.0.1", 80), ("127.0.0.1", 80)),
    "the listener itself": (V4, IP, in4("127.0.0.1", 7073), None),
    "the listener itself, IPv6": (V6, IPV6, in6("::1", 7073), None),
    "the listener itself, on both": (MAPPED, IP, in4("127.0.0.1", 7073), None),
    "no entry": (V4, IP, errno.ENOENT, None),
    "no connection tracking": (V6, IPV6, errno.ENOPROTOOPT, None),
}


@pytest.mark.parametrize(("local", "level", "answer", "expected"), TABLE.values(), ids=TABLE.keys())
def test_where_a_connection_was_going(
    local: tuple[Any, ...], level: int, answer: bytes | int, expected: tuple[str, int] | None
) -> None:
    asked: Any = Asked(local, level, answer)
    assert original_destination(asked) == expected


def test_a_plain_connection_was_not_redirected() -> None:
    """Whether this kernel tracks connections or not."""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            listener = socket.create_server((address, 0), family=family)
        except OSError:
            assert family == socket.AF_INET6  # a machine without it
            continue
        with listener, socket.create_connection(listener.getsockname()[:2]):
            accepted, _ = listener.accept()
            with accepted:
                assert original_destination(accepted) is None
