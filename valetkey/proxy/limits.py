"""Limits of the whole process: how many connections fit, and which limits were hit.

A descriptor that is missing hits whoever asks next: the spool's next segment, the workload's token
file, the admin port. So connections stop before the last ones: what is left is a reserve for the
sidecar itself. Each connection of the workload may need one to a target, hence two descriptors.

How many are open need not be counted: the kernel gives the lowest free number (POSIX.1-2017
§2.14), so that a descriptor's number says how many there are at least.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from valetkey.contracts.descriptors import raise_limit
from valetkey.contracts.logs import Log

# For spool, token files, lookups (three each, while they last), admin port, broker, collector.
_RESERVE: Final = 128
# Where there are hardly any, the reserve is this share of them.
_LEAST_SHARE: Final = 4
_LOG_EVERY: Final = 10.0
_monotonic: Final = time.monotonic

# socket(2), accept(2): the process, or the system, has no more to give.
NO_DESCRIPTOR: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

CONNECTIONS: Final = "limits.connections"
LISTENER_CONNECTIONS: Final = "listeners[].connections"
DESCRIPTORS: Final = "descriptors"


class LimitHits:
    """Counts by limit, named by its settings key; the log tells of each at most every 10 s."""

    __slots__ = ("_log", "_logged", "_quiet", "counts")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._log = Log("limits")
        self._logged: dict[str, float] = {}
        self._quiet: dict[str, int] = {}

    def hit(self, limit: str) -> None:
        """Somebody met a limit, and was refused or cut off for it."""
        self.counts[limit] = self.counts.get(limit, 0) + 1
        now = _monotonic()
        quiet = self._quiet.get(limit, 0) + 1
        if now - self._logged.get(limit, -_LOG_EVERY) < _LOG_EVERY:
            self._quiet[limit] = quiet
            return
        self._logged[limit] = now
        self._quiet[limit] = 0
        self._log.warning("limit_hit", key=limit, count=quiet)


class Capacity:
    """How many connections of the workload this process takes."""

    __slots__ = ("_close_idle", "_fit", "_log", "_most", "ceiling", "hits", "open")

    def __init__(self, hits: LimitHits, *, descriptors: int, in_use: int) -> None:
        self.hits = hits
        self.open = 0
        """Connections of the workload, on all listeners."""
        self.ceiling = descriptors - min(_RESERVE, descriptors // _LEAST_SHARE)
        """Descriptors from this number on are the reserve."""
        self._close_idle: Callable[[], bool] | None = None
        self._fit = max(1, (self.ceiling - in_use) // 2)
        self._most = 0
        self._log = Log("limits")

    @classmethod
    def of_process(cls, hits: LimitHits) -> Capacity:
        """For this process, with as many descriptors as it may have."""
        return cls(hits, descriptors=raise_limit(), in_use=_in_use())

    def use(self, connections: int) -> None:
        """Apply ``limits.connections``; what is open stays."""
        if connections > self._fit and connections != self._most:
            self._log.warning(
                "descriptors_short",
                key=CONNECTIONS,
                count=self._fit,
                reason=f"the process may not open enough files for {connections} connections "
                "(RLIMIT_NOFILE, two each and a reserve)",
            )
        self._most = connections

    def give_up_with(self, close_idle: Callable[[], bool]) -> None:
        """How to close a connection that nobody needs at the moment; False: there is none."""
        self._close_idle = close_idle

    def make_room(self) -> bool:
        """Close a connection that nobody needs. False: there was none."""
        return self._close_idle is not None and self._close_idle()

    @property
    def most(self) -> int:
        """How many connections are taken at most."""
        return min(self._most, self._fit)

    def refusal(self, descriptor: int) -> str:
        """The limit that one more connection, with that descriptor, meets; empty: it may stay."""
        if self.open >= self._most:
            return CONNECTIONS
        if descriptor >= self.ceiling or self.open >= self._fit:
            return DESCRIPTORS
        return ""


def _in_use() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir()) if Path("/proc/self/fd").exists() else 32
