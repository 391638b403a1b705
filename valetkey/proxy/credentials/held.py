"""Calls that wait for a person: one question to the broker for however many of the same call.

The broker is asked with `completion_mode=deferred`, then polled at the interval that it names, for
as long as somebody waits. Rules:

- A credential of an approval whose uses are counted goes to one call. It is claimed by whoever
  takes it, is in no cache, and the others ask again.
- Who leaves takes nothing along: neither the others' question nor a credential. One that arrives
  when nobody waits any more was paid for with a use, so it is kept for the next call of the very
  same kind, until it expires or is revoked; the broker is asked before it is handed out, and while
  it can't be asked it is kept on.
- While the broker is away, what is before people is still there: polling goes on until the time to
  hold is over. Nothing ever passes because something failed.
- A no is remembered for a second, as in the cache.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final, Protocol

from cachetools import TLRUCache, TTLCache

from valetkey.contracts import codes
from valetkey.contracts.errors import (
    ApprovalError,
    BrokerError,
    CallerError,
    PolicyError,
    ValetkeyError,
)
from valetkey.contracts.logs import Log
from valetkey.contracts.secret import Secret
from valetkey.proxy.core.cache_policy import CacheKey
from valetkey.proxy.core.credential import Credential
from valetkey.proxy.core.eviction import Ended
from valetkey.proxy.credentials.cache import DENIAL_LIFETIME, IsGood

# RFC 8628 §3.5: what is polled at where the broker names no interval.
_INTERVAL: Final = 5.0
_LONGEST_INTERVAL: Final = 300.0


class Deferred(ApprovalError):  # noqa: N818 - reads as what it is
    """The broker's answer takes people. ``deferral`` is empty where only the interval is new."""

    def __init__(
        self, reason: str, *, approval: str, deferral: Secret | None, interval: float
    ) -> None:
        super().__init__(codes.APPROVAL_PENDING, reason, approval=approval)
        self.deferral = deferral
        self.interval = min(max(interval, 1.0), _LONGEST_INTERVAL) if interval else _INTERVAL


class Question(Protocol):
    """What one call asks of the broker, and how its answer is fetched."""

    async def ask(self) -> Credential:
        """Raises `Deferred`, or another `ValetkeyError`."""

    async def poll(self, deferral: Secret) -> Credential:
        """Raises `Deferred`, or another `ValetkeyError`."""

    async def is_good(self, credential: Credential) -> bool:
        """Whether the broker still stands by a credential. Raises `ValetkeyError`."""


class _Abandoned(Exception):  # noqa: N818 - it is what happened
    """Nobody waits for it any more."""


