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

from valetkey.broker.api.admin import AdminApi, told_why
from valetkey.broker.api.wire import MAX_BODY
from valetkey.broker.cedar_files import CedarFiles
from valetkey.broker.core.attributes import ClaimDirectory, Directories
from valetkey.broker.core.feed import Audience
from valetkey.broker.core.nonces import Nonces
from valetkey.broker.core.rate_limit import RateLimit
from valetkey.broker.core.replay import ReplayMemory
from valetkey.broker.core.rotation import Schedule
from valetkey.broker.directory.sources import Sources
from valetkey.broker.incidents.response import Response
from valetkey.broker.incidents.rotation import Rotates, SigningKeys
from valetkey.broker.issuers.found_by import FoundBy
from valetkey.broker.issuers.jwt import JwtIssuer
from valetkey.broker.issuers.keyring import KeyRing
from valetkey.broker.metrics import Metrics
from valetkey.broker.mtls_settings import LOOPBACK
from valetkey.broker.overload import Lateness, turning_away
from valetkey.broker.part import Foundation, Part
from valetkey.broker.parts.administration import AdministrationPart
from valetkey.broker.parts.approvals import ApprovalsPart
from valetkey.broker.parts.authzen import AuthzenPart
from valetkey.broker.parts.certificates import CertificatesPart
from valetkey.broker.parts.directory import DirectoryPart
from valetkey.broker.parts.grants import GrantsPart
from valetkey.broker.parts.incidents import IncidentsPart
from valetkey.broker.parts.oauth import OAuthPart
from valetkey.broker.parts.signals import SignalsPart
from valetkey.broker.policy_file import PolicyFile
from valetkey.broker.policy_settings import compiled_agents, compiled_claims
from valetkey.broker.settings import BrokerSettings, longest_ttl
from valetkey.broker.store import home
from valetkey.broker.store.admin_actions import AdminActions
from valetkey.broker.store.assertions import UsedAssertions
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database, StoreError
from valetkey.broker.store.epochs import Epochs
from valetkey.broker.store.incidents import Incidents
from valetkey.broker.store.keys import SigningKeyStore
from valetkey.broker.store.revocations import Revocations
from valetkey.broker.store.risks import Risks
from valetkey.broker.store.sealing import Sealer
from valetkey.broker.store.seen_keys import SeenKeys
from valetkey.broker.store.signals import Signals
from valetkey.broker.store.uses import GrantUses
from valetkey.broker.trust.admins import Admins
from valetkey.broker.trust.clients import ClientAuthenticator
from valetkey.broker.trust.kinds import KINDS
from valetkey.broker.trust.mtls import Certificates
from valetkey.broker.trust.parties import PartyResolver
from valetkey.broker.trust.people import People
from valetkey.broker.trust.standing import Standings
from valetkey.broker.trust.tokens import TokenVerifier
from valetkey.contracts import logs, service, settings
from valetkey.contracts.certificate_files import CertificateFiles
from valetkey.contracts.descriptors import raise_limit
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.issuer import TrustedIssuers
from valetkey.contracts.logs import Log
from valetkey.contracts.memory import close_memory
from valetkey.contracts.served_certificate import ServedCertificate
from valetkey.contracts.service import TlsSettings

# How often the grants file is looked at and the key schedule is asked.
_TICK: Final = 1.0
_TICKS_PER_SWEEP: Final = 60


def _parts(base: Foundation) -> list[Part]:
    """All parts of a broker, in the order in which they load."""
    approvals = ApprovalsPart(base)
    return [
        OAuthPart(base, approvals.gate),
        AdministrationPart(base),
        approvals,
        SignalsPart(base),
        DirectoryPart(base),
        CertificatesPart(base),
        GrantsPart(base),
        AuthzenPart(base),
        IncidentsPart(base),
    ]


