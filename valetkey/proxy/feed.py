"""What has ended, as the broker tells it: followed, put into effect, acknowledged.

Invariants:

- An event is acknowledged once it is in force here: nothing goes out any more by what it ended, and
  calls that rested on that were permitted again or cut.
- Nothing is missed silently. What was told while the connection was away is told again; where it
  can't be known what was (a new stream, one that is gone, an event that can't be believed), every
  credential is dropped, and the broker decides anew on each.
- A lost feed never makes anything last longer or go that would not go with it: credentials get
  shorter lives, or none are used at all, as settings say.

Calls pay nothing for this but the look at one flag when they are sent.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, Protocol

from valetkey.contracts import codes
from valetkey.contracts.errors import BrokerError, ValetkeyError
from valetkey.contracts.logs import Log
from valetkey.contracts.sets import SetKeys, SetRefused, UnknownSetKey, verify_set
from valetkey.contracts.signals import (
    Event,
    EventInvalid,
    Signal,
    StreamUpdated,
    fleet_audience,
    read_event,
)
from valetkey.proxy.core.eviction import EVERYTHING, Ended
from valetkey.proxy.feed_client import NoStream

if TYPE_CHECKING:
    from collections.abc import Mapping

    from valetkey.proxy.core.decision import Principal
    from valetkey.proxy.credentials.cache import CredentialCache
    from valetkey.proxy.http1.call import Call
    from valetkey.proxy.metrics import Metrics
    from valetkey.proxy.settings import FeedSettings
    from valetkey.proxy.streams import Streams

_LONGEST_WAIT: Final = 30
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
_EARLY: Final = 0.05
# How long calls that rest on what has ended may wait for the broker's yes or no.
_SETTLE_LOOK: Final = 0.01
_SETTLE_LOOKS: Final = 200
_KEYS_COOLDOWN: Final = 10.0
_REMEMBERED: Final = 4096
_LOOK: Final = 0.25


class Transmitter(Protocol):
    """The broker's side; see `FeedClient`."""

    async def create(self, description: str) -> str: ...
    async def delete(self, stream: str) -> None: ...
    async def poll(
        self, stream: str, *, ack: list[str], errors: Mapping[str, SetRefused], wait: int
    ) -> tuple[dict[str, str], bool]: ...
    async def keys(self) -> SetKeys: ...
    async def close(self) -> None: ...


class Enforcement(Protocol):
    """What is in force; see `Revocation`."""

    streams: Streams

    def revoke(self, ended: Ended) -> list[Call]: ...
    def limit_lives(self, seconds: float) -> None: ...


class Workload(Protocol):
    """Whom this sidecar speaks for; see `Identity`."""

    def principal(self) -> Principal | None: ...
    def raise_epoch(self, epoch: int) -> None: ...


class Exchanges(Protocol):
    """What asks the broker for credentials; see `ExchangeClient`."""

    told: str
    """The id that they come with (`SIGNAL_HEADER`), of `MAX_SIGNAL` characters at most."""


class StreamOver(NoStream):
    """The broker knows the stream, and tells nothing by it any more."""


class _Batch:
    """Events of one poll."""

    __slots__ = ("applied", "refused", "resting", "signals", "taken")

    def __init__(self) -> None:
        self.signals: list[Signal] = []
        """Those that are not in force yet."""
        self.refused = False
        """Whether there was one besides that can't be believed."""
        self.applied: list[Signal] = []
        self.resting: dict[Call, None] = {}
        """Calls that rest on what those ended, each once."""
        self.taken: list[str] = []
        """What to acknowledge, by ``jti``."""


