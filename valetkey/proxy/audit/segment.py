"""One file of the spool: a fixed size, mapped into memory, written from front to back.

    header   64 bytes: magic, boot (16 hex digits), first sequence (u64), link before it (32)
    record   u32 length, SHA-256 of the payload (64 hex digits), payload

A record's SHA-256 is its checksum and the next event's ``prevhash``: one hash, both uses. A
length of zero is the end so far. A record that was only half stored when the process was killed
does not match its checksum: the torn tail.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from valetkey.contracts.events import BOOT

MAGIC: Final = b"VKSPOOL1"
_HEADER: Final = struct.Struct("<8s16sQ32s")
_FRAME: Final = struct.Struct("<I64s")
FRAME_SIZE: Final = _FRAME.size
HEADER_SIZE: Final = _HEADER.size
SUFFIX: Final = ".seg"
TORN: Final = "torn"


def path_of(directory: Path, boot: str, number: int) -> Path:
    """Names sort in the order of writing: boots begin with their time, then come the numbers."""
    return directory / f"{boot}-{number:010d}{SUFFIX}"


class Segment:
    """A segment being written. The file has its full size on disk before the first record."""

    __slots__ = ("_fd", "_map", "end", "path", "size")

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.end = 0
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Blocks are taken now: a full disk is an error here, never a SIGBUS at a store later.
            os.posix_fallocate(self._fd, 0, size)
            self._map = mmap.mmap(self._fd, size)
        except OSError:
            os.close(self._fd)
            path.unlink(missing_ok=True)
            raise

    def begin(self, boot: str, first: int, link: bytes) -> None:
        """Write the header."""
        self._map[:HEADER_SIZE] = _HEADER.pack(MAGIC, boot.encode(), first, link)
        self.end = HEADER_SIZE

    def store(self, payload: bytes, digest: bytes) -> None:
        """Put a record behind the last one; the caller has checked that it fits."""
        start = self.end
        size = len(payload)
        end = self.end = start + FRAME_SIZE + size
        self._map[start:end] = b"%b%b%b" % (size.to_bytes(4, "little"), digest, payload)

    def sync(self) -> None:
        """Bring what was stored to the disk. Blocking, without the GIL (unlike mmap.flush)."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Unmap and close; the file stays."""
        self._map.close()
        os.close(self._fd)


@dataclass(frozen=True, slots=True)
class SpoolRecord:
    """A record as found on disk. ``problem`` is empty, or why ``raw`` is not what was written."""

    boot: str
    seq: int
    raw: bytes
    problem: str = ""


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """Where a segment stands in its boot's chain."""

    boot: str
    first: int
    link: bytes


def read_header(content: bytes) -> SegmentHeader | None:
    """The header, or ``None`` where the file was made but never begun."""
    if len(content) < HEADER_SIZE:
        return None
    magic, boot, first, link = _HEADER.unpack_from(content)
    text = boot.decode("latin-1")
    if magic != MAGIC or not BOOT.fullmatch(text):
        return None
    return SegmentHeader(text, first, link)


def parse_records(
    content: bytes, boot: str, seq: int, *, final: bool
) -> Iterator[tuple[SpoolRecord, int]]:
    """Records in ``content``, numbered from ``seq``, each with the offset behind it.

    ``final`` says that the file ends with ``content``: a record that does not fit is torn then,
    and otherwise left for the next reading.
    """
    at = 0
    while at + FRAME_SIZE <= len(content):
        length, digest = _FRAME.unpack_from(content, at)
        if length == 0:
            return
        payload = content[at + FRAME_SIZE : at + FRAME_SIZE + length]
        at += FRAME_SIZE + length
        if len(payload) < length:
            if final:
                yield SpoolRecord(boot, seq, payload, f"{TORN}: longer than the segment"), at
            return
        if hashlib.sha256(payload).hexdigest().encode() == digest:
            yield SpoolRecord(boot, seq, payload), at
        else:
            behind = content[at : at + FRAME_SIZE]
            what = "corrupt" if any(behind[:4]) else TORN
            yield SpoolRecord(boot, seq, payload, f"{what}: the checksum differs"), at
        seq += 1


def is_full_disk(error: OSError) -> bool:
    """Whether an error means that the disk, or the share of it, is used up."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
