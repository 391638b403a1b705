"""Emptying the spool into the collector: in order, in batches, until acknowledged.

At least once: a segment is deleted when the collector has acknowledged its last event, and
whatever is on disk at a start is sent again; the collector drops what it has. Boots are sent in
the order in which they were, each in batches of its own. A record that can't be read any more is
declared lost, by an event of its own, so that the gap is on record and the rest can be
acknowledged behind it; while the spool has no room for that event, it waits and delivery goes on.

What the collector refuses stays: nothing is deleted for an answer other than 200.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from valetkey.contracts import events
from valetkey.contracts.errors import AuditError, ValetkeyError
from valetkey.contracts.logs import Log
from valetkey.contracts.trusted_roots import TrustedRoots
from valetkey.proxy.audit.reader import SegmentTail, segments
from valetkey.proxy.audit.recorder import Recorder
from valetkey.proxy.audit.segment import TORN, SpoolRecord
from valetkey.proxy.audit.spool import Spool
from valetkey.proxy.identity.source import Identity
from valetkey.proxy.metrics import Metrics
from valetkey.proxy.settings import CollectorSettings

_INTERVAL: Final = 0.1
_BACKOFF: Final = (0.2, 5.0)
_MAX_ANSWER: Final = 64 << 10
_MAX_MARKS: Final = 1024


class CollectorRefused(Exception):  # noqa: N818
    """The collector answered with something other than an acknowledgement."""

    def __init__(self, reason: str, status: int = 200) -> None:
        super().__init__(reason)
        self.status = status


class _Acknowledged(msgspec.Struct, frozen=True):
    boot: str
    acked: int


class Shipper:
    """Sends the spool of one sidecar to one collector."""

    def __init__(
        self,
        settings: CollectorSettings,
        spool: Spool,
        recorder: Recorder,
        identity: Identity,
        metrics: Metrics,
    ) -> None:
        self._url = settings.url.rstrip("/") + "/v1/events"
        https = self._url.startswith("https:")
        self.roots = TrustedRoots("collector.ca_file", settings.ca_file) if https else None
        self._timeout = aiohttp.ClientTimeout(total=settings.timeout)
        self._batch = settings.batch
        self._spool = spool
        self._recorder = recorder
        self._identity = identity
        self._metrics = metrics
        self._log = Log("shipper")
        self._session: aiohttp.ClientSession | None = None
        self._tail: SegmentTail | None = None
        self._acked: dict[str, int] = {}
        self._declared: dict[str, list[tuple[int, int]]] = {}
        self._undeclared: deque[tuple[str, int, int, str]] = deque()
        self._failure = ""
        self._marks: deque[tuple[int, float]] = deque()
        self.acked = 0
        """The highest sequence of this boot that the collector has acknowledged."""

    async def run(self) -> None:
        """Ship until cancelled."""
        backoff = _BACKOFF[0]
        while True:
            try:
                more = await self.ship_some()
            except _FAILURES as error:
                self._note_failure(error)
                await asyncio.sleep(backoff * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                backoff = min(backoff * 2, _BACKOFF[1])
            else:
                backoff = _BACKOFF[0]
                self._failure = ""
                if not more:
                    await asyncio.sleep(_INTERVAL)

    async def drain(self, seconds: float) -> None:
        """Try to deliver everything before the end; what remains is sent at the next start."""
        try:
            async with asyncio.timeout(seconds):
                while self.acked < self._spool.seq and await self.ship_some():
                    pass
        except _FAILURES as error:
            self._note_failure(error)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def age(self) -> float:
        """Seconds for which the oldest event of this boot has waited for its acknowledgement."""
        self._mark()
        return time.monotonic() - self._marks[0][1] if self._marks else 0.0

    def _mark(self) -> None:
        """Note when which number was reached; what is acknowledged is forgotten."""
        marks, seq = self._marks, self._spool.seq
        while marks and marks[0][0] <= self.acked:
            marks.popleft()
        if seq > self.acked and (not marks or seq > marks[-1][0]):
            if len(marks) == _MAX_MARKS:
                # The first tells the age; of the others half will do.
                self._marks = marks = deque(list(marks)[::2])
            marks.append((seq, time.monotonic()))

    async def ship_some(self) -> bool:
        """Send one batch of the oldest segment. True if there may be more to send at once."""
        self._mark()
        self._declare_waiting()
        tail = self._tail
        if tail is None:
            tail = self._tail = await asyncio.to_thread(self._open_oldest)
            if tail is None:
                return False
        live = tail.path == self._spool.current_path
        # What is being written right now may be half there: only up to what is complete.
        until = self._spool.kept if tail.boot == self._spool.boot else None
        if live and tail.next > self._spool.kept:
            return False
        records = await asyncio.to_thread(tail.read, self._batch, until=until)
        if not records:
            if not live:
                await self._finish(tail)
            return not live
        try:
            await self._send(tail, records)
        except CollectorRefused as error:
            self._tail = None
            if error.status != 413 or self._batch == 1:
                raise
            self._batch = max(1, self._batch // 2)  # RFC 9110 §15.5.14: the batch was too large
        except BaseException:
            self._tail = None  # begin again with the oldest; what is acknowledged is passed over
            raise
        return True

    async def _send(self, tail: SegmentTail, records: list[SpoolRecord]) -> None:
        boot = tail.boot
        acked = self._acked.get(boot, 0)
        for record in records:
            # A torn tail was never part of a call that went on; all else was.
            if record.problem and not await self._is_torn_tail(tail, record):
                self._declare_lost(boot, record.seq, record.seq, record.problem)
        good = [record for record in records if not record.problem and record.seq > acked]
        if not good:
            return
        answer = await self._post(b"[" + b",".join(record.raw for record in good) + b"]")
        if answer.boot != boot:
            raise CollectorRefused("it acknowledged another boot")
        if boot == self._spool.boot:
            if answer.acked > self._spool.seq:
                raise CollectorRefused("it acknowledged what was never sent")
            self.acked = answer.acked
        self._metrics.shipped += len(good)
        self._acked[boot] = answer.acked
        missing = answer.acked + 1
        if missing < good[0].seq and not self._is_declared(boot, missing):
            # It lacks what it once had acknowledged (a restored backup?): send again what is
            # still here, and say so of what is not.
            oldest = await asyncio.to_thread(self._oldest_of, tail)
            if oldest > missing:
                self._declare_lost(boot, missing, oldest - 1, "the collector lost it")
            self._tail = None

    async def _is_torn_tail(self, tail: SegmentTail, record: SpoolRecord) -> bool:
        """Whether a record is the cut end of its boot: torn, in the boot's last segment."""
        if not record.problem.startswith(TORN):
            return False
        names = [path.name for path in await asyncio.to_thread(segments, self._spool.directory)]
        return not any(name > tail.path.name and name.startswith(tail.boot) for name in names)

    def _is_declared(self, boot: str, seq: int) -> bool:
        return any(first <= seq <= last for first, last in self._declared.get(boot, ()))

    def _declare_lost(self, boot: str, first: int, last: int, reason: str) -> None:
        """State a loss, once; later, if there is no room for the statement now."""
        if self._is_declared(boot, first):
            return
        declared = self._declared.setdefault(boot, [])
        if declared and declared[-1][1] == first - 1:
            declared[-1] = (declared[-1][0], last)
        else:
            declared.append((first, last))
        self._log.error("events_lost", boot=boot, seq=first, count=last - first + 1, reason=reason)
        self._undeclared.append((boot, first, last, reason))
        self._declare_waiting()

    def _declare_waiting(self) -> None:
        while self._undeclared:
            try:
                self._recorder.declare_lost(*self._undeclared[0])
            except AuditError as error:
                self._log.warning("loss_undeclared", reason=error.reason)
                return
            self._undeclared.popleft()

    async def _finish(self, tail: SegmentTail) -> None:
        """Everything in a segment that is no longer written was sent: delete it."""
        size = await asyncio.to_thread(_unlink, tail.path)
        self._spool.deleted(size)
        self._tail = None

    async def _post(self, body: bytes) -> _Acknowledged:
        token, _ = self._identity.token()
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=self._timeout, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
            )
        async with self._session.post(
            self._url,
            data=body,
            headers={
                "Content-Type": events.CONTENT_TYPE_BATCH,
                "Authorization": f"Bearer {token.reveal()}",
            },
            ssl=self.roots.context if self.roots is not None else True,
            allow_redirects=False,
        ) as response:
            if response.status != 200:
                raise CollectorRefused(f"it answered {response.status}", response.status)
            try:
                answer = await response.content.readexactly(_MAX_ANSWER + 1)
            except asyncio.IncompleteReadError as whole:
                answer = whole.partial
        try:
            return msgspec.json.decode(answer, type=_Acknowledged)
        except msgspec.DecodeError as error:
            raise CollectorRefused("its answer is no acknowledgement") from error

    def _open_oldest(self) -> SegmentTail | None:
        for path in segments(self._spool.directory):
            tail = SegmentTail.open(path)
            if tail is not None:
                return tail
        return None

    def _oldest_of(self, tail: SegmentTail) -> int:
        """The first sequence number of a boot that is still on disk."""
        for path in segments(self._spool.directory):
            first = SegmentTail.open(path)
            if first is not None and first.boot == tail.boot:
                return first.next
        return tail.next

    def _note_failure(self, error: Exception) -> None:
        self._metrics.ship_failures += 1
        # Only what is ours is quoted: texts of libraries can carry what they parsed.
        told = isinstance(error, CollectorRefused | ValetkeyError)
        failure = str(error) if told else type(error).__name__
        if failure != self._failure:
            self._failure = failure
            self._log.warning("collector_unavailable", reason=failure)


_FAILURES: Final = (aiohttp.ClientError, TimeoutError, OSError, ValetkeyError, CollectorRefused)


def _unlink(path: Path) -> int:
    size = path.stat().st_size
    path.unlink()
    return size
