from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from tests.support.chain import Chain, decision_data
from valetkey.collector.core import columns
from valetkey.collector.core.coverage import Range
from valetkey.collector.core.verification import (
    BootReport,
    Entry,
    Known,
    Problem,
    Verification,
    without,
)
from valetkey.contracts import events

A, B, C = "00000000000000a1", "00000000000000b2", "00000000000000c3"


def entries(chain: Chain, *, skip: tuple[int, ...] = ()) -> list[Entry]:
    return [
        Entry(seq, raw, hash=events.digest(raw))
        for seq, raw in enumerate(chain.events, 1)
        if seq not in skip
    ]


def known(chain: Chain) -> Known:
    return Known(len(chain.events), len(chain.events), chain.head)


def verify(
    *boots: tuple[Chain, list[Entry], Known | None], partial: bool = False
) -> list[BootReport]:
    verification = Verification(partial=partial)
    for chain, found, store in boots:
        verifier = verification.boot(chain.source, chain.boot, known=store)
        for entry in found:
            verifier.feed(entry)
    return verification.finish()


def whole(*chains: Chain) -> list[tuple[Chain, list[Entry], Known | None]]:
    return [(chain, entries(chain), known(chain)) for chain in chains]


def two_boots() -> tuple[Chain, Chain]:
    first = Chain(boot=A)
    first.boot_event()
    first.calls(2)
    second = Chain(boot=B)
    second.boot_event(first)
    second.calls(1)
    return first, second


def places(reports: list[BootReport]) -> set[tuple[str, int]]:
    return {(problem.boot, problem.seq) for report in reports for problem in report.problems}


def test_a_whole_record_holds():
    first, second = two_boots()
    reports = verify(*whole(first, second))
    assert [report.holds for report in reports] == [True, True]
    assert [(r.boot, r.count, r.first, r.head.seq) for r in reports] == [(A, 5, 1, 5), (B, 3, 1, 3)]
    assert [report.ended_by for report in reports] == [B, ""]
    assert [report.unanswered for report in reports] == [0, 0]


def test_every_changed_byte_of_every_event_shows_at_its_place():
    """All positions, all events, the last one of the last boot included."""
    chains = two_boots()
    for chain in chains:
        for index, raw in enumerate(chain.events):
            for at in range(len(raw)):
                changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
                boots = whole(*chains)
                found = boots[chains.index(chain)][1]
                found[index] = Entry(index + 1, changed, hash=events.digest(raw))
                assert (chain.boot, index + 1) in places(verify(*boots)), (index, at)


def test_a_change_with_its_hash_rewritten_shows_in_the_chain():
    """Also in the last event, as long as the store's head or the next boot knows better."""
    first, second = two_boots()
    for chain in (first, second):
        for index, raw in enumerate(chain.events):
            changed = raw.replace(b"agent-0", b"agent-0", 1).replace(b"00:00:00", b"00:00:01", 1)
            boots = whole(first, second)
            found = boots[(first, second).index(chain)][1]
            found[index] = Entry(index + 1, changed, hash=events.digest(changed))
            assert (chain.boot, index + 1) in places(verify(*boots)), index


def drop(count: int) -> Callable[[list[Entry]], list[Entry]]:
    return lambda found: found[:-count]


def test_a_cut_tail_shows_through_the_next_boot():
    first, second = two_boots()
    reports = verify((first, entries(first)[:-2], None), *whole(second))
    reasons = [problem.reason for problem in reports[0].problems]
    assert reasons == ["the end is cut: events 4 to 5 are missing"]
    assert reports[1].holds


def test_a_cut_tail_of_the_latest_boot_shows_against_the_stores_head():
    first, second = two_boots()
    reports = verify(*whole(first), (second, entries(second)[:-1], known(second)))
    assert reports[0].holds
    assert {p.reason for p in reports[1].problems} == {
        "3 events were stored, 2 are here",
        "the last event is not the one that the collector stored last",
    }


def test_a_boot_that_is_gone_shows():
    _first, second = two_boots()
    reports = verify(*whole(second))
    assert [p.reason for p in reports[0].problems] == [f"the boot before, {A}, is not on record"]


def test_a_replaced_last_event_shows_through_the_next_boot():
    first, second = two_boots()
    forged = Chain(boot=A, events=first.events[:-1])
    forged.heartbeat()
    reports = verify((forged, entries(forged), known(forged)), *whole(second))
    assert places(reports) == {(A, 5)}


def test_more_than_the_next_boot_knew_of_holds():
    """A power loss may take from the sidecar what it had delivered already."""
    first, second = two_boots()
    delivered = Chain(boot=A, events=list(first.events))
    delivered.heartbeat()
    assert all(report.holds for report in verify(*whole(delivered, second)))


def test_a_hole_is_named_once_and_what_is_behind_it_still_checked():
    first, second = two_boots()
    found = entries(first, skip=(2, 3))
    found[1] = Entry(4, found[1].raw, hash="0" * 64)
    reports = verify((first, found, None), *whole(second))
    assert [(p.seq, p.reason) for p in reports[0].problems] == [
        (4, "the event's bytes differ from the hash stored with them"),
        (2, "events 2 to 3 are missing"),
    ]
    assert reports[0].missing == [Range(2, 3)]


def test_what_was_declared_lost_is_not_missing():
    first, _ = two_boots()
    second = Chain(boot=B)
    second.boot_event(first)
    second.gap(A, 2, 3)
    reports = verify((first, entries(first, skip=(2, 3)), None), *whole(second))
    assert [report.holds for report in reports] == [True, True]
    assert (reports[0].lost, reports[0].missing) == (2, [])


