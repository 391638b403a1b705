"""Handing the record on: from the database to a stream, in order, none left out.

The database is the truth, and the outbox as well. A turn: read what lies behind the position,
publish it, wait for the acknowledgements, note how far it got. A collector that is killed in
between has published what is not noted; whoever has the next turn finds that in the stream's last
message and goes on behind it. So nothing is left out, and what a stream has it does not get again.

Invariants:

- The position never passes an event that the stream has not acknowledged, or that was not found
  in it.
- What fails is said (log, metrics, `Handoff.state`) and tried again, without end and at bounded
  intervals. Nothing is skipped, also no event that the stream will not take.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from valetkey.collector.core import stream as rules
from valetkey.collector.core.batch import Batch
from valetkey.collector.nats_settings import NatsSettings
from valetkey.collector.sinks.metrics import HandoffMetrics
from valetkey.collector.sinks.sink import HandoffFailed, Published, Reason, Sink, State
from valetkey.collector.store.database import FAILED, unavailable
from valetkey.collector.store.handoffs import Handoffs, Position, Waiting
from valetkey.contracts import codes
from valetkey.contracts.errors import AuditError
from valetkey.contracts.logs import Log

# How long nothing is looked for when nobody says that there is something: another collector may
# have stored it, and ended.
_IDLE: Final = 1.0
# The same while a batch waits for it here, and another collector has the turn.
_SHORT: Final = 0.05
_BACKOFF: Final = (0.2, 10.0)
_OK: Final = "ok"


class Handoff:
    """Hands on until it is cancelled (`running`)."""

    def __init__(
        self,
        settings: NatsSettings,
        outbox: Handoffs,
        metrics: HandoffMetrics,
        connect: Callable[[], Awaitable[Sink]],
    ) -> None:
        self._settings = settings
        self._outbox = outbox
        self._metrics = metrics
        self._connect = connect
        self._log = Log("handoff")
        self._sink: Sink | None = None
        self._settled = False
        self._cursor = 0
        self._moved = asyncio.Condition()
        self._waiters = 0
        self._stored = asyncio.Event()
        self._said: frozenset[str] = frozenset()
        self.state = "connecting"
        """``ok``, ``connecting``, or the reason why it fails (`Reason`)."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hand on beside what is done in the context."""
        task = asyncio.create_task(self._run(), name="handoff")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await self._hang_up()

    async def stored(self, batch: Batch) -> None:
        """A batch is in the database. As settings say, wait until it is in the stream as well.

        Raises `AuditError` (``audit.handoff_unavailable``) where it does not get there in time.
        """
        self._stored.set()
        if self._settings.acknowledge == "stored":
            return
        try:
            wanted = await self._outbox.last_of(batch)
        except FAILED as error:
            raise unavailable(error) from error
        self._waiters += 1
        try:
            async with asyncio.timeout(self._settings.answer), self._moved:
                await self._moved.wait_for(lambda: self._cursor >= wanted or self._fails)
        except TimeoutError as error:
            raise _unavailable("not in the stream in time") from error
        finally:
            self._waiters -= 1
        if self._cursor < wanted:
            raise _unavailable(self.state)

    @property
    def _fails(self) -> bool:
        return self.state in set(Reason)

    async def _run(self) -> None:
        pause = _BACKOFF[0]
        while True:
            self._stored.clear()
            try:
                more = await self._turn()
            except HandoffFailed as error:
                await self._failed(error)
            except FAILED as error:
                await self._failed(HandoffFailed(Reason.DATABASE, type(error).__name__))
            else:
                pause = _BACKOFF[0]
                if not more:
                    await self._rest()
                continue
            await self._look()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            pause = min(pause * 2, _BACKOFF[1])

    async def _rest(self) -> None:
        """Until something is stored here, or for a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SHORT if self._waiters else _IDLE):
                await self._stored.wait()

    async def _turn(self) -> bool:
        """Hand on one page. True if there is more to hand on at once."""
        sink = self._sink or await self._call()
        if (ended := sink.end()) is not None:
            raise ended
        async with self._outbox.turn() as ours:
            position = await self._outbox.position()
            if not ours:
                await self._reached(position.cursor)
                await self._well()
                return False
            if not self._settled:
                position = await self._find(sink, position)
                self._settled = True
            page = await self._outbox.page(position.cursor, self._settings.batch)
            if page:
                self._age(page[0].received)
                await self._publish(sink, position, page)
            else:
                await self._reached(position.cursor)
        await self._well()
        if not page:
            self._metrics.waiting.set(0)
            self._metrics.age.set(0)
        return bool(page)

    async def _publish(self, sink: Sink, position: Position, page: list[Waiting]) -> None:
        done: Published = await sink.publish(page, after=position.sequence)
        self._metrics.events.labels("published").inc(done.count - done.duplicates)
        self._metrics.events.labels("duplicate").inc(done.duplicates)
        if done.count:
            now = Position(page[done.count - 1].cursor, done.sequence)
            await self._outbox.note(position, now, at=_milliseconds())
            await self._reached(now.cursor)
        if done.failure is not None:
            raise done.failure

    async def _call(self) -> Sink:
        """A new connection to a stream that may have the record."""
        sink = await self._connect()
        self._sink, self._settled = sink, False
        self._judge(await sink.state())
        return sink

    def _judge(self, state: State) -> None:
        found = list(rules.findings(state.stream, self._settings.subjects))
        said = frozenset(finding.text for finding in found)
        for finding in found:
            if finding.text not in self._said:
                tell = self._log.error if finding.refused else self._log.warning
                tell("stream_unfit", reason=f"{self._settings.stream}: {finding.text}")
        self._said = said
        if any(finding.refused for finding in found):
            raise HandoffFailed(Reason.MISCONFIGURED, "the stream is unfit, see stream_unfit")

    async def _find(self, sink: Sink, position: Position) -> Position:
        """Up to where the stream has the record, if that is not what was noted.

        It has more: what was published by who could not note it any more. It has less: it was
        restored, or made anew, and gets again what it lacks. Its last message is not on record: the
        database was restored, or somebody else writes there; then only what was noted is known.
        """
        state = await sink.state()
        self._judge(state)
        if state.last == position.sequence:
            return position
        last = await sink.message(state.last) if state.messages else None
        cursor = await self._outbox.find(last) if last is not None else None
        if state.last < position.sequence:
            found = Position(cursor or 0, state.last)
            self._log.error("stream_went_back", seq=state.last, count=position.sequence)
        elif cursor is not None:
            found = Position(max(cursor, position.cursor), state.last)
            self._log.info("handoff_resumed", seq=state.last)
        else:
            found = Position(position.cursor, state.last)
            self._log.warning("stream_ahead", seq=state.last, count=position.sequence)
        await self._outbox.note(position, found, at=_milliseconds())
        return found

    async def _reached(self, cursor: int) -> None:
        async with self._moved:
            self._cursor = cursor
            self._moved.notify_all()

    async def _well(self) -> None:
        if self.state != _OK:
            self._log.info("handoff_works", reason=self.state)
        self.state = _OK
        self._metrics.failing.set(0)

    async def _failed(self, error: HandoffFailed) -> None:
        """Say it once, and begin anew: on this connection something may still be under way."""
        self._metrics.failures.labels(error.reason).inc()
        self._metrics.failing.set(1)
        if self.state != error.reason:
            self._log.error("handoff_failed", code=error.reason.value, reason=error.detail)
        self.state = error.reason.value
        await self._hang_up()
        async with self._moved:
            self._moved.notify_all()

    async def _look(self) -> None:
        """How much waits, while none of it goes."""
        with contextlib.suppress(*FAILED):  # then nothing is known, and `/readyz` says why
            position = await self._outbox.position()
            backlog = await self._outbox.backlog(position.cursor)
            self._metrics.waiting.set(backlog.events)
            self._age(backlog.oldest)

    def _age(self, received: int) -> None:
        self._metrics.age.set(max(0, _milliseconds() - received) / 1000 if received else 0)

    async def _hang_up(self) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            await sink.close()


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000


def _unavailable(reason: str) -> AuditError:
    return AuditError(codes.AUDIT_HANDOFF_UNAVAILABLE, reason)
