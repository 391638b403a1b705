"""Reading a spool directory: by the shipper, and by ``valetkey audit verify``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from valetkey.contracts.events import BOOT
from valetkey.proxy.audit.segment import (
    HEADER_SIZE,
    SUFFIX,
    SegmentHeader,
    SpoolRecord,
    first_record,
    is_blank,
    parse_records,
    read_header,
)

_CHUNK: Final = 4 << 20


def segments(directory: Path) -> list[Path]:
    """The segment files in the order of writing."""
    return sorted(directory.glob(f"*{SUFFIX}"))


class SegmentTail:
    """Reads one segment in pieces, also while it is being written."""

    __slots__ = ("_offset", "boot", "link", "next", "path")

    def __init__(self, path: Path, header: SegmentHeader) -> None:
        self.path = path
        self.boot = header.boot
        self.link = header.link
        """The hash before the first record; empty where the header is damaged."""
        self.next = header.first
        """The sequence number of the next record to be read."""
        self._offset = HEADER_SIZE

    @classmethod
    def open(cls, path: Path) -> SegmentTail | None:
        """``None`` for a file that holds no record. Raises `OSError`.

        A damaged header costs no record: the name says the boot, the first record its number.
        """
        with path.open("rb") as file:
            written = file.read(HEADER_SIZE)
            header = read_header(written)
            if header is not None:
                return cls(path, header)
            boot = path.name.partition("-")[0]
            if is_blank(written) or not BOOT.fullmatch(boot):
                return None
            first = first_record(file.read(), boot)
        return cls(path, SegmentHeader(boot, first, b"")) if first is not None else None

    def read(self, limit: int, *, until: int | None = None) -> list[SpoolRecord]:
        """At most ``limit`` further records, none beyond sequence ``until``."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            content = file.read(_CHUNK)
            more = file.read(1)
            records = self._take(content, limit, until, whole=not more)
            if not records and more:
                # Something that can't be read, or larger than a chunk: judged on all there is.
                content += more + file.read()
                records = self._take(content, limit, until, whole=True)
        return records

    def _take(
        self, content: bytes, limit: int, until: int | None, *, whole: bool
    ) -> list[SpoolRecord]:
        records: list[SpoolRecord] = []
        start = self._offset
        for record, end in parse_records(content, self.boot, self.next, whole=whole, until=until):
            records.append(record)
            self._offset = start + end
            self.next = record.seq + 1
            if len(records) == limit:
                break
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
