"""Where the command finds the record: one protocol, for a database file and for a collector."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from valetkey.collector.core.verification import Entry, Known

_PAGE: Final = 1000


class RecordUnavailable(Exception):  # noqa: N818 - reads as what it is
    """The record can't be read: message for the person at the terminal."""


class RecordDamaged(Exception):  # noqa: N818 - reads as what it is
    """The record was opened, and reading it showed that it is not whole."""


@dataclass(frozen=True, slots=True)
class Found:
    """An event as a query finds it, with its outcome where it is a decision and has one."""

    cursor: int
    source: str
    received: int
    raw: bytes
    outcome: bytes | None = None


@dataclass(frozen=True, slots=True)
class BootEntry:
    """One boot of one source, as the store knows it."""

    source: str
    boot: str
    known: Known
    open_gaps: int
    breaks: int


class Tailed(Protocol):
    """What can be looked through. Every method raises `RecordUnavailable` or `RecordDamaged`."""

    def newest(self, filters: Mapping[str, str], limit: int) -> list[Found]:
        """The last ``limit`` events that match, in order of arrival."""

    def after(self, filters: Mapping[str, str], cursor: int, limit: int) -> list[Found]:
        """Events that match behind a cursor."""

    def every(self, filters: Mapping[str, str]) -> Iterator[list[Found]]:
        """All that match, in order of arrival."""

    def warnings(self) -> list[str]:
        """What whoever looks through it has to know."""

    def close(self) -> None:
        """Let go of files and connections."""


class Record(Tailed, Protocol):
    """Read access to a whole record."""

    def boots(self) -> list[BootEntry]:
        """Every boot, in order of first sight."""

    def chain(self, boot: BootEntry) -> Iterator[Entry]:
        """The events of one boot in the order of the chain."""

    def damage(self) -> list[str]:
        """What the store itself finds wrong with its files."""

    def conflicts(self) -> int:
        """How often a source offered other bytes under a known id."""


def pages(record: Tailed, filters: Mapping[str, str]) -> Iterator[list[Found]]:
    """All that match, page by page."""
    cursor = 0
    while found := record.after(filters, cursor, _PAGE):
        yield found
        cursor = found[-1].cursor


def warnings_of(boots: Iterable[BootEntry]) -> list[str]:
    """What is known to be missing or broken, as one line."""
    entries = list(boots)
    gaps, breaks = sum(boot.open_gaps for boot in entries), sum(boot.breaks for boot in entries)
    if not gaps and not breaks:
        return []
    return [f"{gaps} open gaps, {breaks} breaks: `valetkey audit verify` names them"]
