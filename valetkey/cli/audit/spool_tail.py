"""A sidecar's spool as a record to look through: events that were not yet delivered.

What the collector has acknowledged is gone from here, so an outcome may be here without its
decision.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from valetkey.cli.audit.record import Found, RecordUnavailable
from valetkey.collector.core import columns
from valetkey.collector.core.columns import Columns
from valetkey.collector.core.filters import OF_CALL, Filters
from valetkey.contracts import events
from valetkey.proxy.audit.reader import read_spool


@dataclass(frozen=True, slots=True)
class _Event:
    """One event of the spool. ``call`` is the id of its decision, or its own."""

    number: int
    id: str
    call: str
    source: str
    boot: str
    columns: Columns
    raw: bytes


class SpooledRecord:
    """`Tailed` over a spool directory. Every method raises `RecordUnavailable`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._unreadable = 0

    def newest(self, filters: Mapping[str, str], limit: int) -> list[Found]:
        """The last ``limit`` events that match, in the order in which they were written."""
        wanted = Filters(**filters)
        calls = self._calls(wanted)
        kept: deque[_Event] = deque()
        outcomes: dict[str, bytes] = {}
        ids: set[str] = set()
        for event in self._events():
            if event.call in ids and event.call != event.id:
                outcomes.setdefault(event.call, event.raw)
            if calls is not None and event.call not in calls:
                continue
            if not wanted.admit(event.columns, source=event.source, boot=event.boot):
                continue
            kept.append(event)
            ids.add(event.id)
            if len(kept) > limit:
                dropped = kept.popleft().id
                ids.discard(dropped)
                outcomes.pop(dropped, None)
        return [
            Found(event.number, event.source, 0, event.raw, outcomes.get(event.id))
            for event in kept
        ]

    def after(self, filters: Mapping[str, str], cursor: int, limit: int) -> list[Found]:
        return [found for found in self.newest(filters, sys.maxsize) if found.cursor > cursor][
            :limit
        ]

    def every(self, filters: Mapping[str, str]) -> Iterator[list[Found]]:
        """All that match, at once: a spool fits into memory."""
        yield self.newest(filters, sys.maxsize)

    def warnings(self) -> list[str]:
        """What whoever looks through it has to know."""
        if not self._unreadable:
            return []
        return [f"{self._unreadable} events can't be read: `valetkey audit verify` names them"]

    def close(self) -> None:
        """Nothing is kept open."""

    def _calls(self, wanted: Filters) -> frozenset[str] | None:
        """The calls that are asked for; ``None``: any."""
        named = {name: value for name in OF_CALL if (value := getattr(wanted, name))}
        if not named:
            return None
        calls = {name: set[str]() for name in named}
        for event in self._events():
            for name, value in named.items():
                if columns.names(event.columns, name, value):
                    calls[name].add(event.call)
        return frozenset.intersection(*map(frozenset, calls.values()))

    def _events(self) -> Iterator[_Event]:
        self._unreadable = 0
        number = 0
        try:
            for record in read_spool(self._directory):
                number += 1
                event = None if record.problem else _read(number, record.raw)
                if event is None:
                    self._unreadable += 1
                else:
                    yield event
        except OSError as error:
            raise RecordUnavailable(f"{self._directory} can't be read: {error}") from error


def _read(number: int, raw: bytes) -> _Event | None:
    """``None`` for bytes that are no event."""
    try:
        event = events.read(raw)
        found = columns.extract(event.type, event.boot, event.time, events.data_of(event))
    except (events.EventInvalid, RecursionError):
        return None
    call = events.event_id(event.boot, found.answers) if found.answers else event.id
    return _Event(number, event.id, call, event.source, event.boot, found, raw)
