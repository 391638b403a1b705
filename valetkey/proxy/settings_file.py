"""Settings files of a sidecar: read, and looked at for changes.

A file of a ConfigMap is a link through ``..data``, which the kubelet exchanges as a whole; so what
is looked at is the file that the name leads to now, and what is read comes from one open file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Final

from valetkey.contracts import codes, settings
from valetkey.contracts.errors import ConfigError, SettingsRefused
from valetkey.proxy.settings import OwnerFileSettings, ProxySettings

# Kubernetes: all of a ConfigMap is 1 MiB at most. Files of one's own may be a little more.
MOST: Final = 4 << 20


Stamp = tuple[int, int, int]


class _File:
    """One file over the life of a process. Everything here blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digest = ""
        """SHA-256 of what was read last, hex; empty where nothing could be."""
        self._stamp: Stamp | None = None

    def changed(self) -> bool:
        """Whether the file is another than at the last reading."""
        return self.look() != self._stamp

    def look(self) -> Stamp | None:
        """What tells one state of the file from another; ``None``: it is not there."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size

    def text(self) -> str:
        """All of it. Raises `SettingsRefused`."""
        self._stamp = self.look()  # before reading: a change meanwhile is then seen as one
        self.digest = ""
        try:
            with self.path.open("rb") as file:
                content = file.read(MOST + 1)
            if len(content) > MOST:
                raise SettingsRefused(
                    codes.SETTINGS_TOO_LARGE, f"{self.path}: more than {MOST >> 20} MiB"
                )
            self.digest = hashlib.sha256(content).hexdigest()
            return content.decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsRefused(
                codes.SETTINGS_UNREADABLE, f"{self.path}: can't be read: {error}"
            ) from error


class SettingsFile(_File):
    """The sidecar's own settings: the operator's."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._ahead: ProxySettings | None = None

    def read_ahead(self) -> None:
        """Read the file for the first `read`, which then has it; that also says what is wrong.

        Reading takes several times the memory that the result does (for a thousand routes, 8 MiB).
        Done before the rest of the program is imported, that memory is used again by what is.
        """
        with contextlib.suppress(ConfigError):
            self._ahead = self.read()

    def read(self) -> ProxySettings:
        """The settings as they are now. Raises `SettingsRefused`."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            return ahead
        text = self.text()
        try:
            return settings.parse(
                ProxySettings, text, name=str(self.path), program="proxy", environ=os.environ
            )
        except ConfigError as error:
            raise SettingsRefused(codes.SETTINGS_INVALID, str(error)) from error


class OwnerFile(_File):
    """The file of who owns the workload."""

    def read(self) -> OwnerFileSettings:
        """The file as it is now. Raises `SettingsRefused`."""
        text = self.text()
        try:
            # No variable stands for anything in it: those are the operator's.
            return settings.parse(OwnerFileSettings, text, name=str(self.path), program="proxy")
        except ConfigError as error:
            raise SettingsRefused(codes.SETTINGS_INVALID, str(error)) from error
