"""The sidecar's own port: probes and metrics, for kubelet and Prometheus, never for workloads.

It has to answer when the sidecar is full, so it takes its descriptors from the reserve; so that
nobody can use that up, few connections are open here at a time, and a new one ends the oldest.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry

from valetkey.contracts.errors import ConfigError
from valetkey.contracts.logs import Log
from valetkey.contracts.service import add_probes, address, problems
from valetkey.proxy.intercept.accept import Acceptor, listening_sockets, serving
from valetkey.proxy.limits import LimitHits
from valetkey.proxy.metrics import Metrics

ADMIN_CONNECTIONS: Final = "admin"
_MOST: Final = 32


class _Reserve:
    """Lets every connection in: those of the admin port are what the reserve is for."""

    def __init__(self, hits: LimitHits) -> None:
        self.hits = hits
        self.open = 0

    def refusal(self, _descriptor: int) -> str:
        return ""

    def make_room(self) -> bool:
        return False


class Admin:
    """Serves ``/healthz``, ``/readyz`` and ``/metrics``."""

    def __init__(
        self,
        bind: str,
        metrics: Metrics,
        *,
        ready: Callable[[], Awaitable[str]],
        health: Callable[[], dict[str, str]],
    ) -> None:
        self._bind = bind
        registry = CollectorRegistry()
        registry.register(metrics)
        app = web.Application(middlewares=[problems])
        add_probes(app, registry, ready, details=health)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        self._gate = _Reserve(metrics.limit_hits)
        self._acceptor: Acceptor | None = None
        self.port = 0

    async def start(self) -> None:
        """Raises `ConfigError` if the address can't be had."""
        host, port = address(self._bind)
        await self._runner.setup()
        assert self._runner.server is not None
        try:
            sockets = await listening_sockets(host, port)
        except OSError as error:
            raise ConfigError(f"admin.bind: {self._bind}: {error.strerror or error}") from error
        self.port = sockets[0].getsockname()[1]
        serve = serving(self._runner.server)

        def take(sock: socket.socket) -> None:
            self._close_oldest()
            serve(sock)

        self._acceptor = Acceptor(sockets, take, self._gate)
        self._acceptor.start()
        Log("admin").info("listening", listener="admin", port=self.port)

    def _close_oldest(self) -> None:
        server = self._runner.server
        if server is None or self._gate.open <= _MOST:
            return
        self._gate.hits.hit(ADMIN_CONNECTIONS)
        for connection in server.connections[:1]:
            connection.force_close()
            if connection.transport is not None:
                connection.transport.abort()

    async def stop(self) -> None:
        if self._acceptor is not None:
            self._acceptor.close()
        await self._runner.cleanup()
