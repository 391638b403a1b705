"""Checking the hash chain as events arrive, also out of order.

Only links between two stored events say anything: the event behind a hole is judged when the
hole is filled. Offline verification reads the bytes again (`verification`); here the envelopes
are at hand already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from valetkey.contracts.events import GENESIS

NOT_LINKED: Final = "the event's link differs from the event before it"
NOT_GENESIS: Final = "the first event is not linked to the genesis"


class Link(msgspec.Struct, frozen=True, gc=False):
    """The place of one event: its own hash, and the hash that it names as the one before."""

    seq: int
    hash: str
    prevhash: str


@dataclass(frozen=True, slots=True)
class Break:
    """Event ``seq`` does not continue the event before it."""

    seq: int
    reason: str


def neighbours(sequences: Iterable[int]) -> list[int]:
    """The sequence numbers next to these, which `check` needs where they are stored."""
    new = set(sequences)
    near = {seq + step for seq in new for step in (-1, 1)}
    return sorted(near - new - {0})


def check(new: Sequence[Link], stored: Mapping[int, Link]) -> list[Break]:
    """Breaks between ``new`` (ascending) and its neighbours, ``stored`` ones included."""
    here = dict(stored)
    here.update((link.seq, link) for link in new)
    breaks = []
    for link in new:
        if link.seq == 1:
            if link.prevhash != GENESIS:
                breaks.append(Break(1, NOT_GENESIS))
        elif (before := here.get(link.seq - 1)) and before.hash != link.prevhash:
            breaks.append(Break(link.seq, NOT_LINKED))
        after = stored.get(link.seq + 1)
        if after and after.prevhash != link.hash:
            breaks.append(Break(after.seq, NOT_LINKED))
    return breaks
