"""Taking connections off a listening socket: one per turn of the loop, within limits.

One per turn, so that a burst of connections delays nobody who is there already. What is beyond a
limit is told so (503) and closed. Where the process has no descriptor left, a spare one is given up
for the moment that it takes to refuse the connection; where that does not help either, the listener
rests: connections then wait in the kernel's queue, and nothing spins.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol, cast

from valetkey.contracts import codes
from valetkey.contracts.logs import Log, place_of
from valetkey.proxy.http1.respond import problem_answer
from valetkey.proxy.http1.unsent import bound
from valetkey.proxy.limits import DESCRIPTORS, LISTENER_CONNECTIONS, NO_DESCRIPTOR, LimitHits

# accept(2): it was this one connection that failed.
_OF_THE_CONNECTION: Final = frozenset({
    errno.ECONNABORTED, errno.EINTR, errno.EPERM, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH,
})  # fmt: skip
_REST: Final = 0.25
BACKLOG: Final = 1024
# Refused connections that are read out for a moment, so that the answer is not lost (RFC 9112
# §9.6); beyond that many they are just closed.
_GOODBYES: Final = 64
_GOODBYE: Final = 1.0

REFUSAL: Final = problem_answer(
    codes.PROXY_OVERLOADED, instance="", connection=b"connection: close\r\n", head_only=False
)


class Accepted(socket.socket):
    """The socket of a connection, which tells when its descriptor is given back.

    By `close`, or by `detach`: uvloop closes the descriptors of its transports itself.
    """

    __slots__ = ("_closed_one",)

    def __init__(
        self,
        family: int = -1,
        type: int = -1,  # noqa: A002 - as `socket.dup` calls it
        proto: int = -1,
        fileno: int | None = None,
    ) -> None:
        super().__init__(family, type, proto, fileno)
        self._closed_one: Callable[[], None] | None = None

    @classmethod
    def of(cls, sock: socket.socket, closed: Callable[[], None]) -> Accepted:
        """Take the descriptor over, non-blocking; ``closed`` is called once, when it is gone.

        What is duplicated from it (`dup`) tells nobody.
        """
        made = cls(sock.family, sock.type, sock.proto, sock.detach())
        made.setblocking(False)
        made._closed_one = closed
        return made

    def detach(self) -> int:
        self._tell()
        return super().detach()

    def _real_close(self) -> None:
        # What `socket.close` calls once nobody uses the descriptor any more.
        self._tell()
        super()._real_close()  # type: ignore[misc]

    def _tell(self) -> None:
        closed, self._closed_one = self._closed_one, None
        if closed is not None:
            closed()


class Gate(Protocol):
    """Says whether a connection may come in, and is told of those that did: see `Capacity`."""

    @property
    def hits(self) -> LimitHits: ...

    open: int

    def refusal(self, descriptor: int) -> str:
        """The limit that it meets, or empty."""

    def make_room(self) -> bool:
        """Give up a descriptor, if there is one to spare."""


def serving(make: Callable[[], Any]) -> Callable[[socket.socket], None]:
    """A ``take`` for an `Acceptor`: each connection gets a protocol that ``make`` makes."""
    loop = asyncio.get_running_loop()
    log = Log("listener")
    arriving: set[asyncio.Task[Any]] = set()

    def take(sock: socket.socket) -> None:
        task = loop.create_task(
            loop.connect_accepted_socket(lambda: cast("asyncio.Protocol", make()), sock)
        )
        arriving.add(task)
        task.add_done_callback(partial(arrived, sock))

    def arrived(sock: socket.socket, task: asyncio.Task[Any]) -> None:
        arriving.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            sock.close()
            log.warning("connection_broke", error_type=type(error).__name__, line=place_of(error))

    return take


async def listening_sockets(host: str, port: int) -> list[socket.socket]:
    """Bound and listening on each address that ``host`` means. Raises `OSError`."""
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    try:
        for family, name in dict.fromkeys((entry[0], entry[4]) for entry in found):
            sockets.append(socket.create_server(name, family=family, backlog=BACKLOG))
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


class Acceptor:
    """The listening sockets of one listener, from `start` to `close`.

    ``take`` gets each connection's socket, non-blocking, and owns it. ``refusal`` is what one
    beyond a limit is told, ``most`` how many may be open at a time on this listener alone.
    """

    def __init__(
        self,
        listening: list[socket.socket],
        take: Callable[[Accepted], None],
        gate: Gate,
        *,
        most: int | None = None,
        refusal: bytes = REFUSAL,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self._take = take
        self._gate = gate
        self._most = most
        self._refusal = refusal
        self._log = Log("listener")
        self._spare: int | None = None
        self._part = serving(self._goodbye)
        self._goodbyes = 0
        self._resting: asyncio.TimerHandle | None = None
        self.open = 0
        """Connections of this listener."""

    def start(self) -> None:
        """Take connections from now on."""
        self._spare = _open_spare()
        for listening in self._listening:
            listening.setblocking(False)
        self._watch()

    def close(self) -> None:
        """Take no further ones; those that are open stay. A second call changes nothing."""
        if self._resting is not None:
            self._resting.cancel()
        listening, self._listening = self._listening, []
        for sock in listening:
            self._loop.remove_reader(sock)
            sock.close()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _watch(self) -> None:
        self._resting = None
        for listening in self._listening:
            self._loop.add_reader(listening, self._ready, listening)

    def _rest(self) -> None:
        for listening in self._listening:
            self._loop.remove_reader(listening)
        self._resting = self._loop.call_later(_REST, self._watch)

    def _ready(self, listening: socket.socket) -> None:
        try:
            sock, _ = listening.accept()
        except BlockingIOError:
            return  # it left, or somebody else was quicker
        except OSError as error:
            if error.errno in NO_DESCRIPTOR:
                self._shed(listening, error)
            elif error.errno not in _OF_THE_CONNECTION:
                self._log.error("listener_rests", reason=error.strerror or "", seconds=_REST)
                self._rest()
            return
        limit = self._gate.refusal(sock.fileno())
        if not limit and self._most is not None and self.open >= self._most:
            limit = LISTENER_CONNECTIONS
        if limit:
            self._gate.hits.hit(limit)
            self._refuse(sock)
            return
        self.open += 1
        self._gate.open += 1
        bound(sock)
        self._take(Accepted.of(sock, self._closed_one))

    def _closed_one(self) -> None:
        self.open -= 1
        self._gate.open -= 1

    # --- refusals -----------------------------------------------------------------------------

    def _refuse(self, sock: socket.socket) -> None:
        if self._refusal and self._goodbyes < _GOODBYES:
            sock.setblocking(False)
            self._part(sock)
        else:
            _turn_away(sock, self._refusal)

    def _goodbye(self) -> _Goodbye:
        self._goodbyes += 1
        return _Goodbye(self._refusal, self._said_goodbye)

    def _said_goodbye(self) -> None:
        self._goodbyes -= 1

    def _shed(self, listening: socket.socket, error: OSError) -> None:
        """No descriptor is left: refuse one connection with the spare one's place, or rest."""
        self._gate.hits.hit(DESCRIPTORS)
        self._gate.make_room()
        if self._spare is None:
            self._spare = _open_spare()
        if self._spare is not None:
            os.close(self._spare)
            with contextlib.suppress(OSError):
                sock, _ = listening.accept()
                _turn_away(sock, self._refusal)
            self._spare = _open_spare()
        if self._spare is None:
            self._log.error("listener_rests", reason=error.strerror or "", seconds=_REST)
            self._rest()


class _Goodbye(asyncio.Protocol):
    """Says one thing and reads the rest away, since a close with unread bytes is a reset."""

    def __init__(self, words: bytes, said: Callable[[], None]) -> None:
        self._words = words
        self._said = said
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        made = cast("asyncio.Transport", transport)
        made.write(self._words)
        made.write_eof()
        self._timer = asyncio.get_running_loop().call_later(_GOODBYE, made.abort)

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._said()


def _turn_away(sock: socket.socket, words: bytes) -> None:
    """Refuse without waiting; a peer that has sent something may miss the words."""
    with contextlib.suppress(OSError):
        sock.setblocking(False)
        sock.send(words)
    sock.close()


def _open_spare() -> int | None:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
