"""Grants by workload: what is found, and that a change touches one grant alone."""

from __future__ import annotations

import pytest

from tests.unit.broker.core.test_grants import BOT, IDP, file_of, grant
from valetkey.broker.core.grants.compiled import Grant, compile_grant
from valetkey.broker.core.grants.index import GrantIndex


def compiled(name: str, **changes: object) -> Grant:
    (written,) = file_of([grant(name, **changes)]).grants
    return compile_grant(written)


def found(index: GrantIndex, workload: str = BOT, target: str = "tickets") -> list[str]:
    return [grant.id for grant in index.of(target, IDP, workload)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (BOT, True),
        ("spiffe://a/*/x/sa/bot", True),
        ("spiffe://a/ns/*/sa/bot", True),
        ("spiffe://a/ns/x/sa/*", True),
        ("spiffe://a/ns/*/sa/other", False),
        ("spiffe://a/ns/*/bot", False),
        (BOT + "/*", False),
    ],
)
def test_exact_and_wild(pattern: str, expected: bool) -> None:
    assert bool(found(GrantIndex([compiled("g", workload=pattern)]))) is expected


def test_the_exact_ones_come_first() -> None:
    index = GrantIndex([compiled("wild", workload="spiffe://a/ns/*/sa/bot"), compiled("exact")])
    assert found(index) == ["exact", "wild"]


def test_a_subject_with_a_star_in_it_is_nobody() -> None:
    pattern = "spiffe://a/ns/*/sa/bot"
    assert found(GrantIndex([compiled("g", workload=pattern)]), workload=pattern) == []


def test_put_replaces_and_discard_forgets() -> None:
    index = GrantIndex([compiled("g"), compiled("h")])
    index.put(compiled("g", target="files"))
    assert (found(index), found(index, target="files")) == (["h"], ["g"])
    index.discard("g")
    index.discard("g")
    assert (found(index), found(index, target="files"), len(index)) == (["h"], [], 1)
    assert index.get("g") is None
    assert [each.id for each in index] == ["h"]
