"""Verifying the record from the exact bytes of its events, and from nothing else.

What the store says about events (hashes, columns, gaps, counts) is compared with the bytes, never
believed. What holds, holds because the events say so:

- Every event is one of this schema, has the hash that was stored with it, and continues the
  event before it; the first of a boot continues the genesis.
- No event is missing, unless the source itself declared it lost.
- A boot ended where the next boot of its source says that it did. That is what shows a cut tail.

The end of the latest boot of a source is stated by nothing in the record: what was cut there
shows when the sidecar starts again, or against the head that the collector keeps.

A decision without an outcome is a call that was cut by a crash, or one that is still going on:
that is reported, and no fault of the record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from valetkey.collector.core import columns, statements
from valetkey.collector.core.coverage import Range
from valetkey.collector.core.statements import Declaration, PreviousBoot
from valetkey.contracts import events
from valetkey.contracts.events import ChainHead, Envelope, EventInvalid

# After a power loss a sidecar may know fewer events of its last boot than it delivered: what one
# commit interval holds, some hundreds. Kept per boot, so not generous.
_TAIL: Final = 4096


@dataclass(frozen=True, slots=True)
class Entry:
    """One event as it was found.

    ``seq`` is where it was filed. ``hash`` and ``columns`` (by name) are what was stored beside it,
    where anything was. ``problem`` says why its bytes can't be read, ``torn`` that they look like a
    write that a crash cut short.
    """

    seq: int
    raw: bytes
    hash: str | None = None
    columns: Mapping[str, object] | None = None
    problem: str = ""
    torn: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """What the store says about a boot as a whole."""

    count: int
    head_seq: int
    head_hash: str


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something that does not hold, and where. ``seq`` is 0 where it is the boot as a whole."""

    source: str
    boot: str
    seq: int
    reason: str


@dataclass(slots=True)
class BootReport:
    """One boot: what was found, what is missing, what does not hold."""

    source: str
    boot: str
    count: int = 0
    first: int = 0
    head: ChainHead = field(default_factory=lambda: ChainHead("", 0, events.GENESIS))
    missing: list[Range] = field(default_factory=list)
    lost: int = 0
    unanswered: int = 0
    ended_by: str = ""
    problems: list[Problem] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not self.problems


class BootVerifier:
    """Takes the events of one boot in ascending order."""

    def __init__(self, source: str, boot: str, *, partial: bool, known: Known | None) -> None:
        self.report = BootReport(source, boot, head=ChainHead(boot, 0, events.GENESIS))
        self.declarations: list[Declaration] = []
        self.previous: list[PreviousBoot] = []
        self.torn = 0
        self.tail: deque[tuple[int, str]] = deque(maxlen=_TAIL)
        self._partial = partial
        self._known = known
        self._open: set[int] = set()

    def feed(self, entry: Entry) -> None:
        report = self.report
        if self.torn:  # a crash ends a log: behind it there would be nothing
            self._problem(self.torn, "a write was cut short, and the log goes on behind it")
            self.torn = 0
        if entry.torn:
            self.torn = entry.seq
            return
        if entry.problem:
            self._problem(entry.seq, entry.problem)
            return
        if report.count == 0:
            report.first = entry.seq
        report.count += 1
        event = self._read(entry)
        self._step_over(entry, event)
        before = len(report.problems)
        report.head, breaks = events.check_chain(report.boot, [entry.raw], after=report.head)
        for broken in breaks:
            self._problem(broken.seq, broken.reason)
        if report.head.seq != entry.seq and len(report.problems) == before:
            self._problem(entry.seq, "the event is filed under another number than its own")
        if entry.hash is not None and entry.hash != report.head.hash:
            self._problem(entry.seq, "the event's bytes differ from the hash stored with them")
        self.tail.append((report.head.seq, report.head.hash))
        if event is not None:
            self._heed(entry, event)

    def finish(self) -> None:
        """All events were fed: compare with what the store says of the boot."""
        report, known = self.report, self._known
        report.unanswered = len(self._open)
        if known is None:
            return
        # More than were counted may have arrived since.
        if report.count < known.count:
            self._problem(0, f"{known.count} events were stored, {report.count} are here")
        if (report.head.seq, report.head.hash) != (
            known.head_seq,
            known.head_hash or events.GENESIS,
        ):
            self._problem(
                known.head_seq, "the last event is not the one that the collector stored last"
            )

    def _read(self, entry: Entry) -> Envelope | None:
        try:
            return events.read(entry.raw)
        except EventInvalid:
            return None  # `check_chain` reports it

    def _step_over(self, entry: Entry, event: Envelope | None) -> None:
        """Note what is missing before this event; then its link can't be checked."""
        head = self.report.head
        if entry.seq <= head.seq + 1:
            return
        starts_late = self.report.count == 1 and self._partial
        if not starts_late:
            self.report.missing.append(Range(head.seq + 1, entry.seq - 1))
        link = event.prevhash if event is not None else events.GENESIS
        self.report.head = ChainHead(self.report.boot, entry.seq - 1, link)

    def _heed(self, entry: Entry, event: Envelope) -> None:
        if event.source != self.report.source:
            self._problem(entry.seq, f"the event is of another source, {event.source}")
        try:
            data = events.data_of(event)
        except (EventInvalid, RecursionError):
            self._problem(entry.seq, "the event's data is not a JSON object")
            return
        found = columns.extract(event.type, event.boot, event.time, data)
        kept = entry.columns or {}
        if any(getattr(found, name) != value for name, value in kept.items()):
            self._problem(entry.seq, "the columns stored beside the event differ from the event")
        if event.type == events.TYPE_DECISION:
            self._open.add(entry.seq)
        elif event.type == events.TYPE_OUTCOME:
            self._open.discard(found.answers)
        elif event.type == events.TYPE_GAP and (stated := statements.declaration(data)):
            self.declarations.append(stated)
        elif event.type == events.TYPE_BOOT and (before := statements.previous_boot(data)):
            self.previous.append(before)

    def _problem(self, seq: int, reason: str) -> None:
        self.report.problems.append(Problem(self.report.source, self.report.boot, seq, reason))


