"""Listeners: the addresses at which calls come in, and what each lets in."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path
from typing import Final, cast

from valetkey.contracts.errors import ConfigError
from valetkey.contracts.logs import Log
from valetkey.contracts.service import address
from valetkey.proxy.core.entry import Entry
from valetkey.proxy.http1.inbound import Tunnels, WorkloadConnection
from valetkey.proxy.intercept.caller import CallerToken
from valetkey.proxy.intercept.transparent import TransparentServer
from valetkey.proxy.pep import EnforcementPoint
from valetkey.proxy.settings import ListenerSettings

_BACKLOG: Final = 1024
_UNIX: Final = "unix:"


class Listener:
    """One address, from `open` to `close`. Raises `ConfigError` for what can't be had."""

    def __init__(
        self, settings: ListenerSettings, pep: EnforcementPoint, tunnels: Tunnels, where: str
    ) -> None:
        self._settings = settings
        self._pep = pep
        self._where = where
        self._server: asyncio.Server | TransparentServer | None = None
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
        bind = self._settings.bind
        loop = asyncio.get_running_loop()
        try:
            if bind.startswith(_UNIX):
                path = Path(bind.removeprefix(_UNIX))
                self._server = await loop.create_unix_server(
                    self._connection(frozenset(self._settings.uids)),
                    sock=_unix_socket(path, int(self._settings.socket_mode, 8)),
                    backlog=_BACKLOG,
                )
                found, port = str(path), 0
            elif self._settings.mode == "transparent":
                found, port = address(bind)
                self._server = TransparentServer(self._pep, self._tunnels)
                port = await self._server.start(found, port)
            else:
                found, port = address(bind)
                self._server = await loop.create_server(
                    self._connection(None), found, port, backlog=_BACKLOG
                )
                port = self._server.sockets[0].getsockname()[1]
        except OSError as error:
            raise ConfigError(f"{self._where}.bind: {bind}: {error.strerror or error}") from error
        Log("listener").info("listening", listener=self._settings.mode, address=found, port=port)

    def _connection(self, uids: frozenset[int] | None) -> type[asyncio.Protocol]:
        tunnels = self._tunnels if self._settings.mode == "forward" else None

        def make() -> WorkloadConnection:
            return WorkloadConnection(self._pep, self._entry, tunnels, uids)

        return cast("type[asyncio.Protocol]", make)

    def refresh(self) -> None:
        """Look at what may change while it is open: the callers' token."""
        if self._token is not None:
            self._token.refresh()

    def close(self) -> None:
        """Take no further connections. A Unix socket's file goes with it."""
        if self._server is not None:
            self._server.close()
        bind = self._settings.bind
        if self._server is not None and bind.startswith(_UNIX):
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
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock
