"""The life of signing keys."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.broker.core.rotation import KeyTimes, Plan, Schedule, plan

SCHEDULE = Schedule(rotate_every=1000, publish_before=100, overlap=50)
A = KeyTimes("a", 0, 200)
B = KeyTimes("b", 1000, 200)
C = KeyTimes("c", 2000, 200)


@dataclass(frozen=True)
class Case:
    name: str
    keys: tuple[KeyTimes, ...]
    now: float
    expected: Plan


CASES = [
    Case("none yet", (), 7, Plan(None, (), (), 7)),
    Case("fresh", (A,), 0, Plan("a", ("a",), (), None)),
    Case("before the next is due", (A,), 899, Plan("a", ("a",), (), None)),
    Case("the next is due", (A,), 900, Plan("a", ("a",), (), 1000)),
    Case("late: it waits its publication", (A,), 5000, Plan("a", ("a",), (), 5100)),
    Case("published, not signing", (A, B), 999, Plan("a", ("a", "b"), (), None)),
    Case("signing", (A, B), 1000, Plan("b", ("a", "b"), (), None)),
    Case("old one still needed", (A, B), 1249, Plan("b", ("a", "b"), (), None)),
    Case("old one gone", (A, B), 1250, Plan("b", ("b",), ("a",), None)),
    Case("three", (C, A, B), 2000, Plan("c", ("b", "c"), ("a",), None)),
    Case("clock set back", (B,), 10, Plan("b", ("b",), (), None)),
    Case("longer tokens keep a key longer", (KeyTimes("a", 0, 500), B), 1250,
         Plan("b", ("a", "b"), (), None)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_plan(case: Case) -> None:
    assert plan(case.keys, SCHEDULE, now=case.now) == case.expected


@given(steps=st.lists(st.floats(0.1, 3000), min_size=1, max_size=60))
def test_every_token_can_be_verified_while_it_lives(steps: list[float]) -> None:
    """Run the schedule at any moments: the set holds the key of every living token."""
    keys: list[KeyTimes] = []
    tokens: list[tuple[str, float]] = []
    seen: dict[str, float] = {}
    now = 0.0
    for step in (0.0, *steps):
        now += step
        due = plan(keys, SCHEDULE, now=now)
        if due.create_for is not None:
            keys.append(KeyTimes(f"k{len(seen)}-{now}", due.create_for, 200))
        keys = [key for key in keys if key.kid not in due.gone]
        due = plan(keys, SCHEDULE, now=now)
        assert due.signing is not None
        for kid in due.published:
            seen.setdefault(kid, now)
        # All but the very first were in the set long enough before they signed.
        if due.signing != next(iter(seen)):
            assert now - seen[due.signing] >= SCHEDULE.publish_before
        tokens.append((due.signing, now + 200))
        for kid, expires in tokens:
            assert expires <= now or kid in due.published
