"""The grants file: compiled into a `Policy`, watched, swapped whole.

Invariants:

- The first load raises; without grants that can be read the broker does not start.
- A later bad file changes nothing in force: the last good policy stays, and log, metric and
  ``/readyz`` say so until a good one comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from valetkey.broker.core.grants import GrantsFile, Policy, PolicyInvalid, Target
from valetkey.broker.metrics import Metrics
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.logs import Log
from valetkey.contracts.settings import parse

# What tells one version of a file from the next: time, size, and the inode of an atomic rename.
_Stamp = tuple[int, int, int]


class PolicyFile:
    """``issuers`` are the issuers that settings trust for workloads."""

    def __init__(
        self,
        path: Path,
        targets: Sequence[Target],
        *,
        issuers: frozenset[str],
        metrics: Metrics,
    ) -> None:
        self._path = path
        self._targets = tuple(targets)
        self._issuers = issuers
        self._metrics = metrics
        self._log = Log("broker.grants")
        self._stamp: _Stamp | None = None
        self._current: Policy | None = None
        self._reloading = asyncio.Lock()
        self.error = ""

    @property
    def current(self) -> Policy:
        """The policy in force."""
        assert self._current is not None, "load comes before the first use"
        return self._current

    async def load(self) -> None:
        """The first load. Raises `ConfigError`."""
        self._stamp, policy = await asyncio.to_thread(self._read)
        self._current = policy
        self._metrics.grants.set(policy.count)

    async def reload(self, *, force: bool = False) -> None:
        """Look at the file again; with ``force`` even if it looks unchanged."""
        async with self._reloading:
            stamp = await asyncio.to_thread(self._stat)
            if stamp == self._stamp and not force:
                return
            try:
                self._stamp, policy = await asyncio.to_thread(self._read)
            except ConfigError as error:
                self._stamp = stamp
                self._failed(str(error))
                return
            changed = policy.digest != self.current.digest
            self._current = policy
            self.error = ""
            self._metrics.grants.set(policy.count)
            self._metrics.grants_failing.set(0)
            self._metrics.grants_reloads.labels("ok").inc()
            self._log.info(
                "grants_reloaded",
                file=str(self._path),
                count=policy.count,
                action="swapped" if changed else "same",
            )

    def _failed(self, message: str) -> None:
        self.error = message
        self._metrics.grants_failing.set(1)
        self._metrics.grants_reloads.labels("failed").inc()
        self._log.error("grants_reload_failed", file=str(self._path), error=message)

    def _stat(self) -> _Stamp | None:
        try:
            status = self._path.stat()
        except OSError:
            return None  # gone: reading it says why
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> tuple[_Stamp | None, Policy]:
        # The stamp comes first: a change while we read shows at the next look.
        stamp = self._stat()
        try:
            text = self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self._path}: can't be read: {error}") from error
        file = parse(GrantsFile, text, name=str(self._path), program="broker")
        try:
            return stamp, Policy.compile(file, self._targets, issuers=self._issuers)
        except PolicyInvalid as error:
            raise ConfigError(f"{self._path}: {error}") from error
