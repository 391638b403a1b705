"""The outbox: one flush per turn for all, and a lost connection keeps nobody else waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from valetkey.proxy.core.entry import REVERSE
from valetkey.proxy.http1.inbound import WorkloadConnection
from valetkey.proxy.http1.outbound import TargetConnection
from valetkey.proxy.http1.outbox import LARGE, Outbox


class Transport:
    """A transport as uvloop's behaves: a write after its end raises."""

    recorded: Record | None = None

    def __init__(self, *, lost: bool) -> None:
        self.lost = lost
        self.written = b""
        self.aborted = False

    def is_closing(self) -> bool:
        return self.lost

    def write(self, data: bytes) -> None:
        if self.lost:
            raise RuntimeError("unable to perform operation; the handler is closed")
        if self.recorded is not None:
            assert self.recorded.kept == self.recorded.seq, "sent before it was on record"
        self.written += data

    def abort(self) -> None:
        self.aborted = True


class Record:
    """What the outbox needs of the spool: ``append`` something, and it has to be kept."""

    def __init__(self) -> None:
        self.seq = self.kept = 0
        self.writable = True
        self.on_failure: Callable[[], None] | None = None

    def keep(self) -> bool:
        if self.writable:
            self.kept = self.seq
            return True
        self.seq = self.kept
        assert self.on_failure is not None
        self.on_failure()
        return False


def record() -> Any:
    return Record()


class Pool:
    """What a connection needs of its pool to write."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox


class Point:
    """What a connection needs of the enforcement point to write."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox

    def closed(self, _connection: WorkloadConnection) -> None:
        pass


def connection(outbox: Outbox, *, lost: bool = False) -> tuple[WorkloadConnection, Transport]:
    point: Any = Point(outbox)
    made = WorkloadConnection(point, REVERSE)
    transport: Any = Transport(lost=lost)
    made.transport = transport
    return made, transport


async def test_writes_of_a_turn_go_out_together_at_its_end() -> None:
    outbox = Outbox(asyncio.get_running_loop(), record())
    one, transport = connection(outbox)
    one.write(b"a")
    one.write(b"b")
    assert transport.written == b""
    await asyncio.sleep(0)
    assert transport.written == b"ab"
    one.write(b"c")
    await asyncio.sleep(0)
    assert transport.written == b"abc"


async def test_a_connection_lost_in_the_same_turn_keeps_nobody_else_waiting() -> None:
    outbox = Outbox(asyncio.get_running_loop(), record())
    gone, _ = connection(outbox, lost=True)
    others = [connection(outbox) for _ in range(3)]
    gone.write(b"x")
    gone.connection_lost(None)
    for number, (other, _) in enumerate(others):
        other.write(b"%d" % number)
    await asyncio.sleep(0)
    assert [transport.written for _, transport in others] == [b"0", b"1", b"2"]


async def test_an_early_flush_leaves_nothing_for_later() -> None:
    outbox = Outbox(asyncio.get_running_loop(), record())
    one, transport = connection(outbox)
    one.write(b"a")
    one.flush()
    assert transport.written == b"a"
    await asyncio.sleep(0)
    assert transport.written == b"a"


async def test_what_a_turn_recorded_is_kept_before_its_bytes_leave() -> None:
    spool = record()
    outbox = Outbox(asyncio.get_running_loop(), spool)
    one, transport = connection(outbox)
    transport.recorded = spool
    spool.seq += 1
    one.write(b"a")
    await asyncio.sleep(0)
    spool.seq += 1
    one.write(b"b" * LARGE)  # goes out at once
    assert transport.written == b"a" + b"b" * LARGE
    assert spool.kept == 2


@pytest.mark.parametrize("size", [1, LARGE], ids=["at the end of the turn", "at once"])
async def test_nothing_leaves_that_can_not_be_recorded(size: int) -> None:
    spool = record()
    outbox = Outbox(asyncio.get_running_loop(), spool)
    ends = [connection(outbox) for _ in range(3)]
    pool: Any = Pool(outbox)
    target = TargetConnection(pool)
    target.open = True
    to_target: Any = Transport(lost=False)
    target.transport = to_target
    spool.seq += 1
    spool.writable = False
    ends[0][0].write(b"0")
    target.write(b"x")
    ends[1][0].write(b"1" * size)
    await asyncio.sleep(0)
    assert [transport.written for _, transport in ends] == [b"", b"", b""]
    assert [transport.aborted for _, transport in ends] == [True, True, False]
    assert (to_target.written, to_target.aborted) == (b"", True)
    ends[2][0].write(b"503")  # says so; nothing of it is to be recorded
    await asyncio.sleep(0)
    assert ends[2][1].written == b"503"
