from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.contracts.times import from_rfc3339, rfc3339


@given(st.integers(0, 4_000_000_000_000))
def test_a_time_comes_back_as_it_went(milliseconds: int) -> None:
    assert round(from_rfc3339(rfc3339(milliseconds / 1000)) * 1000) == milliseconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1970-01-01T00:00:10Z", 10), ("1970-01-01T01:00:10.5+01:00", 10.5)],
)
def test_times_that_are_read(text: str, seconds: float) -> None:
    assert from_rfc3339(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "tomorrow", "1970-01-01", "1970-01-01T00:00:10", "10", "１970-01-01T00:00:10Z"]
)
def test_times_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        from_rfc3339(text)
