"""``python -m bench.crowd``: connections that are idle, and connections that are slow, held open.

Three kinds of slow ones, as many of each: heads that come a byte a second (the proxy ends those
after a while; each is opened anew then), bodies of which a few hundred bytes come each second, and
readers that take two kilobytes of a large answer a second. All stay within what is asked of an
honest client, so the proxy has to bear with them.

It prints a line of JSON when all are in place and one at the end, which comes with the end of its
standard input.
"""

from __future__ import annotations

import argparse
import json
import resource
import select
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Final

PERIOD: Final = 1.0
BODY_PIECE: Final = b"x" * 300
READ_PIECE: Final = 2048
_WINDOW: Final = 16 << 10  # so that what is read is soon asked for
_TIMEOUT: Final = 10.0
_SLOW_HEAD: Final = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 4096


@dataclass(slots=True)
class Report:
    """How the crowd fared. ``idle_lost`` and ``broken`` are connections that should have held."""

    idle: int = 0
    slow: int = 0
    idle_lost: int = 0
    heads_ended: int = 0
    """Slow heads that the proxy ended, as it should."""
    broken: list[str] = field(default_factory=list)


class Slow:
    """One connection that does a little each second."""

    def __init__(
        self, port: int, begin: bytes, step: Callable[[Slow], None], *, small: bool
    ) -> None:
        self.socket = _connect(port, small=small)
        self.socket.sendall(begin)
        self.socket.setblocking(False)
        self._step = step
        self.sent = 0

    def step(self) -> None:
        """What it does each second. Raises `OSError` where it is over."""
        self._step(self)


def _connect(port: int, *, small: bool = False) -> socket.socket:
    made = socket.socket()
    if small:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WINDOW)
    made.settimeout(_TIMEOUT)
    made.connect(("127.0.0.1", port))
    return made


def _ended(sock: socket.socket) -> bool:
    """Whether the other side has said something unasked, its end for one."""
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    return True


def _more_head(connection: Slow) -> None:
    if _ended(connection.socket):
        raise OSError("ended")
    connection.socket.send(_SLOW_HEAD[connection.sent : connection.sent + 1])
    connection.sent += 1


def _more_body(connection: Slow) -> None:
    if _ended(connection.socket):
        raise OSError(connection.socket.recv(200).partition(b"\r\n")[0].decode("latin-1"))
    with suppress(BlockingIOError):
        connection.socket.send(BODY_PIECE)


def _read_on(connection: Slow) -> None:
    with suppress(BlockingIOError):  # its window is so small that TCP takes pauses
        if not connection.socket.recv(READ_PIECE):
            raise OSError("ended")


class Crowd:
    """All connections. `gather`, then `keep` for as long as they are wanted, then `report`."""

    def __init__(
        self, port: int, *, idle: int, slow: int, call: str, upload: str, download: str
    ) -> None:
        self._port = port
        self._wanted = idle, slow
        self._call = _head("GET", call)
        self._upload = _head("POST", upload, "Content-Length: 1000000000")
        self._download = _head("GET", download)
        self._idle: list[socket.socket] = []
        self._slow: list[Slow] = []
        self._next = 0.0
        self._turn = 0
        self.result = Report()

    def gather(self) -> None:
        """Open the idle ones: every other one has made a call before."""
        for number in range(self._wanted[0]):
            sock = _connect(self._port)
            if number % 2:
                sock.sendall(self._call)
                data = sock.recv(4096)
                if not data.startswith(b"HTTP/1.1 200 "):
                    raise OSError(f"a call was answered {data[:60]!r}")
            self._idle.append(sock)
        self.result.idle = len(self._idle)

    def slow_down(self) -> None:
        """Open the slow ones."""
        self._slow = [self._open(number) for number in range(self._wanted[1])]
        self.result.slow = len(self._slow)
        self._next = time.monotonic()

    def keep(self, seconds: float) -> None:
        """Let each slow one do its part, one after the other, for so long."""
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            if not self._slow:
                time.sleep(until - now)
                return
            if now < self._next:
                time.sleep(min(self._next, until) - now)
                continue
            self._next += PERIOD / len(self._slow)
            self._turn = (self._turn + 1) % len(self._slow)
            self._one(self._turn)

    def report(self) -> Report:
        """What became of all, at the end."""
        poll = select.poll()
        for sock in self._idle:
            poll.register(sock, select.POLLIN)
        self.result.idle_lost = len(poll.poll(0))
        return self.result

    def close(self) -> None:
        for sock in self._idle:
            sock.close()
        for slow in self._slow:
            slow.socket.close()
        self._idle, self._slow = [], []

    def _open(self, number: int) -> Slow:
        match number % 3:
            case 0:
                return Slow(self._port, b"", _more_head, small=False)
            case 1:
                return Slow(self._port, self._upload, _more_body, small=False)
            case _:
                return Slow(self._port, self._download, _read_on, small=True)

    def _one(self, number: int) -> None:
        slow = self._slow[number]
        try:
            slow.step()
        except OSError as error:
            if number % 3:
                self.result.broken.append(str(error) or type(error).__name__)
            else:
                self.result.heads_ended += 1
            slow.socket.close()
            self._slow[number] = self._open(number)


def _head(method: str, path: str, *lines: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: a", *lines, "", ""]).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--idle", type=int, default=5000)
    parser.add_argument("--slow", type=int, default=200)
    for path in ("call", "upload", "download"):
        parser.add_argument(f"--{path}", required=True)
    options = vars(parser.parse_args())
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    crowd = Crowd(options.pop("port"), **options)
    crowd.gather()
    print(json.dumps({"gathered": crowd.result.idle}), flush=True)
    sys.stdin.readline()  # whoever asked has looked at the idle ones alone
    crowd.slow_down()
    print(json.dumps({"slow": crowd.result.slow}), flush=True)
    while not select.select([sys.stdin], (), (), 0)[0]:
        crowd.keep(0.1)
    print(json.dumps(asdict(crowd.report())), flush=True)


if __name__ == "__main__":
    main()
