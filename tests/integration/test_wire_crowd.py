"""A crowd of idle and slow connections: borne with, and nobody else notices.

How much they cost, and what a steady load feels of thousands of them, `make soak` measures.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.crowd import Crowd
from tests.support.recording import Recording
from tests.support.sidecar import Sidecar, World, target

pytest_plugins = ["tests.support.wire_fixtures"]

IDLE, SLOW = 300, 30
CALLERS = 4
SOON = 30.0
MIB = 1 << 20


@pytest.fixture
def large() -> Iterator[Recording]:
    """An upstream whose answers are larger than all buffers on their way."""
    with Recording() as recording:
        size = 16 * MIB
        recording.answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
        yield recording


@pytest.fixture
def sidecar(wire_world: World, session_upstream: Recording, large: Recording) -> Iterator[Sidecar]:
    made = wire_world.sidecar(
        "crowded",
        {
            "usual": target(session_upstream.url, prefix="/usual"),
            "large": target(large.url, prefix="/large"),
        },
        timeouts={"head": "1s"},
    )
    yield made
    assert made.defects() == []
    made.stop()


def call(sidecar: Sidecar, until: threading.Event) -> int:
    """Calls one after the other on one connection, each of which must be answered. How many."""
    done = 0
    with sidecar.open() as client:
        while not until.is_set():
            client.send(b"GET /usual/steady HTTP/1.1\r\nHost: h\r\n\r\n")
            assert client.answer().body == b"ok"
            done += 1
    return done


def resident(sidecar: Sidecar) -> int:
    status = Path(f"/proc/{sidecar.program.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) << 10


def test_a_crowd_is_borne_with(sidecar: Sidecar, upstream: Recording) -> None:
    assert sidecar.ask(b"GET /usual/ HTTP/1.1\r\nHost: h\r\n\r\n").body == b"ok"
    before = resident(sidecar)
    crowd = Crowd(
        sidecar.port,
        idle=IDLE,
        slow=SLOW,
        call="/usual/once",
        upload="/usual/upload",
        download="/large/download",
    )
    over = threading.Event()
    with ThreadPoolExecutor(CALLERS) as pool:
        try:
            crowd.gather()
            crowd.slow_down()
            callers = [pool.submit(call, sidecar, over) for _ in range(CALLERS)]
            deadline = time.monotonic() + SOON
            while crowd.result.heads_ended < SLOW // 3 and time.monotonic() < deadline:
                crowd.keep(0.1)
            # Those that call are answered all the while, one as well as the other.
            over.set()
            answered = [caller.result(SOON) for caller in callers]
            assert min(answered) > max(answered) / 10 > 0
            assert sidecar.metric("valetkey_connections") >= IDLE + SLOW * 2 // 3
            hits = sidecar.metric('valetkey_limit_hits_total{limit="timeouts.head"}')
            assert hits >= SLOW // 3
            # What they wait for is not in memory: 10 readers of 16 MiB among them.
            assert resident(sidecar) - before < 48 * MIB
            report = crowd.report()
            assert (report.idle_lost, report.broken) == (0, [])
            for sock in crowd._idle[::30]:
                sock.sendall(b"GET /usual/again HTTP/1.1\r\nHost: h\r\n\r\n")
                assert sock.recv(4096).endswith(b"ok")
        finally:
            over.set()
            crowd.close()
    upstream.wait_for(lambda: sidecar.metric("valetkey_connections") == 0)
