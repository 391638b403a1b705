"""Verifying the record as consumers have it: the messages of a JetStream stream, from the first on.

The stream is read with the collector's own connection, message by message, so it takes no more than
a user who may ask for a stream and its messages. Arrival is not the order of a chain, and a stream
may be larger than memory: a temporary file sorts it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

from valetkey.cli.audit.record import RecordUnavailable
from valetkey.cli.audit.verify import Verdict
from valetkey.collector.core.verification import Entry, Verification
from valetkey.collector.nats_settings import NatsSettings
from valetkey.collector.sinks.jetstream import JetStream
from valetkey.collector.sinks.sink import HandoffFailed
from valetkey.contracts import events, settings
from valetkey.contracts.errors import ConfigError

_AT_ONCE: Final = 200
_MOST_DAMAGE: Final = 20
_TABLE: Final = (
    "CREATE TABLE events (source TEXT, boot TEXT, seq INTEGER, number INTEGER, raw BLOB,"
    " PRIMARY KEY (source, boot, seq)) WITHOUT ROWID"
)


def verify_stream(file: Path) -> Verdict:
    """Verify the stream that a file of `NatsSettings` names. Raises `RecordUnavailable`."""
    try:
        loaded = settings.load(NatsSettings, file, program="stream", environ={})
        with (
            tempfile.TemporaryDirectory(prefix="valetkey-") as directory,
            closing(_sorter(Path(directory) / "sorted.db")) as sorter,
        ):
            first, found = asyncio.run(_read(loaded, sorter))
            return _verify(sorter, first, found)
    except (ConfigError, HandoffFailed) as error:
        raise RecordUnavailable(f"the stream can't be read: {error}") from error


def _sorter(file: Path) -> sqlite3.Connection:
    """One thread at a time uses it, and not always the same."""
    sorter = sqlite3.connect(file, check_same_thread=False)
    sorter.execute(_TABLE)
    return sorter


class _Found:
    """What reading showed of the stream as a whole."""

    def __init__(self) -> None:
        self.damage: list[str] = []
        self.twice = 0

    def wrong(self, text: str) -> None:
        if len(self.damage) < _MOST_DAMAGE:
            self.damage.append(text)


async def _read(loaded: NatsSettings, sorter: sqlite3.Connection) -> tuple[int, _Found]:
    """The number of the first message; every event is in ``sorter``, once."""
    stream = await JetStream.open(loaded, name="valetkey audit")
    found = _Found()
    try:
        state = await stream.state()
        for begin in range(state.first, state.last + 1, _AT_ONCE):
            numbers = range(begin, min(begin + _AT_ONCE, state.last + 1))
            payloads = await asyncio.gather(*map(stream.message, numbers))
            numbered = dict(zip(numbers, payloads, strict=True))
            await asyncio.to_thread(_sort_in, sorter, numbered, found)
    finally:
        await stream.close()
    return state.first, found


def _sort_in(
    sorter: sqlite3.Connection, payloads: Mapping[int, bytes | None], found: _Found
) -> None:
    for number, payload in payloads.items():
        _sort_one(sorter, number, payload, found)


def _sort_one(
    sorter: sqlite3.Connection, number: int, payload: bytes | None, found: _Found
) -> None:
    if payload is None:
        found.wrong(f"message {number} was deleted from the stream")
        return
    try:
        event = events.read(payload)
    except events.EventInvalid:
        found.wrong(f"message {number} is no event")
        return
    place = (event.source, event.boot, event.seq)
    added = sorter.execute(
        "INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?)", (*place, number, payload)
    )
    if added.rowcount:
        return
    (kept,) = sorter.execute(
        "SELECT raw FROM events WHERE source = ? AND boot = ? AND seq = ?", place
    ).fetchone()
    if kept == payload:
        found.twice += 1
    else:
        found.wrong(f"message {number} has other bytes for {event.id} of {event.source}")


def _verify(sorter: sqlite3.Connection, first: int, found: _Found) -> Verdict:
    begins_late = first > 1
    verification = Verification(partial=begins_late)
    boots = sorter.execute("SELECT source, boot FROM events GROUP BY 1, 2 ORDER BY min(number)")
    for source, boot in boots.fetchall():
        verifier = verification.boot(source, boot)
        for entry in _chain(sorter, source, boot):
            verifier.feed(entry)
    notes = []
    if begins_late:
        notes.append(f"the stream begins with message {first}: what came before is not in it")
    if found.twice:
        notes.append(f"{found.twice} events are in the stream more than once")
    return Verdict(verification.finish(), found.damage, notes)


def _chain(sorter: sqlite3.Connection, source: str, boot: str) -> Iterator[Entry]:
    rows = sorter.execute(
        "SELECT seq, raw FROM events WHERE source = ? AND boot = ? ORDER BY seq", (source, boot)
    )
    for seq, raw in rows:
        yield Entry(seq, raw)
