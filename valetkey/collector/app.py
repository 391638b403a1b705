"""The collector, put together: settings in, a service out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import uvloop
from aiohttp import web

from valetkey.collector.api.authenticate import Authenticator
from valetkey.collector.api.ingest import Ingest
from valetkey.collector.api.read import Read
from valetkey.collector.metrics import Metrics, make_metrics
from valetkey.collector.nats_settings import NatsSettings
from valetkey.collector.settings import CollectorSettings, database_url
from valetkey.collector.sinks.handoff import Handoff
from valetkey.collector.sinks.sink import Sink
from valetkey.collector.store import queries
from valetkey.collector.store.database import FAILED, Database, answers
from valetkey.collector.store.handoffs import Handoffs
from valetkey.collector.store.open import open_database
from valetkey.collector.store.writer import Writer
from valetkey.contracts import logs, service, settings
from valetkey.contracts.certificate_files import CertificateFiles
from valetkey.contracts.descriptors import raise_limit
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.logs import Log
from valetkey.contracts.served_certificate import ServedCertificate
from valetkey.contracts.service import TlsSettings

# How long a gauge may say what another collector has changed since, seconds.
_COUNT_EVERY: Final = 10.0


def build_app(
    loaded: CollectorSettings,
    database: Database,
    metrics: Metrics | None = None,
    certificate: CertificateFiles | None = None,
) -> web.Application:
    """The service over an open database. ``certificate`` is its own, where it speaks TLS itself."""
    metrics = metrics or make_metrics()
    authenticator = Authenticator(loaded)
    handoff = _handoff(loaded.nats, database, metrics) if loaded.nats is not None else None
    ingest = Ingest(authenticator, Writer(database), metrics, handoff)
    read = Read(authenticator, database)
    app = web.Application(middlewares=[service.problems], client_max_size=loaded.max_batch_bytes)
    app.router.add_post("/v1/events", ingest.post)
    app.router.add_get("/v1/events", read.events, allow_head=False)
    app.router.add_get("/v1/sources", read.sources, allow_head=False)
    app.router.add_get("/v1/gaps", read.gaps, allow_head=False)

    async def ready() -> str:
        return "" if await answers(database) else "the database does not answer"

    def details() -> dict[str, str]:
        told = {"certificate": certificate.state} if certificate is not None else {}
        return told | ({"handoff": handoff.state} if handoff is not None else {})

    service.add_probes(app, metrics.registry, ready, details=details)

    async def lifetime(_app: web.Application) -> AsyncIterator[None]:
        await _count(database, metrics)
        counting = asyncio.create_task(_count_on(database, metrics), name="count")
        async with (
            certificate.kept_up() if certificate is not None else contextlib.nullcontext(),
            handoff.running() if handoff is not None else contextlib.nullcontext(),
        ):
            yield
        counting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await counting
        await database.close()

    app.cleanup_ctx.append(lifetime)
    return app


def _handoff(to: NatsSettings, database: Database, metrics: Metrics) -> Handoff:
    from valetkey.collector.sinks.jetstream import JetStream  # for whom settings have it alone

    async def connect() -> Sink:
        return await JetStream.open(to, name="valetkey collector")

    return Handoff(to, Handoffs(database, to.stream), metrics.handoff, connect)


async def _count(database: Database, metrics: Metrics) -> None:
    """Gauges say what is in the database, not what this process saw."""
    async with database.reader.connect() as connection:
        metrics.gaps.set(await connection.scalar(queries.open_gaps()) or 0)
        metrics.breaks.set(await connection.scalar(queries.all_breaks()) or 0)


async def _count_on(database: Database, metrics: Metrics) -> None:
    """Follow what other collectors find; alone, this one knows."""
    while database.shared:
        await asyncio.sleep(_COUNT_EVERY)
        with contextlib.suppress(*FAILED):  # `/readyz` says so, and the gauges go on later
            await _count(database, metrics)


def run(config: Path) -> None:
    """Serve until SIGTERM or SIGINT. Raises `ConfigError` before the first request is taken."""
    loaded = settings.load(CollectorSettings, config, program="collector", environ=os.environ)
    logs.configure(loaded.log_level)
    raise_limit()
    # It narrates every start; what goes wrong in it is a ConfigError.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    database = open_database(database_url(loaded.database), loaded.postgres)
    uvloop.run(_serve(loaded, database))


async def _serve(loaded: CollectorSettings, database: Database) -> None:
    def announce(port: int) -> None:
        Log("collector").info("listening", port=port)

    metrics = make_metrics()
    certificate = None
    if isinstance(loaded.tls, TlsSettings):
        certificate = CertificateFiles(loaded.tls, ServedCertificate(), metrics.certificate)
        await certificate.load()
    app = build_app(loaded, database, metrics, certificate)
    context = certificate.served.context if certificate is not None else None
    try:
        await service.serve(app, loaded.bind, context=context, announce=announce)
    except OSError as error:
        raise ConfigError(f"bind {loaded.bind}: {error.strerror}") from error
