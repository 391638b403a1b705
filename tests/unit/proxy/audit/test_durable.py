"""Order on a durable route: decision, disk, and only then the first byte upstream."""

from __future__ import annotations

import asyncio
import copy
import errno
import os
import threading

import pytest

from tests.support.enforcement import SETTINGS, Stand
from valetkey.proxy.audit import segment

REQUEST = b"GET /api/x HTTP/1.1\r\nHost: h\r\n\r\n"


class Disk:
    """fdatasync at the adapter's boundary: held until `let`, or failing."""

    def __init__(self) -> None:
        self.allowed = threading.Semaphore(0)
        self.error: OSError | None = None
        self._sync = os.fdatasync

    def __call__(self, fd: int) -> None:
        self.allowed.acquire(timeout=10)
        if self.error is not None:
            raise self.error
        self._sync(fd)


@pytest.fixture
def disk(monkeypatch):
    made = Disk()
    monkeypatch.setattr(segment.os, "fdatasync", made)
    return made


@pytest.fixture
async def stand(tmp_path, disk):
    settings = copy.deepcopy(SETTINGS)
    settings["routes"][0]["audit"] = "durable"
    made = await asyncio.to_thread(Stand, tmp_path, settings=settings)
    made.credential()
    made.spool.start()
    yield made
    disk.allowed.release(1000)
    await made.spool.stop()


async def until(holds):
    async with asyncio.timeout(15):
        while not holds():
            await asyncio.sleep(0.001)


async def test_not_a_byte_goes_upstream_before_the_decision_is_on_disk(stand, disk):
    connection, target = stand.open(), stand.target()
    connection.data_received(REQUEST)
    stand.turn.run()
    assert stand.spool.seq == 1  # decided and recorded
    await asyncio.sleep(0.03)  # the committer stands before the disk
    stand.turn.run()
    assert target.transport.written == b""
    disk.allowed.release()
    await until(lambda: stand.spool.committed == 1)
    await asyncio.sleep(0)
    stand.turn.run()
    assert target.transport.written.startswith(b"GET /api/x HTTP/1.1\r\n")


async def test_a_disk_that_fails_refuses_the_call_that_waits(stand, disk):
    connection, target = stand.open(), stand.target()
    connection.data_received(REQUEST)
    disk.error = OSError(errno.EIO, "Input/output error")
    disk.allowed.release()
    await until(lambda: stand.spool.problem)
    await until(lambda: connection.call is None)
    stand.turn.run()
    assert target.transport.written == b""
    answer = connection.transport.written
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"audit.unavailable"' in answer
    disk.error = None
    connection.data_received(REQUEST)  # and so is every later one
    stand.turn.run()
    assert target.transport.written == b""
    assert connection.transport.written.count(b'"code":"audit.unavailable"') == 2


async def test_a_workload_that_goes_away_meanwhile_makes_no_call(stand, disk):
    connection, target = stand.open(), stand.target()
    connection.data_received(REQUEST)
    connection.connection_lost(None)
    disk.allowed.release(10)
    await until(lambda: stand.spool.committed >= 1)
    await asyncio.sleep(0.01)
    stand.turn.run()
    assert target.transport.written == b""
