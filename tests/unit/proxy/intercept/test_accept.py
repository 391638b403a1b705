"""Taking connections: one per turn, within limits, and what happens when nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import pytest
import uvloop

from valetkey.proxy.intercept import accept
from valetkey.proxy.intercept.accept import (
    REFUSAL,
    Accepted,
    Acceptor,
    listening_sockets,
    serving,
)
from valetkey.proxy.limits import DESCRIPTORS, LISTENER_CONNECTIONS, LimitHits

SOON = 15.0


class Gate:
    """Lets connections in until it is told otherwise."""

    def __init__(self) -> None:
        self.hits = LimitHits()
        self.open = 0
        self.limit = ""
        self.asked: list[int] = []
        self.rooms = 0

    def refusal(self, descriptor: int) -> str:
        self.asked.append(descriptor)
        return self.limit

    def make_room(self) -> bool:
        self.rooms += 1
        return False


class Greeting(asyncio.Protocol):
    """Says hello, and keeps the connection."""

    made: list[Greeting]

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.made.append(self)
        transport.write(b"hello")


class Listening:
    """An acceptor on a port, the connections that it took, and clients of it."""

    def __init__(self, **more: Any) -> None:
        self.gate = Gate()
        self.more = more
        self.taken: list[Accepted] = []
        self.kind = type("Kind", (Greeting,), {"made": []})
        self.clients: list[socket.socket] = []

    async def __aenter__(self) -> Self:
        self.sockets = await listening_sockets("127.0.0.1", 0)
        self.place = self.sockets[0].getsockname()
        serve = serving(self.kind)

        def take(sock: Accepted) -> None:
            self.taken.append(sock)
            serve(sock)

        self.acceptor = Acceptor(self.sockets, take, self.gate, **self.more)
        self.acceptor.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.acceptor.close()
        for client in self.clients:
            client.close()
        for protocol in self.kind.made:
            protocol.transport.abort()
        await asyncio.sleep(0.01)

    async def connect(self) -> socket.socket:
        client = socket.socket()
        client.setblocking(False)
        self.clients.append(client)
        await asyncio.get_running_loop().sock_connect(client, self.place)
        return client


async def said(client: socket.socket, *, whole: bool = False) -> bytes:
    """What the sidecar said first, or until its end."""
    loop, data = asyncio.get_running_loop(), b""
    async with asyncio.timeout(SOON):
        while piece := await loop.sock_recv(client, 4096):
            data += piece
            if not whole:
                break
    return data


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON):
        while not holds():
            await asyncio.sleep(0.002)


Main = Callable[[], Awaitable[None]]


def on_uvloop(main: Main) -> Callable[[], None]:
    """Run a test on the loop that the sidecar runs on."""

    def test() -> None:
        uvloop.run(main())

    test.__name__, test.__doc__ = main.__name__, main.__doc__
    return test


@on_uvloop
async def test_connections_are_taken_and_counted_until_they_are_closed() -> None:
    async with Listening() as here:
        first, second = await here.connect(), await here.connect()
        assert (await said(first), await said(second)) == (b"hello", b"hello")
        assert (here.acceptor.open, here.gate.open) == (2, 2)
        assert here.gate.asked == sorted({sock.fileno() for sock in here.taken})
        assert here.taken[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        first.close()
        await until(lambda: here.gate.open == 1)
        here.kind.made[1].transport.abort()
        await until(lambda: (here.acceptor.open, here.gate.open) == (0, 0))


@pytest.mark.parametrize("end", ["close", "detach", "both", "with a file"])
def test_a_socket_tells_once_when_its_descriptor_goes(end: str) -> None:
    ours, peer = socket.socketpair()
    told: list[int] = []
    sock = Accepted.of(ours, lambda: told.append(1))
    sock.dup().close()
    assert ours.fileno() < 0
    assert (sock.family, sock.type, sock.gettimeout()) == (peer.family, peer.type, 0.0)
    if end == "close":
        sock.close()
        sock.close()
    elif end == "detach":
        os.close(sock.detach())
    elif end == "both":
        os.close(sock.detach())
        sock.close()
    else:
        file = sock.makefile("rb", buffering=0)
        sock.close()
        assert told == []
        file.close()
    assert told == [1]
    peer.close()


@on_uvloop
async def test_a_burst_is_taken_one_per_turn() -> None:
    async with Listening() as here:
        here.acceptor._loop.remove_reader(here.sockets[0])
        for _ in range(20):
            await here.connect()
        here.acceptor._watch()
        seen: list[int] = []
        while not seen or seen[-1] < 20:
            seen.append(here.acceptor.open)
            await asyncio.sleep(0)
        assert all(later - sooner <= 1 for sooner, later in pairwise(seen))


@on_uvloop
async def test_beyond_the_listeners_own_limit_they_are_told_so() -> None:
    async with Listening(most=2) as here:
        kept = [await here.connect(), await here.connect()]
        for client in kept:
            assert await said(client) == b"hello"
        late = await here.connect()
        # It may have sent its request before it is refused: that does not cost it the answer.
        late.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * 100)
        assert await said(late, whole=True) == REFUSAL
        assert here.gate.hits.counts == {LISTENER_CONNECTIONS: 1}
        kept[0].close()
        await until(lambda: here.acceptor.open == 1)
        assert await said(await here.connect()) == b"hello"


@on_uvloop
async def test_beyond_the_process_limit_they_are_told_so() -> None:
    async with Listening() as here:
        here.gate.limit = "limits.connections"
        client = await here.connect()
        assert await said(client, whole=True) == REFUSAL
        assert REFUSAL.startswith(b"HTTP/1.1 503 ")
        assert b"proxy.overloaded" in REFUSAL
        assert b"connection: close" in REFUSAL
        assert b"retry-after: 1" in REFUSAL
        assert here.gate.hits.counts == {"limits.connections": 1}
        assert (here.acceptor.open, here.taken) == (0, [])


@on_uvloop
async def test_of_many_refused_few_are_waited_for() -> None:
    async with Listening() as here:
        here.gate.limit = "limits.connections"
        clients = [await here.connect() for _ in range(accept._GOODBYES + 10)]
        for client in clients:
            assert await said(client, whole=True) == REFUSAL
        assert here.acceptor._goodbyes <= accept._GOODBYES
        for client in clients:
            client.close()
        await until(lambda: here.acceptor._goodbyes == 0)


@on_uvloop
async def test_without_words_they_are_closed() -> None:
    async with Listening(refusal=b"") as here:
        here.gate.limit = "limits.connections"
        assert await said(await here.connect(), whole=True) == b""


@contextlib.contextmanager
def failing(here: Listening, *errors: int) -> Any:
    """The next attempts to accept fail with these errors, then all is as ever."""
    real, left = here.sockets[0], list(errors)

    class Failing:
        def accept(self) -> Any:
            if left:
                raise OSError(left.pop(0), "as the test says")
            return real.accept()

        def fileno(self) -> int:
            return real.fileno()

    here.acceptor._loop.remove_reader(real)
    here.acceptor._loop.add_reader(real, here.acceptor._ready, Failing())
    yield left


@on_uvloop
async def test_no_descriptor_left_one_connection_is_refused_with_the_spare_one() -> None:
    async with Listening() as here:
        with failing(here, errno.EMFILE):
            client = await here.connect()
            assert await said(client, whole=True) == REFUSAL
        assert here.gate.hits.counts == {DESCRIPTORS: 1}
        assert here.gate.rooms == 1
        assert here.acceptor._spare is not None
        assert await said(await here.connect()) == b"hello"


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_not_even_a_spare_one_the_listener_rests(
    error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with Listening() as here:
            with monkeypatch.context() as patched, failing(here, error, error) as left:
                patched.setattr(accept, "_open_spare", lambda: None)
                client = await here.connect()
                await until(lambda: here.acceptor._resting is not None)
                assert len(left) <= 1
                turns = len(left)
                await asyncio.sleep(accept._REST / 2)
                assert len(left) == turns  # it rests: nothing is tried
            # The connection waited in the kernel's queue.
            assert await said(client) == b"hello"
            assert here.acceptor._resting is None

    uvloop.run(main())


@on_uvloop
async def test_an_error_that_nobody_knows_makes_it_rest_too() -> None:
    async with Listening() as here:
        with failing(here, errno.EBADF) as left:
            client = await here.connect()
            await until(lambda: not left)
            assert here.acceptor._resting is not None
        assert await said(client) == b"hello"
        assert here.gate.hits.counts == {}


@on_uvloop
async def test_a_connection_that_left_is_nothing() -> None:
    async with Listening() as here:
        with failing(here, errno.ECONNABORTED, errno.EAGAIN, errno.EPERM):
            assert await said(await here.connect()) == b"hello"
        assert here.acceptor._resting is None


@on_uvloop
async def test_a_protocol_that_can_not_be_made_loses_the_connection_alone() -> None:
    sockets = await listening_sockets("127.0.0.1", 0)
    gate, broken = Gate(), True

    def make() -> Greeting:
        if broken:
            raise ZeroDivisionError
        return kind()

    kind: Any = type("Kind", (Greeting,), {"made": []})
    acceptor = Acceptor(sockets, serving(make), gate)
    acceptor.start()
    here = Listening()
    here.place = sockets[0].getsockname()
    assert await said(await here.connect(), whole=True) == b""
    await until(lambda: gate.open == 0)
    broken = False
    assert await said(await here.connect()) == b"hello"
    acceptor.close()
    kind.made[0].transport.abort()
    for client in here.clients:
        client.close()
    await asyncio.sleep(0.01)


@on_uvloop
async def test_closed_it_takes_no_more_and_keeps_what_it_has() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    async with Listening() as here:
        client = await here.connect()
        assert await said(client) == b"hello"
        here.acceptor.close()
        with pytest.raises(ConnectionRefusedError):
            await here.connect()
        here.kind.made[0].transport.write(b"again")
        assert await said(client) == b"again"
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1  # libuv's own spare


@on_uvloop
async def test_both_families_listen_where_the_host_means_both() -> None:
    sockets = await listening_sockets("localhost", 0)
    families = {sock.family for sock in sockets}
    for sock in sockets:
        sock.close()
    assert families <= {socket.AF_INET, socket.AF_INET6}
    assert families


@on_uvloop
async def test_an_address_in_use_leaves_nothing_open() -> None:
    [taken] = await listening_sockets("127.0.0.1", 0)
    with taken, pytest.raises(OSError, match="in use"):
        await listening_sockets("127.0.0.1", taken.getsockname()[1])
