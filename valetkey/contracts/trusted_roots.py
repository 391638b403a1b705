"""Whom a program's own clients trust: the roots in a file, taken up anew when it changes.

Connections that are open stay; each new one is judged by the newest roots. A file that can't be
used changes nothing: the last good roots go on, and log and `problem` say why.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

from valetkey.contracts.errors import ConfigError
from valetkey.contracts.logs import Log

Stamp = tuple[int, int, int]


class TrustedRoots:
    """The roots in ``ca_file``, or the system's. ``where`` is its settings key.

    Raises `ConfigError`.
    """

    def __init__(self, where: str, ca_file: Path | None) -> None:
        self._where = where
        self.path = ca_file
        self._stamp = stamp(ca_file)
        self._log = Log("roots")
        self.context = self._read()
        self.problem = ""

    async def current(self) -> ssl.SSLContext:
        """The newest, for who connects now and then and has nobody that refreshes."""
        if self.path is not None:
            await asyncio.to_thread(self.refresh)
        return self.context

    def refresh(self) -> None:
        """Look at the file. Blocking."""
        now = stamp(self.path)
        if now == self._stamp:
            return
        self._stamp = now  # before reading: a change meanwhile is then seen as one
        try:
            self.context = self._read()
        except ConfigError as error:
            self.problem = str(error)
            self._log.error("roots_unusable", reason=self.problem)
        else:
            self.problem = ""
            self._log.info("roots_taken_up", key=self._where, file=self.path)

    def _read(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=str(self.path) if self.path else None)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"{self._where}: {self.path}: {error}") from error


def stamp(path: Path | None) -> Stamp | None:
    """What tells one version of a file from the next; nothing for one that is not there."""
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