class FeedReceiver:
    """One per sidecar. ``clock`` gives seconds since the epoch, ``monotonic`` those of its own."""

    def __init__(
        self,
        transmitter: Transmitter,
        identity: Workload,
        pep: Enforcement,
        cache: CredentialCache,
        exchange: Exchanges,
        metrics: Metrics,
        settings: FeedSettings,
        *,
        issuer: str,
        name: str,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transmitter = transmitter
        self._identity = identity
        self._pep = pep
        self._cache = cache
        self._exchange = exchange
        self._lags = metrics.feed_lag
        self._counts = metrics.feed_events
        self._settings = settings
        self._issuer = issuer
        self._audience = fleet_audience(issuer)
        self._name = name
        self._clock = clock
        self._monotonic = monotonic
        self._wait = max(1, min(_LONGEST_WAIT, int(settings.tolerance / 3)))
        self._keys: SetKeys = {}
        self._keys_at = float("-inf")
        self._stream = ""
        self._applied: OrderedDict[str, None] = OrderedDict()
        self._ack: list[str] = []
        self._errors: dict[str, SetRefused] = {}
        self._heard_at = monotonic()
        self._problem = "not connected yet"
        self._log = Log("feed")
        self.lost = False
        self.afresh = 0
        """How often everything was dropped because something could have been missed."""

    @property
    def connected(self) -> bool:
        """Whether the last poll was answered."""
        return not self._problem

    @property
    def health(self) -> str:
        if self.lost:
            how = "short-lived credentials" if self._settings.lost == "short" else "no call leaves"
            return f"lost ({how}): {self._problem}"
        return self._problem or "connected"

    # --- following ----------------------------------------------------------------------------

    async def begin(self, seconds: float) -> None:
        """Try for so long to have a stream before the first call comes.

        A stream that begins later drops what was fetched before it.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._begin()
        except TimeoutError:
            self._problem = "the broker has not answered yet"
        except ValetkeyError as error:
            self._problem = error.reason or error.code.name

    async def run(self) -> None:
        """Follow until cancelled."""
        async with asyncio.TaskGroup() as work:
            work.create_task(self._follow())
            work.create_task(self._watch())

    async def _follow(self) -> None:
        pause = 0.0
        while True:
            try:
                await self.round()
            except NoStream as gone:
                await self._leave(gone)
            except ValetkeyError as error:
                reason = error.reason or error.code.name
                if reason != self._problem:
                    self._log.warning("feed_away", code=error.code.name, reason=reason)
                self._problem = reason
                pause = pause or _FIRST_PAUSE
            else:
                pause = 0.0
                continue
            # Not all at once: a broker that comes back has all its sidecars to greet. Only a stream
            # that had worked is followed by the next one without a pause.
            await asyncio.sleep(random.uniform(0, pause))  # noqa: S311
            pause = min(max(pause * 2, _FIRST_PAUSE), _LONGEST_PAUSE)

    async def _leave(self, gone: NoStream) -> None:
        """The stream tells no more: what ends from here on is not known, until the next begins."""
        self._log.warning("stream_gone", reason="everything cached is dropped")
        self._problem = "the stream is gone"
        stream, self._stream = self._stream, ""
        await self._drop_everything()
        if isinstance(gone, StreamOver):
            await self._delete(stream)

    async def close(self) -> None:
        """End the stream: there is nothing left that could be ended."""
        if self._stream:
            await self._delete(self._stream)
        await self._transmitter.close()

    async def _delete(self, stream: str) -> None:
        try:
            await self._transmitter.delete(stream)
        except ValetkeyError as error:
            # It ends by itself when nobody polls it.
            self._log.info("stream_left", code=error.code.name, reason=error.reason)

    async def round(self) -> None:
        """One poll, and what it tells. Raises `NoStream`, `BrokerError`."""
        if not self._stream:
            await self._begin()
        ack, errors = self._ack, self._errors
        # After a failure, hear at once that the broker is back before waiting for its news.
        wait = 0 if self.lost or self._problem else self._wait
        begun = self._monotonic()
        sets, more = await self._transmitter.poll(self._stream, ack=ack, errors=errors, wait=wait)
        self._ack, self._errors = [], {}
        await self._take(sets)
        self._heard(more=more)
        if wait and not sets and self._monotonic() - begun < wait / 2:
            await asyncio.sleep(_EARLY)  # the broker is stopping, or does not wait as it should

    async def _begin(self) -> None:
        """A new stream. What ended before it began is not known: nothing cached survives that."""
        self._stream = await self._transmitter.create(self._name)
        self._ack, self._errors = [], {}
        self._applied.clear()
        await self._drop_everything()
        await self._fetch_keys()
        self._heard_at = self._monotonic()
        self._problem = ""
        self._log.info("feed_followed")

    async def _drop_everything(self) -> None:
        self._begin_afresh()
        await self._settle(self._pep.revoke(EVERYTHING))

    def _begin_afresh(self) -> None:
        """To be said before everything is dropped, so that the broker decides on what it knows now.

        What ended lies behind the last signal that came, and no name of it is known here. An id
        that is no signal's makes each replica catch up once, as a signal does that it has not
        heard of.
        """
        self.afresh += 1
        self._exchange.told = secrets.token_urlsafe(16)

    def _heard(self, *, more: bool) -> None:
        self._heard_at = self._monotonic()
        self._problem = ""
        if self.lost and not more:
            self.lost = False
            self._cache.close_for(None)
            self._cache.limit_lives(float("inf"))
            self._log.info("feed_regained")

    # --- events -------------------------------------------------------------------------------

    async def _take(self, sets: Mapping[str, str]) -> None:
        """Put into effect what came, all of it, and then wait for the calls it concerns.

        Raises `BrokerError` where an event can't be judged yet: it comes again.
        """
        batch = _Batch()
        over = False
        try:
            for jti, compact in sets.items():
                if jti not in self._applied:
                    try:
                        event = await self._read(jti, compact, batch)
                    except SetRefused as refused:
                        self._refuse(jti, refused)
                        batch.refused = True
                        continue
                    if isinstance(event, Signal):
                        self._exchange.told = jti  # before anything is asked for anew
                        batch.signals.append(event)
                    elif isinstance(event, StreamUpdated):
                        over = over or event.status != "enabled"
                batch.taken.append(jti)  # or it came again because the acknowledgement was lost
        finally:
            self._apply(batch)
            await self._settle(batch.resting)
            self._note(batch.taken)
        now = self._clock()
        for signal in batch.applied:
            self._lags.observe(max(0.0, now - signal.at))
        if over:
            raise StreamOver

    def _note(self, taken: list[str]) -> None:
        """These are in force."""
        self._ack += taken
        self._applied.update(dict.fromkeys(taken))
        while len(self._applied) > _REMEMBERED:
            self._applied.popitem(last=False)

    def _refuse(self, jti: str, refused: SetRefused) -> None:
        """It can't be believed: something has ended, unknown what."""
        self._log.error("event_refused", jti=jti, code=refused.err, reason=refused)
        self._count("refused")
        self._errors[jti] = refused

    async def _read(self, jti: str, compact: str, batch: _Batch) -> Event:
        """Raises `SetRefused`, and `BrokerError` where its key can't be had."""
        try:
            claims = self._verify(compact)
        except UnknownSetKey:
            self._apply(batch)  # what is known by now waits for no answer
            if not await self._fetch_keys():
                raise
            claims = self._verify(compact)
        if claims["jti"] != jti:
            raise SetRefused("invalid_request", "jti is not the one that it came under")
        try:
            return read_event(claims, issuer=self._issuer)
        except EventInvalid as error:
            raise SetRefused("invalid_request", str(error)) from error

    def _verify(self, compact: str) -> Mapping[str, object]:
        return verify_set(
            compact, self._keys, issuer=self._issuer, audience=self._audience, now=self._clock()
        )

    async def _fetch_keys(self) -> bool:
        """Whether the keys are new: not more often than every few seconds."""
        if self._monotonic() - self._keys_at < _KEYS_COOLDOWN:
            return False
        self._keys = await self._transmitter.keys()
        self._keys_at = self._monotonic()
        return True

    def _apply(self, batch: _Batch) -> None:
        """Put into effect what of a batch is not yet, in one pass over all credentials."""
        signals, batch.signals = batch.signals, []
        refused, batch.refused = batch.refused, False
        if not signals and not refused:
            return
        for signal in signals:
            self._raise_epoch(signal)
            self._count(signal.kind)
            self._log.info("ended", action=signal.kind, seconds=round(self._clock() - signal.at, 3))
        batch.applied += signals
        if refused:
            self._begin_afresh()
        batch.resting.update(dict.fromkeys(self._pep.revoke(Ended(signals, everything=refused))))

    def _raise_epoch(self, signal: Signal) -> None:
        """Where a signal is about the subject of this sidecar, what is older does not count."""
        principal = self._identity.principal()
        if (
            signal.kind == "subject"
            and principal is not None
            and (principal.tenant, principal.subject) == (signal.issuer, signal.value)
        ):
            self._identity.raise_epoch(signal.epoch)

    async def _settle(self, resting: Iterable[Call]) -> None:
        """Until each of these calls was permitted again or is over; cut those that take longer."""
        streams = self._pep.streams
        for _ in range(_SETTLE_LOOKS):
            if not streams.unsettled(resting):
                return
            await asyncio.sleep(_SETTLE_LOOK)
        streams.cut(streams.unsettled(resting), "the broker did not permit it again in time")

    def _count(self, kind: str) -> None:
        self._counts[kind] = self._counts.get(kind, 0) + 1

    # --- the loss -----------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Notice that the feed is lost, whatever the poll is waiting for."""
        while True:
            await asyncio.sleep(_LOOK)
            self.look()

    def look(self) -> None:
        """Degrade if the feed was not heard from for longer than is tolerated."""
        if self.lost or self._monotonic() - self._heard_at <= self._settings.tolerance:
            return
        self.lost = True
        self._problem = self._problem or "the broker does not answer"
        self._log.error("feed_lost", reason=self._problem, action=self._settings.lost)
        if self._settings.lost == "deny":
            self._pep.revoke(EVERYTHING)  # while the cache still knows what that is
            self._cache.close_for(BrokerError(codes.FEED_LOST, "the feed is lost"))
        else:
            self._pep.limit_lives(self._settings.short_lived)
