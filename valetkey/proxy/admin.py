"""The sidecar's own port: probes and metrics, for kubelet and Prometheus, never for workloads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry

from valetkey.contracts.errors import ConfigError
from valetkey.contracts.logs import Log
from valetkey.contracts.service import add_probes, address, problems
from valetkey.proxy.metrics import Metrics


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

    async def start(self) -> None:
        """Raises `ConfigError` if the address can't be had."""
        host, port = address(self._bind)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            raise ConfigError(f"admin.bind: {self._bind}: {error.strerror or error}") from error
        Log("admin").info("listening", listener="admin", port=self._runner.addresses[0][1])

    async def stop(self) -> None:
        await self._runner.cleanup()
