"""One sidecar: built from its settings, run until told to stop, reloaded in place.

Start order: spool and identity before listeners, so that no call can come before it can be
decided and recorded. Stop order: listeners, calls under way, the rest of the record.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvloop

from valetkey import __version__
from valetkey.contracts import logs
from valetkey.contracts.dpop import ProofKey
from valetkey.contracts.errors import AuditError, ConfigError
from valetkey.contracts.events import INSTANCE
from valetkey.contracts.logs import Log
from valetkey.contracts.memory import close_memory, keep_freed_memory
from valetkey.contracts.trusted_roots import Stamp, stamp
from valetkey.proxy import upkeep
from valetkey.proxy.admin import Admin
from valetkey.proxy.audit.recorder import Recorder
from valetkey.proxy.audit.shipper import Shipper
from valetkey.proxy.audit.spool import Spool
from valetkey.proxy.core.snapshot import Snapshot
from valetkey.proxy.credentials.cache import CredentialCache
from valetkey.proxy.credentials.exchange import ExchangeClient
from valetkey.proxy.credentials.held import HeldCalls
from valetkey.proxy.credentials.revalidation import Revalidation
from valetkey.proxy.feed import FeedReceiver
from valetkey.proxy.feed_client import FeedClient
from valetkey.proxy.http1.dial import Dialler
from valetkey.proxy.http1.outbox import Outbox
from valetkey.proxy.http1.resolver import Resolver
from valetkey.proxy.identity.sources import open_identity
from valetkey.proxy.intercept.connect import ConnectTunnels
from valetkey.proxy.intercept.listeners import Listener
from valetkey.proxy.layers import LAYERS, OWNER, Layers
from valetkey.proxy.limits import Capacity
from valetkey.proxy.metrics import Metrics
from valetkey.proxy.pep import EnforcementPoint
from valetkey.proxy.revocation import Revocation
from valetkey.proxy.settings_file import SettingsFile

if TYPE_CHECKING:
    from valetkey.proxy.intercept.authority import InterceptionAuthority

_HEARTBEAT: Final = 30.0
_THREADS: Final = 2
_WATCH: Final = 1.0
# How long a start waits for the broker, at most: calls need not.
_FEED_START: Final = 2.0
# A file that is written in place is read once it has been left alone for this long, in seconds.
_SETTLES: Final = 0.2
_SETTLES_AT_MOST: Final = 50  # times


class Sidecar:
    """Everything of one process. `start`, then `stop`."""

    def __init__(self, file: SettingsFile, loop: asyncio.AbstractEventLoop) -> None:
        self._layers = Layers(file)
        self._log = Log("sidecar")
        current = self._layers.settings
        logs.configure(current.log_level)
        self.settings = current
        instance = current.instance or socket.gethostname()
        if not INSTANCE.fullmatch(instance):
            raise ConfigError(f"instance: the host's name {instance!r} can't be used, set one")
        self._proof_key = ProofKey()
        snapshot = self._layers.first(self._proof_key.thumbprint)
        self.metrics = Metrics()
        broker = current.broker
        self.identity = open_identity(
            current.workload.identity,
            audience=broker.url.rstrip("/"),
            certificates=broker.mtls_url is not None,
            ca_file=broker.ca_file,
        )
        self._identities = [self.identity]
        self._exchange = ExchangeClient(
            (broker.mtls_url or broker.url).rstrip("/") + "/token",
            self.identity,
            self._proof_key,
            ca_file=broker.ca_file,
            timeout=broker.timeout,
            follows_feed=broker.feed is not None,
        )
        self.cache = CredentialCache(current.limits.credentials)
        self._held = HeldCalls(current.limits.credentials)
        self.spool = Spool(
            current.spool.dir,
            segment_size=current.spool.segment_size,
            max_size=current.spool.max_size,
            commit_every=current.spool.commit_every,
        )
        self.identity.refresh()
        self._recorder = Recorder(self.spool, instance)
        self._resolver = Resolver()
        capacity = Capacity.of_process(self.metrics.limit_hits)
        self.pep = EnforcementPoint(
            snapshot,
            self.identity,
            self.cache,
            self._exchange,
            self._held,
            self._proof_key,
            self.spool,
            self._recorder,
            self.metrics,
            Outbox(loop, self.spool),
            Dialler(self._resolver, capacity),
            capacity,
        )
        self._revocation = Revocation(self.cache, self._held, self.pep)
        self._revalidation = Revalidation(
            self.cache, self._exchange, self._revocation, current.broker.revalidate
        )
        self._feed_client: FeedClient | None = None
        self._feed = self._make_feed(instance)
        self._shipper = self._make_shipper()
        self._admin = Admin(
            current.admin.bind, self.metrics, ready=self._ready, health=self._health
        )
        self._roots = [
            client.roots
            for client in (self._exchange, self._feed_client, self._shipper)
            if client is not None and client.roots is not None
        ]
        self._target_roots = _roots_of(snapshot)
        self._reload_asked = asyncio.Event()
        self.broken = asyncio.Event()
        """Set when a background task ended by itself: the sidecar is not what it should be."""
        interception = current.interception
        self._authority: InterceptionAuthority | None = None
        if interception is not None:
            # Not for every sidecar: what it brings along takes 2 MiB.
            from valetkey.proxy.intercept.authority import InterceptionAuthority

            self._authority = InterceptionAuthority.open(interception, instance=instance)
        self._authority_problem = ""
        tunnels = ConnectTunnels(self.pep, self._authority)
        self._listeners = [
            Listener(listener, self.pep, tunnels, f"listeners.{index}")
            for index, listener in enumerate(current.listeners)
        ]
        self._tasks: list[asyncio.Task[None]] = []
        self._export_gauges()

    def _make_feed(self, instance: str) -> FeedReceiver | None:
        broker = self.settings.broker
        if broker.feed is None:
            return None
        issuer = broker.url.rstrip("/")
        self._feed_client = FeedClient(
            issuer, self.identity, ca_file=broker.ca_file, timeout=broker.timeout
        )
        return FeedReceiver(
            self._feed_client,
            self.identity,
            self._revocation,
            self.cache,
            self._exchange,
            self.metrics,
            broker.feed,
            issuer=issuer,
            name=instance,
        )

    def _make_shipper(self) -> Shipper | None:
        collector = self.settings.collector
        if collector is None:
            return None
        if collector.identity is None:
            identity = self.identity
        else:
            identity = open_identity(collector.identity, audience=collector.url.rstrip("/"))
            identity.refresh()
            self._identities.append(identity)
        return Shipper(collector, self.spool, self._recorder, identity, self.metrics)

    # --- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take calls. Raises `ConfigError` for what can't be opened."""
        self.spool.start()
        self._recorder.booted(self.pep.snapshot.policy_digest)
        self._say_problems()
        if self._authority is not None:
            await asyncio.to_thread(self._authority.publish)
        if self._feed is not None:
            await self._feed.begin(_FEED_START)
        for listener in self._listeners:
            await listener.open()
        await self._admin.start()
        work = [identity.watch() for identity in self._identities]
        work += [upkeep.sweep(self.pep), self._watch(), self._beat(), self._revalidation.run()]
        if self._feed is not None:
            work.append(self._feed.run())
        if self._shipper is not None:
            work.append(self._shipper.run())
        self._tasks = [asyncio.ensure_future(item) for item in work]
        for task in self._tasks:
            task.add_done_callback(self._background_ended)
        self._log.info("ready", version=__version__, boot=self.spool.boot, pid=os.getpid())

    async def stop(self) -> None:
        """Stop taking calls, finish those under way, bring the record home."""
        drain = self.settings.timeouts.drain
        for listener in self._listeners:
            listener.close()
        await upkeep.drain(self.pep, drain)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._shipper is not None:
            await self._shipper.drain(min(drain, 5.0))
            await self._shipper.close()
        if self._feed is not None:
            await self._feed.close()
        await self.cache.close()
        await self._held.close()
        await self._exchange.close()
        await self._admin.stop()
        await self.spool.stop()
        self._log.info("stopped", seq=self.spool.seq)

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        """Deadlines, delivery or identity without their task: better restarted than half alive."""
        if task.cancelled():
            return
        error = task.exception()
        self._log.error(
            "background_failed", error_type=type(error).__name__, line=logs.place_of(error)
        )
        self.broken.set()

    # --- settings -----------------------------------------------------------------------------

    def ask_reload(self) -> None:
        """Have the file looked at now, whether it seems changed or not (SIGHUP)."""
        self._reload_asked.set()

    async def reload(self, *, anew: bool = False) -> None:
        """Apply the files as they are now, or keep what is in force and say why.

        ``anew``: what is in force as well, since what it names has changed.
        """
        layers = self._layers
        snapshot = await asyncio.to_thread(layers.reload, anew=anew)
        try:
            if snapshot is not None:
                # Also of what is refused because of them: once they are good, it is tried again.
                self._target_roots |= await asyncio.to_thread(_roots_of, snapshot)
                self.pep.apply(snapshot)
        except ConfigError as error:
            # A CA of a target, say: only who is to use it finds that it is none.
            snapshot = await asyncio.to_thread(layers.reject, error)
            if snapshot is not None:
                self.pep.apply(snapshot)
        if snapshot is not None:
            self.metrics.reloads["applied"] += 1
            self.settings = snapshot.settings
            logs.configure(snapshot.settings.log_level)
            self._log.info("reload_applied", count=len(snapshot.routes))
            self._record_settings("applied")
        if layers.problems:
            self.metrics.reloads["rejected"] += 1
        self._say_problems()

    def _say_problems(self) -> None:
        """Say what of the files is not in force."""
        layers = self._layers
        for layer in LAYERS:
            problem = layers.problems.get(layer)
            self.metrics.rejected[layer] = int(problem is not None)
            if problem is not None:
                self._log.error(
                    "reload_rejected", layer=layer, code=problem.code.name, reason=problem
                )
                self._record_settings("rejected", layer, problem.code.name)
        self.metrics.withheld_routes = len(layers.withheld)
        for route in layers.withheld:
            self._log.error(
                "route_withheld", route=route.within, code=route.code.name, reason=route.reason
            )

    def _record_settings(self, result: str, layer: str = "", code: str = "") -> None:
        try:
            self._recorder.settings(
                result,
                self.pep.snapshot.policy_digest,
                self._layers.digests,
                layer=layer,
                code=code,
                withheld=len(self._layers.withheld),
            )
        except AuditError as error:
            self._log.warning("settings_unrecorded", reason=error.reason)

    async def _watch(self) -> None:
        """Reload when the file changes, or when somebody asks for it."""
        while True:
            # Not `wait_for`, which in Python 3.11 may lose a cancellation (CPython gh-86296).
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WATCH):
                    await self._reload_asked.wait()
            for listener in self._listeners:
                await asyncio.to_thread(listener.refresh)
            await self._refresh_roots()
            other_roots = await asyncio.to_thread(self._has_other_target_roots)
            asked = self._reload_asked.is_set()
            if asked or other_roots or await asyncio.to_thread(self._layers.changed):
                if not asked:
                    await self._settled()
                self._reload_asked.clear()
                await self.reload(anew=other_roots)

    async def _settled(self) -> None:
        """Wait until files that are written in place are written to the end, as it seems."""
        seen = await asyncio.to_thread(self._layers.look)
        for _ in range(_SETTLES_AT_MOST):
            await asyncio.sleep(_SETTLES)
            now = await asyncio.to_thread(self._layers.look)
            if now == seen:
                return
            seen = now

    def _has_other_target_roots(self) -> bool:
        """Whether a ``ca_file`` of a target changed: a reload reads it."""
        before = self._target_roots
        self._target_roots = {path: stamp(path) for path in before}
        return self._target_roots != before

    async def _refresh_roots(self) -> None:
        """Take up whom broker and collector are to be known by now."""
        for roots in self._roots:
            await asyncio.to_thread(roots.refresh)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT)
            try:
                self._recorder.heartbeat()
            except AuditError as error:
                self._log.warning("heartbeat_unrecorded", reason=error.reason)
            await self._renew_authority()

    async def _renew_authority(self) -> None:
        """Take up new files of the CA; files that can't be used leave it as it is."""
        if self._authority is None:
            return
        try:
            renewed = await asyncio.to_thread(self._authority.renew)
        except ConfigError as error:
            self._authority_problem = str(error)
            self._log.error("authority_unusable", reason=error)
        else:
            self._authority_problem = self._authority.problem
            if renewed:
                self._log.info("authority_renewed")

    # --- what operators see -------------------------------------------------------------------

    async def _ready(self) -> str:
        if self.pep.draining:
            return "draining"
        if self.identity.principal() is None:
            return f"no workload identity: {self.identity.problem}"
        if self._layers.closed:
            return f"settings: {self._layers.problems[OWNER]}"
        return f"audit: {self.spool.problem}" if self.spool.problem else ""

    def _health(self) -> dict[str, str]:
        details = {
            "boot": self.spool.boot,
            "rejected_config": self._layers.rejected(),
            "policy_digest": self.pep.snapshot.policy_digest,
            **self._layers.health(),
            "feed": "off" if self._feed is None else self._feed.health,
            "roots": self._roots_problem or "good",
        }
        if self._authority is not None:
            until = datetime.fromtimestamp(self._authority.expires, UTC)
            details["interception_ca"] = self._authority_problem or f"good until {until:%FT%TZ}"
        return details

    @property
    def _roots_problem(self) -> str:
        return "; ".join(sorted({roots.problem for roots in self._roots if roots.problem}))

    def _export_gauges(self) -> None:
        cache, spool, pep, recorder = self.cache, self.spool, self.pep, self._recorder
        resolver, capacity = self._resolver, self.pep.capacity
        shipper = self._shipper
        self.metrics.counters |= {
            "valetkey_cache_hits_total": ("Credentials from the cache.", lambda: cache.hits),
            "valetkey_cache_misses_total": ("Calls that waited.", lambda: cache.misses),
            "valetkey_cache_refreshes_total": ("Refreshes ahead.", lambda: cache.refreshes),
            "valetkey_credentials_revalidated_total": (
                "Credentials in use that the broker was asked about.",
                lambda: self._revalidation.asked,
            ),
            "valetkey_credentials_revoked_total": (
                "Of these, ended because the broker no longer stands by them.",
                lambda: self._revalidation.revoked,
            ),
            "valetkey_cache_evictions_total": ("After a 401.", lambda: cache.evictions),
            "valetkey_cache_revocations_total": (
                "Dropped from the cache because they ended, or may have.",
                lambda: cache.revoked,
            ),
            "valetkey_events_written_total": ("Events spooled.", lambda: recorder.written),
            "valetkey_events_lost_total": ("Events not recorded.", lambda: recorder.lost),
            "valetkey_events_shipped_total": ("Events sent.", lambda: self.metrics.shipped),
            "valetkey_ship_failures_total": (
                "Batches that failed.",
                lambda: self.metrics.ship_failures,
            ),
        }
        feed = self._feed
        self.metrics.counters |= {
            "valetkey_feed_afresh_total": (
                "Times that all credentials were dropped because events could have been missed.",
                lambda: feed.afresh if feed is not None else 0,
            ),
        }
        self.metrics.gauges |= {
            "valetkey_feed_connected": (
                "Whether the broker answered the last poll of the feed.",
                lambda: float(feed is not None and feed.connected),
            ),
            "valetkey_feed_lost": (
                "Whether the feed was not heard from for longer than is tolerated.",
                lambda: float(feed is not None and feed.lost),
            ),
        }
        self.metrics.gauges["valetkey_roots_failing"] = (
            "1 while broker.ca_file or collector.ca_file is bad, and the last good one is trusted.",
            lambda: float(bool(self._roots_problem)),
        )
        authority = self._authority
        self.metrics.gauges["valetkey_interception_ca_expiry_timestamp_seconds"] = (
            "When the CA that clients trust ends, Unix time; 0 without interception.",
            lambda: authority.expires if authority is not None else 0.0,
        )
        self.metrics.counters["valetkey_interception_certificates_total"] = (
            "Certificates made for targets.",
            lambda: authority.minted if authority is not None else 0,
        )
        self.metrics.gauges |= {
            "valetkey_exchanges_in_flight": ("Exchanges under way.", lambda: cache.in_flight),
            "valetkey_calls_held": (
                "Calls that wait for a person.",
                lambda: self._held.waiting,
            ),
            "valetkey_cache_entries": ("Credentials cached.", lambda: len(cache)),
            "valetkey_connections": ("Workload connections.", lambda: pep.connections),
            "valetkey_mcp_message_bytes": ("Messages held in memory.", lambda: pep.messages),
            "valetkey_connections_limit": (
                "Connections that are taken at most.",
                lambda: capacity.most,
            ),
            "valetkey_lookups_in_flight": ("Names being resolved.", lambda: resolver.running),
            "valetkey_spool_bytes": ("Segments on disk.", lambda: spool.disk),
            "valetkey_spool_limit_bytes": (
                "What the segments may take at most.",
                lambda: spool.max_size,
            ),
            "valetkey_spool_events": (
                "Events of this boot not yet acknowledged.",
                lambda: spool.seq - (shipper.acked if shipper is not None else 0),
            ),
            "valetkey_spool_age_seconds": (
                "Since everything was last acknowledged.",
                lambda: shipper.age if shipper is not None else 0.0,
            ),
        }


