"""What one collector takes: sidecars that send the next batch when the last is acknowledged."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.fleet_record import Record, Texts
from bench.light import Failed, Line
from bench.measurements import quantile
from bench.processes import Process
from valetkey.contracts.events import CONTENT_TYPE_BATCH

CONNECTIONS: Final = 16
CALLS: Final = (1, 250)
"""Calls of a batch: one of a sidecar with little to do, and one of a busy one."""
_PATIENCE: Final = 30.0
_PAUSE: Final = 0.2


@dataclass
class Ingest:
    """``database`` is where it was stored; rates are of one second, CPU is µs for each event."""

    database: str
    batch: int
    """Events of a batch."""
    batches: float
    events: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    refused: int


@dataclass
class Stored:
    """Bytes that an event takes, indexes included."""

    database: str
    events: int
    bytes_each: float


async def ingest(
    name: str,
    port: int,
    programs: dict[str, subprocess.Popen[bytes]],
    token: str,
    texts: Texts,
    seconds: float,
) -> list[Ingest]:
    """Load a collector at ``port`` that does nothing else, with small and with large batches."""
    found = []
    for calls in CALLS:
        cpu, began = _cpu(programs), time.monotonic()
        until = began + seconds
        sent = await asyncio.gather(
            *(
                _deliver(port, token, Record(texts, f"ingest-{calls}-{number}"), calls, until)
                for number in range(CONNECTIONS)
            )
        )
        took, used = time.monotonic() - began, _cpu(programs) - cpu
        times = [seconds for one, _ in sent for seconds in one]
        events = 2 * calls * len(times)
        found.append(
            Ingest(
                database=name,
                batch=2 * calls,
                batches=len(times) / took,
                events=events / took,
                p50_ms=quantile(times, 0.5) * 1000,
                p99_ms=quantile(times, 0.99) * 1000,
                cpu_us=used / events * 1e6,
                refused=sum(refused for _, refused in sent),
            )
        )
    return found


async def _deliver(
    port: int, token: str, record: Record, calls: int, until: float
) -> tuple[list[float], int]:
    """Batches of so many calls, one after another: seconds that each took, and how many failed."""
    times: list[float] = []
    refused = 0
    line = Line(lambda: (port,))
    while time.monotonic() < until:
        if not record.waiting:
            for _ in range(calls):
                record.call()
        began = time.perf_counter()
        try:
            answer = await line.send(batch(record.waiting, token), _PATIENCE)
        except Failed:
            refused += 1
            continue
        if answer.status == 200:
            times.append(time.perf_counter() - began)
            record.waiting.clear()
        else:
            refused += 1
            await asyncio.sleep(_PAUSE)
    line.close()
    return times, refused


def batch(events: list[bytes], token: str) -> bytes:
    """The request that delivers these."""
    body = b"[" + b",".join(events) + b"]"
    head = (
        f"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: {CONTENT_TYPE_BATCH}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def in_sqlite(file: Path) -> Stored:
    """Of a collector that has ended: the log is in the file then."""
    with closing(sqlite3.connect(file)) as connection:
        (events,) = connection.execute("SELECT count(*) FROM events").fetchone()
    return Stored("SQLite", events, file.stat().st_size / events)


def in_postgres(query: Callable[[str], str]) -> Stored:
    sql = "SELECT count(*), pg_total_relation_size('events') FROM events"
    events, size = map(int, query(sql).split("|"))
    return Stored("PostgreSQL", events, size / events)


def _cpu(programs: dict[str, subprocess.Popen[bytes]]) -> float:
    place = Path()
    return sum(Process(name, popen, place).cpu_seconds() for name, popen in programs.items())
