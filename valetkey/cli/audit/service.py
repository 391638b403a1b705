"""The record at a collector, over its API. Events come as exact texts and are verified here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from valetkey.cli.audit.record import BootEntry, Found, RecordUnavailable, pages, warnings_of
from valetkey.cli.service import Service, ServiceError
from valetkey.collector.core.verification import Entry, Known

T = TypeVar("T")

_PAGE: Final = 1000


class _Event(msgspec.Struct, frozen=True):
    cursor: int
    source: str
    seq: int
    hash: str
    received: int
    raw: str
    outcome: str | None = None


class _Events(msgspec.Struct, frozen=True):
    events: list[_Event]
    next: int


class _Boot(msgspec.Struct, frozen=True):
    source: str
    boot: str
    count: int
    head_seq: int
    head_hash: str
    gaps: int
    breaks: int


class _Sources(msgspec.Struct, frozen=True):
    sources: list[_Boot]
    next: int


class _Conflict(msgspec.Struct, frozen=True):
    times: int


class _Gaps(msgspec.Struct, frozen=True):
    conflicts: list[_Conflict]


class ServiceRecord:
    """`Record` over HTTP. Raises `RecordUnavailable`."""

    def __init__(self, url: str, token_file: Path, ca_file: Path | None) -> None:
        try:
            self._service = Service("collector", url, token_file, ca_file)
        except ServiceError as error:
            raise RecordUnavailable(str(error)) from error

    def newest(self, filters: Mapping[str, str], limit: int) -> list[Found]:
        return self._found({**filters, "last": limit})

    def after(self, filters: Mapping[str, str], cursor: int, limit: int) -> list[Found]:
        return self._found({**filters, "after": cursor, "limit": limit})

    def every(self, filters: Mapping[str, str]) -> Iterator[list[Found]]:
        return pages(self, filters)

    def warnings(self) -> list[str]:
        return warnings_of(self.boots())

    def boots(self) -> list[BootEntry]:
        found: list[BootEntry] = []
        after = 0
        while True:
            page = self._get("/v1/sources", {"after": after, "limit": _PAGE}, _Sources)
            if not page.sources:
                return found
            found += [
                BootEntry(
                    boot.source,
                    boot.boot,
                    Known(boot.count, boot.head_seq, boot.head_hash),
                    boot.gaps,
                    boot.breaks,
                )
                for boot in page.sources
            ]
            after = page.next

    def chain(self, boot: BootEntry) -> Iterator[Entry]:
        query = {
            "source": boot.source,
            "boot": boot.boot,
            "order": "sequence",
            "raw": 1,
            "limit": _PAGE,
        }
        after = 0
        while True:
            page = self._get("/v1/events", {**query, "after": after}, _Events)
            for event in page.events:
                if event.seq > boot.known.head_seq:
                    return  # it came after the list of boots: what was listed is verified
                yield Entry(event.seq, event.raw.encode(), hash=event.hash)
            if not page.events:
                return
            after = page.next

    def damage(self) -> list[str]:
        return []

    def conflicts(self) -> int:
        return sum(conflict.times for conflict in self._get("/v1/gaps", {}, _Gaps).conflicts)

    def close(self) -> None:
        self._service.close()

    def _found(self, query: Mapping[str, Any]) -> list[Found]:
        page = self._get("/v1/events", {**query, "raw": 1, "outcomes": 1}, _Events)
        return [
            Found(
                event.cursor,
                event.source,
                event.received,
                event.raw.encode(),
                event.outcome.encode() if event.outcome is not None else None,
            )
            for event in page.events
        ]

    def _get(self, path: str, query: Mapping[str, Any], kind: type[T]) -> T:
        try:
            return self._service.ask(kind, "GET", path, query=query)
        except ServiceError as error:
            raise RecordUnavailable(str(error)) from error
