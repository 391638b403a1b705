"""The spool: what is safe when, what happens without room, and after a crash."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.unit.proxy.audit.conftest import KIB, event_bytes
from valetkey.contracts import codes
from valetkey.contracts.errors import AuditError, ConfigError
from valetkey.contracts.events import check_chain
from valetkey.proxy.audit import segment
from valetkey.proxy.audit.reader import read_segment, read_spool, segments
from valetkey.proxy.audit.segment import HEADER_SIZE, Segment, path_of
from valetkey.proxy.audit.spool import OUTCOME_ROOM, SpoolFull


async def started(bench, **settings):
    spool = await asyncio.to_thread(bench.spool, **settings)
    spool.start()
    return spool


def leave(spool):
    """What SIGKILL does to the files and the lock."""
    spool._current.close()
    os.close(spool._lock)


async def reached(holds, seconds=5.0):
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.001)


# --- what keep promises --------------------------------------------------------------------------


def test_what_is_kept_is_there_before_any_commit(bench):
    spool = bench.spool()
    for _ in range(10):
        bench.append(spool, keep=False)
    assert not list(read_spool(bench.directory))
    assert (spool.seq, spool.kept) == (10, 0)
    assert spool.keep()
    assert [record.raw for record in read_spool(bench.directory)] == bench.written
    assert (spool.kept, spool.committed) == (10, 0)


async def test_the_end_of_a_turn_keeps_what_nothing_else_did(bench):
    spool = await started(bench, commit_every=60)
    bench.append(spool, keep=False)
    bench.append(spool, keep=False)
    await asyncio.sleep(0)
    assert spool.kept == 2
    bench.append(spool, keep=False)
    await asyncio.sleep(0)
    written = [record.raw for record in await asyncio.to_thread(read, bench.directory)]
    assert written == bench.written
    leave(spool)


def read(directory):
    return list(read_spool(directory))


def test_a_write_cut_short_by_the_kernel_is_gone_on_with(bench, monkeypatch):
    spool = bench.spool()
    pwrite = os.pwrite
    monkeypatch.setattr(segment.os, "pwrite", lambda fd, data, at: pwrite(fd, data[:100], at))
    for _ in range(5):
        bench.append(spool, keep=False)
    assert spool.keep()
    assert [record.raw for record in read_spool(bench.directory)] == bench.written


@pytest.mark.parametrize("nothing", [True, False], ids=["nothing written", "an error"])
async def test_what_can_not_be_kept_did_not_happen(bench, monkeypatch, nothing):
    spool = await started(bench)
    bench.append(spool)
    failures = []
    spool.on_failure = lambda: failures.append(spool.problem)

    def pwrite(_fd, _data, _at):
        if nothing:
            return 0
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(segment.os, "pwrite", pwrite)
    waited = []
    spool.on_durable(bench.append(spool, keep=False, decision=True), waited.append)
    assert waited == [False]
    assert failures == ["the spool can't be written: OSError"]
    assert (spool.seq, spool.kept, spool.failed) == (1, 1, True)
    monkeypatch.undo()  # it stays so: nobody knows what of it is in the file
    assert spool.keep()
    for decision in (True, False):
        with pytest.raises(AuditError, match="can't be written"):
            bench.append(spool, decision=decision)
    await spool.stop()
    assert len(await asyncio.to_thread(read, bench.directory)) == 1


def test_a_segment_that_can_not_be_finished_is_not_followed_by_another(bench, monkeypatch):
    spool = bench.spool()
    bench.append(spool, size=40 * KIB, keep=False)

    def pwrite(_fd, _data, _at):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(segment.os, "pwrite", pwrite)
    with pytest.raises(AuditError, match="can't be written"):
        bench.append(spool, size=40 * KIB)
    assert spool.seq == 0


def test_segments_rotate_and_the_chain_goes_on(bench):
    spool = bench.spool()
    for _ in range(100):
        bench.append(spool, size=3000)
    assert len(segments(bench.directory)) >= 5
    _, breaks = check_chain(spool.boot, [record.raw for record in read_spool(bench.directory)])
    assert breaks == []
    assert [record.raw for record in read_spool(bench.directory)] == bench.written


def test_an_event_larger_than_a_segment_is_refused(bench):
    spool = bench.spool()
    with pytest.raises(AuditError, match="larger than a segment"):
        bench.append(spool, size=64 * KIB, decision=True)
    bench.append(spool)  # and does no harm


# --- committing ----------------------------------------------------------------------------------


async def test_durable_is_called_after_the_sync_and_in_order(bench, monkeypatch):
    allowed = threading.Semaphore(0)
    synced = []
    sync = os.fdatasync

    def fdatasync(fd):
        allowed.acquire(timeout=10)
        sync(fd)
        synced.append(spool.seq)

    monkeypatch.setattr(segment.os, "fdatasync", fdatasync)
    spool = await started(bench)
    done = []
    for _ in range(3):
        spool.on_durable(bench.append(spool), lambda ok, n=spool.seq: done.append((n, ok)))
    await asyncio.sleep(0.02)  # the committer had its time, and is held before the disk
    assert (done, synced, spool.committed) == ([], [], 0)
    allowed.release(50)
    await reached(lambda: len(done) == 3)
    assert done == [(1, True), (2, True), (3, True)]
    assert synced
    at_once = []
    spool.on_durable(2, at_once.append)
    assert at_once == [True]
    await spool.stop()


async def test_stop_brings_everything_to_disk_and_lets_go(bench):
    spool = await asyncio.to_thread(bench.spool, commit_every=60)
    for _ in range(3):
        bench.append(spool)
    # Stopped before the committer's first interval: it must not be waited for in vain.
    spool._stopping = True
    spool.start()
    await spool.stop()
    assert spool.committed == 3
    again = await asyncio.to_thread(bench.spool)
    assert again.previous.seq == 3
    for path in await listed(bench.directory):
        assert path.stat().st_size == 64 * KIB


async def test_a_failed_sync_refuses_for_good_and_answers_who_waits(bench, monkeypatch):
    failing = threading.Event()
    sync = os.fdatasync

    def fdatasync(fd):
        if failing.is_set():
            failing.clear()  # the next one would report success: the kernel dropped the pages
            raise OSError(errno.EIO, "Input/output error")
        sync(fd)

    monkeypatch.setattr(segment.os, "fdatasync", fdatasync)
    spool = await started(bench)
    first = bench.append(spool)
    await reached(lambda: spool.committed == first)
    failing.set()
    answers = []
    spool.on_durable(bench.append(spool), answers.append)
    await reached(lambda: answers)
    assert answers == [False]
    assert "OSError" in spool.problem
    for decision in (True, False):
        with pytest.raises(AuditError) as refused:
            bench.append(spool, decision=decision)
        assert refused.value.code is codes.AUDIT_UNAVAILABLE
    later = []
    spool.on_durable(2, later.append)
    assert later == [False]
    assert spool.committed == first
    await asyncio.wait_for(spool.stop(), 15)  # and it still ends


# --- no room -------------------------------------------------------------------------------------


def fill(bench, spool, *, size=900, open_calls=1):
    """Decisions until one is refused."""
    while True:
        try:
            bench.append(spool, size=size, decision=True)
        except SpoolFull as refused:
            return refused
        spool.open_calls += open_calls


def raws(directory):
    return [record.raw for record in read_spool(directory)]


async def listed(directory):
    return await asyncio.to_thread(segments, directory)


def test_at_max_size_decisions_are_refused_while_outcomes_fit(bench):
    spool = bench.spool(max_size=128 * KIB)
    refused = fill(bench, spool)
    assert refused.code is codes.AUDIT_UNAVAILABLE
    assert refused.reason == spool.problem == "spool.max_size is reached"
    assert spool.open_calls > 20
    assert spool.seq == spool.open_calls
    while spool.open_calls:
        spool.open_calls -= 1
        bench.append(spool, size=OUTCOME_ROOM - 68)  # the largest that there can be
    assert spool.disk == 128 * KIB
    assert [record.raw for record in read_spool(bench.directory)] == bench.written


@pytest.mark.parametrize("calls", [0, 1, 5, 20])
def test_room_is_kept_for_as_many_outcomes_as_there_are_calls(bench, calls):
    spool = bench.spool(max_size=128 * KIB)
    for _ in range(calls):
        bench.append(spool, decision=True)
        spool.open_calls += 1
    fill(bench, spool, size=700, open_calls=0)
    for _ in range(calls):
        spool.open_calls -= 1
        bench.append(spool, size=OUTCOME_ROOM - 68)


async def test_a_deleted_segment_makes_room(bench):
    spool = await started(bench, max_size=128 * KIB)
    await asyncio.to_thread(fill, bench, spool, open_calls=0)
    oldest = (await listed(bench.directory))[0]
    assert oldest != spool.current_path
    oldest.unlink()
    spool.deleted(64 * KIB)
    await reached(lambda: not spool.problem)
    bench.append(spool, decision=True)
    await spool.stop()


async def test_a_full_disk_refuses_and_is_asked_again(bench, monkeypatch):
    full = threading.Event()
    allocate = os.posix_fallocate

    def fallocate(fd, offset, size):
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(fd, offset, size)

    monkeypatch.setattr(segment.os, "posix_fallocate", fallocate)
    spool = await started(bench)
    await reached(lambda: len(spool._ahead) == 1)
    full.set()
    refused = await asyncio.to_thread(fill, bench, spool)
    assert refused.reason == spool.problem == "the disk is full"
    full.clear()
    await reached(lambda: not spool.problem)  # nobody deleted anything: space was asked for again
    bench.append(spool, decision=True)
    await spool.stop()


async def test_another_failure_to_make_a_segment_is_not_for_good(bench, monkeypatch):
    broken = threading.Event()
    allocate = os.posix_fallocate

    def fallocate(fd, offset, size):
        if broken.is_set():
            raise OSError(errno.EMFILE, "Too many open files")
        allocate(fd, offset, size)

    monkeypatch.setattr(segment.os, "posix_fallocate", fallocate)
    spool = await started(bench)
    await reached(lambda: len(spool._ahead) == 1)
    broken.set()
    assert (
        await asyncio.to_thread(fill, bench, spool)
    ).reason == "a segment can't be made: OSError"
    broken.clear()
    await reached(lambda: not spool.problem)
    bench.append(spool, decision=True)
    await spool.stop()


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


async def test_a_disk_that_is_really_full(small_disk, bench):
    bench.directory = small_disk
    spool = await started(bench)
    assert (await asyncio.to_thread(fill, bench, spool)).reason == "the disk is full"
    written = len(bench.written)
    assert await asyncio.to_thread(raws, small_disk) == bench.written
    for path in (await listed(small_disk))[:2]:
        path.unlink()
        spool.deleted(64 * KIB)
    spool.open_calls = 0
    await reached(lambda: not spool.problem)
    for _ in range(60):
        bench.append(spool, size=900, decision=True)
    assert len(bench.written) == written + 60
    await spool.stop()


# --- the directory -------------------------------------------------------------------------------

REFUSED = {
    "segments too small": ({"segment_size": 4 * KIB}, "spool.segment_size"),
    "no room for two segments": ({"max_size": 100 * KIB}, "spool.max_size"),
}


@pytest.mark.parametrize(("settings", "key"), REFUSED.values(), ids=REFUSED)
def test_settings_that_can_not_work(bench, settings, key):
    with pytest.raises(ConfigError, match=key):
        bench.spool(**settings)
    assert not bench.directory.exists()


def test_two_sidecars_on_one_directory(bench):
    first = bench.spool()
    with pytest.raises(ConfigError, match="in use by another sidecar"):
        bench.spool()
    leave(first)
    bench.spool()


def test_a_directory_that_can_not_be_one(bench):
    bench.directory.parent.mkdir(exist_ok=True)
    bench.directory.write_text("a file")
    with pytest.raises(ConfigError, match=r"spool\.dir"):
        bench.spool()


def test_a_disk_without_room_for_the_first_segment(bench, monkeypatch):
    def full(_fd, _offset, _size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(segment.os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match=r"spool\.dir: .*No space left"):
        bench.spool()
    monkeypatch.undo()
    bench.spool()  # the lock was let go


# --- the boot before -----------------------------------------------------------------------------


def test_the_first_boot_has_none_before_it(bench):
    assert bench.spool().previous is None


def test_where_the_boot_before_ended(bench):
    first = bench.spool()
    for _ in range(50):
        bench.append(first, size=3000)
    leave(first)
    previous = bench.spool().previous
    assert (previous.boot, previous.seq, previous.torn) == (first.boot, 50, False)
    assert previous.hash == first.link.decode()


def test_a_torn_tail_is_recognised(bench):
    first = bench.spool()
    for _ in range(3):
        bench.append(first)
    link = first.link.decode()
    end = first._current.end
    raw = event_bytes(first)
    first.append(raw, decision=False)
    first.keep()
    leave(first)
    with first.current_path.open("r+b") as file:
        file.seek(end + 100)
        file.write(bytes(len(raw)))
    previous = bench.spool().previous
    assert (previous.seq, previous.hash, previous.torn) == (3, link, True)


def test_damage_in_the_middle_is_not_taken_for_the_end(bench):
    first = bench.spool()
    for _ in range(5):
        bench.append(first)
    leave(first)
    with first.current_path.open("r+b") as file:
        file.seek(HEADER_SIZE + 100)
        file.write(b"\xff")
    previous = bench.spool().previous
    assert (previous.seq, previous.hash, previous.torn) == (5, first.link.decode(), False)


def test_a_boot_without_events_had_nothing_to_end(bench):
    first = bench.spool()
    bench.append(first)
    leave(first)
    leave(bench.spool())
    assert bench.spool().previous.boot == first.boot


def test_prepared_segments_are_removed_and_damaged_ones_kept(bench):
    first = bench.spool()
    bench.append(first)
    leave(first)
    prepared = Segment(path_of(bench.directory, first.boot, 2), 64 * KIB)
    prepared.close()
    damaged = path_of(bench.directory, first.boot, 3)
    damaged.write_bytes(b"\xff" * 1000)
    assert bench.spool().previous.boot == first.boot
    assert not prepared.path.exists()
    assert damaged.exists()


def test_boots_sort_in_their_order_also_if_the_clock_goes_back(bench):
    boots = []
    for _ in range(20):
        spool = bench.spool()  # all within a second
        bench.append(spool)
        if boots:
            assert spool.previous.boot == boots[-1]
        boots.append(spool.boot)
        leave(spool)
    assert boots == sorted(boots)
    far = "f0000000deadbeef"
    segments(bench.directory)[0].rename(path_of(bench.directory, far, 1))
    assert bench.spool().boot > far


# --- SIGKILL -------------------------------------------------------------------------------------

CHILD = """
import asyncio, sys
from pathlib import Path
from tests.unit.proxy.audit.conftest import Bench
async def main():
    bench = Bench(Path(sys.argv[1]))
    spool = bench.spool(max_size=64 << 20)
    spool.start()
    while True:
        bench.append(spool, size=700)
        print(spool.seq, spool.link.decode(), flush=True)
asyncio.run(main())
"""


def test_sigkill_loses_nothing_that_was_kept(tmp_path):
    """What the child had reported before it was killed is there, whole, in a chain."""
    root = Path(__file__).parents[4]
    for round_ in range(6):
        directory = tmp_path / str(round_)
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(directory)], stdout=subprocess.PIPE, cwd=root
        )
        assert child.stdout is not None
        for _ in range(random.randint(1, 400)):
            child.stdout.readline()
        os.kill(child.pid, signal.SIGKILL)
        lines = child.stdout.read().splitlines()
        child.stdout.close()
        child.wait()
        records = list(read_spool(directory))
        good = [record.raw for record in records if not record.problem]
        head, breaks = check_chain(records[0].boot, good)
        assert breaks == []
        assert all(record.problem.startswith("torn") for record in records[len(good) :])
        complete = [line for line in lines if line.count(b" ") == 1 and len(line) > 66]
        if complete:
            seq, _, link = complete[-1].decode().partition(" ")
            assert head.seq >= int(seq)
            if head.seq == int(seq):
                assert head.hash == link
        assert list(read_segment(segments(directory)[0]))
