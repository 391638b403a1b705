"""An upstream that records the exact bytes that it got and answers as scripted.

It speaks raw sockets, one thread per connection, so that a script can do what no HTTP library
does: stall, reset, answer early, send half a head, send garbage.

A connection that gets its first byte (of a request) takes the next script; without one it reads
the request by its framing and answers 200. Scripts run in the order in which they were given.
"""

from __future__ import annotations

import contextlib
import queue
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

TIMEOUT: Final = 15.0
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Ended(ConnectionError):  # noqa: N818 - what happened, not a fault
    """The peer sent no more."""


class Wire:
    """A socket read by pieces of a protocol. ``recorded`` is every byte that came."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(TIMEOUT)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.recorded = b""
        self.over = False
        self._buffer = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def peek(self) -> bytes:
        """Wait for something to be there."""
        if not self._buffer:
            self._fill()
        return self._buffer

    def seen(self, mark: bytes) -> None:
        """Wait for ``mark`` and leave it unread."""
        while mark not in self._buffer:
            self._fill()

    def until(self, mark: bytes) -> bytes:
        """Everything up to and with ``mark``."""
        self.seen(mark)
        at = self._buffer.index(mark) + len(mark)
        data, self._buffer = self._buffer[:at], self._buffer[at:]
        return data

    def exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def rest(self) -> bytes:
        """Everything until the peer's end. A reset raises `ConnectionResetError`."""
        with contextlib.suppress(Ended):
            while True:
                self._fill()
        data, self._buffer = self._buffer, b""
        return data

    def body(self, head: bytes) -> bytes:
        """The body behind ``head``, by its framing, as it is on the wire."""
        if b"\r\ntransfer-encoding: chunked" in head.lower():
            data = b""
            while True:
                line = self.until(b"\r\n")
                size = int(line.partition(b";")[0], 16)
                data += line + self.exactly(size + 2 if size else 2)
                if not size:
                    return data
        length = re.search(rb"\r\ncontent-length: *(\d+)", head.lower())
        return self.exactly(int(length[1])) if length else b""

    def request(self) -> tuple[bytes, bytes]:
        """One request: head and body."""
        head = self.until(b"\r\n\r\n")
        return head, self.body(head)

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """RST instead of FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def ended(self, timeout: float = TIMEOUT) -> bool:
        """Whether the peer closes within that time (bytes that come first are recorded)."""
        self.sock.settimeout(timeout)
        try:
            while True:
                self._fill()
        except TimeoutError:
            return False
        except (Ended, ConnectionError):
            return True
        finally:
            with contextlib.suppress(OSError):
                self.sock.settimeout(TIMEOUT)

    def _fill(self) -> None:
        data = self.sock.recv(1 << 18)
        if not data:
            self.over = True
            raise Ended
        self.recorded += data
        self._buffer += data


Script = Callable[[Wire], object]


@dataclass
class Request:
    """A request that the default script answered."""

    head: bytes
    body: bytes

    @property
    def line(self) -> bytes:
        return self.head.partition(b"\r\n")[0]

    @property
    def fields(self) -> list[bytes]:
        """Header lines in order, the one with the credential by its name alone."""
        lines = self.head.split(b"\r\n")[1:-2]
        return [re.sub(rb"^(authorization: Bearer) .*", rb"\1", line) for line in lines]

    def values(self, name: str) -> list[str]:
        prefix = name.lower().encode() + b":"
        return [
            line[len(prefix) :].strip().decode("latin-1")
            for line in self.head.split(b"\r\n")[1:]
            if line.lower().startswith(prefix)
        ]


@dataclass
class Recording:
    """The upstream. ``requests`` are those that were answered, ``wires`` all connections."""

    context: ssl.SSLContext | None = None
    requests: list[Request] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    answer: bytes = OK
    listener: socket.socket | None = None
    """A listening socket to use in place of one on loopback."""
    addresses: list[str] = field(default_factory=list)
    """The own address of each connection, at which it was called."""

    def __post_init__(self) -> None:
        self._scripts: queue.SimpleQueue[tuple[Script, threading.Event]] = queue.SimpleQueue()
        self._listener = self.listener or socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    @property
    def url(self) -> str:
        return f"{'https' if self.context else 'http'}://127.0.0.1:{self.port}"

    def script(self, script: Script) -> threading.Event:
        """The next request is this script's; the event is set when it is over."""
        over = threading.Event()
        self._scripts.put((script, over))
        return over

    def replies(self, raw: bytes, *, then: str = "") -> threading.Event:
        """Script: read a request, send ``raw``, then ``close``, ``reset``, or go on."""

        def run(wire: Wire) -> object:
            self.requests.append(Request(*wire.request()))
            wire.send(raw)
            if then:
                getattr(wire, then)()
            return None

        return self.script(run)

    def clear(self) -> None:
        """Forget what was recorded; scripts that nobody took are an error."""
        assert self._scripts.empty(), "a script was not used"
        assert not self.failures, self.failures
        self.requests.clear()
        self.wires.clear()
        self.addresses.clear()
        self.answer = OK

    def forget(self) -> None:
        """`clear` after a test that failed."""
        while not self._scripts.empty():
            self._scripts.get()
        self.failures.clear()

    def wait_for(self, holds: Callable[[], bool], *, timeout: float = TIMEOUT) -> None:
        deadline = time.monotonic() + timeout
        while not holds():
            assert time.monotonic() < deadline, "what was waited for did not happen"
            time.sleep(0.002)

    def close(self) -> None:
        # A thread in accept() holds the socket open: shut it down first.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for wire in self.wires:
            wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.addresses.append(sock.getsockname()[0].removeprefix("::ffff:"))
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        if self.context is not None:
            try:
                sock = self.context.wrap_socket(sock, server_side=True)
            except (ssl.SSLError, OSError):
                sock.close()
                return
        wire = Wire(sock)
        self.wires.append(wire)
        sock.settimeout(None)
        try:
            # Bytes left over on an ended connection are no request: the next test's script would
            # be spent on them.
            while not wire.over:
                wire.peek()
                sock.settimeout(TIMEOUT)
                self._run(wire)
                sock.settimeout(None)
            sock.close()
        except OSError:
            sock.close()

    def _run(self, wire: Wire) -> None:
        try:
            script, over = self._scripts.get_nowait()
        except queue.Empty:
            head, body = wire.request()
            self.requests.append(Request(head, body))
            wire.send(
                self.answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
                if head.startswith(b"HEAD ")
                else self.answer
            )
            return
        try:
            script(wire)
        except OSError:
            raise
        except BaseException as error:
            self.failures.append(error)
            raise OSError from error
        finally:
            over.set()
