"""Listeners: the addresses at which calls come in, and what each lets in."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Final

from valetkey.contracts.errors import ConfigError
from valetkey.contracts.logs import Log
from valetkey.contracts.service import address
from valetkey.proxy.core.entry import Entry
from valetkey.proxy.http1.inbound import Tunnels, WorkloadConnection
from valetkey.proxy.intercept.accept import (
    BACKLOG,
    REFUSAL,
    Acceptor,
    listening_sockets,
    serving,
)
from valetkey.proxy.intercept.caller import CallerToken
from valetkey.proxy.intercept.transparent import TransparentServer
from valetkey.proxy.pep import EnforcementPoint
from valetkey.proxy.settings import ListenerSettings

_UNIX: Final = "unix:"


class Listener:
    """One address, from `open` to `close`. Raises `ConfigError` for what can't be had."""

    def __init__(
        self, settings: ListenerSettings, pep: EnforcementPoint, tunnels: Tunnels, where: str
    ) -> None:
        self._settings = settings
        self._pep = pep
        self._where = where
        self._acceptor: Acceptor | None = None
        self._transparent: TransparentServer | None = None
        try:
            self._token = CallerToken(settings.token_file) if settings.token_file else None
        except ConfigError as error:
            raise ConfigError(f"{where}.{error}") from error
        self._entry = Entry(
            target=settings.target, forward=settings.mode == "forward", caller=self._token
        )
        self._tunnels = tunnels

    async def open(self) -> None:
        """Take calls from now on."""
        settings = self._settings
        uids = frozenset(settings.uids) if settings.bind.startswith(_UNIX) else None
        tunnels = self._tunnels if settings.mode == "forward" else None
        take = serving(lambda: WorkloadConnection(self._pep, self._entry, tunnels, uids))
        refusal = REFUSAL
        try:
            if uids is not None:
                found, port = settings.bind.removeprefix(_UNIX), 0
                sockets = [_unix_socket(Path(found), int(settings.socket_mode, 8))]
            else:
                found, port = address(settings.bind)
                sockets = await listening_sockets(found, port)
                port = sockets[0].getsockname()[1]
            if settings.mode == "transparent":
                self._transparent = TransparentServer(self._pep, self._tunnels)
                take, refusal = self._transparent.take, b""  # it may speak TLS
        except OSError as error:
            raise ConfigError(
                f"{self._where}.bind: {settings.bind}: {error.strerror or error}"
            ) from error
        self._acceptor = Acceptor(
            sockets, take, self._pep.capacity, most=settings.connections, refusal=refusal
        )
        self._acceptor.start()
        Log("listener").info("listening", listener=settings.mode, address=found, port=port)

    def refresh(self) -> None:
        """Look at what may change while it is open: the callers' token."""
        if self._token is not None:
            self._token.refresh()

    def close(self) -> None:
        """Take no further connections. A Unix socket's file goes with it."""
        if self._acceptor is None:
            return
        self._acceptor.close()
        if self._transparent is not None:
            self._transparent.close()
        bind = self._settings.bind
        if bind.startswith(_UNIX):
            Path(bind.removeprefix(_UNIX)).unlink(missing_ok=True)


def _unix_socket(path: Path, mode: int) -> socket.socket:
    """A socket bound at ``path``, never open to more than ``mode`` says.

    What is left of a sidecar that was killed is replaced; one that answers is not.
    """
    found = path.stat(follow_symlinks=False) if os.path.lexists(path) else None
    if found is not None:
        if not stat.S_ISSOCK(found.st_mode):
            raise OSError(f"{path} is there and is no socket")
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise OSError(f"{path} is in use")
        path.unlink()
    sock = socket.socket(socket.AF_UNIX)
    try:
        # Nobody can connect between bind and chmod: there is no listen yet (unix(7)).
        sock.bind(str(path))
        path.chmod(mode)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
