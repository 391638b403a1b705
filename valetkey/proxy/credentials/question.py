"""One question to the broker that may take a person: asked once, then polled for its answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from valetkey.contracts.secret import Secret
from valetkey.proxy.core.cache_policy import CacheKey
from valetkey.proxy.core.credential import Credential
from valetkey.proxy.credentials.cache import CredentialCache, Fetch
from valetkey.proxy.credentials.exchange import ExchangeClient
from valetkey.proxy.credentials.injector import Injector

Measured = Callable[[Awaitable[Credential]], Awaitable[Credential]]


@dataclass(frozen=True, slots=True)
class BrokerQuestion:
    """For one key. ``measured`` counts and times what is sent; see `credentials.held.Question`.

    What ends while a question is on its way is held against its answer, and what ends while people
    are waited for is not: the answer is younger.
    """

    client: ExchangeClient
    cache: CredentialCache
    key: CacheKey
    injector: Injector
    subject_token: Secret | None
    purpose: str
    measured: Measured

    async def ask(self) -> Credential:
        return await self._fresh(
            lambda: self.client.exchange(
                self.key, self.injector, self.subject_token, deferred=True, purpose=self.purpose
            )
        )

    async def poll(self, deferral: Secret) -> Credential:
        return await self._fresh(
            lambda: self.client.redeem(self.key, self.injector, self.subject_token, deferral)
        )

    async def is_good(self, credential: Credential) -> bool:
        return await self.cache.still_good(credential, self.client.is_active)

    async def _fresh(self, send: Fetch) -> Credential:
        return await self.cache.fresh(lambda: self.measured(send()), self.client.is_active)
