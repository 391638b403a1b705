"""The feed at one replica: the newest events in memory, and everybody who waits for the next.

An event is read from the database once, when the replica learns of it, and handed to all whom it
concerns; a poll that waits costs a future, not a query. What a stream has acknowledged is written
in batches a few milliseconds later: if the replica ends before that, the events are sent again.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Final

from valetkey.broker.core.feed import ENABLED, Cursor, Published, Stream
from valetkey.broker.metrics import Metrics
from valetkey.broker.store.database import StoreError, to_the_end
from valetkey.broker.store.signals import Signals
from valetkey.broker.store.streams import FeedStreams
from valetkey.contracts.logs import Log
from valetkey.contracts.signals import Signal

WINDOW: Final = 4096
"""How many events are in memory; a stream further behind is served from the database."""
_PAGE: Final = 1000
_FLUSH: Final = 0.02
_RETRY: Final = 1.0
# A stream that polls is noted as alive this often; it ends after `store.streams.IDLE`.
_TOUCH: Final = 120.0


class Followed:
    """A stream that is, or lately was, polled here."""

    __slots__ = ("cursor", "seen_at", "stream", "touched_at", "waiting")

    def __init__(self, stream: Stream, now: float) -> None:
        self.stream = stream
        self.cursor = Cursor(stream.position)
        self.touched_at = now
        self.seen_at = now
        self.waiting: asyncio.Future[bool] | None = None

    def wake(self, *, over: bool = False) -> None:
        """Let the poll that waits look again, or tell it that another has taken its place."""
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(over)


class Feed:
    """``clock`` gives seconds since the epoch, ``timer`` those of a clock that nobody sets."""

    def __init__(
        self,
        signals: Signals,
        streams: FeedStreams,
        metrics: Metrics,
        *,
        clock: Callable[[], float],
        timer: Callable[[], float],
    ) -> None:
        self._signals = signals
        self._streams = streams
        self._clock = clock
        self._timer = timer
        self._window: list[Published] = []
        self._floor = 0  # everything behind it is in the window
        self._seqs: dict[str, Published] = {}
        self._followed: dict[str, Followed] = {}
        self._moved: dict[str, int] = {}
        self._acks: list[tuple[int, str, float]] = []
        self._dirty = asyncio.Event()
        self._flushing = asyncio.Lock()
        self.closed = False
        self._log = Log("broker.feed")
        self.published = asyncio.Event()
        """Set whenever something was published; whoever waits clears it (`broker.push`)."""
        self._delivered = metrics.feed_events.labels("delivered")
        self._acknowledged = metrics.feed_events.labels("acknowledged")
        self._refused = metrics.feed_events.labels("refused")
        self._lags = metrics.feed_acknowledge
        signals.on_publish(self._published)
        streams.on_change(self._stream_changed)

    @property
    def waiting(self) -> int:
        """Polls that wait for something to tell."""
        return sum(one.waiting is not None for one in self._followed.values())

    async def load(self) -> None:
        """Read the newest events. Called before the first request."""
        newest = await self._signals.newest(WINDOW)
        self._floor = newest[0].seq - 1 if newest else await self._signals.head()
        self._add(newest)

    @property
    def head(self) -> int:
        """The number of the newest event known here."""
        return self._window[-1].seq if self._window else self._floor

    # --- what comes in ------------------------------------------------------------------------

    async def _published(self, jti: str) -> None:
        if jti in self._seqs:
            return  # it came along with one before it
        while True:
            fresh = await self._signals.after(self.head, limit=_PAGE)
            self._add(fresh)
            for followed in self._followed.values():
                if followed.waiting is not None and self._any_for(fresh, followed.stream):
                    followed.wake()
            if len(fresh) < _PAGE:
                break
        self.published.set()

    def _add(self, fresh: list[Published]) -> None:
        self._window += fresh
        for one in fresh:
            self._seqs[one.jti] = one
        gone = len(self._window) - WINDOW
        if gone > 0:
            for one in self._window[:gone]:
                del self._seqs[one.jti]
            self._floor = self._window[gone - 1].seq
            del self._window[:gone]

    def _any_for(self, events: Iterable[Published], stream: Stream) -> bool:
        return any(self._signals.audience.concerns(one, stream) for one in events)

    async def _stream_changed(self, stream_id: str) -> None:
        """Its owner changed or ended it, perhaps at another replica."""
        followed = self._followed.get(stream_id)
        if followed is None:
            return
        stream = await self._streams.find(stream_id)
        if stream is None:
            del self._followed[stream_id]
        else:
            changed = self._followed[stream_id] = Followed(stream, self._timer())
            # What was settled here may not be written yet.
            changed.cursor.position = max(stream.position, followed.cursor.position)
            changed.cursor.beyond = followed.cursor.beyond
        followed.wake()

    # --- one stream ---------------------------------------------------------------------------

    async def follow(self, stream_id: str) -> Followed | None:
        """The stream, with its cursor here; ``None`` if there is none. Raises `StoreError`."""
        followed = self._followed.get(stream_id)
        if followed is None:
            stream = await self._streams.find(stream_id)
            if stream is None:
                return None
            followed = self._followed.setdefault(stream_id, Followed(stream, self._timer()))
        followed.seen_at = self._timer()
        return followed

    async def acknowledge(self, followed: Followed, jtis: Iterable[str]) -> None:
        """The receiver has these, and they are in force there. Unknown ones say nothing."""
        await self._settle(followed, jtis, acknowledged=True)

    async def give_up(self, followed: Followed, jtis: Iterable[str]) -> None:
        """The receiver can't take these: they are not sent again, nor called acknowledged."""
        await self._settle(followed, jtis, acknowledged=False)

    async def _settle(self, followed: Followed, jtis: Iterable[str], *, acknowledged: bool) -> None:
        stream, now = followed.stream, self._clock()
        known = [self._seqs.get(jti) for jti in jtis]
        if None in known:
            await self._older(list(jtis), known)
        settled = [
            one
            for one in known
            if one is not None
            and one.seq > stream.start
            and self._signals.audience.concerns(one, stream)
        ]
        if not settled:
            return
        followed.cursor.settle(one.seq for one in settled)
        (self._acknowledged if acknowledged else self._refused).inc(len(settled))
        if acknowledged:
            for one in settled:
                if isinstance(one.event, Signal):
                    self._lags.observe(max(0.0, now - one.event.at))
            self._acks += [
                (one.seq, stream.id, now)
                for one in settled
                if isinstance(one.event, Signal) and one.event.txn
            ]
            self._dirty.set()

    async def _older(self, jtis: list[str], known: list[Published | None]) -> None:
        """Look for what is no longer in the window."""
        missing = [jti for jti, one in zip(jtis, known, strict=True) if one is None]
        known += await self._signals.by_jti(missing)

    async def pending(self, followed: Followed, limit: int) -> tuple[list[Published], bool]:
        """What the stream has not acknowledged, oldest first, and whether there is more.

        Raises `StoreError`.
        """
        stream, cursor = followed.stream, followed.cursor
        position = cursor.position
        if position >= self._floor:
            begin = bisect_right(self._window, position, key=lambda one: one.seq)
            events, head = self._window[begin:], self.head
        else:
            # Complete up to the last that was read; what is published meanwhile comes after it.
            events = await self._signals.after(position, limit=_PAGE)
            head = events[-1].seq if events else position
        concerning = [one for one in events if self._signals.audience.concerns(one, stream)]
        if cursor.advance([one.seq for one in concerning], head):
            self._note(followed)
        open_ = [
            one for one in concerning if one.seq > cursor.position and one.seq not in cursor.beyond
        ]
        self._delivered.inc(min(len(open_), limit))
        return open_[:limit], len(open_) > limit or head < self.head

    async def wait(self, followed: Followed, seconds: float) -> bool:
        """Until there may be something for the stream, at most so long.

        False: a newer poll of the same stream has come, which this one makes room for.
        """
        followed.wake(over=True)
        if self.closed or self._followed.get(followed.stream.id) is not followed:
            return True
        waiting = followed.waiting = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds):
                return not await waiting
        except TimeoutError:
            return True
        finally:
            if followed.waiting is waiting:
                followed.waiting = None

    def touch(self, followed: Followed) -> None:
        """Note now and then that the stream's receiver is there."""
        if self._timer() - followed.touched_at >= _TOUCH:
            self._note(followed)

    def is_enabled(self, followed: Followed) -> bool:
        return followed.stream.status == ENABLED

    def _note(self, followed: Followed) -> None:
        followed.touched_at = self._timer()
        self._moved[followed.stream.id] = followed.cursor.position
        self._dirty.set()

    # --- what goes out ------------------------------------------------------------------------

    async def run(self) -> None:
        """Write down what was acknowledged, until cancelled; then, what is left of it."""
        try:
            while True:
                await self._dirty.wait()
                await asyncio.sleep(_FLUSH)
                self._dirty.clear()
                if not await self._try_flush():
                    self._dirty.set()
                    await asyncio.sleep(_RETRY)
        finally:
            await self._try_flush()

    async def _try_flush(self) -> bool:
        try:
            await to_the_end(self.flush())
        except StoreError as error:
            # Nothing is lost: it stays here, and if this replica ends it is sent again.
            self._log.warning("acknowledgements_unwritten", reason=error.reason)
            return False
        return True

    async def flush(self) -> None:
        """Write down what was acknowledged so far. Raises `StoreError`; it is kept then."""
        async with self._flushing:
            acks, self._acks = self._acks, []
            moved, self._moved = self._moved, {}
            try:
                # In this order: a position that was written without its acknowledgements would
                # end their redelivery, and they would be missing for ever.
                if acks:
                    await self._signals.acknowledge(acks)
                    acks = []
                if moved:
                    await self._streams.advance(moved)
            except BaseException:
                self._acks = acks + self._acks
                self._moved = {**moved, **self._moved}
                raise

    async def sweep(self) -> None:
        """Forget old events, streams that ended, and streams that are followed elsewhere."""
        await self._streams.sweep(await self._signals.sweep())
        now = self._timer()
        for stream_id, followed in list(self._followed.items()):
            if followed.waiting is None and now - followed.seen_at > _TOUCH:
                del self._followed[stream_id]

    def close(self) -> None:
        """Answer all polls that wait: the replica stops."""
        self.closed = True
        self.wake()

    def wake(self) -> None:
        """Have all polls that wait look again."""
        for followed in self._followed.values():
            followed.wake()
