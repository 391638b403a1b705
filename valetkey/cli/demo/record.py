"""The record as the auditor sees it: over the collector's API, by the CLI, and tampered with."""

from __future__ import annotations

import contextlib
import http.client
import json
import sqlite3
import subprocess
import sys
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from valetkey.contracts.events import TYPE_DECISION

_POLL: Final = 0.05
_TIMEOUT: Final = 10.0
_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class Totals:
    """What the collector holds of the demo's one sidecar."""

    count: int
    acked: int
    decisions: int
    gaps: int
    breaks: int


class Auditor:
    """Reads the collector with a reader's token."""

    def __init__(self, port: int, token_file: Path) -> None:
        self._port = port
        self._token_file = token_file

    def newest_decision(self, route: str, *, within: float = 10.0) -> dict[str, Any]:
        """The data of the newest decision on a route, once nothing more is on its way."""
        deadline = time.monotonic() + within
        seen: list[Any] = []
        while time.monotonic() < deadline:
            query = {"type": TYPE_DECISION, "route": route, "last": "1"}
            events = self._get("/v1/events", query)["events"]
            if events and events == seen:
                break
            seen = events
            time.sleep(4 * _POLL)
        if not seen:
            raise LookupError(f"no decision on {route} is on record")
        data: dict[str, Any] = seen[0]["event"]["data"]
        return data

    def wait_for(self, count: int, *, within: float) -> Totals:
        """What is on record, waiting until that many events are or time is up."""
        deadline = time.monotonic() + within
        while True:
            totals = self._totals()
            if totals.count >= count or time.monotonic() > deadline:
                return totals
            time.sleep(_POLL)

    def _totals(self) -> Totals:
        sources = self._get("/v1/sources")["sources"]
        known = self._get("/v1/gaps")
        return Totals(
            count=sum(each["count"] for each in sources),
            acked=sum(each["acked"] for each in sources),
            decisions=self._decisions(),
            gaps=len(known["gaps"]) + len(known["declarations"]),
            breaks=len(known["breaks"]),
        )

    def _decisions(self) -> int:
        """Distinct decision events, by identifier."""
        ids: set[str] = set()
        after = 0
        while True:
            query = {"type": TYPE_DECISION, "after": str(after), "limit": str(_PAGE)}
            page = self._get("/v1/events", query)
            ids.update(each["event"]["id"] for each in page["events"])
            if len(page["events"]) < _PAGE:
                return len(ids)
            after = page["next"]

    def _get(self, path: str, query: dict[str, str] | None = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT)
        token = self._token_file.read_text(encoding="utf-8")
        try:
            connection.request(
                "GET",
                f"{path}?{urllib.parse.urlencode(query or {})}",
                headers={"Authorization": f"Bearer {token}"},
            )
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise LookupError(f"{path}: {response.status} {answer.get('code')}")
        return answer


def verify(database: Path) -> tuple[int, str]:
    """Exit status and output of ``valetkey audit verify --db``."""
    command = "from valetkey.cli.main import main; main()"
    argv = (sys.executable, "-c", command, "audit", "verify", "--db", str(database))
    done = subprocess.run(  # noqa: S603 - our own command, no shell
        argv, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


def tampered_copy(database: Path, copy: Path) -> str:
    """Copy a database and change one byte of one event in the file; says which."""
    with (
        contextlib.closing(sqlite3.connect(database)) as source,
        contextlib.closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)
        events = target.execute("SELECT seq, raw FROM events ORDER BY cursor").fetchall()
        target.execute("PRAGMA journal_mode=DELETE")
    pages = bytearray(copy.read_bytes())
    for seq, raw in events:
        at = pages.find(raw)
        changed = raw.find(b"/api/tickets/7")
        # An event that SQLite spread over several pages can't be found in one piece.
        if at >= 0 and changed >= 0:
            position = at + changed + len(b"/api/tickets/")
            pages[position] = ord("8")
            copy.write_bytes(pages)
            return f"ticket 7 changed to 8 in event {seq}"
    raise LookupError("no event lies in one piece in the file")
