"""What a peer has not taken: in the transport, in the kernel; and no more there than is needed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvloop

from valetkey.proxy.http1.unsent import bound, unsent

SOON = 15.0
LOOPS = pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop])


@asynccontextmanager
async def connected(kind: str) -> AsyncIterator[tuple[asyncio.Transport, socket.socket]]:
    """A transport, and the peer's socket, which reads only when it is told to."""
    ours, peer = socket.socketpair() if kind == "unix" else tcp_pair()
    peer.settimeout(SOON)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    yield transport, peer
    transport.abort()
    peer.close()
    await asyncio.sleep(0.01)
    assert unsent(transport) == 0


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # Small and fixed, so that it is full soon.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 10)
        ours = socket.create_connection(listener.getsockname())
        return ours, listener.accept()[0]


async def settled(transport: asyncio.Transport) -> int:
    """What is left once the kernels have done what they can."""
    async with asyncio.timeout(SOON):
        while True:
            first = unsent(transport)
            await asyncio.sleep(0.05)
            if unsent(transport) == first:
                return first


@LOOPS
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_what_a_peer_takes_is_seen_though_no_more_can_be_written(kind: str, loop: object) -> None:
    async def main() -> None:
        async with connected(kind) as (transport, peer):
            assert unsent(transport) == 0
            transport.write(b"x" * (16 << 20))
            await asyncio.sleep(0)
            left = await settled(transport)
            waiting = transport.get_write_buffer_size()
            assert left >= waiting > 0
            seen = [left]
            for _ in range(12):
                await asyncio.to_thread(peer.recv, 32 << 10)
                seen.append(await settled(transport))
            assert seen == sorted(seen, reverse=True)
            assert seen[-1] < seen[0]
            assert seen[0] - seen[-1] <= 12 * (32 << 10) + (64 << 10)

    with asyncio.Runner(loop_factory=loop) as runner:  # type: ignore[arg-type]
        runner.run(main())


def test_what_waits_in_the_kernel_is_bounded() -> None:
    async def main(bounded: bool) -> int:
        async with connected("tcp") as (transport, _peer):
            if bounded:
                bound(transport.get_extra_info("socket"))
            transport.write(b"x" * (16 << 20))
            await asyncio.sleep(0)
            left = await settled(transport)
            return left - transport.get_write_buffer_size()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        most, free = runner.run(main(True)), runner.run(main(False))
    assert most < 640 << 10
    assert most < free


def test_other_sockets_are_left_alone() -> None:
    ours, peer = socket.socketpair()
    bound(ours)
    ours.close()
    peer.close()
