"""Lifetimes of credentials, and keys that differ where credentials could."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valetkey.proxy.core.cache_policy import MAX_SKEW, REFRESH_AT, CacheKey, lifetime

FOREVER = 1e9
CASES = [
    ("skew is at most five seconds", 3600, FOREVER, FOREVER, 3595),
    ("skew is at most a tenth", 20, FOREVER, FOREVER, 18),
    ("the workload's token ends first", 3600, 100, FOREVER, 95),
    ("the user's token ends first", 3600, FOREVER, 40, 36),
    ("the smallest of three", 50, 40, 30, 27),
    ("a token that is gone", 3600, -1, FOREVER, 0),
    ("nothing left", 0, FOREVER, FOREVER, 0),
]


@pytest.mark.parametrize(
    ("name", "own", "actor", "subject", "span"), CASES, ids=[c[0] for c in CASES]
)
def test_lifetimes(name: str, own: float, actor: float, subject: float, span: float) -> None:
    life = lifetime(now=1000, expires_in=own, actor_expires_in=actor, subject_expires_in=subject)
    assert life.expires_at == pytest.approx(1000 + span)
    assert life.refresh_at == pytest.approx(1000 + span * REFRESH_AT)


SECONDS = st.floats(min_value=-1e6, max_value=1e6)


@settings(deadline=None)
@given(SECONDS, SECONDS, SECONDS)
def test_never_longer_than_what_it_was_made_from(own: float, actor: float, subject: float) -> None:
    life = lifetime(now=0, expires_in=own, actor_expires_in=actor, subject_expires_in=subject)
    assert 0 <= life.refresh_at <= life.expires_at <= max(0, min(own, actor, subject))
    assert min(own, actor, subject) - life.expires_at <= MAX_SKEW + 1e-6 or life.expires_at == 0


KEY = CacheKey("iss", "sub", ("act",), "aud", "res", "[]", "a b", "http://b/token", "", "digest", 0)


@pytest.mark.parametrize("field", CacheKey._fields)
def test_a_difference_in_any_part_is_another_key(field: str) -> None:
    other = {"actors": ("act", "act2"), "epoch": 1}.get(field, "other")
    changed = KEY._replace(**{field: other})
    assert changed != KEY
    assert changed not in {KEY: 1}
    assert KEY._replace() == KEY
