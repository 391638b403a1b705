"""What the sidecar knows of the workload beside it, wherever that comes from.

The token is never verified here (the broker does) and never believed for more than naming the
workload and knowing when to stop using it. A source that fails keeps the token that it had, until
that expires; then there is no identity, and calls are refused with ``identity.unavailable``.
"""

from __future__ import annotations

import ssl
import time
from typing import Final

from valetkey.contracts import codes
from valetkey.contracts.errors import BrokerError
from valetkey.contracts.logs import Log
from valetkey.contracts.oauth import ASSERTION_JWT_BEARER
from valetkey.contracts.secret import Secret
from valetkey.proxy.core.decision import Principal


class Identity:
    """The current token and the principal that it names, or why there is none.

    The base of every source: `refresh` and `watch` are theirs.
    """

    assertion_type: str = ASSERTION_JWT_BEARER
    """As what the token is presented to the broker (``client_assertion_type``)."""

    def __init__(self, problem: str) -> None:
        self._log: Final = Log("identity")
        self._token: Secret | None = None
        self._expires = 0.0
        self._principal: Principal | None = None
        self._problem = problem

    @property
    def problem(self) -> str:
        """Why the source can't be used, or why there is no identity; empty if all is well."""
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

    def client_context(self) -> ssl.SSLContext | None:
        """TLS with the workload's certificate, or ``None`` where the source has none.

        Another object after a rotation. Raises `BrokerError` once the certificate has expired.
        """
        return None

    def refresh(self) -> None:
        """Get what there is now. Blocking; keeps the old token on error."""
        raise NotImplementedError

    async def watch(self) -> None:
        """Keep up with the source until cancelled."""
        raise NotImplementedError

    def forget_keys(self) -> None:
        """Make the principal anew, so that it lets go of routes of an older snapshot."""
        if self._principal is not None:
            known = self._principal
            self._principal = Principal(known.tenant, known.subject, known.epoch)

    def raise_epoch(self, epoch: int) -> None:
        """Count under this epoch from now on, if it is a later one.

        A credential that is cached under an older one is not found any more, and streams are
        decided on again (`proxy.streams`).
        """
        known = self._principal
        if known is not None and epoch > known.epoch:
            self._principal = Principal(known.tenant, known.subject, epoch)
            self._log.info("epoch_raised", workload=known.subject, issuer=known.tenant)

    def _hold(self, token: str, *, issuer: str, subject: str, expires: float) -> None:
        """From now on this is the token."""
        self._token = Secret(token)
        self._expires = expires
        self._problem = ""
        known = self._principal
        if known is None or (known.tenant, known.subject) != (issuer, subject):
            self._principal = Principal(issuer, subject)
        self._log.info("identity_read", workload=subject, issuer=issuer)
