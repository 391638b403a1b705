"""The WebSocket opening handshake (RFC 6455 §4), as far as it is the same in every HTTP version.

What happens on the connection after it is nobody's business here: frames are not read.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from typing import Final

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.proxy.core.headers import CREDENTIAL_PARAMETERS, MANAGED, normal

VERSION: Final = b"13"
# RFC 6455 §4.1: 16 bytes in base64 (RFC 4648 §4, padded).
_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{22}==")
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
# RFC 9110 §5.6.2.
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# Since browsers can set no header on a WebSocket, tokens travel as subprotocols: behind a label
# (Kubernetes' base64url.bearer.authorization.k8s.io.…, vendors' …api-key.…), as base64url of a
# JSON object (a JWT, or headers as JSON), or as the entry behind one that names it.
_CREDENTIAL: Final = re.compile(
    r"(?i:(?:^|[._-])(?:bearer|authorization|api[_-]?key|access[_-]token)[._-])"
    r"|eyJ[A-Za-z0-9_-]{8}"
)
_NAMES_ONE: Final = (
    MANAGED | {normal(name) for name in CREDENTIAL_PARAMETERS} | {"bearer", "token", "jwt"}
)


def accept_key(key: bytes) -> bytes:
    """The ``Sec-WebSocket-Accept`` that answers a key (RFC 6455 §4.2.2)."""
    digest = hashlib.sha1(key + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest)


def check_handshake(method: str, keys: Sequence[bytes], versions: Sequence[bytes]) -> bytes:
    """The key of a handshake whose request is as RFC 6455 §4.2.1 has it. Raises `CallerError`.

    ``keys`` and ``versions`` are all values of ``Sec-WebSocket-Key`` and ``-Version``.
    """
    if method != "GET":
        raise _invalid("a WebSocket is asked for with GET")
    if len(versions) != 1 or versions[0] != VERSION:
        raise _invalid("Sec-WebSocket-Version is not 13, once")
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise _invalid("Sec-WebSocket-Key is not 16 bytes in base64, once")
    return keys[0]


def split_subprotocols(values: Sequence[bytes]) -> tuple[list[str], bool]:
    """What of ``Sec-WebSocket-Protocol`` goes on, and whether a credential was taken out.

    Raises `CallerError` for what is no list of tokens (RFC 6455 §4.1).
    """
    if not values:
        return [], False
    offered = [entry.strip(" \t") for entry in b",".join(values).decode("latin-1").split(",")]
    if len(set(offered)) != len(offered) or not all(map(_TOKEN.fullmatch, offered)):
        raise _invalid("Sec-WebSocket-Protocol is not a list of different tokens")
    kept: list[str] = []
    behind_name = False
    for entry in offered:
        name = normal(entry)
        names_one = name in _NAMES_ONE
        if not behind_name and not names_one and not _CREDENTIAL.search(entry):
            kept.append(entry)
        behind_name = names_one
    return kept, len(kept) < len(offered)


def _invalid(reason: str) -> CallerError:
    return CallerError(codes.REQUEST_UPGRADE_INVALID, reason)
