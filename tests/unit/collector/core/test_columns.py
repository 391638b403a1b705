from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.chain import WORKLOAD, decision_data, outcome_data
from valetkey.collector.core.columns import Columns, extract
from valetkey.contracts import events

BOOT = "00000000000000a1"

TABLE = {
    "an allowed decision": (
        events.TYPE_DECISION,
        decision_data(),
        Columns(events.TYPE_DECISION, WORKLOAD, "tickets-read", "tickets", "allowed", "", 0),
    ),
    "a denial before any route": (
        events.TYPE_DECISION,
        {"action_id": 2, "actor": {"app_uid": "w"}, "unmapped": {"code": "target.no_match"}},
        Columns(events.TYPE_DECISION, "w", "", "", "denied", "target.no_match", 0),
    ),
    "an outcome": (
        events.TYPE_OUTCOME,
        outcome_data(f"{BOOT}-41"),
        Columns(events.TYPE_OUTCOME, WORKLOAD, "", "", "", "", 41),
    ),
    "an outcome of another boot's decision": (
        events.TYPE_OUTCOME,
        {"unmapped": {"decision": "00000000000000a2-41"}},
        Columns(events.TYPE_OUTCOME, "", "", "", "", "", 0),
    ),
    "an outcome of no number": (
        events.TYPE_OUTCOME,
        {"unmapped": {"decision": f"{BOOT}-٤"}},
        Columns(events.TYPE_OUTCOME, "", "", "", "", "", 0),
    ),
    "a number beyond the store's": (
        events.TYPE_OUTCOME,
        {"unmapped": {"decision": f"{BOOT}-9999999999999999999"}},
        Columns(events.TYPE_OUTCOME, "", "", "", "", "", 0),
    ),
    "nothing": ("t", {}, Columns("t", "", "", "", "", "", 0)),
    "an action that is not known": ("t", {"action_id": 3}, Columns("t", "", "", "", "", "", 0)),
    "an action that only looks like one": (
        "t",
        {"action_id": True},
        Columns("t", "", "", "", "", "", 0),
    ),
    "members of another kind": (
        "t",
        {"actor": 5, "api": {"service": []}, "policy": {"uid": {}}, "unmapped": "x"},
        Columns("t", "", "", "", "", "", 0),
    ),
    "a long name is cut": (
        "t",
        {"policy": {"uid": "r" * 5000}},
        Columns("t", "", "r" * 256, "", "", "", 0),
    ),
}


@pytest.mark.parametrize(("type_", "data", "columns"), TABLE.values(), ids=TABLE)
def test_columns(type_, data, columns):
    assert extract(type_, BOOT, data) == columns


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
    found = extract(events.TYPE_OUTCOME, BOOT, data)
    assert all(isinstance(value, str) for value in (found.workload, found.route, found.code))
    assert found.answers >= 0