class Verification:
    """Verifies any number of sources, each boot once.

    ``partial``: the events are what is left of a record (a spool, whose delivered part is gone),
    so a boot may begin late and an earlier boot may be gone entirely.
    """

    def __init__(self, *, partial: bool = False) -> None:
        self._partial = partial
        self._boots: dict[str, dict[str, BootVerifier]] = {}

    def boot(self, source: str, boot: str, *, known: Known | None = None) -> BootVerifier:
        """The verifier of a boot, for its events."""
        verifier = BootVerifier(source, boot, partial=self._partial, known=known)
        self._boots.setdefault(source, {})[boot] = verifier
        return verifier

    def finish(self) -> list[BootReport]:
        """All events were fed: what was found, per boot, in the order of `boot` calls."""
        for boots in self._boots.values():
            for verifier in boots.values():
                verifier.finish()
            _settle_gaps(boots)
            self._settle_ends(boots)
        return [verifier.report for boots in self._boots.values() for verifier in boots.values()]

    def _settle_ends(self, boots: dict[str, BootVerifier]) -> None:
        """Compare the end of each boot with what the boot after it states."""
        torn_by_crash = set()
        for verifier in boots.values():
            for stated in verifier.previous:
                torn_by_crash.add(stated.boot)
                before = boots.get(stated.boot)
                if before is not None and self._partial and not before.report.count:
                    # Nothing of it is left but what a crash cut short.
                    if 0 < before.torn <= stated.seq:
                        before._problem(before.torn, "the next boot knew this event whole")
                elif before is not None:
                    before.report.ended_by = verifier.report.boot
                    _compare_end(before, stated, declared=_declared(boots, stated.boot))
                elif stated.seq and not self._partial:
                    lost = _declared(boots, stated.boot)
                    if without([Range(1, stated.seq)], lost):
                        verifier._problem(1, f"the boot before, {stated.boot}, is not on record")
        for name, verifier in boots.items():
            if verifier.torn and name not in torn_by_crash:
                verifier._problem(
                    verifier.torn, "the last write was cut short, and no later boot knows of it"
                )


def _settle_gaps(boots: dict[str, BootVerifier]) -> None:
    """What is missing and was not declared lost is an open gap."""
    for verifier in boots.values():
        for stated in verifier.declarations:
            about = boots.get(stated.boot)
            if about is not None:
                about.report.lost += stated.lost
    for name, verifier in boots.items():
        verifier.report.missing = without(verifier.report.missing, _declared(boots, name))
        for gap in verifier.report.missing:
            verifier._problem(gap.first, f"events {gap.first} to {gap.last} are missing")


def _compare_end(before: BootVerifier, stated: PreviousBoot, *, declared: list[Range]) -> None:
    head = before.report.head
    if head.seq < stated.seq:
        for gap in without([Range(head.seq + 1, stated.seq)], declared):
            before._problem(
                gap.first, f"the end is cut: events {gap.first} to {gap.last} are missing"
            )
        return
    # More than was stated: the sidecar lost them in a power loss after it had delivered them.
    hashes = [hash_ for seq, hash_ in before.tail if seq == stated.seq]
    gone = any(gap.first <= stated.seq <= gap.last for gap in declared)
    if stated.seq and hashes != [stated.hash] and not (gone and not hashes):
        before._problem(stated.seq, "the event differs from what the next boot states of it")


def _declared(boots: dict[str, BootVerifier], boot: str) -> list[Range]:
    return [
        stated.range
        for verifier in boots.values()
        for stated in verifier.declarations
        if stated.boot == boot and stated.range is not None
    ]


def without(ranges: Iterable[Range], taken: Iterable[Range]) -> list[Range]:
    """``ranges`` less everything in ``taken``."""
    left = list(ranges)
    for away in taken:
        left = [part for whole in left for part in _less(whole, away)]
    return left


def _less(whole: Range, away: Range) -> Iterator[Range]:
    if away.last < whole.first or away.first > whole.last:
        yield whole
        return
    if whole.first < away.first:
        yield Range(whole.first, away.first - 1)
    if whole.last > away.last:
        yield Range(away.last + 1, whole.last)
