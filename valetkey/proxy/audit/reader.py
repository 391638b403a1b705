"""Reading a spool directory: by the shipper, and by ``valetkey audit verify``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from valetkey.proxy.audit.segment import (
    HEADER_SIZE,
    SUFFIX,
    SegmentHeader,
    SpoolRecord,
    parse_records,
    read_header,
)

_CHUNK: Final = 4 << 20


def segments(directory: Path) -> list[Path]:
    """The segment files in the order of writing."""
    return sorted(directory.glob(f"*{SUFFIX}"))


class SegmentTail:
    """Reads one segment in pieces, also while it is being written."""

    __slots__ = ("_offset", "boot", "next", "path")

    def __init__(self, path: Path, header: SegmentHeader) -> None:
        self.path = path
        self.boot = header.boot
        self.next = header.first
        """The sequence number of the next record to be read."""
        self._offset = HEADER_SIZE

    @classmethod
    def open(cls, path: Path) -> SegmentTail | None:
        """``None`` for a file that was prepared but never begun. Raises `OSError`."""
        with path.open("rb") as file:
            header = read_header(file.read(HEADER_SIZE))
        return cls(path, header) if header is not None else None

    def read(self, limit: int, *, until: int | None = None) -> list[SpoolRecord]:
        """At most ``limit`` further records, none beyond sequence ``until``."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            content = file.read(_CHUNK)
            final = not file.read(1)
        records: list[SpoolRecord] = []
        start = self._offset
        for record, end in parse_records(content, self.boot, self.next, final=final):
            if len(records) == limit or (until is not None and record.seq > until):
                break
            records.append(record)
            self._offset = start + end
            self.next = record.seq + 1
        return records


def read_segment(path: Path) -> Iterator[SpoolRecord]:
    """All records of one segment; none where it was never begun."""
    tail = SegmentTail.open(path)
    while tail is not None:
        records = tail.read(10_000)
        if not records:
            return
        yield from records


def read_spool(directory: Path) -> Iterator[SpoolRecord]:
    """All records of a spool. Raises `OSError` for what can't be read."""
    for path in segments(directory):
        yield from read_segment(path)
