"""Event streams and long polls: nothing is held back, silence is allowed, time limits are a route's.

The target sends an event only when the one before it has arrived, so a proxy that waits for more
before it passes something on would never get it.
"""

from __future__ import annotations

import asyncio
import time

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from tests.support.fleet import Fleet
from tests.support.streaming import Source, outcome, stream

SHORT = {"first_byte": "700ms", "stall": "700ms"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory):
    fleet = Fleet(tmp_path_factory.mktemp("events"))
    fleet.sidecar_changes["timeouts"] = SHORT
    fleet.routes += [
        fleet.route("poll", methods=["GET"], path="/poll/{id}", timeouts={"first_byte": "15s"}),
        fleet.route("slow", methods=["GET"], path="/slow/{id}", timeouts={"stall": "15s"}),
        fleet.route("feed", methods=["GET"], path="/feed/{id}", timeouts={"stream": "2500ms"}),
    ]
    async with fleet.running(collector=False):
        yield fleet


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def source(running):
    return Source(running)


async def test_each_event_gets_through_at_once(running, source):
    path = "/api/each"
    async with stream(running, path) as response:
        total = 0
        for size in (1, 10, 1000, 20_000, 300_000):
            for number in range(5):
                event = b"id: %d\ndata: %b\n\n" % (number, b"x" * size)
                source.send(path, event)
                async with asyncio.timeout(15):
                    assert await response.content.readexactly(len(event)) == event
                total += len(event)
        assert await running.metric("valetkey_streams", kind="event_stream") == 1
        source.send(path, None)
        assert await response.content.read() == b""
    ended = await outcome(running, path)
    assert (ended["outcome"], ended["received"]) == ("completed", total)
    assert ended["stream"] == {"kind": "event_stream", "rechecks": 0}
    assert await running.metric("valetkey_streams", kind="event_stream") == 0


async def test_an_event_stream_may_be_silent_longer_than_other_answers(running, source):
    path = "/feed/silent"
    async with stream(running, path) as response:
        for _ in range(2):
            await asyncio.sleep(1.4)  # the silence is what is tested: twice `stall`
            begun = time.monotonic()
            source.send(path, b"data: 1\n\n")
            assert await response.content.readexactly(9) == b"data: 1\n\n"
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.read()
        assert time.monotonic() - begun >= 2.5
    ended = await outcome(running, path)
    assert (ended["outcome"], ended["code"]) == ("cut", "stream.idle")

    async def gone():
        return source.gone(path)

    await running.until(gone, "the target's end")


async def test_an_answer_of_another_type_may_not(running, source):
    source.content_type = "text/plain"
    async with stream(running, "/feed/plain") as response:
        source.send("/feed/plain", b"x")
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.read()
    ended = await outcome(running, "/feed/plain")
    assert (ended["outcome"], ended["code"]) == ("cut", "target.timeout")
    assert "stream" not in ended


async def test_a_route_has_time_limits_of_its_own(running):
    async def target(request):
        response = web.StreamResponse()
        if request.path.startswith("/slow"):
            await response.prepare(request)
            await response.write(b"a")
        await asyncio.sleep(1.5)
        if not response.prepared:
            await response.prepare(request)
        await response.write(b"b")
        return response

    running.target = target
    assert (await running.call("/api/late"))[1]["code"] == "target.timeout"
    async with stream(running, "/poll/1") as response:
        assert await response.read() == b"b"
    async with stream(running, "/slow/1") as response:
        assert await response.read() == b"ab"


async def test_a_workload_that_does_not_read_its_stream_is_cut_off(running, source):
    """Silence is allowed to the target, not to a workload for which data waits."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=1024)
    writer.write(b"GET /api/deaf HTTP/1.1\r\nHost: h\r\nAccept: text/event-stream\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    for _ in range(64):
        source.send("/api/deaf", b"data: " + b"x" * 262_144 + b"\n\n")
    ended = await outcome(running, "/api/deaf")
    assert (ended["outcome"], ended["code"]) == ("cut", "request.timeout")
    # What was taken in for it is bounded: the target was stopped.
    assert ended["received"] < 16 << 20
    writer.close()


# --- the end of the sidecar -----------------------------------------------------------------------


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path)


async def test_streams_and_waiting_calls_get_the_time_to_drain_and_are_then_cut(fleet):
    fleet.sidecar_changes["timeouts"] = {"drain": "3s"}
    waiting = asyncio.Event()

    async def target(_request):
        waiting.set()
        await asyncio.sleep(30)

    fleet.target = target
    source = Source(fleet)
    async with fleet.running(collector=False):
        call = asyncio.ensure_future(fleet.call("/api/waits"))
        await asyncio.wait_for(waiting.wait(), 15)
        async with stream(fleet, "/api/streams") as response:
            source.send("/api/streams", b"data: 1\n\n")
            assert await response.content.readexactly(9)
            begun = time.monotonic()
            fleet.sidecar.terminate()

            async def draining():
                return (await fleet.readyz())[1].get("reason") == "draining"

            await fleet.until(draining, "the sidecar takes its leave")
            source.send("/api/streams", b"data: 2\n\n")
            assert await response.content.readexactly(9) == b"data: 2\n\n"
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.content.read()
            assert time.monotonic() - begun >= 3
        status, problem = await call
        assert (status, problem["code"]) == (503, "proxy.draining")
        assert await fleet.sidecar.ended() == 0
        ended = await outcome(fleet, "/api/streams")
        assert (ended["outcome"], ended["code"]) == ("cut", "proxy.draining")
        ended = await outcome(fleet, "/api/waits")
        assert (ended["outcome"], ended["code"]) == ("denied", "proxy.draining")
