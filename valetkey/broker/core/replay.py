"""Identifiers that may be used once, remembered until they could not be used anyway.

Invariants:

- An identifier is never forgotten before its expiry. A full memory refuses new ones instead: to
  forget would be to accept a replay.
- Cost per call does not depend on how many are remembered.
"""

from __future__ import annotations

import hashlib
import heapq
from enum import Enum


class Use(Enum):
    """What came of an attempt to use an identifier."""

    FIRST = "first"
    REPLAYED = "replayed"
    NO_ROOM = "no_room"


class ReplayMemory:
    """Remembers at most ``capacity`` identifiers, about 250 bytes each."""

    __slots__ = ("_by_expiry", "_capacity", "_known")

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("capacity must be positive")
        self._capacity = capacity
        self._known: set[bytes] = set()
        self._by_expiry: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._known)

    def use(self, *identifier: str, expires: float, now: float) -> Use:
        """Use ``identifier`` (all parts together); only `Use.FIRST` means that it is good."""
        while self._by_expiry and self._by_expiry[0][0] <= now:
            self._known.discard(heapq.heappop(self._by_expiry)[1])
        # A digest bounds what a long identifier costs; parts are length-prefixed, so that no two
        # splits of the same text meet.
        joined = "".join(f"{len(part)}:{part}" for part in identifier)
        key = hashlib.sha256(joined.encode()).digest()[:16]
        if key in self._known:
            return Use.REPLAYED
        if len(self._known) >= self._capacity:
            return Use.NO_ROOM
        self._known.add(key)
        heapq.heappush(self._by_expiry, (expires, key))
        return Use.FIRST
