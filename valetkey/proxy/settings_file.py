"""The settings file of a sidecar: read, and looked at for changes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from valetkey.contracts import settings
from valetkey.contracts.errors import ConfigError
from valetkey.proxy.settings import ProxySettings


class SettingsFile:
    """One file over the life of a process. Everything here blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int, int] | None = None
        self._ahead: ProxySettings | None = None

    def read_ahead(self) -> None:
        """Read the file for the first `read`, which then has it; that also says what is wrong.

        Reading takes several times the memory that the result does (for a thousand routes, 8 MiB).
        Done before the rest of the program is imported, that memory is used again by what is.
        """
        with contextlib.suppress(ConfigError):
            self._ahead = self.read()

    def read(self) -> ProxySettings:
        """The settings as they are now. Raises `ConfigError`."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            return ahead
        self._stamp = self._look()  # before reading: a change meanwhile is then seen as one
        return settings.load(ProxySettings, self.path, program="proxy", environ=os.environ)

    def changed(self) -> bool:
        """Whether the file is another than at the last `read`."""
        return self._look() != self._stamp

    def _look(self) -> tuple[int, int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size
