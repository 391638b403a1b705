"""The format of a segment: what is read back after damage of every kind."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valetkey.contracts.events import GENESIS, event_id
from valetkey.proxy.audit import segment
from valetkey.proxy.audit.segment import (
    FRAME_SIZE,
    HEADER_SIZE,
    Segment,
    first_record,
    parse_records,
    read_header,
)

BOOT = "00000000000000a1"


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def event(seq: int, size: int = 200) -> bytes:
    head = f'{{"specversion":"1.0","id":"{event_id(BOOT, seq)}","pad":"'.encode()
    return head + b"x" * (size - len(head) - 2) + b'"}'


def frame(payload: bytes) -> bytes:
    digest = hashlib.sha256(payload).hexdigest().encode()
    return len(payload).to_bytes(4, "little") + digest + payload


def body(count: int, *, room: int = 4096) -> bytearray:
    """The records 1 to ``count``, and zeros behind them."""
    return bytearray(b"".join(frame(event(seq)) for seq in range(1, count + 1)) + bytes(room))


SIZE = len(frame(event(1)))


def read(content: bytes | bytearray, *, seq: int = 1) -> tuple[list[int], dict[int, str]]:
    """Numbers that could be read, and the problem of each that could not."""
    good, bad = [], {}
    for record, _ in parse_records(bytes(content), BOOT, seq, whole=True):
        if record.problem:
            bad[record.seq] = record.problem.partition(":")[0]
        else:
            assert record.raw == event(record.seq)
            good.append(record.seq)
    return good, bad


def _flip(at):
    def damage(content):
        content[at] ^= 0xFF

    return damage


def _zero(start, end):
    def damage(content):
        content[start:end] = bytes(end - start)

    return damage


def _length(record, value):
    def damage(content):
        content[record * SIZE : record * SIZE + 4] = value.to_bytes(4, "little")

    return damage


DAMAGE = {
    "nothing": (lambda _: None, {}),
    "a byte of a payload": (_flip(SIZE + FRAME_SIZE + 9), {2: "corrupt"}),
    "a byte of a checksum": (_flip(SIZE + 9), {2: "corrupt"}),
    "a length of zero": (_length(1, 0), {2: "corrupt"}),
    "a length too small": (_length(1, 17), {2: "corrupt"}),
    "a length too large": (_length(1, 0xFFFFFFFF), {2: "corrupt"}),
    "a length over three records": (_length(1, 3 * SIZE - FRAME_SIZE), {2: "corrupt"}),
    "a hole of a page, as power loss leaves": (
        _zero(SIZE + 30, 4 * SIZE + 50), {2: "corrupt", 3: "corrupt", 4: "corrupt", 5: "corrupt"},
    ),
    "the first record": (_zero(0, SIZE), {1: "corrupt"}),
    "the last record's payload": (_flip(8 * SIZE - 3), {8: "torn"}),
    "the last record's length": (_zero(7 * SIZE, 7 * SIZE + 4), {8: "torn"}),
    "the last record's second half": (_zero(7 * SIZE + 100, 8 * SIZE), {8: "torn"}),
    "one in the middle and the tail": (
        lambda content: (_flip(SIZE + 99)(content), _flip(8 * SIZE - 3)(content)),
        {2: "corrupt", 8: "torn"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "problems"), DAMAGE.values(), ids=DAMAGE)
def test_damage_costs_only_what_it_hit(damage, problems):
    content = body(8)
    damage(content)
    good, bad = read(content)
    assert bad == problems
    assert good == [seq for seq in range(1, 9) if seq not in problems]


@given(st.integers(0, 8 * SIZE - 1), st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_any_changed_byte_loses_one_record_and_never_passes(at, flip):
    content = body(8)
    content[at] ^= flip
    good, bad = read(content)
    hit = at // SIZE + 1
    assert bad == {hit: "torn" if hit == 8 else "corrupt"}
    assert good == [seq for seq in range(1, 9) if seq != hit]


@given(st.integers(0, 8 * SIZE))
@settings(max_examples=200, deadline=None)
def test_any_cut_leaves_a_whole_prefix(at):
    """What a store that was cut short leaves: bytes up to some point, zeros behind."""
    content = body(8)
    content[at:] = bytes(len(content) - at)
    good, bad = read(content)
    whole = at // SIZE
    assert good == list(range(1, whole + 1))
    assert bad == ({whole + 1: "torn"} if content[whole * SIZE : at].strip(b"\0") else {})


@given(st.binary(max_size=600))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_are_never_a_record(content):
    good, _ = read(content)
    assert good == []


def test_what_may_go_on_behind_a_chunk_is_left_for_a_reading_that_has_it():
    content = bytes(body(4, room=0))
    for cut in range(3 * SIZE, 4 * SIZE):
        records = list(parse_records(content[:cut], BOOT, 1, whole=False))
        assert [record.seq for record, _ in records] == [1, 2, 3]
        assert records[-1][1] == 3 * SIZE


def test_nothing_beyond_until_is_looked_at():
    content = body(8)
    _flip(5 * SIZE + 80)(content)
    records = [record for record, _ in parse_records(bytes(content), BOOT, 1, whole=True, until=5)]
    assert [record.seq for record in records] == [1, 2, 3, 4, 5]
    assert not any(record.problem for record in records)


def test_a_number_that_can_not_be_there_is_not_believed():
    """A whole record that claims a far number would have millions declared lost."""
    content = bytearray(frame(event(1)) + frame(event(2)) + frame(event(10_000)) + bytes(200))
    _flip(SIZE + 99)(content)
    _flip(SIZE + 1)(content)
    assert read(content) == ([1], {2: "torn"})


def test_the_first_record_is_found_without_a_header():
    assert first_record(bytes(60) + bytes(body(2)), BOOT) == 1
    assert first_record(bytes(300), BOOT) is None


def test_a_segment_is_written_as_it_is_read(tmp_path):
    written = Segment(tmp_path / "a.seg", 8192)
    written.begin(BOOT, 7, bytes.fromhex(GENESIS))
    written.store(event(7), hashlib.sha256(event(7)).hexdigest().encode())
    written.flush()
    written.sync()
    written.close()
    content = (tmp_path / "a.seg").read_bytes()
    header = read_header(content)
    assert (header.boot, header.first, header.link.hex()) == (BOOT, 7, GENESIS)
    assert len(content) == 8192
    assert (tmp_path / "a.seg").stat().st_mode & 0o777 == 0o600
    records = list(parse_records(content[HEADER_SIZE:], BOOT, 7, whole=True))
    assert [(record.seq, record.raw) for record, _ in records] == [(7, event(7))]


def test_a_file_that_can_not_have_its_space_is_not_left_behind(tmp_path, monkeypatch):
    def full(_fd, _offset, _size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(segment.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space") as caught:
        Segment(tmp_path / "a.seg", 8192)
    assert segment.is_full_disk(caught.value)
    assert list(tmp_path.iterdir()) == []


HEADERS = {
    "empty": b"",
    "short": b"VKSPOOL1",
    "zeros": bytes(64),
    "another magic": b"VKSPOOL2" + BOOT.encode() + bytes(40),
    "a boot that is none": b"VKSPOOL1" + b"Z" * 16 + bytes(40),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_what_is_no_header(content):
    assert read_header(content) is None


def test_a_record_is_brought_to_disk_without_opening_anything(tmp_path, monkeypatch):
    """A descriptor that can't be had then would leave nobody knowing what is on disk."""
    made = Segment(tmp_path / "a", 4096)
    made.begin(BOOT, 1, bytes(32))
    before = open_files()

    def refuse(*_args, **_more):
        raise OSError(errno.EMFILE, "no descriptor")

    with monkeypatch.context() as patched:
        patched.setattr(segment.os, "open", refuse)
        made.flush()
        made.sync()
        made.sync()
    assert open_files() == before - 1  # the directory's is not needed again
    made.close()
    assert open_files() == before - 2


@pytest.mark.parametrize("step", ["directory", "file", "room"])
def test_a_segment_that_can_not_be_made_leaves_nothing(step, tmp_path, monkeypatch):
    before = open_files()
    real, calls = os.open, iter(["directory", "file"])

    def limited(*args, **more):
        if next(calls) == step:
            raise OSError(errno.EMFILE, "no descriptor")
        return real(*args, **more)

    def full(*_args):
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as patched:
        patched.setattr(segment.os, "open", limited)
        if step == "room":
            patched.setattr(segment.os, "posix_fallocate", full)
        with pytest.raises(OSError, match=r"no (descriptor|room)"):
            Segment(tmp_path / "a", 4096)
    assert open_files() == before
    assert list(tmp_path.iterdir()) == []
