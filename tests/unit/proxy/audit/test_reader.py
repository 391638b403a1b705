"""Reading segments in pieces, while they are written and after damage."""

from __future__ import annotations

from valetkey.proxy.audit import reader
from valetkey.proxy.audit.reader import SegmentTail, read_segment, read_spool, segments
from valetkey.proxy.audit.segment import HEADER_SIZE, Segment


def numbers(records):
    return [record.seq for record in records]


def test_in_pieces_and_while_it_is_written(bench):
    spool = bench.spool()
    for _ in range(5):
        bench.append(spool)
    tail = SegmentTail.open(spool.current_path)
    assert numbers(tail.read(2)) == [1, 2]
    assert numbers(tail.read(10, until=4)) == [3, 4]
    assert numbers(tail.read(10)) == [5]
    assert tail.read(10) == []
    bench.append(spool)
    assert numbers(tail.read(10)) == [6]


def test_a_chunk_smaller_than_a_record_costs_nothing(bench, monkeypatch):
    spool = bench.spool()
    for _ in range(3):
        bench.append(spool, size=900)
    monkeypatch.setattr(reader, "_CHUNK", 100)
    assert numbers(read_segment(spool.current_path)) == [1, 2, 3]


def test_damage_at_the_end_of_a_chunk_hides_nothing_behind_it(bench, monkeypatch):
    spool = bench.spool()
    for _ in range(6):
        bench.append(spool, size=900)
    path = spool.current_path
    with path.open("r+b") as file:
        file.seek(HEADER_SIZE + (900 + 68) * 2)
        file.write(b"\xff\xff\xff\xff")  # the third record's length
    monkeypatch.setattr(reader, "_CHUNK", 2500)
    records = list(read_segment(path))
    assert numbers(records) == [1, 2, 3, 4, 5, 6]
    assert [record.seq for record in records if record.problem] == [3]


def test_a_range_of_lost_records_may_be_read_in_pieces(bench):
    spool = bench.spool()
    for _ in range(8):
        bench.append(spool, size=900)
    path = spool.current_path
    with path.open("r+b") as file:
        file.seek(HEADER_SIZE + 968 + 20)
        file.write(bytes(968 * 4))
    tail = SegmentTail.open(path)
    pieces = []
    while piece := tail.read(2):
        pieces.append([(record.seq, bool(record.problem)) for record in piece])
    assert pieces == [
        [(1, False), (2, True)], [(3, True), (4, True)], [(5, True), (6, True)],
        [(7, False), (8, False)],
    ]  # fmt: skip


def test_a_damaged_header_costs_no_record(bench):
    spool = bench.spool()
    for _ in range(3):
        bench.append(spool)
    with spool.current_path.open("r+b") as file:
        file.write(b"\xff" * HEADER_SIZE)
    records = list(read_segment(spool.current_path))
    assert numbers(records) == [1, 2, 3]
    assert [record.raw for record in records] == bench.written


def test_a_segment_that_was_never_begun_holds_nothing(tmp_path):
    Segment(tmp_path / "00000000000000a1-0000000001.seg", 4096).close()
    assert SegmentTail.open(tmp_path / "00000000000000a1-0000000001.seg") is None
    assert list(read_spool(tmp_path)) == []


def test_segments_come_in_the_order_of_writing(bench):
    for _ in range(2):
        spool = bench.spool()
        for _ in range(3):
            bench.append(spool, size=40_000)
        spool._current.close()
        import os

        os.close(spool._lock)
    assert len(segments(bench.directory)) >= 6
    assert [record.raw for record in read_spool(bench.directory)] == bench.written
