"""Where the credential of a call comes from, when it is not in the cache.

From the broker, or from whoever is asking it for the same one already; where people have to say
yes, after them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from valetkey.contracts.errors import ValetkeyError
from valetkey.proxy.core.headers import PURPOSE
from valetkey.proxy.credentials.question import BrokerQuestion

if TYPE_CHECKING:
    from valetkey.proxy.core.credential import Credential
    from valetkey.proxy.core.decision import NeedsCredential
    from valetkey.proxy.credentials.cache import CredentialCache, Fetch
    from valetkey.proxy.credentials.exchange import ExchangeClient
    from valetkey.proxy.credentials.held import HeldCalls
    from valetkey.proxy.http1.call import Call
    from valetkey.proxy.metrics import Metrics
    from valetkey.proxy.ways import Ways


class Waiting:
    """A call that waits for a person: the task that does so."""

    __slots__ = ("_task",)

    def __init__(self, task: asyncio.Task[Any] | None) -> None:
        self._task = task

    def leave(self) -> None:
        """Nobody is there to be answered: stop waiting, and leave what others wait for."""
        if self._task is not None:
            self._task.cancel()


class Supply:
    """Credentials for the calls of one enforcement point."""

    def __init__(
        self,
        cache: CredentialCache,
        exchange: ExchangeClient,
        held: HeldCalls,
        ways: Ways,
        metrics: Metrics,
    ) -> None:
        self._cache = cache
        self._exchange = exchange
        self._held = held
        self._ways = ways
        self._metrics = metrics

    async def obtain(self, call: Call, needs: NeedsCredential) -> Credential:
        """One for a call, made for it or for several like it. Raises `ValetkeyError`."""
        if needs.route.needs_approval:
            return await self._hold(call, needs)
        kept = await self._held.kept(needs.key, self.still_good)
        if kept is not None:
            return kept
        if needs.route.per_request:
            return await self._cache.fresh(self.fetch(needs), self.is_active)
        return await self._cache.obtain(needs.key, self.fetch(needs), self.is_active)

    def fetch(self, needs: NeedsCredential) -> Fetch:
        """The exchange for a key, as something that can be started when it is needed."""
        way = self._ways.by_target[needs.route.target]
        subject = needs.facts.subject_token

        async def fetch() -> Credential:
            return await self._measured(self._exchange.exchange(needs.key, way.injector, subject))

        return fetch

    async def is_active(self, credential: Credential) -> bool:
        """Whether the broker still stands by a credential. Raises `ValetkeyError`."""
        return await self._exchange.is_active(credential)

    async def still_good(self, credential: Credential) -> bool:
        """The same of one in hand, which may have ended before now and while it is asked about.

        Raises `ValetkeyError`.
        """
        return await self._cache.still_good(credential, self.is_active)

    def give_back(self, credential: Credential) -> None:
        """It was for a call that did not go out with it: the next one like it may have it."""
        self._held.give_back(credential)

    async def _measured(self, exchange: Awaitable[Credential]) -> Credential:
        begun = time.perf_counter()
        result = "ok"
        try:
            return await exchange
        except ValetkeyError as error:
            result = error.code.name
            raise
        finally:
            self._metrics.exchanges.observe(time.perf_counter() - begun)
            results = self._metrics.exchange_results
            results[result] = results.get(result, 0) + 1

    async def _hold(self, call: Call, needs: NeedsCredential) -> Credential:
        """Wait for a person for as long as the route says, or until the caller leaves."""
        question = BrokerQuestion(
            self._exchange,
            self._cache,
            needs.key,
            self._ways.by_target[needs.route.target].injector,
            needs.facts.subject_token,
            b" ".join(call.head.block.value(PURPOSE)).decode("utf-8", "replace"),
            self._measured,
        )
        call.waits = Waiting(asyncio.current_task())
        now = time.monotonic()
        if not call.hold_until:  # once for the call, however often it has to ask
            call.hold_until = now + needs.route.hold
        try:
            return await self._held.obtain(
                needs.key, question, hold=max(0.0, call.hold_until - now)
            )
        finally:
            call.waits = None
