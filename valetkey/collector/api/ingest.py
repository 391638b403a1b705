"""``POST /v1/events``: a sidecar delivers a batch and learns up to where all is kept.

The answer is ``{"boot": "…", "acked": N}``: every event of the boot up to ``N`` is stored, or
was declared lost. A sidecar that gets no answer sends again; equal copies are dropped.
Where settings say so, what is acknowledged is in the stream that the record is handed on to, too.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import msgspec
from aiohttp import web

from valetkey.collector.api.authenticate import Authenticator
from valetkey.collector.core.batch import Contradiction, read_batch
from valetkey.collector.metrics import Metrics
from valetkey.collector.sinks.handoff import Handoff
from valetkey.collector.store.writer import Identity, Stored, Writer
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError, ValetkeyError
from valetkey.contracts.events import CONTENT_TYPE_BATCH
from valetkey.contracts.logs import Log

# nginx waits as long for a body (client_body_timeout).
_BODY_TIMEOUT: Final = 60.0


class Ingest:
    """Takes batches to the writer."""

    def __init__(
        self,
        authenticator: Authenticator,
        writer: Writer,
        metrics: Metrics,
        handoff: Handoff | None = None,
    ) -> None:
        self._authenticator = authenticator
        self._writer = writer
        self._metrics = metrics
        self._handoff = handoff
        self._results = {
            result: metrics.events.labels(result)
            for result in ("stored", "duplicate", "refused", "conflict")
        }
        self._log = Log("collector")

    async def post(self, request: web.Request) -> web.Response:
        caller = await self._authenticator.sidecar(request)
        if request.content_type != CONTENT_TYPE_BATCH:
            raise CallerError(codes.SERVICE_MEDIA_TYPE, f"expected {CONTENT_TYPE_BATCH}")
        try:
            async with asyncio.timeout(_BODY_TIMEOUT):
                body = await request.read()
        except TimeoutError as error:
            raise CallerError(codes.REQUEST_TIMEOUT, "the batch did not arrive in time") from error
        started = time.perf_counter()
        with self._metrics.in_flight.track_inprogress():
            stored = await self._take(body, Identity(caller.issuer, caller.subject))
        self._metrics.batch_seconds.observe(time.perf_counter() - started)
        answer = {"boot": stored.boot, "acked": stored.acked}
        return web.Response(
            body=msgspec.json.encode(answer),
            content_type="application/json",
            headers={"Cache-Control": "no-store"},
        )

    async def _take(self, body: bytes, identity: Identity) -> Stored:
        now = time.time_ns() // 1_000_000
        size = 1
        try:
            try:
                # Reading takes about 15 µs per event: off the loop, so that probes stay prompt.
                batch = await asyncio.to_thread(read_batch, body)
            except Contradiction as found:
                size = len(found.batch.events)
                await self._writer.contradiction(found, identity, now=now)
                raise
            size = len(batch.events)
            stored = await self._writer.store(batch, identity, now=now)
        except ValetkeyError as error:
            self._refused(error, size)
            raise
        self._stored(stored)
        if self._handoff is not None:
            await self._handoff.stored(batch)
        return stored

    def _refused(self, error: ValetkeyError, size: int) -> None:
        conflict = error.code is codes.AUDIT_CONFLICT
        self._results["conflict" if conflict else "refused"].inc(size)
        if conflict:
            self._metrics.conflicts.inc()
            self._log.error("conflict", code=error.code.name, reason=error.reason)

    def _stored(self, stored: Stored) -> None:
        self._results["stored"].inc(stored.stored)
        self._results["duplicate"].inc(stored.duplicates)
        self._metrics.gaps.inc(stored.gaps_opened - stored.gaps_closed)
        if stored.gaps_opened:
            self._log.warning("gap", boot=stored.boot, count=stored.gaps_opened)
        if stored.breaks:
            self._metrics.breaks.inc(stored.breaks)
            self._log.error("chain_broken", boot=stored.boot, count=stored.breaks)
