"""Verifying a sidecar's spool offline: what is on disk of events that were not yet delivered.

Segments that the collector acknowledged are gone, so a boot may begin late here. Everything else
must be whole: also a header, and the zeros behind the last record, where a changed length would
otherwise cut the log unseen.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from valetkey.cli.audit.record import RecordUnavailable
from valetkey.cli.audit.verify import Verdict
from valetkey.collector.core.verification import BootVerifier, Entry, Verification
from valetkey.contracts import events
from valetkey.proxy.audit.reader import read_segment, read_spool, segments
from valetkey.proxy.audit.segment import FRAME_SIZE, HEADER_SIZE, TORN, SpoolRecord, read_header

_CHUNK: Final = 1 << 20


def verify_spool(directory: Path) -> Verdict:
    """Verify a spool directory. Raises `RecordUnavailable`."""
    verification = Verification(partial=True)
    damage: list[str] = []
    boots: dict[str, BootVerifier] = {}
    try:
        source = _source(read_spool(directory))
        for path in segments(directory):
            with path.open("rb") as file:
                written = file.read(HEADER_SIZE)
            header = read_header(written)
            if header is None:
                if any(written):
                    damage.append(f"{path.name}: the segment's header can't be read")
                continue
            verifier = boots.get(header.boot)
            if verifier is None:
                verifier = boots[header.boot] = verification.boot(source, header.boot)
            damage += _segment(path, verifier, header.link.hex())
    except OSError as error:
        raise RecordUnavailable(f"{directory} can't be read: {error}") from error
    return Verdict(verification.finish(), damage, [])


def _segment(path: Path, verifier: BootVerifier, link: str) -> list[str]:
    damage = []
    end = HEADER_SIZE
    whole = True
    for record in read_segment(path):
        if end == HEADER_SIZE and not record.problem and _prevhash(record.raw) != link:
            damage.append(f"{path.name}: the header's link differs from the first event's")
        torn = record.problem.startswith(TORN)
        verifier.feed(Entry(record.seq, record.raw, problem=record.problem, torn=torn))
        end += FRAME_SIZE + len(record.raw)
        whole = whole and not record.problem
    # Where a record can't be read, that is said already, and where it ends nobody knows.
    if whole and not _only_zeros(path, end):
        damage.append(f"{path.name}: there are bytes behind the end of the log, at {end}")
    return damage


def _source(records: Iterable[SpoolRecord]) -> str:
    """The source that the first readable event names; a spool belongs to one."""
    for record in records:
        try:
            return events.read(record.raw).source
        except events.EventInvalid:
            continue
    return ""


def _prevhash(raw: bytes) -> str:
    try:
        return events.read(raw).prevhash
    except events.EventInvalid:
        return ""  # the chain's check names it


def _only_zeros(path: Path, start: int) -> bool:
    with path.open("rb") as file:
        file.seek(start)
        while chunk := file.read(_CHUNK):
            if any(chunk):
                return False
    return True