def _roots_of(snapshot: Snapshot) -> dict[Path, Stamp | None]:
    """The ``ca_file`` of all targets, each as it is now. Blocking."""
    files = {target.settings.ca_file for target in snapshot.targets.values()}
    return {path: stamp(path) for path in files if path is not None}


def run(config: Path | SettingsFile) -> int:
    """Run a sidecar until SIGTERM or SIGINT.

    Returns the exit code: 2 for unusable settings, 1 if a part of it ended by itself.
    """
    close_memory()
    keep_freed_memory()
    try:
        return uvloop.run(
            _main(config if isinstance(config, SettingsFile) else SettingsFile(config))
        )
    except ConfigError as error:
        print(f"valetkey proxy: {error}", file=sys.stderr)  # noqa: T201 - before there are logs
        return 2


async def _main(file: SettingsFile) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # Few threads: each has a heap of its own, and all they do is look at small files.
    loop.set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="files"))
    sidecar = Sidecar(file, loop)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, sidecar.ask_reload)
    # What was built by now lives as long as the process: the collector need not look at it.
    gc.collect()
    gc.freeze()
    try:
        await sidecar.start()
        ends = [asyncio.ensure_future(event.wait()) for event in (stop, sidecar.broken)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
    finally:
        await sidecar.stop()
    return 1 if sidecar.broken.is_set() else 0
