"""Used once, remembered until useless, never forgotten before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.broker.core.replay import ReplayMemory, Use


def test_once() -> None:
    memory = ReplayMemory(10)
    assert memory.use("k", "j", expires=100, now=0) is Use.FIRST
    assert memory.use("k", "j", expires=100, now=99) is Use.REPLAYED
    assert memory.use("k", "j2", expires=100, now=99) is Use.FIRST
    assert memory.use("k2", "j", expires=100, now=99) is Use.FIRST


def test_parts_do_not_run_together() -> None:
    memory = ReplayMemory(10)
    assert memory.use("ab", "c", expires=100, now=0) is Use.FIRST
    assert memory.use("a", "bc", expires=100, now=0) is Use.FIRST


def test_forgotten_when_expired() -> None:
    memory = ReplayMemory(10)
    memory.use("j", expires=100, now=0)
    assert memory.use("x", expires=200, now=100) is Use.FIRST
    assert len(memory) == 1


def test_full_refuses_and_still_knows() -> None:
    memory = ReplayMemory(2)
    memory.use("a", expires=100, now=0)
    memory.use("b", expires=50, now=0)
    assert memory.use("c", expires=100, now=0) is Use.NO_ROOM
    assert memory.use("a", expires=100, now=0) is Use.REPLAYED
    assert memory.use("c", expires=100, now=50) is Use.FIRST
    assert memory.use("a", expires=100, now=50) is Use.REPLAYED


def test_a_capacity_is_needed() -> None:
    with pytest.raises(ValueError, match="capacity"):
        ReplayMemory(0)


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 20)), max_size=40),
    st.integers(1, 3),
)
def test_no_identifier_counts_twice_while_it_lives(
    uses: list[tuple[str, int]], capacity: int
) -> None:
    memory = ReplayMemory(capacity)
    alive: dict[str, float] = {}
    for now, (name, life) in enumerate(uses):
        alive = {known: expires for known, expires in alive.items() if expires > now}
        use = memory.use(name, expires=now + life, now=now)
        if name in alive:
            assert use is Use.REPLAYED
        elif len(alive) >= capacity:
            assert use is Use.NO_ROOM
        else:
            assert use is Use.FIRST
            alive[name] = now + life
        assert len(memory) <= capacity
