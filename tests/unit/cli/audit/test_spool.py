from __future__ import annotations

import struct

import pytest

from tests.support.chain import Chain
from valetkey.contracts import events
from valetkey.proxy.audit.segment import HEADER_SIZE, Segment, path_of


def write(directory, chain: Chain, *, first: int = 1, per_segment: int = 3) -> None:
    """The events of a boot from ``first`` on, in segments as the sidecar writes them."""
    directory.mkdir(exist_ok=True)
    rest = list(range(first, len(chain.events) + 1))
    for number, start in enumerate(range(0, len(rest), per_segment)):
        seqs = rest[start : start + per_segment]
        link = events.digest(chain.events[seqs[0] - 2]) if seqs[0] > 1 else events.GENESIS
        segment = Segment(path_of(directory, chain.boot, number), 8192)
        segment.begin(chain.boot, seqs[0], bytes.fromhex(link))
        for seq in seqs:
            raw = chain.events[seq - 1]
            segment.store(raw, events.digest(raw).encode())
        segment.flush()
        segment.close()


@pytest.fixture
def spool(tmp_path, two_boots):
    first, second = two_boots
    write(tmp_path / "spool", first)
    write(tmp_path / "spool", second)
    return tmp_path / "spool"


def files(spool):
    return sorted(spool.iterdir())


def test_a_whole_spool_holds(audit, spool):
    result = audit("verify", "--spool", spool)
    assert result.exit_code == 0, result.output
    assert "the record holds: 8 events of 2 boots" in result.output


def test_an_empty_spool_holds(audit, tmp_path):
    assert audit("verify", "--spool", tmp_path).exit_code == 0


def test_what_was_delivered_is_not_missing(audit, tmp_path, two_boots):
    first, second = two_boots
    write(tmp_path / "spool", first, first=4)
    write(tmp_path / "spool", second)
    result = audit("verify", "--spool", tmp_path / "spool")
    assert result.exit_code == 0, result.output
    assert "the record holds: 5 events of 2 boots" in result.output


def test_a_segment_that_was_prepared_and_never_begun(audit, spool):
    Segment(spool / "zzz.seg", 4096).close()
    assert audit("verify", "--spool", spool).exit_code == 0


def test_every_changed_byte_of_every_segment_fails(tmp_path):
    """Every position of headers and first frames, every fifth of the rest.

    Not the zeros behind the last record: something there is what a crash leaves.
    """
    from valetkey.cli.audit.spool import verify_spool

    spool = tmp_path / "spool"
    first, second = Chain(boot="00000000000000a1"), Chain(boot="00000000000000b2")
    first.boot_event()
    first.call()
    second.boot_event(first)
    second.heartbeat()
    write(spool, first, per_segment=2)
    write(spool, second)
    for path in files(spool):
        content = path.read_bytes()
        used = len(content.rstrip(b"\0"))
        for at in [*range(200), *range(200, used, 5)]:
            changed = bytearray(content)
            changed[at] ^= 1
            path.write_bytes(changed)
            assert not verify_spool(spool).holds, (path.name, at)
        path.write_bytes(content)
    assert verify_spool(spool).holds


def test_the_place_is_named(audit, spool):
    last = files(spool)[-1]
    content = bytearray(last.read_bytes())
    content[len(bytes(content).rstrip(b"\0")) - 3] ^= 1
    last.write_bytes(content)
    result = audit("verify", "--spool", spool)
    assert result.exit_code == 1
    assert "boot 00000000000000b2 event 3: the last write was cut short" in result.output


def test_a_segment_taken_out_of_the_middle(audit, spool, two_boots):
    files(spool)[1].unlink()
    result = audit("verify", "--spool", spool)
    assert result.exit_code == 1
    assert "the end is cut: events 4 to 5 are missing" in result.output


def test_a_header_of_another_boot(audit, spool):
    path = files(spool)[0]
    content = bytearray(path.read_bytes())
    content[8:24] = b"00000000000000c3"
    path.write_bytes(content)
    result = audit("verify", "--spool", spool)
    assert result.exit_code == 1
    assert "event of another boot" in result.output


def test_a_log_cut_by_a_length_of_zero(audit, spool):
    path = files(spool)[-1]
    content = bytearray(path.read_bytes())
    content[HEADER_SIZE : HEADER_SIZE + 4] = b"\0" * 4
    path.write_bytes(content)
    result = audit("verify", "--spool", spool)
    assert result.exit_code == 1
    assert path.name in result.output or "boot 00000000000000b2 event 1" in result.output


@pytest.mark.parametrize("half", [10, 40, 100, 300])
def test_a_write_that_a_crash_cut_short_is_excused_by_the_next_boot(audit, tmp_path, half):
    """The store of one more record of the first boot came this far."""
    first, second = Chain(boot="00000000000000a1"), Chain(boot="00000000000000b2")
    first.boot_event()
    second.boot_event(first)
    write(tmp_path / "spool", first)
    path = files(tmp_path / "spool")[0]
    raw = b"x" * 400
    frame = struct.pack("<I64s", len(raw), events.digest(raw).encode()) + raw
    content = bytearray(path.read_bytes())
    end = len(bytes(content).rstrip(b"\0"))
    content[end : end + half] = frame[:half]
    path.write_bytes(content)
    assert audit("verify", "--spool", tmp_path / "spool").exit_code == 1
    write(tmp_path / "spool", second)
    result = audit("verify", "--spool", tmp_path / "spool")
    assert result.exit_code == 0, result.output


def test_a_spool_that_can_not_be_read(audit, spool):
    (spool / "aaa.seg").mkdir()
    result = audit("verify", "--spool", spool)
    assert result.exit_code == 2
    assert "can't be read" in result.stderr
