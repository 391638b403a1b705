"""A TCP relay on loopback that can be cut: what a network between two servers does when it fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Relay:
    """Made by `relaying`. Cut, it resets what goes through it and whatever comes."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._through: set[asyncio.StreamWriter] = set()
        self._is_cut = False
        self.port = 0

    def cut(self) -> None:
        self._is_cut = True
        for writer in self._through:
            writer.transport.abort()

    def mend(self) -> None:
        self._is_cut = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        ends = {writer, back}
        self._through |= ends
        try:
            await asyncio.gather(self._copy(reader, back), self._copy(there, writer))
        finally:
            self._through -= ends

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while octets := await reader.read(65536):
                writer.write(octets)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def relaying(port: int) -> AsyncIterator[Relay]:
    """A relay to a port of this machine; where it is itself, `Relay.port` says."""
    relay = Relay(port)
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    relay.port = int(server.sockets[0].getsockname()[1])
    try:
        yield relay
    finally:
        relay.cut()
        server.close()
