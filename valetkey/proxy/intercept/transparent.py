"""Transparent mode: connections that the kernel led here, from programs that know of no proxy.

What the client sends first tells TLS from HTTP. It is looked at without being taken out of the
socket, so that whoever reads the connection afterwards reads all of it:

- HTTP: each request's Host is the policy host; its port must be the one the connection was for.
- TLS: the ClientHello's server name and that port stand for ``CONNECT name:port``. To a target, TLS
  ends here and the calls inside are decided on one by one; to a passthrough host, the tunnel is
  opaque; everything else is refused with an alert, and recorded.

The address that the client chose is never dialled: it may name an allowed host and mean another
machine. The host is resolved anew, here, and its addresses are checked like all others.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import TYPE_CHECKING, Final, cast

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.contracts.logs import Log, place_of
from valetkey.proxy.core.entry import Entry
from valetkey.proxy.http1.inbound import Tunnels, WorkloadConnection
from valetkey.proxy.intercept.client_hello import (
    HANDSHAKE,
    MAX_HELLO,
    Hello,
    read_client_hello,
)
from valetkey.proxy.intercept.original_destination import original_destination
from valetkey.proxy.intercept.unread import Unread

if TYPE_CHECKING:
    from valetkey.proxy.pep import EnforcementPoint

_PAUSE: Final = 0.05
_ESTABLISHED: Final = 1  # linux/tcp.h: the first byte of struct tcp_info is the state

Peer = tuple[str, int]


class TransparentServer:
    """Takes accepted connections until `close`. Raises `OSError` where there is no such mode."""

    def __init__(self, pep: EnforcementPoint, tunnels: Tunnels) -> None:
        if not sys.platform.startswith("linux"):
            raise OSError("transparent mode needs Linux, whose kernel tells where connections went")
        self._pep = pep
        self._tunnels = tunnels
        self._log = Log("transparent")
        self._loop = asyncio.get_running_loop()
        self._arriving: set[asyncio.Task[None]] = set()

    def take(self, sock: socket.socket) -> None:
        """A connection that was accepted, and of which nothing was read."""
        try:
            peer = sock.getpeername()[:2]
        except OSError:
            sock.close()  # it has left
            return
        task = self._loop.create_task(self._arrive(sock, peer))
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)

    def close(self) -> None:
        """Let go of connections that have not said what they want."""
        for task in list(self._arriving):
            task.cancel()

    async def _arrive(self, sock: socket.socket, peer: Peer) -> None:
        """Find out what the client wants, and hand its connection on."""
        try:
            await self._hand_on(sock, peer)
        except (OSError, TimeoutError):
            sock.close()  # it left, or never said a word
        except asyncio.CancelledError:
            sock.close()
            raise
        except Exception as error:  # noqa: BLE001 - a defect of ours must end in a refusal
            sock.close()
            self._log.error(
                "connection_broke", error_type=type(error).__name__, line=place_of(error)
            )

    async def _hand_on(self, sock: socket.socket, peer: Peer) -> None:
        entry = Entry(transparent=True, destination=original_destination(sock))
        try:
            hello = await self._first_bytes(sock)
            # Asked for now: before a client sends, it knows that it is connected.
            entry.own = self._pep.dialler.opened(peer[0].removeprefix("::ffff:"), peer[1])
            if hello is None:
                await self._plain(sock, entry)
            else:
                self._ask(sock, peer, entry, hello)
        except CallerError as error:
            self._tls(sock, peer, entry).refuse_head(error)

    async def _plain(self, sock: socket.socket, entry: Entry) -> None:
        await self._loop.connect_accepted_socket(
            lambda: cast("asyncio.Protocol", WorkloadConnection(self._pep, entry)), sock
        )

    def _tls(self, sock: socket.socket, peer: Peer, entry: Entry) -> WorkloadConnection:
        connection = WorkloadConnection(self._pep, entry, self._tunnels, tls=True)
        connection.connection_made(Unread(self._loop, sock, peer, connection.connection_lost))
        return connection

    def _ask(self, sock: socket.socket, peer: Peer, entry: Entry, hello: Hello) -> None:
        """What a forward proxy would have been asked. Raises `CallerError`."""
        port = entry.port or sock.getsockname()[1]
        where = f"{hello.server_name}:{port}"
        head = self._pep.heads.request(
            f"CONNECT {where} HTTP/1.1\r\nhost: {where}\r\n\r\n".encode()
        )
        assert head is not None
        connection = self._tls(sock, peer, entry)
        if not connection.close_after:  # else there was no room
            connection.begin(head)

    async def _first_bytes(self, sock: socket.socket) -> Hello | None:
        """The whole hello of a TLS client; None once anything else begins. Nothing is taken out.

        Raises `CallerError`, and `OSError` or `TimeoutError` where no byte came.
        """
        pep = self._pep
        seen = 0
        pep.tunnels.handshakes += 1
        try:
            async with asyncio.timeout(pep.timeouts.idle) as limit:
                while True:
                    await self._readable(sock)
                    try:
                        data = sock.recv(MAX_HELLO, socket.MSG_PEEK)
                    except BlockingIOError:
                        continue
                    if not data:
                        raise ConnectionResetError
                    if data[0] != HANDSHAKE:
                        return None
                    found = read_client_hello(data)
                    if isinstance(found, Hello):
                        return found
                    if not seen:
                        limit.reschedule(self._loop.time() + pep.timeouts.head)
                    elif seen == len(data):
                        await self._nothing_new(sock)
                    seen = len(data)
                    # A peeked socket stays readable: have it wake us when there is enough, only.
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, found.need)
        except TimeoutError:
            if seen:
                raise pep.head_timeout() from None
            raise
        finally:
            pep.tunnels.handshakes -= 1
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    async def _readable(self, sock: socket.socket) -> None:
        ready = self._loop.create_future()
        self._loop.add_reader(sock, _tell, ready)
        try:
            await ready
        finally:
            self._loop.remove_reader(sock)

    @staticmethod
    async def _nothing_new(sock: socket.socket) -> None:
        """Readable with no more than before: the peer ended, or the low-water mark has no effect.

        tcp(7) wakes readers below the mark when memory is short, and not every kernel has it.
        """
        state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        if state != _ESTABLISHED:
            raise CallerError(codes.TLS_HELLO_MALFORMED, "the connection ended within the hello")
        await asyncio.sleep(_PAUSE)


def _tell(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
