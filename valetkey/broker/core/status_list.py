"""The bits of a status list, as draft-ietf-oauth-status-list §4 packs them."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from valetkey.contracts.jose import b64url

# Tokens in one list: enough that one is not known by its list, few enough to look at all at once.
SIZE: Final = 4096


@dataclass(frozen=True, slots=True)
class Place:
    """Where a token's status is: the list's id, and which bit of it."""

    list: str
    index: int


def packed(invalid: Iterable[int], *, size: int = SIZE) -> str:
    """``lst``: one bit a token, 1 for INVALID (§7.1), the lowest bit of a byte first (§4.1).

    zlib (RFC 1950) at its highest level, base64url.
    """
    if size % 8:
        raise ValueError("size must be a multiple of 8")
    octets = bytearray(size // 8)
    for index in invalid:
        if not 0 <= index < size:
            raise ValueError("an index outside of the list")
        octets[index >> 3] |= 1 << (index & 7)
    return b64url(zlib.compress(bytes(octets), 9))
