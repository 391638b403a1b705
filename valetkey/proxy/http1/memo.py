"""A small bounded table from exact bytes to what they were read as.

Only what comes a second time is kept: heads that never repeat (a request id in each) must not pay
for a table that never helps, nor push out what does repeat.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

T = TypeVar("T")

_ENTRIES: Final = 256
_SEEN: Final = 1024
# Longer heads cost more memory than reading them anew costs time.
_LONGEST: Final = 2048


class Memo(Generic[T]):
    """At most 256 entries of at most 2 KiB of key each."""

    __slots__ = ("_seen", "entries")

    def __init__(self) -> None:
        self.entries: dict[bytes, T] = {}
        self._seen: set[int] = set()

    def offer(self, key: bytes, value: T) -> None:
        """Keep ``value`` if its key was offered before, lately."""
        if len(key) > _LONGEST:
            return
        mark = hash(key)
        if mark not in self._seen:
            if len(self._seen) >= _SEEN:
                self._seen.clear()
            self._seen.add(mark)
            return
        if len(self.entries) >= _ENTRIES:
            self.entries.clear()
        self.entries[key] = value
