"""Token buckets, one for each caller."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.integration.broker_support import Clock
from valetkey.broker.core.rate_limit import RateLimit, whole_seconds


def test_a_burst_and_then_the_rate() -> None:
    clock = Clock(100.0)
    limit = RateLimit(rate=2, burst=3, callers=10, timer=clock)
    assert [limit.take("a") for _ in range(3)] == [0.0] * 3
    assert limit.take("a") == 0.5
    clock.advance(0.25)
    assert limit.take("a") > 0  # asking too early costs nothing and gives nothing
    clock.advance(0.25)
    assert limit.take("a") == 0.0


def test_callers_do_not_share() -> None:
    limit = RateLimit(rate=1, burst=1, callers=10, timer=Clock(0.0))
    assert limit.take("a") == 0.0
    assert limit.take("b") == 0.0
    assert limit.take("a") > 0


def test_a_full_table_refuses_strangers_and_forgets_nobody_who_waits() -> None:
    clock = Clock(0.0)
    limit = RateLimit(rate=1, burst=2, callers=2, timer=clock)
    limit.take("a")
    limit.take("b")
    clock.advance(0.5)
    assert limit.take("c") > 0
    clock.advance(0.5)
    assert limit.take("c") == 0.0  # a's bucket is full again: nothing is lost with it
    assert len(limit) == 2


@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 3)), max_size=200),
)
def test_never_more_than_the_burst_and_the_rate(
    rate: int, burst: int, asked: list[tuple[str, float]]
) -> None:
    clock = Clock(0.0)
    limit = RateLimit(rate=rate, burst=burst, callers=3, timer=clock)
    allowed = dict.fromkeys("abc", 0)
    for caller, pause in asked:
        clock.advance(pause)
        allowed[caller] += limit.take(caller) == 0.0
    assert all(count <= burst + rate * clock() + 1e-6 for count in allowed.values())


def test_whole_seconds() -> None:
    assert [whole_seconds(wait) for wait in (0.01, 1.0, 1.2)] == [1, 1, 2]
