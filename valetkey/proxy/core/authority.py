"""Host names in one form, so that two spellings never name two things (RFC 9110 §4.2.3)."""

from __future__ import annotations

import re
from typing import Final

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError

# RFC 3986 §3.2.2 reg-name (no percent-encoding: no two spellings of one host) or IP literal.
_HOST: Final = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9._-]*[a-z0-9_])?|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
)


def host_of(value: str) -> str:
    """A Host or authority in its one form. Raises `CallerError`.

    Lower case, no trailing dot, no port where it is the one of ``http``. Names outside ASCII come
    as A-labels (RFC 5891); userinfo, spaces, an empty port or one beyond 65535 are no host.
    """
    host = value.lower()
    name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    if colon and name.endswith("."):
        host = f"{name[:-1]}:{port}"
    elif not colon and host.endswith("."):
        host = host[:-1]
    match = _HOST.fullmatch(host)
    if match is None or int(match["port"] or 1) not in range(1, 65_536):
        raise CallerError(codes.REQUEST_AMBIGUOUS_HOST, "not a valid host")
    return host.removesuffix(":80")
