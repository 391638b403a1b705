"""DPoP nonces of this server, without a table of them (RFC 9449 §8).

A nonce is a MAC over the number of a time window, under a key that is made at each start. So a
nonce is good for one to two windows, and every proof from before a restart, which the replay
memory no longer knows, fails on its nonce.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from valetkey.contracts.jose import b64url

WINDOW: Final = 60.0
_MAC_LENGTH: Final = 16


class Nonces:
    """``key`` has at least 32 random bytes and lives as long as the process."""

    __slots__ = ("_cached", "_key")

    def __init__(self, key: bytes) -> None:
        if len(key) < 32:
            raise ValueError("the nonce key is too short")
        self._key = key
        self._cached: tuple[int, str, str] = (-1, "", "")

    def current(self, now: float) -> str:
        """The nonce to hand out at ``now`` (seconds since the epoch)."""
        return self._pair(now)[0]

    def is_ours(self, nonce: str, now: float) -> bool:
        """Whether ``nonce`` was handed out in this window or the one before."""
        given = nonce.encode()
        current, previous = self._pair(now)
        return hmac.compare_digest(given, current.encode()) or hmac.compare_digest(
            given, previous.encode()
        )

    def _pair(self, now: float) -> tuple[str, str]:
        window = int(now // WINDOW)
        if self._cached[0] != window:
            self._cached = (window, self._of(window), self._of(window - 1))
        return self._cached[1], self._cached[2]

    def _of(self, window: int) -> str:
        mac = hmac.digest(self._key, window.to_bytes(8, signed=True), hashlib.sha256)
        return b64url(mac[:_MAC_LENGTH])
