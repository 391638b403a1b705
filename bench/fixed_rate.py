"""An open-loop load: calls leave on schedule, whether or not earlier ones were answered.

Latency counts from the moment at which a call was *due*, so that a stall shows in every call
that it delayed (no coordinated omission). Raw sockets and `select` with microsecond timeouts,
since an event loop's millisecond timers would be longer than what is measured. What remains of
the generator's own delay is in every figure alike, and is reported as ``late``.

``python -m bench.fixed_rate --port P --path /x --rate 1000 --seconds 5`` prints one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

_GIVE_UP_AFTER: Final = 5.0
_WARM_UP: Final = 0.5


class Broken(Exception):  # noqa: N818
    """A connection ended or answered something else than a sized 200."""


@dataclass(frozen=True, slots=True)
class Result:
    """Milliseconds; ``late`` is how long after its due time a call was written."""

    calls: int
    broken: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    late_p50_ms: float
    late_p99_ms: float


class Connection:
    """One keep-alive connection with at most one call in flight."""

    __slots__ = ("_buffer", "due", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.due = 0.0
        self._buffer = b""

    def fileno(self) -> int:
        return self.socket.fileno()

    def receive(self) -> bool:
        """Read what is there; true once the answer is whole. Raises `Broken`."""
        data = self.socket.recv(65536)
        if not data:
            raise Broken("closed")
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return False
        if not head.startswith(b"HTTP/1.1 200"):
            raise Broken(head.decode("latin-1").splitlines()[0])
        if len(body) < content_length(head):
            return False
        self._buffer = b""
        return True


def content_length(head: bytes) -> int:
    """Raises `Broken` where there is none: the upstream's answers are all sized."""
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise Broken("no Content-Length")


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank, of values in ascending order; 0 of nothing."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * len(ordered)) // 100) - 1))]


def run(port: int, request: bytes, *, rate: float, seconds: float, connections: int) -> Result:
    """Send ``rate`` calls a second, evenly spaced, after a short warm-up that is not counted."""
    idle = deque(Connection(port) for _ in range(connections))
    busy: list[Connection] = []
    latencies: list[float] = []
    late: list[float] = []
    broken = sent = 0
    total = int(rate * (seconds + _WARM_UP))
    start = time.perf_counter() + 0.05
    give_up = start + seconds + _WARM_UP + _GIVE_UP_AFTER
    counted_from = start + _WARM_UP
    while (sent < total or busy) and time.perf_counter() < give_up:
        now = time.perf_counter()
        # A call that is due while all connections are busy waits here, and its clock runs.
        while sent < total and idle and (due := start + sent / rate) <= now:
            connection = idle.popleft()
            connection.due = due
            connection.socket.send(request)
            busy.append(connection)
            sent += 1
            if due >= counted_from:
                late.append(now - due)
        wait = start + sent / rate - time.perf_counter() if sent < total and idle else 0.1
        for connection in select.select(busy, (), (), max(0.0, wait))[0]:
            try:
                whole = connection.receive()
            except (Broken, OSError):
                busy.remove(connection)
                connection.socket.close()
                idle.append(Connection(port))
                broken += 1
                continue
            if whole:
                busy.remove(connection)
                idle.append(connection)
                if connection.due >= counted_from:
                    latencies.append(time.perf_counter() - connection.due)
    for connection in (*idle, *busy):
        connection.socket.close()
    return summarise(latencies, late, broken=broken + len(busy) + total - sent)


def summarise(latencies: list[float], late: list[float], *, broken: int) -> Result:
    """Seconds in, percentiles in milliseconds out."""
    latencies, late = sorted(latencies), sorted(late)
    return Result(
        calls=len(latencies),
        broken=broken,
        p50_ms=percentile(latencies, 50) * 1e3,
        p90_ms=percentile(latencies, 90) * 1e3,
        p99_ms=percentile(latencies, 99) * 1e3,
        max_ms=percentile(latencies, 100) * 1e3,
        late_p50_ms=percentile(late, 50) * 1e3,
        late_p99_ms=percentile(late, 99) * 1e3,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--authorization", default="")
    options = parser.parse_args()
    # The kernel rounds timeouts up by 50 µs otherwise (prctl(2), PR_SET_TIMERSLACK).
    with suppress(OSError):
        Path("/proc/self/timerslack_ns").write_text("1")
    head = f"GET {options.path} HTTP/1.1\r\nHost: 127.0.0.1:{options.port}\r\n"
    if options.authorization:
        head += f"Authorization: {options.authorization}\r\n"
    gc.disable()
    result = run(
        options.port,
        f"{head}\r\n".encode(),
        rate=options.rate,
        seconds=options.seconds,
        connections=options.connections,
    )
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
