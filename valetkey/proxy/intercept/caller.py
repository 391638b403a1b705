"""The token that a listener wants of its callers, in ``Proxy-Authorization``.

A port on localhost is open to every process of the machine; who has this token is the workload
(standards: local confused deputy). It opens this listener and nothing else, and never goes on.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from pathlib import Path

from valetkey.contracts.errors import ConfigError
from valetkey.contracts.logs import Log


class CallerToken:
    """The token in a file; `refresh` reads it again. Only its digest stays in memory."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._log = Log("listener")
        self._broken = False
        self._digest = self._read()

    def admits(self, presented: list[bytes]) -> bool:
        """Whether the values of ``Proxy-Authorization`` are one, and hold the token.

        RFC 7617 (Basic: whatever user, the token as password) or RFC 6750 (Bearer).
        """
        if len(presented) != 1:
            return False
        scheme, _, credentials = presented[0].strip().partition(b" ")
        credentials = credentials.strip()
        if scheme.lower() == b"basic":
            try:
                credentials = base64.b64decode(credentials, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != b"bearer":
            return False
        return hmac.compare_digest(hashlib.sha256(credentials).digest(), self._digest)

    def refresh(self) -> None:
        """Read the file again; a file that can't be used leaves the token as it was."""
        try:
            self._digest = self._read()
        except ConfigError as error:
            if not self._broken:
                self._log.error("caller_token_unusable", reason=error, file=self._file)
            self._broken = True
        else:
            self._broken = False

    def _read(self) -> bytes:
        try:
            token = self._file.read_bytes().strip()
        except OSError as error:
            raise ConfigError(f"token_file: {self._file}: {error.strerror or error}") from error
        if len(token) < 16:
            raise ConfigError(f"token_file: {self._file}: fewer than 16 characters are no secret")
        return hashlib.sha256(token).digest()
