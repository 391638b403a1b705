"""The relay of an opaque tunnel: bytes, back-pressure, half-closed ends, one outcome."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from valetkey.contracts import codes
from valetkey.proxy.http1.relay import Relay


class Transport:
    """A transport that keeps what happens to it."""

    def __init__(self, *, tls: bool = False) -> None:
        self.tls = tls
        self.protocol: Any = None
        self.written = b""
        self.reading = False
        self.eof = False
        self.closed = self.aborted = False
        self.lingers = True
        """False: the end is a reset."""
        self.waiting = 0
        """Bytes that the peer has not taken."""

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def fileno(self) -> int:
        return -1  # there is no kernel behind it

    def get_extra_info(self, _name: str) -> Any:
        return self

    def setsockopt(self, _level: int, option: int, _value: bytes) -> None:
        assert option == socket.SO_LINGER
        self.lingers = False

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def write(self, data: bytes) -> None:
        assert not self.is_closing()
        self.written += data

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def can_write_eof(self) -> bool:
        return not self.tls

    def write_eof(self) -> None:
        self.eof = True

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


class Stand:
    def __init__(self, *, tls: bool = False, tls_workload: bool = False) -> None:
        self.workload, self.target = Transport(tls=tls_workload), Transport(tls=tls)
        self.ends: list[Relay] = []
        workload: Any = self.workload
        target: Any = self.target
        self.relay = Relay(workload, target, idle=60, stall=5, ended=self.ends.append)


def test_bytes_go_both_ways_and_are_counted() -> None:
    stand = Stand()
    stand.relay.start(b"early")
    assert stand.workload.written == b"early"
    stand.workload.protocol.data_received(b"up")
    stand.target.protocol.data_received(b"down")
    assert stand.target.written == b"up"
    assert stand.workload.written == b"earlydown"
    assert (stand.relay.sent, stand.relay.received) == (2, 9)


def test_what_the_workload_said_before_goes_first() -> None:
    stand = Stand()
    stand.relay.start(b"early", said=b"hello", said_all=True)
    assert stand.target.written == b"hello"
    assert stand.target.eof
    assert stand.workload.written == b"early"
    assert (stand.relay.sent, stand.relay.received) == (5, 5)
    assert stand.ends == []
    assert not stand.workload.reading  # nothing more can come
    assert stand.target.reading


def test_who_cannot_take_more_stops_the_other() -> None:
    stand = Stand()
    stand.relay.start()
    stand.target.protocol.pause_writing()
    assert not stand.workload.reading
    assert stand.target.reading
    stand.target.protocol.resume_writing()
    assert stand.workload.reading


def test_one_direction_may_end_before_the_other() -> None:
    stand = Stand()
    stand.relay.start()
    assert stand.workload.protocol.eof_received() is True
    assert stand.target.eof
    assert stand.ends == []
    stand.target.protocol.data_received(b"late")
    assert stand.workload.written == b"late"
    assert stand.target.protocol.eof_received() is None
    assert [relay.outcome for relay in stand.ends] == ["completed"]
    assert stand.workload.closed


@pytest.mark.parametrize("side", ["workload", "target"])
@pytest.mark.parametrize("tls", ["workload", "target"])
def test_where_an_end_can_not_be_passed_on_it_is_the_end_of_all(side: str, tls: str) -> None:
    """A TLS transport has no half-closed state, neither as the one that ends nor as the other."""
    stand = Stand(tls=tls == "target", tls_workload=tls == "workload")
    stand.relay.start()
    ending, other = stand.workload, stand.target
    if side == "target":
        ending, other = other, ending
    assert ending.protocol.eof_received() is None
    assert other.closed
    assert not other.eof
    assert [relay.outcome for relay in stand.ends] == ["completed"]


def test_a_side_that_was_full_before_stops_the_other_from_the_start() -> None:
    stand = Stand()
    stand.relay.workload.full = True
    stand.relay.start()
    assert not stand.target.reading
    assert stand.workload.reading
    assert stand.relay.overdue(time.monotonic() + 5.1) is codes.REQUEST_TIMEOUT
    stand.workload.protocol.resume_writing()
    assert stand.target.reading
    assert stand.relay.overdue(time.monotonic() + 5.1) is None


def test_a_side_that_has_ended_is_not_read_again() -> None:
    stand = Stand()
    stand.relay.start()
    stand.target.protocol.eof_received()
    stand.target.reading = False  # as a transport leaves it
    stand.workload.protocol.pause_writing()
    stand.workload.protocol.resume_writing()
    assert not stand.target.reading


OVERDUE = [
    ("nothing moves", None, False, 59, None),
    ("for too long", None, False, 61, codes.STREAM_IDLE),
    ("the workload does not read", "workload", False, 4, None),
    ("for too long", "workload", False, 6, codes.REQUEST_TIMEOUT),
    ("the target does not read", "target", False, 6, codes.TARGET_TIMEOUT),
    ("one direction has ended", None, True, 4, None),
    ("and the other does not", None, True, 6, codes.STREAM_IDLE),
]


@pytest.mark.parametrize(("name", "full", "ended", "seconds", "code"), OVERDUE)
def test_how_long_nothing_may_move(
    name: str, full: str | None, ended: bool, seconds: float, code: codes.Code | None
) -> None:
    stand = Stand()
    stand.relay.start()
    if full:
        getattr(stand, full).protocol.pause_writing()
        # What goes on in the other direction does not count for this one.
        other = stand.target if full == "target" else stand.workload
        other.protocol.data_received(b"x")
    if ended:
        stand.workload.protocol.eof_received()
    assert stand.relay.overdue(time.monotonic() + seconds) is code, name


def test_a_side_that_takes_a_little_has_its_whole_time_again() -> None:
    stand = Stand()
    stand.relay.start()
    stand.workload.waiting = 100
    stand.workload.protocol.pause_writing()
    now = time.monotonic()
    stand.workload.waiting = 99
    assert stand.relay.overdue(now + 6) is None
    assert stand.relay.overdue(now + 10) is None
    stand.workload.waiting = 98
    assert stand.relay.overdue(now + 12) is None
    assert stand.relay.overdue(now + 18) is codes.REQUEST_TIMEOUT


@pytest.mark.parametrize(
    ("side", "error", "outcome"),
    [
        ("workload", None, "client_closed"),
        ("workload", ConnectionResetError(), "client_closed"),
        ("target", None, "completed"),
        ("target", ConnectionResetError(), "cut"),
    ],
)
def test_a_lost_side_takes_the_other_with_it_once(
    side: str, error: Exception | None, outcome: str
) -> None:
    stand = Stand()
    stand.relay.start()
    lost, other = stand.workload, stand.target
    if side == "target":
        lost, other = other, lost
    lost.closed = True
    lost.protocol.connection_lost(error)
    assert (other.closed, other.aborted) == (error is None, error is not None)
    assert other.lingers == (error is None)
    other.protocol.connection_lost(None)
    assert [relay.outcome for relay in stand.ends] == [outcome]


def test_bytes_for_a_side_that_is_gone_are_thrown_away() -> None:
    stand = Stand()
    stand.relay.start()
    stand.target.closed = True
    stand.workload.protocol.data_received(b"late")
    assert stand.target.written == b""


def test_a_cut_is_no_clean_end_for_anybody() -> None:
    stand = Stand()
    stand.relay.start()
    stand.relay.cut("cut", codes.TARGET_TIMEOUT)
    assert stand.workload.aborted
    assert stand.target.aborted
    assert not stand.workload.lingers
    assert not stand.target.lingers
    [relay] = stand.ends
    assert (relay.outcome, relay.code) == ("cut", codes.TARGET_TIMEOUT)


def test_an_end_that_came_early_is_passed_on_at_the_start() -> None:
    stand = Stand()
    stand.relay.start(b"bye", ended=True)
    assert stand.workload.written == b"bye"
    assert stand.workload.eof
