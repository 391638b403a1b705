"""Accepting and waiting: bounded, patient with the kernel, and without a trace when it ends.

What comes of a connection is shown on a real sidecar behind real rules, in the integration tests.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.proxy.core.entry import Entry
from valetkey.proxy.intercept import transparent
from valetkey.proxy.intercept.accept import Acceptor, listening_sockets
from valetkey.proxy.intercept.client_hello import Hello
from valetkey.proxy.intercept.transparent import TransparentServer
from valetkey.proxy.limits import Capacity, LimitHits

# A record with a ClientHello without anything but a name.
HELLO = (
    b"\x16\x03\x01\x00\x47\x01\x00\x00\x43\x03\x03"
    + bytes(33)
    + b"\x00\x02\x13\x01\x01\x00\x00\x18\x00\x00\x00\x14\x00\x12\x00\x00\x0ftickets.example"
)


class Pep:
    """What a server needs of the enforcement point."""

    def __init__(self) -> None:
        self.tunnels = SimpleNamespace(handshakes=0)
        self.capacity = Capacity(LimitHits(), descriptors=1024, in_use=16)
        self.capacity.use(100)
        self.timeouts = SimpleNamespace(idle=5.0, head=5.0)
        self.dialler = SimpleNamespace(opened=lambda address, port: (address, port) in self.own)
        self.own: set[tuple[str, int]] = set()

    def head_timeout(self) -> CallerError:
        return CallerError(codes.REQUEST_TIMEOUT)


class Server(TransparentServer):
    """Keeps what it would hand on."""

    def __init__(self, pep: Pep) -> None:
        super().__init__(cast("Any", pep), cast("Any", None))
        self.handed: asyncio.Queue[tuple[str, socket.socket, Entry]] = asyncio.Queue()

    async def _plain(self, sock: socket.socket, entry: Entry) -> None:
        self.handed.put_nowait(("plain", sock, entry))

    def _ask(self, sock: socket.socket, peer: Any, entry: Entry, hello: Hello) -> None:
        self.handed.put_nowait((hello.server_name, sock, entry))

    def _tls(self, sock: socket.socket, peer: Any, entry: Entry) -> Any:
        return SimpleNamespace(
            refuse_head=lambda error: self.handed.put_nowait((error.code.name, sock, entry))
        )


class Stand:
    def __init__(self) -> None:
        self.pep = Pep()
        self.server = Server(self.pep)
        self.port = 0
        self.acceptor: Acceptor
        self.clients: list[socket.socket] = []

    def client(self, data: bytes = b"") -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), timeout=15)
        self.clients.append(client)
        client.sendall(data)
        return client

    async def handed(self) -> str:
        """How the next connection was handed on; its low-water mark is the usual one again."""
        async with asyncio.timeout(15):
            kind, sock, self.entry = await self.server.handed.get()
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1
        self.sock = sock
        self.clients.append(sock)
        return kind

    async def ended(self, client: socket.socket) -> bool:
        return await asyncio.to_thread(_ended, client)

    async def waiting(self, count: int) -> None:
        async with asyncio.timeout(15):
            while self.pep.tunnels.handshakes != count:
                await asyncio.sleep(0.001)


def _ended(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.fixture
async def stand(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stand]:
    monkeypatch.setattr(transparent, "original_destination", lambda _sock: ("203.0.113.1", 443))
    stand = Stand()
    sockets = await listening_sockets("127.0.0.1", 0)
    stand.port = sockets[0].getsockname()[1]
    stand.acceptor = Acceptor(sockets, stand.server.take, stand.pep.capacity, refusal=b"")
    stand.acceptor.start()
    yield stand
    stand.acceptor.close()
    stand.server.close()
    await asyncio.sleep(0)
    for client in stand.clients:
        client.close()


async def test_the_first_byte_tells_tls_from_all_else(stand: Stand) -> None:
    stand.client(b"G")
    assert await stand.handed() == "plain"
    assert stand.entry.destination == ("203.0.113.1", 443)
    assert stand.sock.recv(10) == b"G"
    stand.client(HELLO + b"more")
    assert await stand.handed() == "tickets.example"
    assert stand.sock.recv(1000) == HELLO + b"more"
    stand.client(b"\x80")
    assert await stand.handed() == "plain"
    stand.client(b"\x16\x03\x01\x00\x01\x02")
    assert await stand.handed() == "tls.hello_malformed"


async def test_a_hello_in_pieces(stand: Stand) -> None:
    client = stand.client()
    for at in range(len(HELLO)):
        assert stand.server.handed.empty()
        client.sendall(HELLO[at : at + 1])
        await asyncio.sleep(0.001)
    assert await stand.handed() == "tickets.example"


async def test_looks_are_few(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look reads all that is there: a hello in bytes must not make it quadratic."""
    looks: list[int] = []
    read = transparent.read_client_hello

    def looking(data: bytes) -> Any:
        looks.append(len(data))
        return read(data)

    monkeypatch.setattr(transparent, "read_client_hello", looking)
    client = stand.client()
    for at in range(len(HELLO)):
        client.sendall(HELLO[at : at + 1])
        await asyncio.sleep(0.001)
    assert await stand.handed() == "tickets.example"
    assert looks[-1] == len(HELLO)
    assert len(looks) <= 4


