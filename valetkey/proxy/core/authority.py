"""Host names and origins in one form, so that two spellings never name two things.

RFC 9110 §4.2.3 (normalisation), RFC 6454 §4 (an origin is scheme, host and port).
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError

DEFAULT_PORTS: Final = {"http": 80, "https": 443}

# RFC 3986 §3.2.2 reg-name (no percent-encoding: no two spellings of one host) or IP literal.
_HOST: Final = re.compile(r"([a-z0-9](?:[a-z0-9._-]*[a-z0-9_])?|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")

# RFC 1123 §2.1 and RFC 5891 (A-labels); `_` is in names of hosts, though not of the standard.
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")


def split_host(value: str) -> tuple[str, int]:
    """A Host or authority as ``(name, port)``; port 0 where none is given. Raises `CallerError`.

    The name is lower case, without a trailing dot. Names outside ASCII come as A-labels (RFC
    5891); userinfo, spaces, an empty port or one beyond 65535 are no host.
    """
    host = value.lower()
    name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    if colon and name.endswith("."):
        host = f"{name[:-1]}:{port}"
    elif not colon and host.endswith("."):
        host = host[:-1]
    match = _HOST.fullmatch(host)
    if match is None or int(match[2] or 1) not in range(1, 65_536):
        raise CallerError(codes.REQUEST_AMBIGUOUS_HOST, "not a valid host")
    return match[1], int(match[2] or 0)


def settled_host(name: str) -> str:
    """A host of the settings in the one form that is resolved, verified and sent. `ValueError`.

    ``name`` is lower case, an IPv6 address in brackets. Addresses get their one spelling (RFC
    5952); what a resolver would read as an IPv4 address spelled otherwise (``127.1``, ``0x7f.1``)
    is refused, and so is what no resolver takes for a name (RFC 1035 §2.3.4).
    """
    if name.startswith("["):
        address = name[1:-1]
        if not name.endswith("]") or "%" in address:
            raise ValueError("no address, or one with a zone")
        return f"[{ipaddress.IPv6Address(address)}]"
    labels = name.split(".")
    if labels[-1].isdigit() or labels[-1].startswith("0x"):
        return str(ipaddress.IPv4Address(name))
    if len(name) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError("not a host name")
    return name


def join_host(name: str, port: int, default: int) -> str:
    """The authority: no port where it is the scheme's own, or was not given."""
    return name if port in {0, default} else f"{name}:{port}"


def host_of(value: str) -> str:
    """A Host in its one form, no port where it is the one of ``http``. Raises `CallerError`."""
    name, port = split_host(value)
    return join_host(name, port, 80)


def origin_of(scheme: str, name: str, port: int) -> str:
    """The origin as text, as `Target.url` has it: ``https://api.example.com``."""
    return f"{scheme}://{join_host(name, port, DEFAULT_PORTS[scheme])}"
