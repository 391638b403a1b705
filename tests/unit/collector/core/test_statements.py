from __future__ import annotations

import pytest

from valetkey.collector.core.coverage import Range
from valetkey.collector.core.statements import Declaration, PreviousBoot, declaration, previous_boot
from valetkey.contracts.events import GENESIS

BOOT = "00000000000000a1"
GOOD = {"boot": BOOT, "first": 3, "last": 5, "lost": 3, "reason": "damaged"}

GAPS = {
    "a range": (GOOD, Declaration(BOOT, Range(3, 5), 3, "damaged")),
    "one event": (GOOD | {"last": 3, "lost": 1}, Declaration(BOOT, Range(3, 3), 1, "damaged")),
    "events without numbers": (
        GOOD | {"first": 0, "last": 0, "lost": 12},
        Declaration(BOOT, None, 12, "damaged"),
    ),
    "no count": ({"boot": BOOT, "first": 1, "last": 2}, Declaration(BOOT, Range(1, 2), 0, "")),
    "a long reason is cut": (
        GOOD | {"reason": "x" * 999},
        Declaration(BOOT, Range(3, 5), 3, "x" * 200),
    ),
    "backwards": (GOOD | {"first": 5, "last": 3, "lost": 0}, None),
    "nothing lost": (GOOD | {"first": 0, "last": 0, "lost": 0}, None),
    "no boot": (GOOD | {"boot": "zz"}, None),
    "a count that is none": (GOOD | {"lost": "3"}, None),
    "a truth for a count": (GOOD | {"lost": True}, None),
    "a reason that is none": (GOOD | {"reason": 5}, None),
    "too large for the store": (GOOD | {"last": 2**63, "lost": 0}, None),
}


@pytest.mark.parametrize(("stated", "expected"), GAPS.values(), ids=GAPS)
def test_declarations(stated, expected):
    assert declaration({"unmapped": stated}) == expected


BEFORE = {"previous_boot": BOOT, "previous_seq": 9, "previous_hash": "ab" * 32}
BOOTS = {
    "a boot before": (BEFORE, PreviousBoot(BOOT, 9, "ab" * 32)),
    "a boot before without an event": (
        BEFORE | {"previous_seq": 0, "previous_hash": ""},
        PreviousBoot(BOOT, 0, GENESIS),
    ),
    "the first boot": ({"previous_boot": "", "previous_seq": 0, "previous_hash": ""}, None),
    "nothing said": ({}, None),
    "no number": (BEFORE | {"previous_seq": -1}, None),
    "no hash": (BEFORE | {"previous_hash": 5}, None),
}


@pytest.mark.parametrize(("stated", "expected"), BOOTS.values(), ids=BOOTS)
def test_previous_boots(stated, expected):
    assert previous_boot({"unmapped": stated}) == expected


@pytest.mark.parametrize("data", [{}, {"unmapped": None}, {"unmapped": []}])
def test_data_without_a_statement(data):
    assert declaration(data) is None
    assert previous_boot(data) is None
