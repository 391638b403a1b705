"""Something read from files: loaded once, looked at again and again, swapped whole.

Invariants:

- The first load raises; without it the broker does not start.
- A later bad state changes nothing in force: the last good one stays, and log, metric and
  ``/readyz`` say so until a good one comes.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from prometheus_client import Counter, Gauge

from valetkey.contracts.errors import ConfigError
from valetkey.contracts.logs import Log

STALE = "stale: the file is bad, the last good one is in force (the log says why)"
# What tells one version of files from the next: for each its path, time, size, and the inode of an
# atomic rename.
Stamp = tuple[tuple[str, int, int, int], ...]


class Snapshot(Protocol):
    """What was read: one immutable value. ``digest`` names it."""

    @property
    def digest(self) -> str: ...


T = TypeVar("T", bound=Snapshot)


class Watched(ABC, Generic[T]):
    """``name`` is what log events are about (``grants``). ``reloads`` is labelled with a result."""

    def __init__(
        self, name: str, path: Path | None, *, reloads: Counter, failing: Gauge, count: Gauge
    ) -> None:
        self._name = name
        self._path = path
        self._reloads = reloads
        self._failing = failing
        self._count = count
        self._log = Log(f"broker.{name}")
        self._stamp: Stamp = ()
        self._current: T | None = None
        self._reloading = asyncio.Lock()
        self.error = ""

    @property
    def current(self) -> T:
        """What is in force."""
        assert self._current is not None, "load comes before the first use"
        return self._current

    @abstractmethod
    def _files(self) -> Iterable[Path]:
        """The files as they are now. Raises `OSError`."""

    @abstractmethod
    def _read(self) -> T:
        """Read them all. Raises `ConfigError`."""

    @abstractmethod
    def _size(self, snapshot: T) -> int:
        """How many entries it has, for the metric."""

    async def _swapped(self, before: T, after: T) -> None:
        """What follows from the swap. No other reload begins before it is done."""

    async def load(self) -> None:
        """The first load. Raises `ConfigError`."""
        self._stamp, snapshot = await asyncio.to_thread(self._look)
        self._current = snapshot
        self._count.set(self._size(snapshot))

    async def reload(self, *, force: bool = False) -> None:
        """Look at the files again; with ``force`` even if they look unchanged."""
        async with self._reloading:
            stamp = await asyncio.to_thread(self._stat)
            if stamp == self._stamp and not force:
                return
            try:
                self._stamp, snapshot = await asyncio.to_thread(self._look)
            except ConfigError as error:
                self._stamp = stamp
                self._failed(str(error))
                return
            except Exception as error:  # noqa: BLE001 - unforeseen, it is a bad file all the same
                self._stamp = stamp
                self._failed(f"{self._path}: can't be read: {type(error).__name__}: {error}")
                return
            before = self.current
            changed = snapshot.digest != before.digest
            self._current = snapshot
            self.error = ""
            self._count.set(self._size(snapshot))
            self._failing.set(0)
            self._reloads.labels("ok").inc()
            self._log.info(
                f"{self._name}_reloaded",
                file=str(self._path),
                count=self._size(snapshot),
                action="swapped" if changed else "same",
            )
            await self._swapped(before, snapshot)

    def _failed(self, message: str) -> None:
        self.error = message
        self._failing.set(1)
        self._reloads.labels("failed").inc()
        self._log.error(f"{self._name}_reload_failed", file=str(self._path), error=message)

    def _look(self) -> tuple[Stamp, T]:
        # The stamp comes first: a change while we read shows at the next look.
        return self._stat(), self._read()

    def _stat(self) -> Stamp:
        try:
            found = [(str(path), path.stat()) for path in self._files()]
        except OSError:
            return ()  # gone: reading it says why
        return tuple(
            (path, status.st_mtime_ns, status.st_size, status.st_ino) for path, status in found
        )
