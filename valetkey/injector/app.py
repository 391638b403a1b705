"""The injector, put together: settings in, a webhook out.

Two ports: the webhook's over TLS, for API servers; the admin's without, for kubelet and Prometheus.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import uvloop
from aiohttp import web

from valetkey.contracts import codes, logs, service, settings
from valetkey.contracts.certificate_files import CertificateFiles, CertificateSource
from valetkey.contracts.errors import CallerError, ConfigError
from valetkey.contracts.logs import Log, place_of
from valetkey.contracts.served_certificate import ServedCertificate
from valetkey.injector import review
from valetkey.injector.certificates import OwnCertificates
from valetkey.injector.kube import Kube, KubeError, namespace_of
from valetkey.injector.metrics import Metrics, make_metrics
from valetkey.injector.operator_file import OperatorFile
from valetkey.injector.review import Request
from valetkey.injector.settings import InjectorSettings, WebhookSettings, version_of

_VERSION_EVERY: Final = 2.0
_ENCODER: Final = msgspec.json.Encoder()

Answer = Callable[[Request, tuple[int, int], InjectorSettings], tuple[dict[str, Any], str, str]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Injector:
    """The webhook of one process. `run` serves until it is told to stop."""

    def __init__(self, loaded: InjectorSettings) -> None:
        """Blocking. Raises `ConfigError`."""
        if loaded.webhook is None:
            raise ConfigError("webhook: it is missing, and says how the API server gets here")
        self._webhook: WebhookSettings = loaded.webhook
        self.metrics: Metrics = make_metrics()
        self._served = ServedCertificate()
        self._log = Log("injector")
        stated = loaded.pods.kubernetes
        self._version = version_of(stated) if stated is not None else None
        own = self._webhook.own
        operator = loaded.sidecar.operator
        needs_api = own is not None or self._version is None or operator is not None
        self._kube = Kube(self._webhook.api) if needs_api else None
        self._certificates = self._source()
        self._loaded = _without_own_namespace(loaded, self._kube, self._webhook)
        self._operator: OperatorFile | None = None
        if operator is not None:
            assert self._kube is not None, "the file is kept there"
            excluded = self._loaded.pods.excluded
            self._operator = OperatorFile(operator, self._kube, self.metrics, excluded)
        self._draining = False
        self._stop = asyncio.Event()
        self.metrics.ready.set_function(lambda: float(not self._unready()))
        self.failed = False

    def _source(self) -> CertificateSource:
        metrics = self.metrics.certificates
        if self._webhook.tls is not None:
            return CertificateFiles(self._webhook.tls, self._served, metrics)
        assert self._webhook.own is not None, "the settings want one of them"
        assert self._kube is not None, "own certificates are kept there"
        return OwnCertificates(self._webhook.own, self._kube, self._served, metrics)

    async def run(self) -> None:
        """Raises `ConfigError` where an address can't be had."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        async with contextlib.AsyncExitStack() as stack:
            admin = await self._serve(stack, "admin", self._webhook.admin, self._admin(), tls=False)
            port = await self._serve(stack, "bind", self._webhook.bind, self._app(), tls=True)
            tasks = [asyncio.create_task(self._certificates.run())]
            if self._operator is not None:
                tasks.append(asyncio.create_task(self._operator.run()))
            if self._version is None:
                tasks.append(asyncio.create_task(self._discover()))
            for task in tasks:
                task.add_done_callback(self._ended)
            stack.push_async_callback(_end, tasks)
            self._log.info("listening", listener="admin", port=admin)
            self._log.info("listening", listener="webhook", port=port)
            await self._stop.wait()
            # Until no more is sent here: endpoints take a moment to go.
            self._draining = True
            self._log.info("draining", seconds=float(self._webhook.linger))
            await asyncio.sleep(self._webhook.linger)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Without what renews certificates the process is of no use before long: a new one is."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("part_failed", error_type=type(error).__name__, line=place_of(error))
            self.failed = True
            self._stop.set()

    async def _serve(
        self,
        stack: contextlib.AsyncExitStack,
        key: str,
        bind: str,
        app: web.Application,
        *,
        tls: bool,
    ) -> int:
        host, port = service.address(bind)
        runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            shutdown_timeout=self._webhook.drain,
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        try:
            await web.TCPSite(
                runner, host, port, ssl_context=self._served.context if tls else None
            ).start()
        except OSError as error:
            raise ConfigError(f"webhook.{key}: {bind}: {error.strerror}") from error
        bound: int = runner.addresses[0][1]
        return bound

    def _app(self) -> web.Application:
        @web.middleware
        async def closing(request: web.Request, handler: Handler) -> web.StreamResponse:
            response = await handler(request)
            if self._draining:
                response.force_close()  # the API server keeps connections: let it go elsewhere
            return response

        app = web.Application(
            middlewares=[closing, service.problems], client_max_size=self._webhook.max_body
        )
        app.router.add_post("/mutate", self._endpoint("mutate", review.mutation))
        app.router.add_post("/validate", self._endpoint("validate", review.validation))
        app.router.add_post("/protect", self._endpoint("protect", self._protection))
        return app

    def _endpoint(self, name: str, answer: Answer) -> Handler:
        seconds = self.metrics.seconds.labels(name)

        async def handle(request: web.Request) -> web.Response:
            if request.content_type != "application/json":
                raise CallerError(codes.SERVICE_MEDIA_TYPE, request.content_type)
            if self._version is None:
                raise CallerError(codes.SERVICE_UNAVAILABLE, "the cluster's version is not known")
            body = await request.read()
            began = time.perf_counter()
            try:
                asked = review.read(body)
            except CallerError:
                self.metrics.reviews.labels(name, "bad", "").inc()
                raise
            answered, result, code = answer(asked, self._version, self._loaded)
            if result == "injected" and not self._has_settings(asked):
                answered, result, code = review.not_there_yet(asked)
            self.metrics.reviews.labels(name, result, code).inc()
            if code:
                self._log.info(
                    "write_refused" if name == "protect" else "pod_refused",
                    action=name,
                    code=code,
                    reason=answered["response"]["status"]["message"],
                )
            seconds.observe(time.perf_counter() - began)
            return web.Response(body=_ENCODER.encode(answered), content_type="application/json")

        return handle

    def _unready(self) -> str:
        """Why no API server should come here; empty if it may."""
        if self._draining:
            return "draining"
        if time.time() >= self._served.expires:
            return f"certificate: {self._certificates.problem or 'it has expired'}"
        return "" if self._version else "the cluster's version is not known"

    def _has_settings(self, asked: Request) -> bool:
        """Whether the operator's file is where the pod is to run."""
        return self._operator is None or self._operator.covers(asked.namespace)

    def _protection(
        self, asked: Request, _version: tuple[int, int], loaded: InjectorSettings
    ) -> tuple[dict[str, Any], str, str]:
        own = "" if self._operator is None else self._operator.user
        return review.protection(asked, own, loaded)

    def _admin(self) -> web.Application:
        async def ready() -> str:
            return self._unready()

        def details() -> dict[str, str]:
            more = {} if self._operator is None else self._operator.details()
            return {"certificates": self._certificates.problem or "good", **more}

        app = web.Application(middlewares=[service.problems])
        service.add_probes(app, self.metrics.registry, ready, details=details)
        return app

    async def _discover(self) -> None:
        assert self._kube is not None, "who does not know the version asks"
        while True:
            try:
                self._version = await self._kube.version()
            except (KubeError, LookupError) as error:
                self._log.warning("version_unknown", reason=str(error))
                await asyncio.sleep(_VERSION_EVERY)
            else:
                self._log.info("version_known", version="{}.{}".format(*self._version))
                return


def _without_own_namespace(
    loaded: InjectorSettings, kube: Kube | None, webhook: WebhookSettings
) -> InjectorSettings:
    """The injector's own pods can't wait for it, so its namespace is left alone; blocking."""
    own = kube.namespace if kube is not None else webhook.api.namespace
    if own is None:
        try:
            own = namespace_of(webhook.api)
        except ConfigError:
            return loaded  # no pod: what is excluded is what settings say
    excluded = tuple(sorted({*loaded.pods.excluded, own}))
    pods = msgspec.structs.replace(loaded.pods, excluded=excluded)
    return msgspec.structs.replace(loaded, pods=pods)


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def run(config: Path) -> bool:
    """Serve until SIGTERM or SIGINT; false if a part ended by itself.

    Raises `ConfigError` before the first request is taken.
    """
    loaded = settings.load(InjectorSettings, config, program="injector", environ=os.environ)
    logs.configure(loaded.log_level)
    injector = Injector(loaded)
    uvloop.run(injector.run())
    return not injector.failed
