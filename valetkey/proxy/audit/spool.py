"""The spool: events on their way to the record, safe from the moment `append` returns.

- A record is stored into a shared, file-backed mapping. From then on the kernel has it: SIGKILL
  of this process loses nothing, and no system call was made.
- A thread of its own brings the mapping to disk every few milliseconds (group commit); what a
  power loss can cost is one interval. `on_durable` calls back once a record is on disk.
- Space is taken ahead, a segment at a time. When no further segment may be had, decisions are
  refused (`SpoolFull`) while enough room is left for the outcomes of the calls in flight.
- A segment is deleted only when the collector has acknowledged everything in it; the last one of
  a boot stays until the next boot has stated where it ended.

`append` and everything else but the committer's own loop belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from valetkey.contracts import codes
from valetkey.contracts.errors import AuditError, ConfigError
from valetkey.contracts.events import GENESIS
from valetkey.contracts.logs import Log
from valetkey.proxy.audit.reader import read_segment, segments
from valetkey.proxy.audit.segment import (
    FRAME_SIZE,
    HEADER_SIZE,
    Segment,
    is_full_disk,
    path_of,
    read_header,
)

# An outcome event is at most this long (its only free text is a code); see recorder.
OUTCOME_ROOM: Final = 2048


@dataclass(frozen=True, slots=True)
class PreviousBoot:
    """Where the boot before this one ended, as its last segment shows."""

    boot: str
    seq: int
    hash: str
    torn: bool


class SpoolFull(AuditError):  # noqa: N818
    """No room for another decision."""


class Spool:
    """The spool of one sidecar boot. Raises `ConfigError` when the directory can't be used."""

    def __init__(
        self, directory: Path, *, segment_size: int, max_size: int, commit_every: float
    ) -> None:
        self._log = Log("spool")
        self.directory = directory
        self._segment_size = segment_size
        self._max_size = max_size
        self._commit_every = commit_every
        self.boot = f"{int(time.time()):08x}{secrets.token_hex(4)}"
        self.seq = 0
        self.link = GENESIS.encode()
        """Hex SHA-256 of the last event: the next one's ``prevhash``."""
        self.open_calls = 0
        """Calls whose outcome event is still to come; room is kept for it."""
        self._lock = self._take_directory()
        leftover = segments(directory)
        self.previous = self._read_previous(leftover)
        self._disk = sum(path.stat().st_size for path in leftover)
        self._number = 0
        self._next: Segment | None = None
        self._space = threading.Lock()
        self._full = ""
        self._failed = ""
        self._retired: deque[Segment] = deque()
        self._waiters: deque[tuple[int, Callable[[], None]]] = deque()
        self.committed = 0
        self._current = self._new_segment()
        self._current.begin(self.boot, 1, bytes.fromhex(GENESIS))
        self._limit = segment_size
        self._comfortable = segment_size - FRAME_SIZE - OUTCOME_ROOM
        self._sleeping = False
        self._wake = threading.Event()
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._commit_loop, name="spool-commit", daemon=True)

    # --- for the event loop -------------------------------------------------------------------

    def start(self) -> None:
        """Begin committing. Called on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Commit everything and let go of the directory."""
        self._stopping = True
        self._wake.set()
        await asyncio.to_thread(self._thread.join)
        self._current.close()
        if self._next is not None:
            self._next.close()
            self._next.path.unlink()
        os.close(self._lock)

    def append(self, raw: bytes, *, decision: bool) -> int:
        """Store one event, which carries `seq` + 1 and `link`. Returns its sequence number.

        Raises `SpoolFull` for a decision that finds no room, `AuditError` when the disk fails.
        """
        current = self._current
        if current.end + len(raw) > self._comfortable or self._failed:
            current = self._make_room(FRAME_SIZE + len(raw), decision=decision)
        self.link = link = hashlib.sha256(raw).hexdigest().encode()
        current.store(raw, link)
        self.seq = seq = self.seq + 1
        if self._sleeping:
            self._wake.set()
        return seq

    def on_durable(self, seq: int, callback: Callable[[], None]) -> None:
        """Call back on the loop once the event of that number is on disk."""
        if self.committed >= seq:
            callback()
        else:
            self._waiters.append((seq, callback))

    @property
    def problem(self) -> str:
        """Why decisions are refused now, or empty."""
        return self._failed or self._full

    @property
    def disk(self) -> int:
        """Bytes of segments on disk."""
        return self._disk

    @property
    def current_path(self) -> Path:
        return self._current.path

    def deleted(self, size: int) -> None:
        """A segment was acknowledged and deleted: there is room again."""
        with self._space:
            self._disk -= size
            self._full = ""
        self._wake.set()

    # --- room ---------------------------------------------------------------------------------

    def _make_room(self, room: int, *, decision: bool) -> Segment:
        if self._failed:
            raise AuditError(codes.AUDIT_UNAVAILABLE, self._failed)
        if room > self._segment_size - HEADER_SIZE:
            raise AuditError(codes.AUDIT_UNAVAILABLE, "an event is larger than a segment")
        if self._next is None:
            # The committer prepares it ahead; this is for a burst that outran it.
            self._prepare_next()
        left = self._limit - self._current.end
        if self._next is None:
            # The last segment: outcomes may use it up, decisions leave them their room.
            reserved = (self.open_calls + 1) * OUTCOME_ROOM if decision else 0
            if left < room + reserved:
                raise SpoolFull(codes.AUDIT_UNAVAILABLE, self._full or "no further segment")
            return self._current
        if left >= room:
            return self._current
        self._retired.append(self._current)
        self._current, self._next = self._next, None
        self._current.begin(self.boot, self.seq + 1, bytes.fromhex(self.link.decode()))
        self._wake.set()
        return self._current

    def _prepare_next(self) -> None:
        """Take space for one more segment, if settings and disk allow it. From either thread."""
        with self._space:
            if self._next is not None:
                return
            if self._disk + self._segment_size > self._max_size:
                self._full = "spool.max_size is reached"
                return
            try:
                self._next = self._new_segment()
            except OSError as error:
                if is_full_disk(error):
                    self._full = "the disk is full"
                else:
                    self._failed = f"a segment can't be made: {type(error).__name__}"
                    self._log.error("spool_failed", reason=self._failed)

    def _new_segment(self) -> Segment:
        self._number += 1
        segment = Segment(path_of(self.directory, self.boot, self._number), self._segment_size)
        self._disk += self._segment_size
        return segment

    # --- start --------------------------------------------------------------------------------

    def _take_directory(self) -> int:
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"spool.dir: {self.directory}: {error}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise ConfigError(
                f"spool.dir: {self.directory} is in use by another sidecar"
            ) from error
        return lock

    def _read_previous(self, leftover: list[Path]) -> PreviousBoot | None:
        """The end of the latest boot on disk; segments that were never begun are removed."""
        for path in reversed(list(leftover)):
            with path.open("rb") as file:
                header = read_header(file.read(HEADER_SIZE))
            if header is None:
                path.unlink()
                leftover.remove(path)
                continue
            seq, link, torn = header.first - 1, header.link.hex(), False
            for record in read_segment(path):
                if record.problem:
                    torn = True
                    break
                seq, link = record.seq, hashlib.sha256(record.raw).hexdigest()
            return PreviousBoot(header.boot, seq, link, torn)
        return None

    # --- the committer's thread ---------------------------------------------------------------

    def _commit_loop(self) -> None:
        while True:
            if self.seq == self.committed and not self._stopping:
                self._sleeping = True
                # Looked at once more: an append may have come before the flag was up.
                if self.seq == self.committed and not self._stopping:
                    self._wake.wait(1.0)
                self._sleeping = False
                self._wake.clear()
            if not self._stopping:
                time.sleep(self._commit_every)
            self._commit()
            if self._stopping and self.seq == self.committed:
                return

    def _commit(self) -> None:
        # In this order: what `seq` counts is then in a retired segment or in `current`.
        seq = self.seq
        current: Segment | None = self._current
        try:
            while self._retired:
                retired = self._retired.popleft()
                retired.sync()
                retired.close()
                if retired is current:
                    current = None
            if current is not None and seq != self.committed:
                current.sync()
        except OSError as error:
            # After a failed sync nobody knows what is on disk (the kernel may drop the pages).
            self._failed = f"the spool can't be brought to disk: {type(error).__name__}"
            self._log.error("spool_failed", reason=self._failed)
            return
        self.committed = seq
        if self._waiters and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._release, seq)
        if self._current.end * 2 > self._segment_size and not self._full:
            self._prepare_next()

    def _release(self, seq: int) -> None:
        """On the loop: call back everybody who waited for a record up to ``seq``."""
        while self._waiters and self._waiters[0][0] <= seq:
            self._waiters.popleft()[1]()
