"""The spool: events on their way to the record.

- `append` takes an event. `keep` hands all that were appended to the kernel, in one write; from
  then on SIGKILL of this process loses none of them. Nothing that an event is about may leave the
  process before: the outbox calls `keep` before it sends what a turn of the event loop brought
  about, and where nothing is sent, the end of the turn does.
- What can't be kept did not happen: `keep` says no, the spool takes no more, and what was about
  to leave is thrown away (`on_failure`).
- A thread of its own brings what is kept to disk every few milliseconds (group commit); what a
  power loss can cost is one interval. `on_durable` calls back once a record is on disk, or can't
  be brought there: after a sync that failed nothing counts as committed any more.
- Space is taken ahead, a segment at a time. While no further segment may be had, decisions are
  refused (`SpoolFull`) as soon as what is left is needed for the outcomes of the calls in flight.
  Space is asked for again every second.
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
from pathlib import Path
from typing import Final, NamedTuple

from valetkey.contracts import codes
from valetkey.contracts.errors import AuditError, ConfigError
from valetkey.contracts.events import BOOT, GENESIS
from valetkey.contracts.logs import Log
from valetkey.proxy.audit.reader import SegmentTail, read_segment, segments
from valetkey.proxy.audit.segment import (
    FRAME_SIZE,
    HEADER_SIZE,
    TORN,
    Segment,
    is_blank,
    is_full_disk,
    path_of,
)

# An outcome event with its frame takes at most this; see recorder. One takes about 700 bytes: the
# rest is room for names at their longest, and is only set aside while the call goes on.
OUTCOME_ROOM: Final = 2560
# A copy of what is ready is had for half of what a new one costs, which OpenSSL looks up by name.
_NOTHING: Final = hashlib.sha256()
# Below this a segment could not hold a decision with a long reason, and its outcome.
LEAST_SEGMENT: Final = 64 << 10
_RETRY: Final = 1.0


class PreviousBoot(NamedTuple):
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
        if segment_size < LEAST_SEGMENT:
            raise ConfigError(f"spool.segment_size: less than {LEAST_SEGMENT >> 10}KiB")
        if max_size < 2 * segment_size:
            raise ConfigError("spool.max_size: less than two segments (spool.segment_size)")
        self._log = Log("spool")
        self.directory = directory
        self._segment_size = segment_size
        self.max_size = max_size
        """Bytes that segments on disk may take."""
        self._commit_every = commit_every
        self.seq = 0
        """The last event that was appended."""
        self.kept = 0
        """The last event that the kernel has."""
        self.on_failure: Callable[[], None] | None = None
        self.link = GENESIS.encode()
        """Hex SHA-256 of the last event: the next one's ``prevhash``."""
        self.open_calls = 0
        """Calls whose outcome event is still to come; room is kept for it."""
        self._lock = self._take_directory()
        self._number = 0
        self._ahead: deque[Segment] = deque()
        self._space = threading.Lock()
        self._full = ""
        self._retry_at = 0.0
        self._failed = ""
        self._retired: deque[Segment] = deque()
        self._waiters: deque[tuple[int, Callable[[bool], None]]] = deque()
        self.committed = 0
        self._limit = segment_size - FRAME_SIZE
        self._per_segment = (segment_size - HEADER_SIZE) // OUTCOME_ROOM
        self._covered = 0
        """Calls whose outcomes find room in the segments ahead, whatever the current one holds."""
        try:
            leftover = segments(directory)
            self.boot = _new_boot(leftover)
            self.previous = self._read_previous(leftover)
            self._disk = sum(path.stat().st_size for path in leftover)
            self._current = self._new_segment()
            self._current.begin(self.boot, 1, bytes.fromhex(GENESIS))
            self._current.flush()
        except OSError as error:
            os.close(self._lock)
            raise ConfigError(f"spool.dir: {directory}: {error}") from error
        self._sleeping = False
        self._wake = threading.Event()
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._committer = threading.Thread(
            target=self._commit_loop, name="spool-commit", daemon=True
        )

    # --- for the event loop -------------------------------------------------------------------

    def start(self) -> None:
        """Begin committing. Called on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._committer.start()

    async def stop(self) -> None:
        """Commit everything and let go of the directory."""
        self.keep()
        self._stopping = True
        self._wake.set()
        if self._committer.ident is not None:
            await asyncio.to_thread(self._committer.join)
        await asyncio.to_thread(self._let_go)

    def _let_go(self) -> None:
        self._current.close()
        for segment in self._ahead:
            segment.close()
            segment.path.unlink()
        os.close(self._lock)

    def append(self, raw: bytes, *, decision: bool) -> int:
        """Take one event, which carries `seq` + 1 and `link`. Returns its sequence number.

        Raises `SpoolFull` for a decision that finds no room, `AuditError` when the disk fails.
        """
        current = self._current
        if current.end + len(raw) > self._limit or self.open_calls >= self._covered:
            current = self._make_room(FRAME_SIZE + len(raw), decision=decision)
        digest = _NOTHING.copy()
        digest.update(raw)
        self.link = link = digest.hexdigest().encode()
        current.store(raw, link)
        if self.seq == self.kept and self._loop is not None:
            self._loop.call_soon(self.keep)
        self.seq = seq = self.seq + 1
        return seq

    def keep(self) -> bool:
        """Hand what was appended to the kernel. False if that failed: none of it may take effect.

        Cheap where nothing was.
        """
        if self.kept == self.seq:
            return True
        try:
            self._current.flush()
        except OSError as error:
            self._lose(error)
            return False
        self.kept = self.seq
        if self._sleeping:
            self._wake.set()
        return True

    def _lose(self, error: OSError) -> None:
        """What was appended is not on record and never will be: nobody may act on it."""
        self.seq = self.kept
        self._fail(f"the spool can't be written: {type(error).__name__}")
        if self.on_failure is not None:
            self.on_failure()
        if self._loop is not None:
            self._loop.call_soon(self._release)

    def on_durable(self, seq: int, callback: Callable[[bool], None]) -> None:
        """Call back on the loop once the event of that number is on disk (or never will be)."""
        if self.committed >= seq:
            callback(True)
        elif not self.keep() or self._failed:
            callback(False)
        else:
            self._waiters.append((seq, callback))

    @property
    def problem(self) -> str:
        """Why decisions are refused now, or empty."""
        if self._failed or self._fits(OUTCOME_ROOM, self.open_calls + 1):
            return self._failed
        return self._full

    @property
    def failed(self) -> bool:
        """Whether the disk failed: nothing can be recorded any more."""
        return bool(self._failed)

    @property
    def disk(self) -> int:
        """Bytes of segments on disk."""
        return self._disk

    @property
    def current_path(self) -> Path:
        return self._current.path

    def deleted(self, size: int) -> None:
        """A segment was acknowledged and deleted: there may be room again."""
        with self._space:
            self._disk -= size
        self._retry_at = 0.0
        self._wake.set()

    # --- room ---------------------------------------------------------------------------------

    def _make_room(self, room: int, *, decision: bool) -> Segment:
        if self._failed:
            raise AuditError(codes.AUDIT_UNAVAILABLE, self._failed)
        if room > self._segment_size - HEADER_SIZE:
            raise AuditError(codes.AUDIT_UNAVAILABLE, "an event is larger than a segment")
        # Outcomes may use up the last segment; decisions leave them their room.
        outcomes = self.open_calls + 1 if decision else 0
        while not self._fits(room, outcomes) and not self._full and not self._failed:
            # The committer prepares it ahead; this is for a burst that outran it.
            self._prepare()
        if not self._fits(room, outcomes):
            raise SpoolFull(codes.AUDIT_UNAVAILABLE, self._full or self._failed)
        if self._segment_size - self._current.end >= room:
            return self._current
        if not self.keep():
            raise AuditError(codes.AUDIT_UNAVAILABLE, self._failed)
        with self._space:
            self._retired.append(self._current)
            self._current = self._ahead.popleft()
            self._cover()
            self._current.begin(self.boot, self.seq + 1, bytes.fromhex(self.link.decode()))
        self._wake.set()
        return self._current

    def _fits(self, room: int, outcomes: int) -> bool:
        """Whether a record of that size can be stored, and so many outcomes after it."""
        left, ahead = self._segment_size - self._current.end, len(self._ahead)
        if left < room:
            left, ahead = self._segment_size - HEADER_SIZE, ahead - 1
        return ahead >= 0 and outcomes <= (left - room) // OUTCOME_ROOM + ahead * self._per_segment

    def _cover(self) -> None:
        self._covered = 0 if self._failed else len(self._ahead) * self._per_segment

    def _prepare(self) -> None:
        """Take space for one more segment, if settings and disk allow it. From either thread."""
        with self._space:
            if self._failed:
                return
            problem = ""
            if self._disk + self._segment_size > self.max_size:
                problem = "spool.max_size is reached"
            else:
                try:
                    self._ahead.append(self._new_segment())
                except OSError as error:
                    problem = (
                        "the disk is full"
                        if is_full_disk(error)
                        else f"a segment can't be made: {type(error).__name__}"
                    )
                else:
                    self._cover()
            if problem and problem != self._full:
                self._log.warning("spool_full", reason=problem)
            elif self._full and not problem:
                self._log.info("spool_has_room")
            self._full = problem

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
        """The end of the latest boot on disk; segments that were never begun are removed.

        A boot that was killed before its first event had nothing to end.
        """
        for path in reversed(list(leftover)):
            tail = SegmentTail.open(path)
            if tail is None:
                with path.open("rb") as file:
                    blank = is_blank(file.read(HEADER_SIZE))
                if blank:
                    path.unlink()
                    leftover.remove(path)
                else:
                    self._log.error("segment_damaged", file=path)
                continue
            seq, link, torn = tail.next - 1, tail.link.hex(), False
            for record in read_segment(path):
                torn = record.problem.startswith(TORN)
                if not record.problem:
                    seq, link = record.seq, hashlib.sha256(record.raw).hexdigest()
            if seq or torn:
                return PreviousBoot(tail.boot, seq, link, torn)
        return None

    # --- the committer's thread ---------------------------------------------------------------

    def _commit_loop(self) -> None:
        while True:
            self._look_ahead()
            if self._idle() and not self._stopping:
                self._sleeping = True
                # Looked at once more: an append may have come before the flag was up.
                if self._idle() and not self._stopping:
                    self._wake.wait(_RETRY)
                self._sleeping = False
                self._wake.clear()
            if not self._stopping:
                time.sleep(self._commit_every)
            if not self._failed:
                self._commit()
            if self._stopping and self._idle():
                return

    def _look_ahead(self) -> None:
        """Have a segment ready, and as many as the calls in flight need for their outcomes."""
        wanted = 1 + self.open_calls // self._per_segment
        if len(self._ahead) >= wanted:
            return
        now = time.monotonic()
        if not self._full or now >= self._retry_at:
            self._retry_at = now + _RETRY
            self._prepare()

    def _idle(self) -> bool:
        return self.kept == self.committed or bool(self._failed)

    def _commit(self) -> None:
        # In this order: what `kept` counts is then in a retired segment or in `current`.
        seq = self.kept
        current: Segment | None = self._current
        try:
            while self._retired:
                retired = self._retired[0]
                retired.sync()
                self._retired.popleft()
                retired.close()
                if retired is current:
                    current = None
            if current is not None and seq != self.committed:
                current.sync()
        except OSError as error:
            self._fail(f"the spool can't be brought to disk: {type(error).__name__}")
        else:
            self.committed = seq
        if self._waiters and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._release)

    def _fail(self, reason: str) -> None:
        """Refuse everything from now on: after a failed sync nobody knows what is on disk.

        The kernel may have dropped the pages, and the next sync would report success.
        """
        with self._space:
            self._failed = reason
            self._covered = 0
        self._log.error("spool_failed", reason=reason)

    def _release(self) -> None:
        """On the loop: call back everybody whose record is on disk, or will never be."""
        while self._waiters and (self._waiters[0][0] <= self.committed or self._failed):
            seq, callback = self._waiters.popleft()
            callback(seq <= self.committed)


def _new_boot(leftover: list[Path]) -> str:
    """A name for this boot that sorts behind all on disk, also if the clock went back."""
    seconds = int(time.time())
    for path in leftover:
        boot = path.name.partition("-")[0]
        if BOOT.fullmatch(boot):
            seconds = max(seconds, int(boot[:8], 16) + 1)
    return f"{seconds:08x}{secrets.token_hex(4)}"
