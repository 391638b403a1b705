"""What belongs to each target at run time: connections to it, injection, tallies, constant bytes.

A snapshot has targets of its own. Those of an older one are let go once the last call that needs
them is over.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from valetkey.proxy.credentials.bearer import BearerInjector
from valetkey.proxy.credentials.dpop import DpopInjector
from valetkey.proxy.credentials.header import HeaderInjector
from valetkey.proxy.credentials.txn_token import TxnTokenInjector
from valetkey.proxy.http1.pool import Pool, context_for

if TYPE_CHECKING:
    from collections.abc import Collection

    from valetkey.contracts.dpop import ProofKey
    from valetkey.proxy.core.snapshot import Snapshot, Target
    from valetkey.proxy.credentials.injector import Injector
    from valetkey.proxy.http1.dial import Dialler
    from valetkey.proxy.http1.outbox import Outbox
    from valetkey.proxy.metrics import Metrics, TargetTally


class Way:
    """The way to one target."""

    __slots__ = ("injector", "line_end", "pool", "tally", "target")

    def __init__(self, target: Target, injector: Injector, pool: Pool, tally: TargetTally) -> None:
        self.target = target
        self.injector = injector
        self.pool = pool
        self.tally = tally
        # RFC 9110 §7.6.3: a gateway adds itself to Via.
        self.line_end = b" HTTP/1.1\r\nhost: %b\r\nvia: 1.1 valetkey\r\n" % (
            target.authority.encode()
        )


class Ways:
    """Those of one enforcement point."""

    __slots__ = ("_dialler", "_metrics", "_outbox", "_proof_key", "_retired", "by_target")

    def __init__(
        self, proof_key: ProofKey, outbox: Outbox, dialler: Dialler, metrics: Metrics
    ) -> None:
        self._proof_key = proof_key
        self._outbox = outbox
        self._dialler = dialler
        self._metrics = metrics
        self._retired: list[Pool] = []
        self.by_target: dict[Target, Way] = {}
        """Always this one table: whoever looks up often may keep it."""

    def apply(self, snapshot: Snapshot) -> None:
        """Make those of a snapshot; the others serve the calls that are under way."""
        contexts: dict[Path | None, ssl.SSLContext] = {}
        made = {
            target: self._make(target, snapshot, contexts) for target in snapshot.targets.values()
        }
        for way in self.by_target.values():
            way.pool.close()
            if way.pool not in self._retired:
                self._retired.append(way.pool)
        self.by_target.update(made)

    def _make(
        self, target: Target, snapshot: Snapshot, contexts: dict[Path | None, ssl.SSLContext]
    ) -> Way:
        injector: Injector
        match target.settings.credential.kind:
            case "bearer":
                injector = BearerInjector()
            case "dpop":
                injector = DpopInjector(self._proof_key)
            case "header":
                assert target.inject is not None
                injector = HeaderInjector(target.inject)
            case "txn_token":
                injector = TxnTokenInjector()
        connect = snapshot.settings.timeouts.connect
        context = context_for(target, contexts)
        pool = Pool(target, self._outbox, self._dialler, context, connect_timeout=connect)
        return Way(target, injector, pool, self._metrics.target(target.name))

    def close_idle(self) -> bool:
        """Close the connection to a target that is idle for longest. False: there is none."""
        pools = [way.pool for way in self.by_target.values() if way.pool.idle]
        if not pools:
            return False
        min(pools, key=lambda pool: pool.idle_since).close_oldest()
        return True

    def sweep(self, now: float) -> None:
        """Close connections that were idle for too long."""
        for way in self.by_target.values():
            way.pool.sweep(now)

    @property
    def has_retired(self) -> bool:
        """Whether there are any of older snapshots."""
        return bool(self._retired)

    def forget_retired(self, needed: Collection[Target]) -> None:
        """Let go of older snapshots' whose last call is over; ``needed`` are those of calls."""
        # A call may still wait for its credential, with no connection lent to it yet.
        pools = {way.pool for target, way in self.by_target.items() if target in needed}
        for pool in {pool for pool in self._retired if not pool.lent and pool not in pools}:
            pool.close()
            self._retired = [other for other in self._retired if other is not pool]
            for target in [t for t, way in self.by_target.items() if way.pool is pool]:
                del self.by_target[target]

    def close(self) -> None:
        """Close all connections."""
        for way in self.by_target.values():
            way.pool.close()
