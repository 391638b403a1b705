"""What every Valetkey HTTP service has: problem answers, probes, metrics, a clean stop.

Used by the broker, the collector and the sidecar's admin port; never by the data path.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from valetkey.contracts import codes, problem
from valetkey.contracts.codes import Code
from valetkey.contracts.errors import ConfigError, ValetkeyError
from valetkey.contracts.logs import Log, place_of
from valetkey.contracts.settings import Settings

# Connections that wait to be taken, as many as Linux allows by default. When a replica ends, all
# its clients come to another one in the same moment; whom the kernel drops tries again a second
# later.
BACKLOG: Final = 4096

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_BY_STATUS: Final = {
    400: codes.SERVICE_BAD_REQUEST,
    404: codes.SERVICE_NOT_FOUND,
    405: codes.SERVICE_METHOD,
    413: codes.SERVICE_TOO_LARGE,
}


class TlsSettings(Settings, frozen=True, kw_only=True):
    """Server certificate (with its chain) and key, PEM files; taken up anew when they change."""

    cert_file: Path
    key_file: Path


def address(bind: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port``. Raises `ConfigError`."""
    host, colon, port = bind.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{bind!r} is not host:port")
    return host.strip("[]"), int(port)


def problem_response(code: Code, *, headers: dict[str, str] | None = None) -> web.Response:
    """The problem+json answer for a code, never cached."""
    all_headers = {"Cache-Control": "no-store"}
    if code.retry_after is not None:
        all_headers["Retry-After"] = str(code.retry_after)
    all_headers |= headers or {}
    return web.Response(
        status=code.status,
        body=problem.render(code),
        headers=all_headers,
        content_type=problem.CONTENT_TYPE,
    )


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into one of our codes; no traceback leaves the service."""
    try:
        return await handler(request)
    except ValetkeyError as error:
        Log("service").info("refused", code=error.code.name, reason=error.reason, path=request.path)
        return problem_response(error.code)
    except web.HTTPException as error:
        code = _BY_STATUS.get(error.status, codes.SERVICE_BAD_REQUEST)
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return problem_response(code, headers=headers)
    except asyncio.CancelledError:
        raise
    except Exception as error:  # noqa: BLE001 - the last line of defence answers 500 and logs
        Log("service").error(
            "handler_failed",
            path=request.path,
            error_type=type(error).__name__,
            line=place_of(error),
        )
        return problem_response(codes.SERVICE_INTERNAL)


def add_probes(
    app: web.Application,
    registry: CollectorRegistry,
    ready: Callable[[], Awaitable[str]],
    *,
    details: Callable[[], dict[str, str]] | None = None,
    more_metrics: Callable[[], bytes] = bytes,
) -> None:
    """``/healthz`` (the process answers), ``/readyz``, ``/metrics``.

    ``ready`` gives an empty string, or the reason why the service should get no traffic.
    ``details`` are members for ``/readyz`` that are worth a look but keep no traffic away.
    ``more_metrics`` are in Prometheus's text format, and none of the registry's.
    """

    async def healthz(_request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_request: web.Request) -> web.Response:
        reason = await ready()
        more = details() if details else {}
        if reason:
            return web.json_response({**more, "status": "unready", "reason": reason}, status=503)
        return web.json_response({**more, "status": "ready"})

    async def metrics(_request: web.Request) -> web.Response:
        response = web.Response(body=generate_latest(registry) + more_metrics())
        response.headers["Content-Type"] = CONTENT_TYPE_LATEST
        return response

    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)


@dataclass(frozen=True, slots=True)
class Listener:
    """One more address of a service. ``announce`` is called with its port before any request."""

    bind: str
    context: ssl.SSLContext | None
    announce: Callable[[int], None]

    async def open(self, runner: web.AppRunner) -> None:
        """Raises `OSError`."""
        host, port = address(self.bind)
        bound = socket.create_server(
            (host, port),
            family=socket.AF_INET6 if ":" in host else socket.AF_INET,
            backlog=BACKLOG,
        )
        bound.setblocking(False)
        # Said before requests can come, since what they may do depends on it.
        self.announce(bound.getsockname()[1])
        await web.SockSite(runner, bound, ssl_context=self.context, backlog=BACKLOG).start()


async def serve(
    app: web.Application,
    bind: str,
    *,
    context: ssl.SSLContext | None = None,
    announce: Callable[[int], None] | None = None,
    also: Iterable[Listener] = (),
    drain: float = 10.0,
) -> None:
    """Serve until SIGTERM or SIGINT; calls in flight get ``drain`` seconds to finish.

    ``context`` is what it speaks TLS with. ``announce`` is called with the bound port once
    connections are accepted, ``also`` are more addresses of the same service.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    host, port = address(bind)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=drain)
    await runner.setup()
    try:
        for listener in also:
            await listener.open(runner)
        site = web.TCPSite(runner, host, port, ssl_context=context, backlog=BACKLOG)
        await site.start()
        if announce:
            announce(runner.addresses[0][1])
        await stop.wait()
    finally:
        await runner.cleanup()
