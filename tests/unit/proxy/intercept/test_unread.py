"""A connection nobody has read from: handed on whole, or refused with what can be said."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from tests.support.waiting import turns
from valetkey.proxy.intercept.unread import Unread


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Our end and the peer's, of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    ours.setblocking(False)
    peer.settimeout(15)
    yield ours, peer
    ours.close()
    peer.close()


Pair = tuple[socket.socket, socket.socket]


class Lost:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self, _exc: Exception | None) -> None:
        self.times += 1


async def test_a_released_socket_has_everything_and_is_left_alone(pair: Pair) -> None:
    ours, peer = pair
    lost = Lost()
    unread = Unread(asyncio.get_running_loop(), ours, peer.getsockname(), lost)
    assert unread.get_extra_info("peername") == peer.getsockname()
    peer.sendall(b"hello")
    unread.resume_reading()
    unread.pause_reading()
    assert not unread.is_reading()
    sock = unread.release()
    assert unread.is_closing()
    for late in (unread.close, unread.abort, unread.write_eof):
        late()
    unread.write(b"nothing")
    await asyncio.sleep(0)
    assert lost.times == 0
    assert sock.recv(100) == b"hello"
    sock.send(b"answer")
    assert peer.recv(100) == b"answer"


async def test_a_refusal_arrives_though_the_peer_s_bytes_were_not_read(pair: Pair) -> None:
    """Closed at once, the unread bytes would make it a reset, and the refusal be lost."""
    ours, peer = pair
    lost = Lost()
    unread = Unread(asyncio.get_running_loop(), ours, peer.getsockname(), lost)
    peer.sendall(bytes(5000))
    unread.write(b"no")
    assert unread.can_write_eof()
    unread.write_eof()
    unread.write_eof()
    await turns()
    peer.sendall(bytes(5000))
    assert peer.recv(100) == b"no"
    assert peer.recv(100) == b""
    assert lost.times == 0
    peer.close()
    async with asyncio.timeout(15):
        while not lost.times:
            await asyncio.sleep(0.001)
    assert unread.is_closing()
    assert ours.fileno() == -1
    unread.close()
    await asyncio.sleep(0)
    assert lost.times == 1


async def test_a_peer_that_has_left_can_t_be_told(pair: Pair) -> None:
    ours, peer = pair
    lost = Lost()
    unread = Unread(asyncio.get_running_loop(), ours, peer.getsockname(), lost)
    peer.sendall(b"x")
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()
    await turns()
    unread.write(b"no")
    unread.write_eof()
    async with asyncio.timeout(15):
        while not lost.times:
            await asyncio.sleep(0.001)
    assert lost.times == 1


async def test_abort_is_an_end_too(pair: Pair) -> None:
    ours, peer = pair
    lost = Lost()
    unread = Unread(asyncio.get_running_loop(), ours, peer.getsockname(), lost)
    unread.write_eof()
    unread.abort()
    assert unread.is_closing()
    assert lost.times == 0  # never from within
    await asyncio.sleep(0)
    assert lost.times == 1
