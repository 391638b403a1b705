"""Signs claims as a compact JWT of one type, under the key that signs now.

The header is the same for every token under one key, so its segment is made once per key.
"""

from __future__ import annotations

from typing import Any

import msgspec

from valetkey.broker.issuers.keyring import KeyRing
from valetkey.contracts import es256
from valetkey.contracts.jose import b64url


class Signer:
    """``typ`` is what the tokens are: no reader takes one type for another (RFC 8725 §3.11)."""

    def __init__(self, ring: KeyRing, typ: str) -> None:
        self._ring = ring
        self._typ = typ
        self._header: tuple[str, bytes] = ("", b"")

    @property
    def kid(self) -> str:
        """The key that signs now."""
        return self._ring.signer().times.kid

    def sign(self, claims: dict[str, Any]) -> str:
        key = self._ring.signer()
        kid, segment = self._header
        if kid != key.times.kid:
            header = {"typ": self._typ, "alg": "ES256", "kid": key.times.kid}
            segment = b64url(msgspec.json.encode(header)).encode() + b"."
            self._header = (key.times.kid, segment)
        return es256.sign(key.private, segment + b64url(msgspec.json.encode(claims)).encode())
