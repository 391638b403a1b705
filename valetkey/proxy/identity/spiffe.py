"""The workload's identity from the SPIFFE Workload API: SVIDs that an agent on the host gives out.

SVIDs are fetched anew at half of what they have left to live. While the agent is away (it restarts,
it was never there) the last ones go on until they expire, and it is asked again after 1, 2, 4, …
seconds, at most 30. Whether a process gets an SVID, and which, is the agent's decision by what the
kernel says of it: nothing here is a secret to start with.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from valetkey.contracts import codes
from valetkey.contracts.errors import BrokerError, ConfigError
from valetkey.contracts.oauth import ASSERTION_JWT_SPIFFE
from valetkey.contracts.trusted_roots import Stamp, stamp
from valetkey.proxy.identity.source import Identity
from valetkey.proxy.identity.workload_api import (
    JwtSvid,
    WorkloadApi,
    WorkloadApiFailed,
    X509Svid,
)

_TICK: Final = 0.5
_FIRST_RETRY: Final = 1.0
_LAST_RETRY: Final = 30.0
# However long SVIDs live, what an administrator changed shows within this time.
_OLDEST: Final = 300.0


class Svids(Protocol):
    """Where SVIDs come from. Both block, and raise `WorkloadApiFailed`."""

    def jwt_svid(self, audience: str) -> JwtSvid: ...

    def x509_svid(self) -> X509Svid: ...


class SpiffeIdentity(Identity):
    """A JWT-SVID for one audience, and with ``certificates`` an X.509-SVID besides.

    ``ca_file`` is whom connections with that certificate trust, if not the system's roots; it is
    read again when it changes.
    ``clock`` is monotonic, in seconds.
    """

    assertion_type = ASSERTION_JWT_SPIFFE

    def __init__(
        self,
        svids: Svids,
        audience: str,
        *,
        certificates: bool = False,
        ca_file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__("the agent was not asked yet")
        self._svids = svids
        self._audience = audience
        self._certificates = certificates
        self._ca_file = ca_file
        self._clock = clock
        self._due = 0.0
        self._retry = _FIRST_RETRY
        self._context: ssl.SSLContext | None = None
        self._certificate_expires = 0.0
        self._roots: Stamp | None = None

    @classmethod
    def open(
        cls,
        socket: str,
        audience: str,
        *,
        identity: str | None,
        certificates: bool = False,
        ca_file: Path | None = None,
    ) -> SpiffeIdentity:
        """Raises `ConfigError` where the library is not installed."""
        api = WorkloadApi(socket, identity)
        return cls(api, audience, certificates=certificates, ca_file=ca_file)

    def client_context(self) -> ssl.SSLContext | None:
        if not self._certificates:
            return None
        if self._context is None or time.time() >= self._certificate_expires:
            raise BrokerError(codes.IDENTITY_UNAVAILABLE, "no certificate that has not expired")
        return self._context

    def refresh(self) -> None:
        """Ask, if it is time to. Blocking, for `workload_api.TIMEOUT` at most per question.

        The first time, raises `ConfigError` for a ``ca_file`` that can't be read; later that is a
        failure like the others, after which the last SVIDs go on.
        """
        if self._clock() < self._due:
            return
        starting = self._due == 0.0
        self._roots = stamp(self._ca_file)  # before it is read: a change meanwhile is then seen
        try:
            token = self._svids.jwt_svid(self._audience)
            certificate = self._svids.x509_svid() if self._certificates else None
            if certificate is not None and certificate.identity != token.identity:
                raise WorkloadApiFailed("token and certificate are of two identities")  # noqa: TRY301
            context = None if certificate is None else _context(certificate, self._ca_file)
        except WorkloadApiFailed as error:
            self._fail(f"the Workload API gives no SVID: {error}")
            return
        except (ConfigError, OSError, ssl.SSLError) as error:
            if starting and isinstance(error, ConfigError):
                raise
            self._fail(f"no TLS with the certificate: {error}")
            return
        lives = token.expires
        if certificate is not None:
            lives = min(lives, certificate.expires)
            self._context = context
            self._certificate_expires = certificate.expires
        self._hold(
            token.token,
            issuer=token.identity.trust_domain,
            subject=str(token.identity),
            expires=token.expires,
        )
        self._retry = _FIRST_RETRY
        left = (lives - time.time()) / 2
        self._due = self._clock() + min(max(left, _FIRST_RETRY), _OLDEST)

    async def watch(self) -> None:
        """Keep up with the agent until cancelled."""
        while True:
            await asyncio.sleep(_TICK)
            if self._certificates and await asyncio.to_thread(self._has_other_roots):
                self._due = self._clock()
            if self._clock() >= self._due:
                await asyncio.to_thread(self.refresh)

    def _has_other_roots(self) -> bool:
        return stamp(self._ca_file) != self._roots

    def _fail(self, problem: str) -> None:
        if problem != self._problem:
            self._log.warning("identity_unavailable", reason=problem)
        self._problem = problem
        self._due = self._clock() + self._retry
        self._retry = min(self._retry * 2, _LAST_RETRY)


def _context(svid: X509Svid, ca_file: Path | None) -> ssl.SSLContext:
    """TLS with that certificate. The key is on no disk: OpenSSL reads it from memory."""
    try:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"broker.ca_file: {ca_file}: {error}") from error
    memory = os.memfd_create("svid")
    try:
        with os.fdopen(memory, "wb", closefd=False) as file:
            file.write(svid.chain + svid.key)
        context.load_cert_chain(f"/proc/self/fd/{memory}")
    finally:
        os.close(memory)
    return context
