"""Streams for tests: a target that a test feeds, a workload that reads, and the record of both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from tests.support.fleet import Fleet
from valetkey.contracts import events


class Source:
    """A target that the test feeds, path by path, where an event stream is asked for.

    Other calls get the fleet's usual answer.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.content_type = "text/event-stream"
        self._requests: dict[str, web.Request] = {}
        self._feeds: dict[str, asyncio.Queue[bytes | None]] = {}
        self._usual = fleet.target
        fleet.target = self._answer

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Accept") != "text/event-stream":
            return await self._usual(request)
        path = request.path
        self._requests[path] = request
        feed = self._feeds[path] = asyncio.Queue()
        response = web.StreamResponse(headers={"Content-Type": self.content_type})
        await response.prepare(request)
        while (data := await feed.get()) is not None:
            await response.write(data)
        return response

    def send(self, path: str, data: bytes | None) -> None:
        """Go on with an answer; ``None`` ends it."""
        self._feeds[path].put_nowait(data)

    def token(self, path: str) -> str:
        """The credential that came with a request."""
        return self._requests[path].headers["Authorization"].partition(" ")[2]

    def gone(self, path: str) -> bool:
        """Whether the connection of an answer is closed."""
        transport = self._requests[path].transport
        return transport is None or transport.is_closing()


@asynccontextmanager
async def stream(
    fleet: Fleet, path: str, headers: dict[str, str] | None = None
) -> AsyncIterator[aiohttp.ClientResponse]:
    """A call of the workload whose answer has begun."""
    timeout = aiohttp.ClientTimeout(total=30)
    accept = {"Accept": "text/event-stream", **(headers or {})}
    async with fleet.client.get(fleet.url + path, timeout=timeout, headers=accept) as response:
        assert response.status == 200, await response.text()
        yield response


async def outcome(fleet: Fleet, path: str) -> dict[str, Any]:
    """What the record says of how the (one) call to ``path`` ended, waiting for it."""
    found: list[dict[str, Any]] = []

    async def there() -> bool:
        written = await fleet.spooled()
        decisions = [
            event["id"]
            for event in written
            if event["type"] == events.TYPE_DECISION
            and event["data"]["http_request"]["url"]["path"] == path
        ]
        found[:] = [
            event["data"]["unmapped"] | {"status": event["data"]["http_response"]["code"]}
            for event in written
            if event["type"] == events.TYPE_OUTCOME
            and event["data"]["unmapped"]["decision"] in decisions
        ]
        return bool(found)

    await fleet.until(there, f"the outcome of {path}")
    (only,) = found
    return only
