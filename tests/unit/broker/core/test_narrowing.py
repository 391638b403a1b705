"""A grant written anew: what it gave and gives no more has ended, and nothing else has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.broker.core.test_grants import (
    DEPLOYMENT,
    IDP,
    NOW,
    TICKETS,
    at,
    calls,
    condition,
    file_of,
    grant,
    policy_of,
)
from tests.unit.broker.core.test_grants_properties import METHODS, PATHS, SCOPES, WORKLOADS, made
from valetkey.broker.core.grants import Granted, GrantSettings
from valetkey.broker.core.grants.narrowing import GONE, NARROWED, End, end_of, ends_between


def written(**changes: Any) -> GrantSettings:
    return file_of([grant("g", **changes)]).grants[0]


GET = condition("/a/{id}", "GET")
POST = condition("/a/{id}", "POST")
ONE = {"quorum": 1}


@dataclass(frozen=True)
class Case:
    name: str
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    ends: bool = True
    closes: bool = False


CASES = [
    Case("the same", ends=False),
    Case("notes", {"reason": "a"}, {"reason": "b", "ticket": "c", "owner": "d"}, ends=False),
    Case("another workload", {}, {"workload": "w"}, closes=True),
    Case("another issuer", {}, {"issuer": "https://two"}, closes=True),
    Case("another target", {}, {"target": "files"}, closes=True),
    Case("a scope less", {"scopes": ["read", "write"]}, {"scopes": ["read"]}),
    Case("a scope more", {"scopes": ["read"]}, {"scopes": ["write", "read"]}, ends=False),
    Case("other scopes", {"scopes": ["read"]}, {"scopes": ["write"]}),
    Case("users no more", {"on_behalf_of": "users"}, {}),
    Case("users, too", {}, {"on_behalf_of": "users"}, ends=False),
    Case("conditions at last", {}, {"conditions": [GET]}),
    Case("conditions no more", {"conditions": [GET]}, {}, ends=False),
    Case("a condition less", {"conditions": [GET, POST]}, {"conditions": [GET]}),
    Case("a condition more", {"conditions": [GET]}, {"conditions": [POST, GET]}, ends=False),
    Case(
        "a wider path",
        {"conditions": [GET]},
        {"conditions": [condition("/{rest*}", "GET")]},
        ends=False,
    ),
    Case("a narrower path", {"conditions": [condition("/{rest*}", "GET")]}, {"conditions": [GET]}),
    Case("an approval at last", {}, {"approval": ONE}),
    Case("no approval any more", {"approval": ONE}, {}, ends=False),
    Case("more approvers", {"approval": ONE}, {"approval": {"quorum": 2}}),
    Case(
        "the same approval",
        {"approval": ONE},
        {"approval": ONE, "scopes": ["read", "x"]},
        ends=False,
    ),
    Case("a later begin", {"not_before": at(1)}, {"not_before": at(2)}),
    Case("a begin at last", {}, {"not_before": at(1)}),
    Case("an earlier begin", {"not_before": at(2)}, {"not_before": at(1)}, ends=False),
    Case("an earlier end", {"not_after": at(2)}, {"not_after": at(1)}),
    Case("an end at last", {}, {"not_after": at(1)}),
    Case("a later end", {"not_after": at(1)}, {"not_after": at(2)}, ends=False),
    Case("shorter lives", {"ttl": "60s"}, {"ttl": "30s"}),
    Case("bounded lives", {}, {"ttl": "30s"}),
    Case("longer lives", {"ttl": "30s"}, {"ttl": "60s"}, ends=False),
    Case("fewer uses", {"max_uses": 3}, {"max_uses": 2}),
    Case("counted at last", {}, {"max_uses": 2}),
    Case("counted no more", {"max_uses": 2}, {}, ends=False),
    Case("windows at last", {}, DEPLOYMENT, closes=True),
    Case("windows no more", DEPLOYMENT, {}, closes=True),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_ends(case: Case) -> None:
    end = end_of(written(**case.before), written(**case.after), at=NOW)
    assert end == (End(NARROWED, NOW, case.closes) if case.ends else None)


def test_between_two_files() -> None:
    before = {name: written() for name in ("kept", "gone", "narrowed")}
    after = {"kept": written(reason="x"), "narrowed": written(ttl="1s"), "new": written()}
    assert ends_between(before, after, at=NOW) == {
        "gone": End(GONE, NOW, closes=True),
        "narrowed": End(NARROWED, NOW, closes=False),
    }


@settings(max_examples=600, deadline=None)
@given(
    pair=st.tuples(made(), made()),
    part=st.sampled_from([(), ("scopes",), ("scopes", "conditions"), ("not_after", "max_uses")]),
    workload=st.sampled_from(WORKLOADS),
    for_user=st.booleans(),
    asked=st.lists(
        st.tuples(st.sampled_from(METHODS), st.sampled_from(PATHS)), max_size=2, unique=True
    ),
    later=st.floats(0, 13),
)
def test_where_nothing_ends_everything_is_still_given(
    pair: tuple[Any, Any],
    part: tuple[str, ...],
    workload: str,
    for_user: bool,
    asked: list[tuple[str, str]],
    later: float,
) -> None:
    """Two grants that may differ in everything, or in some parts alone."""
    before, other = (each.written for each in pair)
    after = other
    if part:
        after = {key: value for key, value in before.items() if key not in part}
        after |= {key: other[key] for key in part if key in other}
    old, new = (file_of([each]).grants[0] for each in (before, after))
    if end_of(old, new, at=NOW) is not None:
        return
    question: dict[str, Any] = {
        "issuer": IDP,
        "workload": workload,
        "for_user": for_user,
        "scopes": SCOPES,
        "calls": [call for method, path in asked for call in calls(path, method)],
        "now": NOW + later,
    }
    given_before = policy_of(before).grant(TICKETS, **question)
    if isinstance(given_before, Granted):
        given_after = policy_of(after).grant(TICKETS, **question)
        assert isinstance(given_after, Granted)
        assert set(given_before.scopes) <= set(given_after.scopes)
        assert given_after.until >= given_before.until
