"""Ports for servers that a test starts: nobody else is given them, no connection ends at them.

A port that the kernel picks (``bind`` to 0) can be another's by the time the server is up: the
kernel picks from the same range for every outgoing connection. So these lie below that range, and
each test process has a block of its own, held by a name that goes when the process does.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_LOWEST: Final = 12_000
_BLOCK: Final = 400
_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """A loopback port on which nothing listens. It comes again only when all of the block have."""
    for port in itertools.islice(_ports, _BLOCK):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError(f"all {_BLOCK} ports of this process are taken: servers were not stopped")


def free_url() -> str:
    """A loopback URL with a `free_port`."""
    return f"http://127.0.0.1:{free_port()}"


def _block() -> tuple[socket.socket, int]:
    """The first block that no other process holds, and what holds it: a name without a file."""
    highest = int(_RANGE.read_text().split()[0])
    for first in range(_LOWEST, highest - _BLOCK, _BLOCK):
        held = socket.socket(socket.AF_UNIX)
        try:
            held.bind(f"\0valetkey-test-ports-{first}")
        except OSError:
            held.close()
            continue
        return held, first
    raise AssertionError("no block of ports is left: too many test processes on this machine")


def _in_turn() -> Iterator[int]:
    held, first = _block()
    with held:
        while True:
            yield from range(first, first + _BLOCK)


_ports: Final = _in_turn()
