"""A TCP relay on loopback: what a network between two servers does when it fails.

It can be cut, which both sides notice, and it can stall, which none does: nothing arrives any more,
and nothing says so.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Relay:
    """Made by `relaying`. Cut, it resets what goes through it and whatever comes.

    Stalled, it swallows all that comes; `forget` has it take new connections again, while those
    that there were stay as they are: a firewall that has lost its table.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._through: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._is_cut = False
        self._flows = asyncio.Event()
        self._flows.set()
        self.port = 0

    def cut(self) -> None:
        self._is_cut = True
        for writer in self._through:
            writer.transport.abort()

    def mend(self) -> None:
        self._is_cut = False

    def stall(self) -> None:
        self._flows.clear()

    def flow(self) -> None:
        self._flows.set()

    def forget(self) -> None:
        self._flows.clear()
        self._flows = asyncio.Event()
        self._flows.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        flows = self._flows
        try:
            await flows.wait()
            await self._serve(reader, writer, flows)
        except asyncio.CancelledError:
            writer.transport.abort()  # the relay ends
        finally:
            self._serving.discard(task)

    async def end(self) -> None:
        self.cut()
        serving = list(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flows: asyncio.Event
    ) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        ends = {writer, back}
        self._through |= ends
        try:
            await asyncio.gather(self._copy(reader, back, flows), self._copy(there, writer, flows))
        finally:
            self._through -= ends

    @staticmethod
    async def _copy(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flows: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while octets := await reader.read(65536):
                await flows.wait()
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
        server.close()
        await relay.end()