async def test_a_kernel_without_low_water_marks_costs_pauses(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket stays readable; it is looked at now and then, and no more."""
    looks: list[int] = []
    read = transparent.read_client_hello

    def looking(data: bytes) -> Any:
        looks.append(len(data))
        # "More", but no more than there is: what such a kernel makes of the mark.
        found = read(data)
        return found if isinstance(found, Hello) else found._replace(need=1)

    monkeypatch.setattr(transparent, "read_client_hello", looking)
    client = stand.client(HELLO[:30])
    begun = time.monotonic()
    async with asyncio.timeout(15):
        while len(looks) < 5:
            await asyncio.sleep(0.01)
    # The first two may come without a pause, the others never.
    assert time.monotonic() - begun > 3 * transparent._PAUSE * 0.9
    client.sendall(HELLO[30:])
    assert await stand.handed() == "tickets.example"


async def test_the_sidecar_s_own_connections_are_marked(stand: Stand) -> None:
    client = stand.client()
    stand.pep.own.add(client.getsockname())
    client.sendall(b"G")
    await stand.handed()
    assert stand.entry.own
    stand.client(b"G")
    await stand.handed()
    assert not stand.entry.own


async def test_silence_ends_unrecorded_and_half_a_hello_refused(stand: Stand) -> None:
    stand.pep.timeouts.idle = stand.pep.timeouts.head = 0.05
    assert await stand.ended(stand.client())
    stand.client(HELLO[:40])
    assert await stand.handed() == "request.timeout"
    assert stand.server.handed.empty()


async def test_the_time_for_a_hello_begins_with_its_first_byte(stand: Stand) -> None:
    stand.pep.timeouts.idle, stand.pep.timeouts.head = 0.1, 5.0
    client = stand.client(HELLO[:40])
    await asyncio.sleep(0.2)
    client.sendall(HELLO[40:])
    assert await stand.handed() == "tickets.example"


async def test_an_end_within_a_hello(stand: Stand) -> None:
    client = stand.client(HELLO[:40])
    await stand.waiting(1)
    client.shutdown(socket.SHUT_WR)
    assert await stand.handed() == "tls.hello_malformed"
    assert stand.pep.tunnels.handshakes == 0


async def test_who_leaves_is_forgotten(stand: Stand) -> None:
    client = stand.client()
    await stand.waiting(1)
    client.close()
    await stand.waiting(0)
    assert stand.server.handed.empty()


async def test_without_room_nobody_waits(stand: Stand) -> None:
    stand.pep.capacity.use(0)
    assert await stand.ended(stand.client(b"G"))
    stand.pep.capacity.use(100)
    stand.client(b"G")
    assert await stand.handed() == "plain"


async def test_the_end_lets_go_of_all_that_wait(stand: Stand) -> None:
    clients = [stand.client(data) for data in (b"", HELLO[:40])]
    await stand.waiting(2)
    stand.server.close()
    for client in clients:
        assert await stand.ended(client)
    assert (stand.pep.tunnels.handshakes, stand.pep.capacity.open) == (0, 0)


async def test_elsewhere_it_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(OSError, match="needs Linux"):
        Stand()


async def test_a_defect_closes_the_connection(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_data: bytes) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(transparent, "read_client_hello", broken)
    assert await stand.ended(stand.client(HELLO))
    assert [record.getMessage() for record in caplog.records] == ["connection_broke"]
    assert stand.pep.tunnels.handshakes == 0
