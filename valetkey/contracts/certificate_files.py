"""Where the certificate of a listener comes from, and what is known of it.

It is looked at again and again. What can't be had or used changes nothing in force, and says so
until something good comes: log, metrics, ``/readyz``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from valetkey.contracts.errors import ConfigError
from valetkey.contracts.logs import Log, place_of
from valetkey.contracts.served_certificate import ServedCertificate
from valetkey.contracts.service import TlsSettings

Clock = Callable[[], float]
_EVERY: Final = 2.0
# How often a pair is read again that was exchanged while it was read. One exchange is usual.
_READS: Final = 3
# A chain and its key; more is not what it should be.
_MAX_FILE: Final = 1 << 20


class CertificateMetrics:
    """``program`` begins their names: ``valetkey_broker``. All are 0 without TLS."""

    def __init__(self, registry: CollectorRegistry, program: str) -> None:
        self.looks = Counter(
            f"{program}_certificates",
            "Looks at the certificate of TLS by what came of them: taken_up, failed.",
            ["result"],
            registry=registry,
        )
        for result in ("taken_up", "failed"):
            self.looks.labels(result)
        self.failing = Gauge(
            f"{program}_certificate_failing",
            "1 while the newest certificate can't be had or used, and the last good one is served.",
            registry=registry,
        )
        self.expiry = Gauge(
            f"{program}_certificate_expiry_timestamp_seconds",
            "When the certificate that is served ends, Unix time; 0 without TLS.",
            registry=registry,
        )
        self.lifetime = Gauge(
            f"{program}_certificate_lifetime_seconds",
            "For how long the certificate that is served is valid, from its first moment on.",
            registry=registry,
        )


class CertificateSource(ABC):
    """Looks for a certificate now and then. ``problem`` says why the last look failed."""

    failures: ClassVar[tuple[type[Exception], ...]] = (ConfigError,)
    """What a look may end with, and whose message may be told."""

    def __init__(
        self,
        served: ServedCertificate,
        metrics: CertificateMetrics,
        every: float,
        now: Clock = time.time,
    ) -> None:
        self.served = served
        self.problem = "no certificate yet"
        self._metrics = metrics
        self._every = every
        self._now = now
        self._log = Log("certificates")
        # What is read first is taken up first.
        self._looking = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def kept_up(self) -> AsyncIterator[None]:
        """`run` beside the body of the ``with``."""
        task = asyncio.create_task(self.run(), name="certificate")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def run(self) -> None:
        """For ever."""
        while True:
            await self.look()
            await asyncio.sleep(self._every)

    async def look(self) -> None:
        """Once."""
        async with self._looking:
            before = self.served.taken_up
            try:
                await self._look()
            except self.failures as error:
                self._failed(before, str(error))
            except Exception as error:  # noqa: BLE001 - unforeseen, it is unusable all the same
                self._failed(before, f"{type(error).__name__} at {place_of(error)}")
            else:
                self._good(before)

    async def load(self) -> None:
        """The first look, without which there is nothing to serve. Raises `ConfigError`."""
        before = self.served.taken_up
        await self._look()
        self._good(before)

    @property
    def state(self) -> str:
        """For ``/readyz``: until when what is served is good, or what is wrong with it."""
        if self._now() >= self.served.expires:
            return "it has expired" + (f"; {self.problem}" if self.problem else "")
        until = datetime.fromtimestamp(self.served.expires, UTC)
        return self.problem or f"good until {until:%FT%TZ}"

    @abstractmethod
    async def _look(self) -> None:
        """Have what is newest served. Raises one of `failures`."""

    def _good(self, before: int) -> None:
        if self.problem and self.served.taken_up == before:
            self._log.info("certificate_usable")
        self.problem = ""
        self._metrics.failing.set(0)
        self._tell_of(before)

    def _failed(self, before: int, problem: str) -> None:
        self._tell_of(before)
        self._metrics.looks.labels("failed").inc()
        self._metrics.failing.set(1)
        if problem != self.problem:
            self.problem = problem
            self._log.error("certificate_unusable", reason=problem)

    def _tell_of(self, before: int) -> None:
        """What was taken up in a look, however it ended."""
        taken_up = self.served.taken_up - before
        if not taken_up:
            return
        self._metrics.looks.labels("taken_up").inc(taken_up)
        self._metrics.expiry.set(self.served.expires)
        self._metrics.lifetime.set(self.served.expires - self.served.begins)
        left = round(self.served.expires - self._now())
        self._log.info("certificate_taken_up", seconds=left)


class CertificateFiles(CertificateSource):
    """Files of cert-manager, or your own."""

    def __init__(
        self,
        files: TlsSettings,
        served: ServedCertificate,
        metrics: CertificateMetrics,
        every: float = _EVERY,
        now: Clock = time.time,
    ) -> None:
        super().__init__(served, metrics, every, now)
        self._paths = files.cert_file, files.key_file

    async def _look(self) -> None:
        certificate, key = await asyncio.to_thread(self._read)
        try:
            await self.served.replace(certificate, key, now=self._now())
        except ConfigError as error:
            raise ConfigError(f"{self._paths[0]}: {error}") from error

    def _read(self) -> tuple[bytes, bytes]:
        """Both as they were at one time.

        A volume of a Secret is exchanged as a whole (its ``..data``), but that may be between two
        reads. Whoever writes one file after the other is not finished between: then the two do not
        fit together, and the next look finds those that do.
        """
        for _ in range(_READS):
            before = _stamps(self._paths)
            certificate, key = map(_content, self._paths)
            if _stamps(self._paths) == before:
                break
        return certificate, key


def _stamps(paths: tuple[Path, Path]) -> list[tuple[int, int, int]]:
    found = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise _unreadable(path, error) from error
        found.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return found


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(content) > _MAX_FILE:
        raise ConfigError(f"{path}: it is larger than {_MAX_FILE} bytes")
    return content


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{path}: can't be read: {error.strerror}")