class Broker:
    """All parts of one broker. Made by `open`, ended by `close`; in between, `app` is served."""

    def __init__(self, base: Foundation) -> None:
        self.base = base
        self.parts = _parts(base)
        self._tasks: list[asyncio.Task[None]] = []
        self._log = Log("broker")
        self._lateness = Lateness()
        base.metrics.watch_lateness(lambda: self._lateness.seconds)
        away = turning_away(self._lateness, base.metrics.turned_away)
        self.app = web.Application(
            client_max_size=MAX_BODY, middlewares=[service.problems, away, told_why]
        )
        for part in self.parts:
            part.add_routes(self.app.router)
        self.app.on_shutdown.append(self._let_go)
        service.add_probes(
            self.app,
            base.metrics.registry,
            self._ready,
            details=self._details,
            more_metrics=base.metrics.grant_tokens.text,
        )

    @classmethod
    async def open(
        cls,
        config: BrokerSettings,
        *,
        clock: Callable[[], float],
        timer: Callable[[], float] = time.monotonic,
    ) -> Broker:
        """Read everything that a start depends on. Raises `ConfigError`.

        ``clock`` gives seconds since the epoch, ``timer`` those of a clock that nobody sets.
        """
        metrics = Metrics()
        sealer = await asyncio.to_thread(Sealer.from_file, config.master_key_file)
        policies = PolicyFile(
            config.grants_file,
            config.compiled_targets(),
            issuers=config.workload_issuers(),
            deployers=config.deployment_issuers(),
            metrics=metrics,
        )
        await policies.load()
        cedar = CedarFiles(config.policies, config.compiled_places(), metrics=metrics)
        await cedar.load()
        served = _served(config, metrics)
        if served is not None:
            await served.load()
        database = await Database.open(config.database, config.postgres)
        try:
            await home.settle(database, now=clock())
            base = _foundation(
                config, database, sealer, policies, cedar, metrics, served, clock, timer
            )
            # First of all: what is read from now on may be newer, never older.
            await base.changes.load()
            await base.ring.load()
            await base.revocations.load()
            await base.epochs.load()
            await base.incidents.load()
            await base.risks.load()
            broker = cls(base)
            for part in broker.parts:
                await part.load()
            # However long that took: what is served from now on rests on what is so now.
            await base.changes.catch_up()
        except BaseException:
            await database.close()
            raise
        broker._start()
        return broker

    async def _let_go(self, _app: web.Application) -> None:
        for part in self.parts:
            part.stop()

    def _start(self) -> None:
        work = [
            ("housekeeping", self._keep_house()),
            ("changes", self.base.changes.run()),
            ("lateness", self._lateness.run()),
        ]
        work += [(part.name, part.run()) for part in self.parts if part.runs]
        self._tasks = [asyncio.create_task(task, name=name) for name, task in work]

    async def close(self) -> None:
        """End the background work, the parts and the database."""
        working = set(self._tasks)
        while working:
            for task in working:
                task.cancel()
            # A driver may lose a cancellation that comes just as it is done: it is asked again.
            _, working = await asyncio.wait(working, timeout=5)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            for part in self.parts:
                await part.close()
        finally:
            await self.base.database.close()

    async def sweep(self) -> None:
        """Forget what has expired, and changes that all replicas have seen."""
        for part in self.parts:
            await part.sweep()
        await self.base.changes.sweep()

    async def _keep_house(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(_TICK)
            ticks += 1
            try:
                await self._tick(sweep=ticks % _TICKS_PER_SWEEP == 0)
            except Exception as error:  # noqa: BLE001 - the next tick tries again
                # Without this task nothing is read again and no key rotated, until a restart.
                self._log.error("housekeeping_failed", reason=f"{type(error).__name__}: {error}")

    async def _tick(self, *, sweep: bool) -> None:
        await self.base.policies.reload()
        await self.base.cedar.reload()
        try:
            await self.base.ring.rotate()
            if sweep:
                await self.sweep()
        except StoreError as error:
            # The keys in memory go on signing; the next tick tries again.
            self._log.error("housekeeping_failed", reason=error.reason)

    async def _ready(self) -> str:
        for task in self._tasks:
            if task.done():
                return f"the task {task.get_name()} has ended"
        if not self.base.changes.is_current():
            return "changes of other replicas can't be read or applied"
        return "" if await self.base.database.answers() else "the database does not answer"

    def _details(self) -> dict[str, str]:
        return {name: value for part in self.parts for name, value in part.details().items()}


def _foundation(
    config: BrokerSettings,
    database: Database,
    sealer: Sealer,
    policies: PolicyFile,
    cedar: CedarFiles,
    metrics: Metrics,
    served: CertificateFiles | None,
    clock: Callable[[], float],
    timer: Callable[[], float],
) -> Foundation:
    """What the parts stand on; nothing is read from the database yet."""
    changes = Changes(database)
    ring = KeyRing(
        SigningKeyStore(database, changes),
        sealer,
        Schedule(
            rotate_every=config.keys.rotate_every,
            publish_before=config.keys.publish_before,
            overlap=config.keys.overlap,
        ),
        longest_ttl=longest_ttl(config.compiled_targets()),
        clock=clock,
    )
    signals = Signals(database, changes, _audience(config), clock=clock, random_id=_random_id)
    revocations = Revocations(database, changes, signals, clock=clock)
    epochs = Epochs(database, changes, signals)
    incidents = Incidents(database, changes, clock=clock)
    risks = Risks(database, changes, clock=clock)
    standings = Standings(
        changes,
        revocations,
        epochs,
        SeenKeys(database, _new_keys(config, timer), clock=clock, timer=timer),
        incidents,
        risks,
        policies,
        clock=clock,
        skew=config.incidents.skew,
    )
    actions = AdminActions(database, clock=clock)
    rotators: tuple[Rotates, ...] = (SigningKeys(ring),)
    response = Response(
        database,
        changes,
        incidents,
        revocations,
        epochs,
        signals,
        actions,
        rotators,
        metrics,
        audiences=[target.audience for target in config.compiled_targets()],
        clock=clock,
        random_id=_random_id,
    )
    assertions = UsedAssertions(database, clock=clock)
    directories = Sources(config.directory, database, changes, actions, epochs, clock=clock)
    proofs = ReplayMemory(config.limits.replay_proofs)
    metrics.watch(
        key_age=ring.signing_age,
        key_due=ring.signing_due,
        changes_age=changes.age,
        proofs=lambda: float(len(proofs)),
    )
    metrics.grant_tokens.written = lambda: policies.current.written
    tokens = TokenVerifier(
        TrustedIssuers(config.issuers, kinds=KINDS),
        clock=clock,
        capacity=config.limits.verified_tokens,
    )
    nonces = Nonces(sealer.nonce_key, replica=secrets.token_bytes(8), alone=not database.postgres)
    found_by = FoundBy(sealer)
    issuer = JwtIssuer(
        ring,
        issuer=config.issuer,
        clock=clock,
        random_id=_random_id,
        found_by=found_by,
        carries_roles=any(issuer.issuer == config.issuer for issuer in config.issuers),
    )
    certificates = _certificates(config, served)
    return Foundation(
        config=config,
        clock=clock,
        timer=timer,
        metrics=metrics,
        database=database,
        changes=changes,
        sealer=sealer,
        ring=ring,
        policies=policies,
        cedar=cedar,
        signals=signals,
        revocations=revocations,
        epochs=epochs,
        incidents=incidents,
        risks=risks,
        rotators=rotators,
        response=response,
        standings=standings,
        uses=GrantUses(database, changes, policies.live, clock=clock),
        assertions=assertions,
        actions=actions,
        directories=directories,
        tokens=tokens,
        parties=PartyResolver(tokens, standings, issuer=config.issuer, recognise=issuer.recognise),
        people=People(
            Directories([ClaimDirectory(compiled_claims(config.claims)), *directories.all]),
            compiled_agents(config.agents),
            issuers=config.workload_issuers(),
            found_by=found_by.read,
        ),
        certificates=certificates,
        served=served,
        clients=ClientAuthenticator(tokens, assertions, proofs, nonces, certificates, clock=clock),
        issuer=issuer,
        admin=AdminApi(
            _admins(config, certificates, clock),
            config.limits.admin.of_callers(config.limits.callers, timer),
        ),
    )


def _new_keys(config: BrokerSettings, timer: Callable[[], float]) -> RateLimit:
    most, callers = config.limits.new_keys, config.limits.callers
    return RateLimit(rate=most / 3600, burst=most, callers=callers, timer=timer)


def _random_id() -> str:
    return secrets.token_urlsafe(16)


def _audience(config: BrokerSettings) -> Audience:
    return Audience(
        issuer=config.issuer,
        workload_issuers=config.workload_issuers(),
        receivers=frozenset((one.issuer, one.subject) for one in config.feed.receivers),
        chained=any(trusted.issuer == config.issuer for trusted in config.issuers)
        or any(target.credential == "txn_token" for target in config.targets.values()),
    )


def _served(config: BrokerSettings, metrics: Metrics) -> CertificateFiles | None:
    if not isinstance(config.tls, TlsSettings):
        return None
    return CertificateFiles(config.tls, ServedCertificate(), metrics.certificate)


def _certificates(config: BrokerSettings, served: CertificateFiles | None) -> Certificates:
    speaks_tls = config.mtls is not None and config.mtls.terminator != LOOPBACK
    certificate = served.served if speaks_tls and served is not None else None
    return Certificates(config.issuers, config.mtls, certificate)


def _admins(
    config: BrokerSettings, certificates: Certificates, clock: Callable[[], float]
) -> Admins:
    if config.admin is None:
        return Admins(None, ())
    tokens = TokenVerifier(
        TrustedIssuers(config.admin.issuers, kinds=KINDS),
        clock=clock,
        capacity=config.limits.verified_tokens,
    )
    rules = (rule.compiled() for rule in config.admin.roles)
    return Admins(tokens, rules, certificates, clock=clock)


def run(config: Path) -> None:
    """Serve until SIGTERM or SIGINT. Raises `ConfigError` before the first request is taken."""
    close_memory()
    loaded = settings.load(BrokerSettings, config, program="broker", environ=os.environ)
    logs.configure(loaded.log_level)
    raise_limit()
    os.umask(0o077)  # the database holds sealed keys: nobody else reads even those
    uvloop.run(_serve(loaded))


def listeners(config: BrokerSettings, certificates: Certificates) -> list[service.Listener]:
    """Beside the one in ``bind``: the one for client certificates, if settings have it."""
    if config.mtls is None:
        return []
    return [service.Listener(config.mtls.bind, certificates.context, certificates.listens)]


async def _serve(config: BrokerSettings) -> None:
    log = Log("broker")
    broker = await Broker.open(config, clock=time.time)
    served = broker.base.served
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        looks = [
            watched.reload(force=True) for watched in (broker.base.policies, broker.base.cedar)
        ]
        if served is not None:
            looks.append(served.look())
        for look in looks:
            task = asyncio.create_task(look)
            reloads.add(task)
            task.add_done_callback(reloads.discard)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
    gc.freeze()  # what the start made stays: no need to look at it again in every collection
    try:
        await service.serve(
            broker.app,
            config.bind,
            context=served.served.context if served is not None else None,
            announce=lambda port: log.info("listening", port=port),
            also=listeners(config, broker.base.certificates),
        )
    except OSError as error:
        raise ConfigError(f"bind {config.bind}: {error.strerror}") from error
    finally:
        await broker.close()
    log.info("stopped")
