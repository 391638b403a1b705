"""Reverse mode: the workload calls this address as if it were the target."""

from __future__ import annotations

import asyncio
from typing import cast

from valetkey.contracts.errors import ConfigError
from valetkey.contracts.logs import Log
from valetkey.contracts.service import address
from valetkey.proxy.http1.inbound import WorkloadConnection
from valetkey.proxy.pep import EnforcementPoint
from valetkey.proxy.settings import ListenerSettings

_BACKLOG = 1024


async def listen(settings: ListenerSettings, pep: EnforcementPoint) -> asyncio.Server:
    """Take calls on one address. Raises `ConfigError` if it can't be had."""
    host, port = address(settings.bind)
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(
            lambda: cast("asyncio.Protocol", WorkloadConnection(pep, settings.target)),
            host,
            port,
            backlog=_BACKLOG,
        )
    except OSError as error:
        raise ConfigError(f"listeners: {settings.bind}: {error.strerror or error}") from error
    bound = server.sockets[0].getsockname()[1]
    Log("listener").info("listening", listener=settings.mode, address=host, port=bound)
    return server
