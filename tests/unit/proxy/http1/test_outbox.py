"""The outbox: one flush per turn for all, and a lost connection keeps nobody else waiting."""

from __future__ import annotations

import asyncio
from typing import Any

from valetkey.proxy.core.entry import REVERSE
from valetkey.proxy.http1.inbound import WorkloadConnection
from valetkey.proxy.http1.outbox import Outbox


class Transport:
    """A transport as uvloop's behaves: a write after its end raises."""

    def __init__(self, *, lost: bool) -> None:
        self.lost = lost
        self.written = b""

    def is_closing(self) -> bool:
        return self.lost

    def write(self, data: bytes) -> None:
        if self.lost:
            raise RuntimeError("unable to perform operation; the handler is closed")
        self.written += data


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
    outbox = Outbox(asyncio.get_running_loop())
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
    outbox = Outbox(asyncio.get_running_loop())
    gone, _ = connection(outbox, lost=True)
    others = [connection(outbox) for _ in range(3)]
    gone.write(b"x")
    gone.connection_lost(None)
    for number, (other, _) in enumerate(others):
        other.write(b"%d" % number)
    await asyncio.sleep(0)
    assert [transport.written for _, transport in others] == [b"0", b"1", b"2"]


async def test_an_early_flush_leaves_nothing_for_later() -> None:
    outbox = Outbox(asyncio.get_running_loop())
    one, transport = connection(outbox)
    one.write(b"a")
    one.flush()
    assert transport.written == b"a"
    await asyncio.sleep(0)
    assert transport.written == b"a"
