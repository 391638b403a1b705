"""Credentials that are in use are asked about: a revoked one must not work until it expires.

Every few seconds the broker is asked (RFC 7662) about each cached credential that went out since
the last round, and about those that open streams and calls not sent yet rest on; one that it no
longer stands by is ended as if the feed had told it. So the time from a revocation to its effect
here is the interval at most, not the credential's life (standards.md §8: min of TTL, push and
poll). A broker that can't be asked changes nothing: a credential then works until it expires.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from valetkey.contracts.errors import ValetkeyError
from valetkey.contracts.logs import Log
from valetkey.contracts.signals import Signal
from valetkey.proxy.core.credential import Credential
from valetkey.proxy.core.eviction import Ended
from valetkey.proxy.credentials.cache import CredentialCache
from valetkey.proxy.credentials.exchange import ExchangeClient


class StreamCredentials(Protocol):
    """What open streams and calls not sent yet rest on; see `valetkey.proxy.streams`."""

    def credentials(self) -> list[Credential]: ...


class Enforcement(Protocol):
    """What is in force; see `Revocation`."""

    @property
    def streams(self) -> StreamCredentials: ...

    def revoke(self, ended: Ended) -> object: ...


class Revalidation:
    """One per sidecar."""

    def __init__(
        self,
        cache: CredentialCache,
        exchange: ExchangeClient,
        pep: Enforcement,
        every: float,
    ) -> None:
        self._cache = cache
        self._exchange = exchange
        self._pep = pep
        self._every = every
        self._log = Log("revalidation")
        self.asked = 0
        self.revoked = 0

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            await asyncio.sleep(self._every)
            await self.round()

    async def round(self) -> None:
        """Ask about what was used since the last round, and what calls under way rest on."""
        streaming = self._pep.streams.credentials()
        for credential in dict.fromkeys((*self._cache.take_used(), *streaming)):
            try:
                active = await self._exchange.is_active(credential)
            except ValetkeyError as error:
                # The next round asks again, if it is still in use by then.
                self._log.warning("not_revalidated", code=error.code.name, reason=error.reason)
                return
            self.asked += 1
            if not active:
                end = Signal(kind="hash", value=credential.token_hash(), at=time.time())
                self._pep.revoke(Ended([end]))
                self.revoked += 1
                self._log.warning("credential_revoked", jti=credential.jti)
