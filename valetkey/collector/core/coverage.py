"""Which events of a boot are known to exist, which are here, and what may be acknowledged.

A boot numbers its events 1, 2, 3, … . An event is *known to exist* when it, a later one, a
declaration of loss or the next boot's statement says so. Known and not here is a *hole*. Every
hole descends from one *gap*: the range that was missing when the hole was first seen. A gap is
over when none of its holes is left, because events filled them or a declaration gave them up.

Invariants:

- Holes are disjoint, ascending, within 1..high, and never touch an event that was added.
- ``acked`` is the highest number up to which nothing is missing; it never falls, since ``add``
  and ``declare`` only take from holes and new holes open above ``high``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

# A sidecar delivers in order; holes come from damaged spool records, one gap each. More than
# this at once is not a sidecar's doing, and each costs every later batch of the boot.
MAX_HOLES: Final = 1000

# The largest integer that SQLite keeps; a sidecar at 50,000 events/s needs 5.8 million years.
MAX_SEQUENCE: Final = 2**63 - 1


class TooManyHoles(Exception):  # noqa: N818 - reads as what it is
    """The boot would have more than `MAX_HOLES` holes at once."""


@dataclass(frozen=True, slots=True)
class Range:
    """Sequence numbers ``first`` to ``last``, both included."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Hole:
    """Missing events ``first`` to ``last`` of the gap ``gap``."""

    first: int
    last: int
    gap: int


def runs(sequences: Iterable[int]) -> list[Range]:
    """Ascending, distinct sequence numbers as maximal contiguous ranges."""
    found: list[Range] = []
    first = last = 0
    for seq in sequences:
        if first and seq == last + 1:
            last = seq
            continue
        if first:
            found.append(Range(first, last))
        first = last = seq
    if first:
        found.append(Range(first, last))
    return found


@dataclass(slots=True)
class Coverage:
    """The state of one boot, and what changed since it was read.

    ``opened`` are the gaps that are new, under negative keys until the store gives them real
    ones; ``given_up`` says how many missing events were declared lost, by gap.
    """

    high: int = 0
    holes: list[Hole] = field(default_factory=list)
    opened: list[Hole] = field(default_factory=list)
    given_up: Counter[int] = field(default_factory=Counter)

    @property
    def acked(self) -> int:
        return self.holes[0].first - 1 if self.holes else self.high

    @property
    def gaps(self) -> frozenset[int]:
        """The gaps that are not over."""
        return frozenset(hole.gap for hole in self.holes)

    def add(self, arrived: Range) -> None:
        """These events are here."""
        self.expect(arrived.first - 1)
        self._take(arrived)
        self.high = max(self.high, arrived.last)

    def expect(self, seq: int) -> None:
        """Events up to ``seq`` are known to exist."""
        if seq > self.high:
            gap = Hole(self.high + 1, seq, -1 - len(self.opened))
            self.opened.append(gap)
            self.holes.append(gap)
            self.high = seq

    def declare(self, lost: Range) -> None:
        """These events are given up: whatever of them is missing is missing for good."""
        self.expect(lost.last)
        self.given_up.update(self._take(lost))

    def _take(self, taken: Range) -> Counter[int]:
        rest: list[Hole] = []
        found: Counter[int] = Counter()
        for hole in self.holes:
            if hole.last < taken.first or hole.first > taken.last:
                rest.append(hole)
                continue
            found[hole.gap] += min(hole.last, taken.last) - max(hole.first, taken.first) + 1
            if hole.first < taken.first:
                rest.append(Hole(hole.first, taken.first - 1, hole.gap))
            if hole.last > taken.last:
                rest.append(Hole(taken.last + 1, hole.last, hole.gap))
        if len(rest) > MAX_HOLES:
            raise TooManyHoles
        self.holes = rest
        return found
