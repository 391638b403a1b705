"""One simulated sidecar of `bench.fleet`: feed, exchanges, questions about credentials, record.

It has what a real one has towards broker and collector: three connections (two of them only while
they are used), a key for the feed and one for exchanges, a workload's token. Its workload calls now
and then; a credential is fetched with the first call and again once four fifths of its life are
over, asked about in the round after it was used, and every call leaves two events.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import msgspec

from bench.fleet_ingest import batch
from bench.fleet_record import Record, Texts
from bench.light import Failed, Light, Line, Prover
from valetkey.contracts import oauth

REVALIDATE = 5.0
HEARTBEAT = 30.0
_IDLE = 15.0
"""How long aiohttp's client keeps a connection that nobody uses."""
_SHIP_EVERY = 0.1
_REFRESH_AT = 0.8
_FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all sidecars of a load process have in common.

    ``call_every`` in seconds; ``shipping`` is the share of them that deliver their record.
    ``patience`` (seconds) stands for ``broker.timeout``: a load process is late itself, which no
    sidecar is that has a machine of its own.
    """

    url: str
    ports: tuple[int, int]
    collector: int
    source: str
    audience: str
    texts: Texts
    call_every: float
    shipping: float
    patience: float


@dataclass(slots=True)
class Seen:
    """What sidecars saw since it was asked for last."""

    counts: Counter[str] = field(default_factory=Counter)
    latencies: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    back: list[float] = field(default_factory=list)
    """When those that came from another replica heard this one (`time.monotonic`)."""

    def take(self) -> dict[str, Any]:
        taken = {
            "counts": dict(self.counts), "latencies": dict(self.latencies), "back": self.back,
        }  # fmt: skip
        self.counts, self.latencies, self.back = Counter(), defaultdict(list), []
        return taken


class Sidecar(Light):
    """``number`` counts all of the fleet: even ones prefer the first replica."""

    def __init__(self, around: Surroundings, seen: Seen, number: int, token: str) -> None:
        home = number % 2
        ports = (around.ports[home], around.ports[1 - home])
        line = Line(lambda: ports, source=around.source)
        super().__init__(around.url, token, line, timeout=around.patience)
        self._around = around
        self._seen = seen
        line = Line(lambda: ports, source=around.source, idle=_IDLE)
        self._exchanges = Prover(around.url, line, timeout=around.patience)
        self._turn = asyncio.Lock()
        self._collector = Line(lambda: (around.collector,), source=around.source, idle=_IDLE)
        self._token = token
        self._record = Record(around.texts, f"fleet-{number}")
        self._delivers = number % 1000 < around.shipping * 1000
        self._shipping: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._credential = ""
        self._refresh_at = 0.0
        self._working: asyncio.Task[None] | None = None
        self.hears = False
        self._followed = 0
        self.began_at = 0.0
        self.registered_at = 0.0
        """When it first had a stream, had heard by it, and had a credential."""

    @property
    def port(self) -> int:
        """The replica that it follows."""
        return self._feed.line.port

    # --- the feed -----------------------------------------------------------------------------

    async def poll(self, *, wait: int) -> None:
        await super().poll(wait=wait)
        self._seen.counts["poll"] += 1

    def back(self) -> None:
        self.hears = True
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        elif self.port != self._followed:
            self._seen.back.append(time.monotonic())
        self._followed = self.port

    def away(self) -> None:
        self.hears = False

    def failed(self, failed: Failed) -> None:
        self._seen.counts[f"feed failed {failed.status} {failed.reason}"] += 1

    # --- the workload -------------------------------------------------------------------------

    async def _work(self) -> None:
        beating = asyncio.create_task(self._beat())
        try:
            while True:
                await self._call()
                await asyncio.sleep(random.expovariate(1 / self._around.call_every))
        finally:
            beating.cancel()

    async def _call(self) -> None:
        if time.monotonic() >= self._refresh_at:
            try:
                await self._exchange()
            except Failed as failed:
                self._seen.counts[f"exchange failed {failed.status} {failed.reason}"] += 1
                return
        if not self.registered_at:
            self.registered_at = time.monotonic()
        self._seen.counts["call"] += 1
        self._record.call()
        self._ship_soon()
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())

    async def _exchange(self) -> None:
        detail = {
            "type": oauth.DETAILS_HTTP_CALL,
            "locations": [self._around.audience],
            "actions": ["GET"],
            "identifier": "tickets-read",
            "path": "/api/tickets/{id}",
        }
        form = {
            "grant_type": oauth.GRANT_TOKEN_EXCHANGE,
            "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
            "client_assertion": self._token,
            "subject_token": self._token,
            "subject_token_type": oauth.TOKEN_TYPE_JWT,
            "requested_token_type": oauth.TOKEN_TYPE_ACCESS,
            "capabilities": "dpop feed mcp_filter single_use txn_token",
            "audience": self._around.audience,
            "scope": "tickets:read",
            "authorization_details": json.dumps([detail]),
        }
        asked = time.monotonic()
        answer = await self._timed("exchange", "/token", form)
        self._credential = answer["access_token"]
        self._refresh_at = asked + _REFRESH_AT * answer["expires_in"]

    async def _ask(self) -> None:
        """In the next round of revalidation."""
        await asyncio.sleep(random.uniform(0, REVALIDATE))
        form = {
            "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
            "client_assertion": self._token,
            "token": self._credential,
            "token_type_hint": "access_token",
        }
        try:
            answer = await self._timed("introspection", "/introspect", form)
            self._seen.counts["active" if answer["active"] else "inactive"] += 1
        except Failed as failed:
            self._seen.counts[f"introspection failed {failed.status} {failed.reason}"] += 1
        finally:
            self._asking = None

    async def _timed(self, kind: str, path: str, form: dict[str, str]) -> Any:
        async with self._turn:
            began = time.perf_counter()
            answer = await self._exchanges.post(path, urlencode(form).encode(), _FORM)
        if answer.status != 200:
            raise Failed(answer.status, answer.body.decode(errors="replace")[:60])
        self._seen.counts[kind] += 1
        self._seen.latencies[kind].append(time.perf_counter() - began)
        return msgspec.json.decode(answer.body)

    # --- the record ---------------------------------------------------------------------------

    async def _beat(self) -> None:
        await asyncio.sleep(random.uniform(0, HEARTBEAT))
        while True:
            self._record.heartbeat()
            self._ship_soon()
            await asyncio.sleep(HEARTBEAT)

    def _ship_soon(self) -> None:
        if self._delivers and self._shipping is None:
            self._shipping = asyncio.create_task(self._ship())

    async def _ship(self) -> None:
        """As the shipper: what there is, ten times a second, again until it is acknowledged."""
        pause = 0.2
        try:
            await asyncio.sleep(random.uniform(0, _SHIP_EVERY))
            while self._record.waiting:
                sent = self._record.waiting[:1000]
                try:
                    await self._deliver(sent)
                except Failed as failed:
                    self._seen.counts[f"batch failed {failed.status} {failed.reason}"] += 1
                    await asyncio.sleep(random.uniform(0.5, 1) * pause)
                    pause = min(pause * 2, 5.0)
                else:
                    del self._record.waiting[: len(sent)]
        finally:
            self._shipping = None

    async def _deliver(self, events: list[bytes]) -> None:
        began = time.perf_counter()
        patience = 2 * self._around.patience
        answer = await self._collector.send(batch(events, self._token), patience)
        if answer.status != 200:
            raise Failed(answer.status, "not acknowledged")
        self._seen.counts["batch"] += 1
        self._seen.counts["event"] += len(events)
        self._seen.latencies["batch"].append(time.perf_counter() - began)