def test_an_end_that_was_declared_lost_is_not_cut():
    first, _ = two_boots()
    second = Chain(boot=B)
    second.boot_event(first)
    second.gap(A, 4, 5)
    reports = verify((first, entries(first)[:3], None), *whole(second))
    assert [report.holds for report in reports] == [True, True]


def test_a_declaration_excuses_nothing_else():
    first, _ = two_boots()
    second = Chain(boot=B)
    second.boot_event(first)
    second.gap(A, 2, 2)
    reports = verify((first, entries(first, skip=(2, 3)), None), *whole(second))
    assert [p.reason for p in reports[0].problems] == ["events 3 to 3 are missing"]


def test_another_sources_declaration_excuses_nothing():
    first, second = two_boots()
    other = Chain(instance="agent-1", boot=C)
    other.boot_event()
    other.gap(A, 2, 3)
    reports = verify((first, entries(first, skip=(2, 3)), None), *whole(second, other))
    assert not reports[0].holds


def test_a_decision_without_outcome_is_reported_and_no_fault():
    chain = Chain(boot=A)
    chain.boot_event()
    chain.call()
    chain.decision()
    (report,) = verify(*whole(chain))
    assert (report.holds, report.unanswered) == (True, 1)


def test_columns_that_differ_from_the_event():
    chain = Chain(boot=A)
    chain.decision(action_id=2)
    time = "2026-11-01T00:00:00.000Z"
    honest, lying = (
        msgspec.structs.asdict(
            columns.extract(events.TYPE_DECISION, A, time, decision_data(**data))
        )
        for data in ({"action_id": 2}, {"action_id": 1})
    )
    older = {name: honest[name] for name in ("type", "code")}  # one that did not keep the rest
    raw = chain.events[0]
    for found, holds in (
        (honest, True),
        (lying, False),
        (older, True),
        (older | {"code": "other"}, False),
        (honest | {"jti": "tok-2"}, False),
    ):
        (report,) = verify((chain, [Entry(1, raw, hash=events.digest(raw), columns=found)], None))
        assert report.holds is holds


MISFILED = {
    "an event of another boot": (Chain(boot=B).calls(1).events[0], "event of another boot"),
    "an event of another source": (
        Chain(boot=A, instance="other").calls(1).events[0],
        "the event is of another source, urn:valetkey:sidecar:other",
    ),
    "an event of another number": (
        Chain(boot=A).calls(1).events[1],
        "sequence jumps from 0 to 2",
    ),
    "no event": (b"{}", "not an event: Object missing required field `specversion`"),
}


@pytest.mark.parametrize(("raw", "reason"), MISFILED.values(), ids=MISFILED)
def test_misfiled(raw, reason):
    (report,) = verify((Chain(boot=A), [Entry(1, raw)], None))
    assert reason in {problem.reason for problem in report.problems}


def test_an_unreadable_entry_is_named():
    chain = Chain(boot=A).calls(2)
    found = entries(chain)
    found[1] = Entry(2, b"?", problem="corrupt: the checksum differs")
    (report,) = verify((chain, found, None))
    assert Problem(chain.source, A, 2, "corrupt: the checksum differs") in report.problems


# --- what is left of a record: a spool ------------------------------------------------------------


def test_a_part_may_begin_late_and_without_earlier_boots():
    first, second = two_boots()
    reports = verify(
        (first, entries(first)[3:], None), (second, entries(second), None), partial=True
    )
    assert [report.holds for report in reports] == [True, True]
    assert [report.first for report in reports] == [4, 1]
    assert verify((second, entries(second), None), partial=True)[0].holds


def test_a_part_has_no_holes():
    first, _ = two_boots()
    (report,) = verify((first, entries(first, skip=(1, 4)), None), partial=True)
    assert report.missing == [Range(4, 4)]


def test_a_torn_end_is_excused_by_the_boot_behind_it_only():
    first, second = two_boots()
    torn = [*entries(first), Entry(6, b"half", problem="torn", torn=True)]
    assert not verify((first, torn, None), partial=True)[0].holds
    reports = verify((first, torn, None), (second, entries(second), None), partial=True)
    assert [report.holds for report in reports] == [True, True]


def test_a_part_of_which_only_a_torn_write_is_left():
    first, second = two_boots()
    torn = [Entry(6, b"half", problem="torn", torn=True)]
    reports = verify((first, torn, None), (second, entries(second), None), partial=True)
    assert [report.holds for report in reports] == [True, True]


@pytest.mark.parametrize(
    ("taken", "left"),
    [
        ([], [(1, 9)]),
        ([(1, 9)], []),
        ([(3, 4)], [(1, 2), (5, 9)]),
        ([(8, 20), (1, 1)], [(2, 7)]),
        ([(10, 20)], [(1, 9)]),
    ],
)
def test_without(taken, left):
    found = without([Range(1, 9)], [Range(*pair) for pair in taken])
    assert [(r.first, r.last) for r in found] == left


def test_a_torn_write_that_the_next_boot_knew_whole():
    first, second = two_boots()
    torn = [Entry(5, b"half", problem="torn", torn=True)]
    reports = verify((first, torn, None), (second, entries(second), None), partial=True)
    assert places(reports) == {(A, 5)}


def test_a_torn_write_with_a_log_behind_it():
    first, second = two_boots()
    found = entries(first)
    found[2] = Entry(3, b"half", problem="torn", torn=True)
    reports = verify((first, found, None), (second, entries(second), None), partial=True)
    assert (A, 3) in places(reports)
