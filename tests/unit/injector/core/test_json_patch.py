"""JSON Patches: applied by a strict reader they give the other document, for any two."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.support.pods import applied, loaded, pod
from valetkey.injector.core.json_patch import diff
from valetkey.injector.core.mutation import Injected, Place, mutate

KEYS = st.sampled_from(["a", "b", "a/b", "~", "~1", "", "0", "-"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from(["", "x"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Python takes 1 for True."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@given(VALUES, VALUES)
def test_a_patch_makes_one_of_the_other(before: Any, after: Any) -> None:
    assert same(applied(diff(before, after), before), after)


@given(VALUES)
def test_no_difference_no_patch(value: Any) -> None:
    assert diff(value, value) == []


def test_what_stays_is_not_sent_again() -> None:
    many = {"name": "big", "image": "i", "args": ["x" * 1000]}
    document = pod(many, volumes=[{"name": "data", "emptyDir": {}}])
    result = mutate(document, Place("agents"), loaded())
    assert isinstance(result, Injected)
    patch = diff(document, result.pod)
    assert applied(patch, document) == result.pod
    assert "x" * 1000 not in str(patch)
