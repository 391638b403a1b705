"""What every service does alike: addresses, problem answers, probes, a clean stop."""

from __future__ import annotations

import asyncio
import os
import signal

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge

from valetkey.contracts import codes, service
from valetkey.contracts.errors import ConfigError, PolicyError

ADDRESSES = {
    "127.0.0.1:7080": ("127.0.0.1", 7080),
    "[::1]:0": ("::1", 0),
    "localhost:65535": ("localhost", 65535),
}


@pytest.mark.parametrize(("bind", "expected"), ADDRESSES.items())
def test_addresses(bind: str, expected: tuple[str, int]) -> None:
    assert service.address(bind) == expected


@pytest.mark.parametrize("bind", ["", "7080", ":7080", "host:", "host:http", "h:-1", "h:65536"])
def test_what_is_not_an_address(bind: str) -> None:
    with pytest.raises(ConfigError, match="is not host:port"):
        service.address(bind)


class Served:
    """A service under way on a free port, in this loop."""

    def __init__(self) -> None:
        self.reason = ""
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        app = web.Application(middlewares=[service.problems], client_max_size=10)
        registry = CollectorRegistry()
        Gauge("sample", "A gauge.", registry=registry).set(3)
        service.add_probes(app, registry, self._ready, details=lambda: {"policy": "abc"})
        app.router.add_get("/refused", self._refused)
        app.router.add_get("/broken", self._broken)
        app.router.add_post("/read", self._read)
        app.router.add_get("/slow", self._slow)
        self._port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(
            service.serve(app, "127.0.0.1:0", announce=self._port.set_result)
        )

    async def url(self, path: str) -> str:
        return f"http://127.0.0.1:{await self._port}{path}"

    async def ended(self) -> None:
        await asyncio.wait_for(self._task, 15)

    async def _ready(self) -> str:
        return self.reason

    async def _refused(self, _request: web.Request) -> web.Response:
        raise PolicyError(codes.SERVICE_UNAVAILABLE, "the database said: secret detail")

    async def _broken(self, _request: web.Request) -> web.Response:
        raise RuntimeError("secret detail")

    async def _read(self, request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async def _slow(self, _request: web.Request) -> web.Response:
        self.entered.set()
        await self.release.wait()
        return web.Response(text="done")


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/nothing", codes.SERVICE_NOT_FOUND),
        ("DELETE", "/healthz", codes.SERVICE_METHOD),
        ("GET", "/refused", codes.SERVICE_UNAVAILABLE),
        ("GET", "/broken", codes.SERVICE_INTERNAL),
        ("POST", "/read", codes.SERVICE_TOO_LARGE),
    ],
)
async def test_each_failure_is_a_problem_without_its_reason(
    method: str, path: str, code: codes.Code
) -> None:
    served = Served()
    async with aiohttp.ClientSession() as session:
        body = b"more than ten bytes" if method == "POST" else None
        async with session.request(method, await served.url(path), data=body) as response:
            document = await response.json(content_type="application/problem+json")
            assert response.status == document["status"] == code.status
            assert document["code"] == code.name
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers.get("Retry-After") == (
                str(code.retry_after) if code.retry_after else None
            )
            assert ("Allow" in response.headers) == (code is codes.SERVICE_METHOD)
            assert b"secret detail" not in await response.read()
    os.kill(os.getpid(), signal.SIGTERM)
    await served.ended()


async def test_probes_and_metrics() -> None:
    served = Served()
    async with aiohttp.ClientSession() as session:
        async with session.get(await served.url("/healthz")) as response:
            assert (response.status, await response.json()) == (200, {"status": "ok"})
        async with session.get(await served.url("/readyz")) as response:
            ready = {"status": "ready", "policy": "abc"}
            assert (response.status, await response.json()) == (200, ready)
        served.reason = "no database"
        async with session.get(await served.url("/readyz")) as response:
            unready = {"status": "unready", "policy": "abc", "reason": "no database"}
            assert (response.status, await response.json()) == (503, unready)
        async with session.get(await served.url("/metrics")) as response:
            assert "sample 3.0" in await response.text()
    os.kill(os.getpid(), signal.SIGTERM)
    await served.ended()


async def test_a_call_in_flight_is_finished_before_the_end() -> None:
    served = Served()
    async with aiohttp.ClientSession() as session:
        url = await served.url("/slow")
        call = asyncio.create_task(_text(session, url))
        await served.entered.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        while not await _refuses(session, url):
            await asyncio.sleep(0.01)
        assert not call.done()
        served.release.set()
        assert await call == "done"
    await served.ended()


async def _text(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(url) as response:
        return await response.text()


async def _refuses(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url.replace("/slow", "/healthz")):
            return False
    except aiohttp.ClientConnectionError:
        return True
