"""``Client-Cert`` and ``Client-Cert-Chain`` (RFC 9440): a terminator's word for a certificate."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Final

CERT: Final = "Client-Cert"
CHAIN: Final = "Client-Cert-Chain"
# RFC 8941 §3.3.5: a byte sequence is base64 between colons
_BYTES: Final = re.compile(r":([A-Za-z0-9+/]*={0,2}):")
_MOST: Final = 8


def read_certificates(leaf: Sequence[str], chain: Sequence[str]) -> list[bytes]:
    """The certificates in DER, the leaf first, of all values of both headers.

    Raises `ValueError`.
    """
    if len(leaf) != 1:
        raise ValueError("not exactly one Client-Cert")
    # RFC 9440 §2.3: the chain is a list, which may be spread over several fields.
    members = [member.strip(" \t") for value in chain for member in value.split(",")]
    if len(members) > _MOST:
        raise ValueError("too many certificates")
    return [_bytes(member) for member in (leaf[0].strip(" \t"), *members)]


def _bytes(member: str) -> bytes:
    match = _BYTES.fullmatch(member)
    try:
        decoded = base64.b64decode(match[1], validate=True) if match else b""
    except binascii.Error as error:
        raise ValueError("not base64 between colons") from error
    if not decoded:
        raise ValueError("not a certificate as bytes between colons")
    return decoded
