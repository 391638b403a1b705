from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.collector.core.coverage import MAX_HOLES, Coverage, Hole, Range, TooManyHoles, runs


def after(*steps: tuple[str, int, int]) -> Coverage:
    coverage = Coverage()
    for step, first, last in steps:
        if step == "add":
            coverage.add(Range(first, last))
        elif step == "declare":
            coverage.declare(Range(first, last))
        else:
            coverage.expect(last)
    return coverage


TABLE = {
    "nothing": ((), 0, []),
    "from the start": ((("add", 1, 5),), 5, []),
    "a hole at the start": ((("add", 3, 5),), 0, [(1, 2)]),
    "a hole in between": ((("add", 1, 2), ("add", 5, 6)), 2, [(3, 4)]),
    "a hole filled": ((("add", 1, 2), ("add", 5, 6), ("add", 3, 4)), 6, []),
    "a hole filled from its middle": ((("add", 1, 2), ("add", 7, 8), ("add", 5, 5)), 2, [(3, 4), (6, 6)]),
    "an overlap fills what it covers": ((("add", 1, 1), ("add", 5, 6), ("add", 1, 3)), 3, [(4, 4)]),
    "the same again": ((("add", 1, 5), ("add", 1, 5)), 5, []),
    "lost in between": ((("add", 1, 2), ("add", 5, 6), ("declare", 3, 4)), 6, []),
    "lost in part": ((("add", 1, 2), ("add", 6, 6), ("declare", 3, 4)), 4, [(5, 5)]),
    "lost before it was missed": ((("add", 1, 2), ("declare", 3, 4), ("add", 5, 6)), 6, []),
    "lost far ahead": ((("declare", 8, 9), ("add", 1, 2)), 2, [(3, 7)]),
    "known to exist": ((("add", 1, 2), ("expect", 0, 4)), 2, [(3, 4)]),
    "known and delivered": ((("add", 1, 2), ("expect", 0, 4), ("add", 3, 4)), 4, []),
    "known already": ((("add", 1, 4), ("expect", 0, 2)), 4, []),
}  # fmt: skip


@pytest.mark.parametrize(("steps", "acked", "holes"), TABLE.values(), ids=TABLE)
def test_what_is_acknowledged_and_what_is_missing(steps, acked, holes):
    coverage = after(*steps)
    assert coverage.acked == acked
    assert [(hole.first, hole.last) for hole in coverage.holes] == holes


def test_what_is_left_of_a_gap_keeps_its_key():
    coverage = Coverage(10, [Hole(3, 8, 77)])
    coverage.add(Range(5, 6))
    assert coverage.holes == [Hole(3, 4, 77), Hole(7, 8, 77)]
    assert coverage.opened == []
    assert coverage.gaps == {77}


def test_what_was_given_up_is_counted_by_gap():
    coverage = Coverage(20, [Hole(3, 8, 7), Hole(12, 12, 9)])
    coverage.declare(Range(6, 12))
    assert coverage.given_up == {7: 3, 9: 1}
    assert coverage.gaps == {7}


def test_a_gap_that_opens_and_ends_at_once_is_still_known():
    coverage = after(("add", 1, 2), ("declare", 3, 4))
    assert coverage.opened == [Hole(3, 4, -1)]
    assert coverage.gaps == frozenset()


def test_holes_are_bounded():
    coverage = Coverage()
    for seq in range(2, 2 * MAX_HOLES + 2, 2):
        coverage.add(Range(seq, seq))
    assert len(coverage.holes) == MAX_HOLES
    with pytest.raises(TooManyHoles):
        coverage.add(Range(coverage.high + 2, coverage.high + 2))


ranges = st.tuples(st.integers(1, 60), st.integers(0, 12)).map(lambda p: (p[0], p[0] + p[1]))
steps = st.lists(st.tuples(st.sampled_from(["add", "declare", "expect"]), ranges))


@given(steps)
def test_any_order_of_anything_agrees_with_plain_sets(steps):
    """The model: sets of what exists and what is accounted for, no ranges at all."""
    coverage = Coverage()
    exists: set[int] = set()
    settled: set[int] = set()
    acked_before = 0
    for step, (first, last) in steps:
        if step == "add":
            coverage.add(Range(first, last))
        elif step == "declare":
            coverage.declare(Range(first, last))
        else:
            coverage.expect(last)
        exists |= set(range(1, last + 1))
        if step != "expect":
            settled |= set(range(first, last + 1))
        missing = {seq for hole in coverage.holes for seq in range(hole.first, hole.last + 1)}
        assert missing == exists - settled
        assert coverage.high == max(exists, default=0)
        assert coverage.acked == next(n for n in range(100) if n + 1 not in settled)
        assert coverage.acked >= acked_before
        acked_before = coverage.acked


@given(st.permutations(range(1, 30)), st.lists(st.integers(1, 29)))
def test_whatever_the_order_and_the_repeats_all_is_acknowledged(order, repeats):
    coverage = Coverage()
    for seq in [*order, *repeats]:
        coverage.add(Range(seq, seq))
    assert (coverage.acked, coverage.holes) == (29, [])


@given(st.sets(st.integers(1, 50)))
def test_runs_cover_exactly_their_numbers(sequences):
    found = runs(sorted(sequences))
    assert [seq for run in found for seq in range(run.first, run.last + 1)] == sorted(sequences)
    assert all(b.first > a.last + 1 for a, b in itertools.pairwise(found))
    assert all(len(run) == run.last - run.first + 1 for run in found)
