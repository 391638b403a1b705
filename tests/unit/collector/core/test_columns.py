from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.chain import WORKLOAD, decision_data, outcome_data
from valetkey.collector.core.columns import Columns, extract, names
from valetkey.contracts import events

BOOT = "00000000000000a1"
TIME, MS = "2026-11-24T10:37:01.471Z", 1_795_516_621_471

TABLE = {
    "an allowed decision": (
        events.TYPE_DECISION,
        decision_data(),
        Columns(
            *(events.TYPE_DECISION, WORKLOAD, "tickets-read", "tickets", "allowed", "", 0, MS),
            *("tok-1", "txn-1", "", ""),
        ),
    ),
    "a denial before any route": (
        events.TYPE_DECISION,
        {"action_id": 2, "actor": {"app_uid": "w"}, "unmapped": {"code": "target.no_match"}},
        Columns(
            events.TYPE_DECISION, "w", "", "", "denied", "target.no_match", 0, MS, "", "", "", ""
        ),
    ),
    "an outcome": (
        events.TYPE_OUTCOME,
        outcome_data(f"{BOOT}-41"),
        Columns(events.TYPE_OUTCOME, WORKLOAD, "", "", "", "", 41, MS, "", "", "", ""),
    ),
    "an outcome of another boot's decision": (
        events.TYPE_OUTCOME,
        {"unmapped": {"decision": "00000000000000a2-41"}},
        Columns(events.TYPE_OUTCOME, "", "", "", "", "", 0, MS, "", "", "", ""),
    ),
    "an outcome of no number": (
        events.TYPE_OUTCOME,
        {"unmapped": {"decision": f"{BOOT}-٤"}},
        Columns(events.TYPE_OUTCOME, "", "", "", "", "", 0, MS, "", "", "", ""),
    ),
    "a number beyond the store's": (
        events.TYPE_OUTCOME,
        {"unmapped": {"decision": f"{BOOT}-9999999999999999999"}},
        Columns(events.TYPE_OUTCOME, "", "", "", "", "", 0, MS, "", "", "", ""),
    ),
    "nothing": ("t", {}, Columns("t", "", "", "", "", "", 0, MS, "", "", "", "")),
    "an action that is not known": (
        "t",
        {"action_id": 3},
        Columns("t", "", "", "", "", "", 0, MS, "", "", "", ""),
    ),
    "an action that only looks like one": (
        "t",
        {"action_id": True},
        Columns("t", "", "", "", "", "", 0, MS, "", "", "", ""),
    ),
    "members of another kind": (
        "t",
        {"actor": 5, "api": {"service": []}, "policy": {"uid": {}}, "unmapped": "x"},
        Columns("t", "", "", "", "", "", 0, MS, "", "", "", ""),
    ),
    "an outcome of another credential than its decision's": (
        events.TYPE_OUTCOME,
        {
            "unmapped": {
                "decision": f"{BOOT}-41",
                "credentials": [
                    {"jti": "tok-1", "txn": "txn-1", "grants": ["g"]},
                    {"jti": "tok-2", "txn": "txn-1", "approval": "apr_2"},
                    7,
                    {"jti": "two\nlines", "txn": 7},
                ],
            }
        },
        Columns(
            *(events.TYPE_OUTCOME, "", "", "", "", "", 41, MS, "", "", ""),
            "\njti tok-1\ntxn txn-1\njti tok-2\napproval apr_2\n",
        ),
    ),
    "a stream that rested on another credential at last": (
        events.TYPE_OUTCOME,
        {"unmapped": {"decision": f"{BOOT}-41", "stream": {"jti": "tok-3"}}},
        Columns(events.TYPE_OUTCOME, "", "", "", "", "", 41, MS, "", "", "", "\njti tok-3\n"),
    ),
    "a refusal that needs an approval": (
        events.TYPE_DECISION,
        {"action_id": 2, "unmapped": {"approval": "apr_1"}},
        Columns(events.TYPE_DECISION, "", "", "", "denied", "", 0, MS, "", "", "apr_1", ""),
    ),
    "a long name is cut": (
        "t",
        {"policy": {"uid": "r" * 5000}},
        Columns("t", "", "r" * 256, "", "", "", 0, MS, "", "", "", ""),
    ),
}


@pytest.mark.parametrize(("type_", "data", "columns"), TABLE.values(), ids=TABLE)
def test_columns(type_, data, columns):
    assert extract(type_, BOOT, TIME, data) == columns


@pytest.mark.parametrize(
    ("time", "kept"),
    [
        ("2026-11-24T11:37:01.471+01:00", MS),
        ("2026-11-24T10:37:01Z", MS - 471),
        ("2026-11-24T10:37:01", 0),
        ("yesterday", 0),
        ("", 0),
    ],
)
def test_a_time_that_is_none_is_kept_as_none(time, kept):
    assert extract("t", BOOT, time, {}).time == kept


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "actor",
                    "app_uid",
                    "api",
                    "service",
                    "name",
                    "policy",
                    "uid",
                    "unmapped",
                    "code",
                    "decision",
                    "action_id",
                    "jti",
                    "txn",
                    "stream",
                    "credentials",
                    "approval",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(
    st.dictionaries(
        st.sampled_from(["actor", "api", "policy", "unmapped", "action_id"]), json_values
    )
)
def test_no_object_is_too_odd(data):
    found = extract(events.TYPE_OUTCOME, BOOT, TIME, data)
    assert all(isinstance(value, str) for value in (found.workload, found.jti, found.more))
    assert found.answers >= 0


def test_names_are_whole():
    data = {"unmapped": {"jti": "tok-1", "credentials": [{"jti": "tok-2"}, {"txn": "txn-2"}]}}
    found = extract("t", BOOT, TIME, data)
    assert all(
        names(found, *name) for name in (("jti", "tok-1"), ("jti", "tok-2"), ("txn", "txn-2"))
    )
    for kind, value in (("jti", "tok"), ("jti", "ok-2"), ("txn", "tok-2"), ("approval", "")):
        assert not names(found, kind, value)
