"""What NO_PROXY excludes. No two clients read it alike; here an entry excludes what any would.

Forms that are in use, with who knows them:

- ``*`` alone: everybody; ``*`` among others: Go, httpx, Node.
- ``example.com``: the host, and below it for curl, Go and Python.
- ``.example.com``: below it, and the host itself for curl and Python.
- ``*.example.com``: below it, for Go and Node.
- ``10.0.0.0/8``: addresses in it, for curl ≥ 7.86, Go and requests.
- ``example.com:8080``: only on that port.

Entries are divided by commas, for curl and Node by spaces as well.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

EVERYTHING: Final = "*"


def entries(value: str) -> list[str]:
    """The entries of a NO_PROXY value, in order."""
    return [entry for entry in re.split(r"[,\s]+", value) if entry]


def excluding(value: str, host: str, port: int) -> str:
    """The first entry for which some client would call ``host`` directly; empty if there is none.

    ``*`` is for the caller to judge on its own: it says something about all hosts.
    """
    wanted = _plain(host)
    for entry in entries(value):
        if entry != EVERYTHING and _excludes(entry, wanted, port):
            return entry
    return ""


def _excludes(entry: str, host: str, port: int) -> bool:
    name, entry_port = _split_port(entry.lower())
    if entry_port and entry_port != port:
        return False
    network = _network(name)
    address = _address(host)
    if network is not None:
        return address is not None and address.version == network.version and address in network
    if address is not None:
        return False
    name = _plain(name.removeprefix("*").removeprefix("."))
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _plain(host: str) -> str:
    return host.lower().strip("[]").removesuffix(".")


def _split_port(entry: str) -> tuple[str, int]:
    """``example.com:8080`` in two; an IPv6 address has colons of its own."""
    head, colon, tail = entry.rpartition(":")
    if colon and tail.isascii() and tail.isdecimal() and (":" not in head or head.endswith("]")):
        return head, int(tail)
    return entry, 0


def _network(name: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(name.replace("[", "").replace("]", ""), strict=False)
    except ValueError:
        return None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
