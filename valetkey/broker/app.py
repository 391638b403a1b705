"""The broker, put together: one `Broker` from settings, and how it is run."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import uvloop
from aiohttp import web

from valetkey.broker.api import introspect, jwks, metadata, revoke, token
from valetkey.broker.api.wire import MAX_BODY
from valetkey.broker.core.nonces import Nonces
from valetkey.broker.core.replay import ReplayMemory
from valetkey.broker.core.rotation import Schedule
from valetkey.broker.issuers.jwt import JwtIssuer
from valetkey.broker.issuers.keyring import KeyRing
from valetkey.broker.metrics import Metrics
from valetkey.broker.policy_file import PolicyFile
from valetkey.broker.settings import BrokerSettings, longest_ttl
from valetkey.broker.store.assertions import UsedAssertions
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database, StoreError
from valetkey.broker.store.keys import SigningKeyStore
from valetkey.broker.store.revocations import Revocations
from valetkey.broker.store.sealing import Sealer
from valetkey.broker.trust.clients import ClientAuthenticator
from valetkey.broker.trust.parties import PartyResolver
from valetkey.broker.trust.tokens import TokenVerifier
from valetkey.contracts import logs, service, settings
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.issuer import TrustedIssuers
from valetkey.contracts.logs import Log
from valetkey.contracts.memory import close_memory
from valetkey.contracts.service import TlsSettings

# How often the grants file is looked at and the key schedule is asked.
_TICK: Final = 1.0
_TICKS_PER_SWEEP: Final = 60


class Broker:
    """All parts of one broker. Made by `open`, ended by `close`; in between, `app` is served."""

    def __init__(
        self,
        config: BrokerSettings,
        database: Database,
        changes: Changes,
        ring: KeyRing,
        policies: PolicyFile,
        metrics: Metrics,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self.changes = changes
        self._metrics = metrics
        self._tasks: list[asyncio.Task[None]] = []
        self._log = Log("broker")
        self.ring = ring
        self.policies = policies
        self.revocations = Revocations(database, changes, clock=clock)
        self._assertions = UsedAssertions(database, clock=clock)
        proofs = ReplayMemory(config.limits.replay_proofs)
        metrics.watch(key_age=ring.signing_age, proofs=lambda: float(len(proofs)))
        tokens = TokenVerifier(
            TrustedIssuers(config.issuers), clock=clock, capacity=config.limits.verified_tokens
        )
        self._clock = clock
        self._clients = ClientAuthenticator(
            tokens, self._assertions, proofs, Nonces(secrets.token_bytes(32)), clock=clock
        )
        self._parties = PartyResolver(tokens, self.revocations, issuer=config.issuer)
        self._issuer = JwtIssuer(
            ring, issuer=config.issuer, clock=clock, random_id=lambda: secrets.token_urlsafe(16)
        )
        self.app = web.Application(client_max_size=MAX_BODY, middlewares=[service.problems])
        self._add_oauth_routes(config)
        self.app.router.add_get(
            jwks.PATH, jwks.JwksEndpoint(ring, publish_before=config.keys.publish_before).handle
        )
        self.app.router.add_get(
            metadata.PATH,
            metadata.MetadataEndpoint(issuer=config.issuer, issuers=config.issuers).handle,
        )
        service.add_probes(self.app, metrics.registry, self._ready, details=self._details)

    def _add_oauth_routes(self, config: BrokerSettings) -> None:
        """The endpoints that authenticate their callers, each by its own URL."""
        exchange = token.TokenEndpoint(
            self._clients,
            self._parties,
            self.policies,
            self._issuer,
            self._metrics,
            url=config.issuer + token.PATH,
            clock=self._clock,
        )
        introspection = introspect.IntrospectEndpoint(
            self._clients,
            self._issuer,
            self.revocations,
            config.resource_servers,
            url=config.issuer + introspect.PATH,
        )
        revocation = revoke.RevokeEndpoint(
            self._clients,
            self._issuer,
            self.revocations,
            self._metrics,
            url=config.issuer + revoke.PATH,
            clock=self._clock,
        )
        self.app.router.add_post(token.PATH, exchange.handle)
        self.app.router.add_post(introspect.PATH, introspection.handle)
        self.app.router.add_post(revoke.PATH, revocation.handle)

    @classmethod
    async def open(cls, config: BrokerSettings, *, clock: Callable[[], float]) -> Broker:
        """Read everything that a start depends on. Raises `ConfigError`.

        ``clock`` gives seconds since the epoch.
        """
        metrics = Metrics()
        sealer = await asyncio.to_thread(Sealer.from_file, config.master_key_file)
        targets = config.compiled_targets()
        policies = PolicyFile(
            config.grants_file, targets, issuers=config.workload_issuers(), metrics=metrics
        )
        await policies.load()
        database = await Database.open(config.database)
        changes = Changes(database)
        try:
            await changes.load()  # first of all: what is read from now on may be newer, never older
            ring = KeyRing(
                SigningKeyStore(database, changes),
                sealer,
                Schedule(
                    rotate_every=config.keys.rotate_every,
                    publish_before=config.keys.publish_before,
                    overlap=config.keys.overlap,
                ),
                longest_ttl=longest_ttl(targets),
                clock=clock,
            )
            await ring.load()
            broker = cls(config, database, changes, ring, policies, metrics, clock=clock)
            await broker.revocations.load()
        except BaseException:
            await database.close()
            raise
        broker._tasks = [
            asyncio.create_task(broker._keep_house(), name="housekeeping"),
            asyncio.create_task(changes.run(), name="changes"),
        ]
        return broker

    async def close(self) -> None:
        """End the background work and the database."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._database.close()

    async def sweep(self) -> None:
        """Forget what has expired: revocations, assertions, changes that all have seen."""
        await self.revocations.sweep()
        await self._assertions.sweep()
        await self.changes.sweep()

    async def _keep_house(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(_TICK)
            ticks += 1
            await self._tick(sweep=ticks % _TICKS_PER_SWEEP == 0)

    async def _tick(self, *, sweep: bool) -> None:
        await self.policies.reload()
        try:
            await self.ring.rotate()
            if sweep:
                await self.sweep()
        except StoreError as error:
            # The keys in memory go on signing; the next tick tries again.
            self._log.error("housekeeping_failed", reason=error.reason)

    async def _ready(self) -> str:
        for task in self._tasks:
            if task.done():
                return f"the task {task.get_name()} has ended"
        return "" if await self._database.answers() else "the database does not answer"

    def _details(self) -> dict[str, str]:
        stale = "stale: the file is bad, the last good one is in force (the log says why)"
        return {
            "grants": stale if self.policies.error else "ok",
            "policy": self.policies.current.digest,
        }


def run(config: Path) -> None:
    """Serve until SIGTERM or SIGINT. Raises `ConfigError` before the first request is taken."""
    close_memory()
    loaded = settings.load(BrokerSettings, config, program="broker", environ=os.environ)
    logs.configure(loaded.log_level)
    os.umask(0o077)  # the database holds sealed keys: nobody else reads even those
    uvloop.run(_serve(loaded))


async def _serve(config: BrokerSettings) -> None:
    log = Log("broker")
    broker = await Broker.open(config, clock=time.time)
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = asyncio.create_task(broker.policies.reload(force=True))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
    gc.freeze()  # what the start made stays: no need to look at it again in every collection
    try:
        await service.serve(
            broker.app,
            config.bind,
            tls=config.tls if isinstance(config.tls, TlsSettings) else None,
            announce=lambda port: log.info("listening", port=port),
        )
    except OSError as error:
        raise ConfigError(f"bind {config.bind}: {error.strerror}") from error
    finally:
        await broker.close()
    log.info("stopped")
