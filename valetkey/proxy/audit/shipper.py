"""Emptying the spool into the collector: in order, in batches, until acknowledged.

At least once: a segment is deleted when the collector has acknowledged its last event, and
whatever is on disk at a start is sent again; the collector drops what it has. Boots are sent in
the order in which they were, each in batches of its own. A record that can't be read any more is
declared lost, by an event of its own, so that the gap is on record and the rest can be
acknowledged behind it.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from valetkey.contracts import events
from valetkey.contracts.errors import ConfigError, ValetkeyError
from valetkey.contracts.logs import Log
from valetkey.proxy.audit.reader import SegmentTail, segments
from valetkey.proxy.audit.recorder import Recorder
from valetkey.proxy.audit.segment import TORN, SpoolRecord
from valetkey.proxy.audit.spool import Spool
from valetkey.proxy.identity.file import FileIdentity
from valetkey.proxy.metrics import Metrics
from valetkey.proxy.settings import CollectorSettings

_INTERVAL: Final = 0.1
_BACKOFF: Final = (0.2, 5.0)


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
        identity: FileIdentity,
        metrics: Metrics,
    ) -> None:
        self._url = settings.url.rstrip("/") + "/v1/events"
        self._ssl = _context(settings) if self._url.startswith("https:") else None
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
        self._declared: dict[str, set[int]] = {}
        self._failing = False
        self._settled: float | None = None
        self.acked = 0
        """The highest sequence of this boot that the collector has acknowledged."""

    async def run(self) -> None:
        """Ship until cancelled."""
        backoff = _BACKOFF[0]
        while True:
            try:
                more = await self.ship_some()
            except (aiohttp.ClientError, TimeoutError, OSError, ValetkeyError) as error:
                self._note_failure(error)
                await asyncio.sleep(backoff * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                backoff = min(backoff * 2, _BACKOFF[1])
            else:
                backoff = _BACKOFF[0]
                self._failing = False
                if not more:
                    await asyncio.sleep(_INTERVAL)

    async def drain(self, seconds: float) -> None:
        """Try to deliver everything before the end; what remains is sent at the next start."""
        try:
            async with asyncio.timeout(seconds):
                while self.acked < self._spool.seq:
                    await self.ship_some()
        except (aiohttp.ClientError, TimeoutError, OSError, ValetkeyError) as error:
            self._note_failure(error)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def age(self) -> float:
        """Seconds since everything was last acknowledged; 0 if it is now."""
        if self.acked >= self._spool.seq:
            self._settled = None
            return 0.0
        if self._settled is None:
            self._settled = time.monotonic()
        return time.monotonic() - self._settled

    async def ship_some(self) -> bool:
        """Send one batch of the oldest segment. True if there may be more to send at once."""
        tail = self._tail
        if tail is None:
            tail = self._tail = await asyncio.to_thread(self._open_oldest)
            if tail is None:
                return False
        live = tail.path == self._spool.current_path
        # What is being stored right now may be half there: only up to what is complete.
        until = self._spool.seq if tail.boot == self._spool.boot else None
        if live and tail.next > self._spool.seq:
            return False
        records = await asyncio.to_thread(tail.read, self._batch, until=until)
        if not records:
            if not live:
                await self._finish(tail)
            return not live
        try:
            await self._send(tail.boot, records)
        except BaseException:
            self._tail = None  # begin again with the oldest; what is acknowledged is passed over
            raise
        return True

    async def _send(self, boot: str, records: list[SpoolRecord]) -> None:
        acked = self._acked.get(boot, 0)
        for record in records:
            if record.problem and not record.problem.startswith(TORN):
                # A torn tail was never part of a call that went on; this one was.
                self._declare_lost(boot, record.seq, record.seq, record.problem)
        good = [record for record in records if not record.problem and record.seq > acked]
        if not good:
            return
        answer = await self._post(b"[" + b",".join(record.raw for record in good) + b"]")
        if answer.boot != boot:
            raise aiohttp.ClientError("the collector acknowledged another boot")
        self._metrics.shipped += len(good)
        self._acked[boot] = answer.acked
        if boot == self._spool.boot:
            self.acked = answer.acked
        missing = answer.acked + 1
        if missing < good[0].seq and missing not in self._declared.get(boot, ()):
            # It lacks what it once had acknowledged (a restored backup?): send again what is
            # still here, and say so of what is not.
            oldest = await asyncio.to_thread(self._oldest_of, boot)
            if oldest > missing:
                self._declare_lost(boot, missing, oldest - 1, "the collector lost it")
            self._tail = None

    def _declare_lost(self, boot: str, first: int, last: int, reason: str) -> None:
        declared = self._declared.setdefault(boot, set())
        if first in declared:
            return
        declared.update(range(first, last + 1))
        self._log.error("events_lost", boot=boot, seq=first, count=last - first + 1, reason=reason)
        self._recorder.declare_lost(boot, first, last, reason)

    async def _finish(self, tail: SegmentTail) -> None:
        """Everything in a segment that is no longer written was sent: delete it."""
        size = await asyncio.to_thread(_unlink, tail.path)
        self._spool.deleted(size)
        self._tail = None

    async def _post(self, body: bytes) -> _Acknowledged:
        token, _ = self._identity.token()
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout, trust_env=False)
        async with self._session.post(
            self._url,
            data=body,
            headers={
                "Content-Type": events.CONTENT_TYPE_BATCH,
                "Authorization": f"Bearer {token.reveal()}",
            },
            ssl=self._ssl if self._ssl is not None else True,
            allow_redirects=False,
        ) as response:
            answer = await response.read()
            if response.status != 200:
                raise aiohttp.ClientError(f"the collector answered {response.status}")
        try:
            return msgspec.json.decode(answer, type=_Acknowledged)
        except msgspec.DecodeError as error:
            raise aiohttp.ClientError("the collector's answer can't be read") from error

    def _open_oldest(self) -> SegmentTail | None:
        for path in segments(self._spool.directory):
            tail = SegmentTail.open(path)
            if tail is not None:
                return tail
        return None

    def _oldest_of(self, boot: str) -> int:
        """The first sequence number of a boot that is still on disk."""
        tails = (SegmentTail.open(path) for path in segments(self._spool.directory))
        return next(tail.next for tail in tails if tail is not None and tail.boot == boot)

    def _note_failure(self, error: Exception) -> None:
        self._metrics.ship_failures += 1
        if not self._failing:
            self._failing = True
            self._log.warning("collector_unavailable", error_type=type(error).__name__)


def _unlink(path: Path) -> int:
    size = path.stat().st_size
    path.unlink()
    return size


def _context(settings: CollectorSettings) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(
            cafile=str(settings.ca_file) if settings.ca_file else None
        )
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"collector.ca_file: {settings.ca_file}: {error}") from error
