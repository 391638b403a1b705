"""The workload's identity from a token file, re-read when it changes.

Kubernetes projected tokens look like this: a JWT in a file that the kubelet replaces well before
it expires. The file is looked at by its metadata once a second and read when that differs; what
is in it is never verified here (the broker does) and never believed for more than naming the
workload and knowing when to stop using it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from valetkey.contracts import jose
from valetkey.contracts.jose import TokenInvalid
from valetkey.proxy.identity.source import Identity

_POLL: Final = 1.0
# More than any token that a server takes in a header.
_MAX_FILE: Final = 64 << 10


class FileIdentity(Identity):
    """The token in one file."""

    def __init__(self, path: Path) -> None:
        super().__init__("the token file was not read yet")
        self._path = path
        self._stamp: tuple[int, int, int] | None = None

    def refresh(self) -> None:
        """Look at the file and read it if it changed. Blocking; keeps the old token on error."""
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
            if stamp == self._stamp:
                return
            with self._path.open(encoding="ascii") as file:
                text = file.read(_MAX_FILE).strip()
        except (OSError, UnicodeDecodeError) as error:
            self._fail(f"the token file can't be read: {type(error).__name__}")
            return
        try:
            claims = jose.parse(text).unverified_claims
        except TokenInvalid as error:
            self._fail(f"the token file holds no JWT: {error}")
            return
        issuer, subject, expires = claims.get("iss"), claims.get("sub"), claims.get("exp")
        if (
            not isinstance(issuer, str)
            or not isinstance(subject, str)
            or not issuer
            or not subject
            or not jose.is_time(expires)
        ):
            self._fail("the token lacks iss, sub or exp")
            return
        self._stamp = stamp
        self._hold(text, issuer=issuer, subject=subject, expires=float(expires))

    async def watch(self) -> None:
        """Keep up with the file until cancelled."""
        while True:
            await asyncio.sleep(_POLL)
            await asyncio.to_thread(self.refresh)

    def _fail(self, problem: str) -> None:
        if problem != self._problem:
            self._log.warning("identity_unavailable", reason=problem, file=self._path)
        self._problem = problem
