"""The record at a collector, over its API. Events come as exact texts and are verified here."""

from __future__ import annotations

import http.client
import ipaddress
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from valetkey.cli.audit.record import BootEntry, Found, RecordUnavailable
from valetkey.collector.core.verification import Entry, Known
from valetkey.contracts.secret import Secret

T = TypeVar("T")

_TIMEOUT: Final = 30.0
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


class _Problem(msgspec.Struct, frozen=True):
    code: str = ""
    detail: str = ""


class ServiceRecord:
    """`Record` over HTTP. Plain HTTP is accepted for loopback only: the token goes along."""

    def __init__(self, url: str, token_file: Path, ca_file: Path | None) -> None:
        try:
            parts, port = urlsplit(url), urlsplit(url).port
        except ValueError as error:
            raise RecordUnavailable(f"{url} is not the URL of a collector: {error}") from error
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query:
            raise RecordUnavailable(f"{url} is not the URL of a collector")
        if parts.scheme == "http" and not _is_loopback(parts.hostname):
            raise RecordUnavailable(f"{url}: plain HTTP is for loopback only")
        self._token = Secret(_read_token(token_file))
        self._url = url
        self._base = parts.path.rstrip("/")
        if parts.scheme == "https":
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.hostname, port, timeout=_TIMEOUT, context=_context(ca_file)
            )
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, port, timeout=_TIMEOUT)

    def newest(self, filters: Mapping[str, str], limit: int) -> list[Found]:
        return self._found({**filters, "last": limit})

    def after(self, filters: Mapping[str, str], cursor: int, limit: int) -> list[Found]:
        return self._found({**filters, "after": cursor, "limit": limit})

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
        self._connection.close()

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
        target = f"{self._base}{path}?{urlencode(query)}"
        headers = {"Authorization": f"Bearer {self._token.reveal()}"}
        try:
            self._connection.request("GET", target, headers=headers)
            response = self._connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            reason = str(error) or type(error).__name__
            raise RecordUnavailable(f"{self._url} can't be reached: {reason}") from error
        if response.status != 200:
            raise RecordUnavailable(f"{self._url} answered {response.status}{_problem(body)}")
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.DecodeError as error:
            raise RecordUnavailable(f"{self._url} is not a collector: {error}") from error


def _problem(body: bytes) -> str:
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except msgspec.DecodeError:
        return ""
    return f" {problem.code}: {problem.detail}" if problem.code else ""


def _read_token(file: Path) -> str:
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordUnavailable(f"{file}: can't be read as a token: {error}") from error
    if not token or any(char.isspace() for char in token):
        raise RecordUnavailable(f"{file} holds no token")
    return token


def _context(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise RecordUnavailable(f"{ca_file}: can't be used as CA file: {error}") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