class _Flight:
    """One question under way.

    ``asked`` is done once it is before people; ``sleeps`` says that nothing is on its way to or
    from the broker.
    """

    __slots__ = ("approval", "asked", "sleeps", "task", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self.approval = ""
        self.sleeps = False
        self.asked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[Credential] | None = None


class HeldCalls:
    """The calls of one sidecar that wait. ``capacity`` bounds what is kept."""

    def __init__(self, capacity: int) -> None:
        self._flights: dict[CacheKey, _Flight] = {}
        self._left_over: TLRUCache[CacheKey, Credential] = TLRUCache(
            capacity, ttu=lambda _key, credential, _now: credential.expires_at, timer=time.monotonic
        )
        self._denials: TTLCache[CacheKey, ValetkeyError] = TTLCache(
            capacity, ttl=DENIAL_LIFETIME, timer=time.monotonic
        )
        self._log = Log("held")
        self.waiting = 0

    async def obtain(self, key: CacheKey, question: Question, *, hold: float) -> Credential:
        """A credential for one call, after at most ``hold`` seconds of waiting for people.

        Raises `ApprovalError` (not decided in time, denied, expired) or what else the broker said.
        To cancel it is to leave.
        """
        until = time.monotonic() + hold
        while True:
            kept = await self.kept(key, question.is_good)
            if kept is not None:
                return kept
            denied = self._denials.get(key)
            if denied is not None:
                raise denied.again()
            flight = self._flights.get(key) or self._start(key, question)
            credential = await self._wait(key, flight, until)
            if credential is not None:
                return credential

    def revoke(self, ended: Ended) -> None:
        """Drop what is kept and has certainly ended; of the rest the broker decides in its turn."""
        for key, credential in list(self._left_over.items()):
            if ended.certain(credential):
                credential.end(certain=True)
                del self._left_over[key]

    async def kept(self, key: CacheKey, is_good: IsGood) -> Credential | None:
        """What was left over for such a call, if the broker stands by it.

        Raises what the question raised (`ValetkeyError`): it is left over again.
        """
        kept = self._left_over.pop(key, None)
        while kept is not None:
            if await self._is_good(key, kept, is_good) and kept.claim():
                return kept
            kept = self._left_over.pop(key, None)
        return None

    def give_back(self, credential: Credential) -> None:
        """The call that took it did not go out with it: it is there for the next one like it."""
        credential.claimed = False
        if not credential.ended and time.monotonic() < credential.expires_at:
            self._left_over.setdefault(credential.key, credential)

    async def close(self) -> None:
        """Stop asking."""
        tasks = [flight.task for flight in self._flights.values() if flight.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _is_good(self, key: CacheKey, kept: Credential, is_good: IsGood) -> bool:
        """Whether what was left over may be used; without an answer it is left over again."""
        answered = False
        try:
            good = await is_good(kept)
            answered = True
        finally:
            if not answered and not kept.ended:
                self._left_over.setdefault(key, kept)
        return good and time.monotonic() < kept.expires_at

    async def _wait(self, key: CacheKey, flight: _Flight, until: float) -> Credential | None:
        """What the flight brings; ``None``: somebody else was first, or it ended with nothing."""
        task = flight.task
        assert task is not None
        flight.waiting += 1
        self.waiting += 1
        try:
            # The question itself has the broker's time limit; the hold is for people.
            either: set[asyncio.Future[Any]] = {task, flight.asked}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait({task}, timeout=max(0.0, until - time.monotonic()))
            if not task.done():
                raise ApprovalError(
                    codes.APPROVAL_PENDING, "not decided in time", approval=flight.approval
                )
            try:
                credential = task.result()
            except _Abandoned:
                return None
            return credential if credential.claim() else None
        finally:
            flight.waiting -= 1
            self.waiting -= 1
            if not flight.waiting:
                self._desert(key, flight, task)

    def _desert(self, key: CacheKey, flight: _Flight, task: asyncio.Task[Credential]) -> None:
        """Nobody waits any more. Between two polls it ends at once: who comes next asks anew."""
        if flight.sleeps and not task.done():
            del self._flights[key]
            task.cancel()
        else:
            self._keep(key, task)

    def _start(self, key: CacheKey, question: Question) -> _Flight:
        flight = self._flights[key] = _Flight()
        task = flight.task = asyncio.ensure_future(self._fly(key, flight, question))

        def landed(_task: asyncio.Task[Credential]) -> None:
            if not flight.waiting:
                self._keep(key, task)

        task.add_done_callback(landed)
        return flight

    def _keep(self, key: CacheKey, task: asyncio.Task[Credential]) -> None:
        """Nobody waits: a credential that nobody claimed is there for the next call."""
        if not task.done() or task.cancelled() or task.exception() is not None:
            return
        credential = task.result()
        if credential.claimed or credential.ended:
            return
        if time.monotonic() < credential.expires_at:
            self._left_over[key] = credential

    async def _fly(self, key: CacheKey, flight: _Flight, question: Question) -> Credential:
        try:
            return await self._ask(flight, question)
        except (PolicyError, CallerError) as error:
            self._denials[key] = error
            raise
        finally:
            if self._flights.get(key) is flight:
                del self._flights[key]

    async def _ask(self, flight: _Flight, question: Question) -> Credential:
        deferral: Secret | None = None
        interval, asked_anew = _INTERVAL, False
        while True:
            try:
                if deferral is None:
                    return await question.ask()
                return await question.poll(deferral)
            except Deferred as answer:
                deferral, interval = answer.deferral or deferral, answer.interval
                flight.approval = answer.approval
                if not flight.asked.done():
                    flight.asked.set_result(None)
            except BrokerError as error:
                if deferral is None:
                    raise
                self._log.warning("poll_failed", code=error.code.name, reason=error.reason)
            except ApprovalError as error:
                if error.code is not codes.APPROVAL_CODE or asked_anew:
                    raise
                # Used up by another call, or the policy has changed: the question is a new one.
                deferral, asked_anew = None, True
                continue
            if not flight.waiting:
                raise _Abandoned
            flight.sleeps = True
            await asyncio.sleep(interval)
            flight.sleeps = False
