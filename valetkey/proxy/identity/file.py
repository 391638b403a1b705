"""The workload's identity from a token file, re-read when it changes.

Kubernetes projected tokens look like this: a JWT in a file that the kubelet replaces well before
it expires. The file is looked at by its metadata once a second and read when that differs; what
is in it is never verified here (the broker does) and never believed for more than naming the
workload and knowing when to stop using it.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

from valetkey.contracts import codes, jose
from valetkey.contracts.errors import BrokerError
from valetkey.contracts.jose import TokenInvalid
from valetkey.contracts.logs import Log
from valetkey.contracts.secret import Secret
from valetkey.proxy.core.decision import Principal

_POLL: Final = 1.0
# More than any token that a server takes in a header.
_MAX_FILE: Final = 64 << 10


class FileIdentity:
    """The current token and the principal that it names, or why there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log = Log("identity")
        self._stamp: tuple[int, int, int] | None = None
        self._token: Secret | None = None
        self._expires = 0.0
        self._principal: Principal | None = None
        self._problem = "the token file was not read yet"

    @property
    def problem(self) -> str:
        """Why the file can't be used, or why there is no identity; empty if all is well."""
        if not self._problem and time.time() >= self._expires:
            return "the token has expired"
        return self._problem

    def principal(self) -> Principal | None:
        """Whom this sidecar speaks for; ``None`` when there is no unexpired token."""
        return self._principal if time.time() < self._expires else None

    def token(self) -> tuple[Secret, float]:
        """The token and the seconds it is still good for. Raises `BrokerError`."""
        left = self._expires - time.time()
        if self._token is None or left <= 0:
            raise BrokerError(codes.IDENTITY_UNAVAILABLE, self.problem)
        return self._token, left

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
        self._token = Secret(text)
        self._expires = float(expires)
        self._problem = ""
        known = self._principal
        if known is None or (known.tenant, known.subject) != (issuer, subject):
            self._principal = Principal(issuer, subject)
        self._log.info("identity_read", workload=subject, issuer=issuer)

    async def watch(self) -> None:
        """Keep up with the file until cancelled."""
        while True:
            await asyncio.sleep(_POLL)
            await asyncio.to_thread(self.refresh)

    def raise_epoch(self, epoch: int) -> None:
        """Count under this epoch from now on, if it is a later one.

        A credential that is cached under an older one is not found any more, and streams are
        decided on again (`proxy.streams`).
        """
        known = self._principal
        if known is not None and epoch > known.epoch:
            self._principal = Principal(known.tenant, known.subject, epoch)
            self._log.info("epoch_raised", workload=known.subject, issuer=known.tenant)

    def forget_keys(self) -> None:
        """Make the principal anew, so that it lets go of routes of an older snapshot."""
        if self._principal is not None:
            known = self._principal
            self._principal = Principal(known.tenant, known.subject, known.epoch)

    def _fail(self, problem: str) -> None:
        if problem != self._problem:
            self._log.warning("identity_unavailable", reason=problem, file=self._path)
        self._problem = problem
