"""One file of the spool: of a fixed size, written from front to back.

    header   64 bytes: magic, boot (16 hex digits), first sequence (u64), link before it (32)
    record   u32 length, SHA-256 of the payload (64 hex digits), payload

A record's SHA-256 is its checksum and the next event's ``prevhash``: one hash, both uses. A
length of zero is the end so far. A record that was only half stored when the process was killed
does not match its checksum: the torn tail.

Reading never trusts a length further than the checksum behind it holds, and one damaged record
costs no other one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from valetkey.contracts.events import BOOT

MAGIC: Final = b"VKSPOOL1"
_HEADER: Final = struct.Struct("<8s16sQ32s")
_FRAME: Final = struct.Struct("<I64s")
FRAME_SIZE: Final = _FRAME.size
HEADER_SIZE: Final = _HEADER.size
SUFFIX: Final = ".seg"
TORN: Final = "torn"
# How the recorder begins every event: what a search for the next whole record looks for.
_EVENT: Final = b'{"specversion":"1.0","id":"%b-'


def path_of(directory: Path, boot: str, number: int) -> Path:
    """Names sort in the order of writing: boots begin with their time, then come the numbers."""
    return directory / f"{boot}-{number:010d}{SUFFIX}"


class Segment:
    """A segment being written. The file has its full size on disk before the first record.

    What was stored is in memory until `flush` hands it to the kernel, all of it in one call.
    """

    __slots__ = ("_directory", "_fd", "_flushed", "_stored", "end", "path", "size")

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.end = 0
        self._stored: list[bytes] = []
        self._flushed = 0
        # Open until the file's name is on disk (fsync(2): it is once its directory is). Everything
        # is opened now: a descriptor that can't be had is an error here, before any call depends
        # on it, and none of bringing a record to the disk.
        self._directory: int | None = os.open(
            path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        )
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:
            os.close(self._directory)
            raise
        try:
            # Blocks are taken now, too, for the same reason.
            os.posix_fallocate(self._fd, 0, size)
        except OSError:
            self.close()
            path.unlink(missing_ok=True)
            raise

    def begin(self, boot: str, first: int, link: bytes) -> None:
        """Store the header."""
        self._stored.append(_HEADER.pack(MAGIC, boot.encode(), first, link))
        self.end = HEADER_SIZE

    def store(self, payload: bytes, digest: bytes) -> None:
        """Put a record behind the last one; the caller has checked that it fits."""
        size = len(payload)
        self.end += FRAME_SIZE + size
        self._stored.append(_FRAME.pack(size, digest))
        self._stored.append(payload)

    def flush(self) -> None:
        """Hand what was stored to the kernel, which then has it whatever becomes of us.

        Raises `OSError`; what is there of it is then unknown.
        """
        stored, self._stored = self._stored, []
        content = b"".join(stored)
        while content:
            written = os.pwrite(self._fd, content, self._flushed)
            if written == 0:
                raise OSError(errno.EIO, "nothing was written")
            self._flushed += written
            content = content[written:]

    def sync(self) -> None:
        """Bring what was flushed to the disk. Blocking, without the GIL."""
        os.fdatasync(self._fd)
        directory = self._directory
        if directory is not None:
            os.fsync(directory)
            self._directory = None
            os.close(directory)

    def close(self) -> None:
        """Close; the file stays."""
        os.close(self._fd)
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None


class SpoolRecord(NamedTuple):
    """A record as found on disk. ``problem`` is empty, or why ``raw`` is not what was written."""

    boot: str
    seq: int
    raw: bytes
    problem: str = ""


class SegmentHeader(NamedTuple):
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


def is_blank(content: bytes) -> bool:
    """Whether a header was never written: the file was prepared and not begun."""
    return not content.strip(b"\0")


def parse_records(
    content: bytes, boot: str, seq: int, *, whole: bool, until: int | None = None
) -> Iterator[tuple[SpoolRecord, int]]:
    """Records in ``content``, numbered from ``seq`` to ``until``, each with the offset behind it.

    ``whole`` says that the segment ends with ``content``; otherwise whatever can't be read is
    left for a reading that has all of it.

    A record that can't be read is lost if a readable one stands behind it, and torn if none does:
    the last store was cut short. Nothing behind it is given up for it, whatever it looks like:
    a changed length, a page of zeros (what a power loss can leave), any other bytes.
    """
    at = 0
    while until is None or seq <= until:
        payload = _payload_at(content, at)
        if payload is not None:
            at += FRAME_SIZE + len(payload)
            yield SpoolRecord(boot, seq, payload), at
            seq += 1
            continue
        if not whole or is_blank(content[at:]):
            return
        found = _resume(content, at, boot, seq)
        if found is None:
            yield SpoolRecord(boot, seq, _stated(content, at), f"{TORN}: cut short"), len(content)
            return
        behind, following = found
        alone = _stated(content, at) if following == seq + 1 else b""
        raw = alone if at + FRAME_SIZE + len(alone) == behind else b""
        for lost in range(seq, following):
            # Only the last one moves on: a reading that ends before it begins here once more.
            end = behind if lost == following - 1 else at
            yield SpoolRecord(boot, lost, raw, "corrupt: the checksum differs"), end
        at, seq = behind, following


def first_record(content: bytes, boot: str) -> int | None:
    """The number of the first readable record, for a segment whose header is damaged."""
    found = _search(content, 0, boot)
    return found[1] if found is not None else None


def _payload_at(content: bytes, at: int) -> bytes | None:
    """The payload of the record that begins here, if it is one and whole."""
    if at + FRAME_SIZE > len(content):
        return None
    length, digest = _FRAME.unpack_from(content, at)
    end = at + FRAME_SIZE + length
    if length == 0 or end > len(content):
        return None
    payload = content[at + FRAME_SIZE : end]
    return payload if hashlib.sha256(payload).hexdigest().encode() == digest else None


def _stated(content: bytes, at: int) -> bytes:
    """What a damaged record's length claims as its payload; nothing if that can't be."""
    if at + FRAME_SIZE > len(content):
        return b""
    end = at + FRAME_SIZE + int(_FRAME.unpack_from(content, at)[0])
    return content[at + FRAME_SIZE : end] if end <= len(content) else b""


def _resume(content: bytes, at: int, boot: str, seq: int) -> tuple[int, int] | None:
    """Offset and number of the next readable record behind a damaged one."""
    found = _search(content, at, boot)
    # Each lost record took up a frame at least; a number beyond that is not of this place.
    while found is not None and not seq <= found[1] <= seq + (found[0] - at) // FRAME_SIZE:
        found = _search(content, found[0] + FRAME_SIZE, boot)
    if found is None:
        behind = at + FRAME_SIZE + len(_stated(content, at))
        if _payload_at(content, behind) is not None:
            return behind, seq + 1
    return found


def _search(content: bytes, at: int, boot: str) -> tuple[int, int] | None:
    """Offset and number of the next whole record that begins as an event of this boot does."""
    marker = _EVENT % boot.encode()
    place = content.find(marker, at + FRAME_SIZE)
    while place >= 0:
        payload = _payload_at(content, place - FRAME_SIZE)
        number = _number(payload, boot) if payload is not None else None
        if number is not None:
            return place - FRAME_SIZE, number
        place = content.find(marker, place + 1)
    return None


def _number(payload: bytes, boot: str) -> int | None:
    """The sequence number that an event's id states."""
    marker = _EVENT % boot.encode()
    if not payload.startswith(marker):
        return None
    digits = payload[len(marker) : len(marker) + 20].partition(b'"')[0]
    return int(digits) if digits.isdigit() else None


def is_full_disk(error: OSError) -> bool:
    """Whether an error means that the disk, or the share of it, is used up."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
