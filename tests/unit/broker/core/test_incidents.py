"""What each kind of incident ends, and when one may be closed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from valetkey.broker.core.incidents import (
    Exposure,
    Incident,
    Measure,
    Party,
    is_again,
    lacks,
    may_close,
    measures,
)

FOREVER = 1e12
WHO = Party("https://idp", "bot")


def incident(**changes: Any) -> Incident:
    made = Incident(
        id="inc_1", kind="subject", value="bot", issuer="https://idp", subject_issuer="https://idp",
        subject="bot", epoch=1, source="admin", reason="r", evidence="", opened_at=1000.0,
        opened_by="olga", renewed_at=1000.0, contained_at=None, attested_at=None, closed_at=None,
        closed_by="", close_reason="", forced=False,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize(
    ("exposure", "expected"),
    [
        (Exposure("subject", "bot", issuer="https://idp", party=WHO), ()),
        (
            Exposure("token", "j", party=WHO, txn="t", expires=1100.0),
            (Measure("jti", "j", 1100.0), Measure("txn", "t", 4600.0)),
        ),
        # One that has expired is remembered no longer than needed, its descendants are.
        (
            Exposure("token", "j", party=WHO, txn="t", expires=900.0),
            (Measure("jti", "j", 1000.0), Measure("txn", "t", 4600.0)),
        ),
        (Exposure("token_hash", "h"), (Measure("hash", "h", 4600.0),)),
        (Exposure("grant", "g"), (Measure("grant", "g", FOREVER),)),
        (Exposure("target", "a"), (Measure("target", "a", FOREVER),)),
        (Exposure("key", "k"), (Measure("key", "k", FOREVER),)),
    ],
    ids=lambda value: value.kind if isinstance(value, Exposure) else "",
)
def test_measures(exposure: Exposure, expected: tuple[Measure, ...]) -> None:
    assert measures(exposure, now=1000.0, longest_life=3600.0, forever=FOREVER) == expected


@pytest.mark.parametrize(
    ("changes", "force", "refused"),
    [
        ({}, False, "attested"),
        ({}, True, ""),
        ({"attested_at": 1001.0}, False, ""),
        ({"subject": "", "subject_issuer": "", "kind": "grant"}, False, ""),
        ({"closed_at": 1002.0, "attested_at": 1001.0}, False, "closed"),
        ({"closed_at": 1002.0}, True, "closed"),
    ],
)
def test_may_close(changes: dict[str, Any], force: bool, refused: str) -> None:
    reason = may_close(incident(**changes), force=force)
    assert refused in reason
    assert bool(reason) is bool(refused)


@pytest.mark.parametrize(
    ("changes", "at", "again"),
    [
        ({}, 2000.0, False),
        ({"attested_at": 1500.0}, 2000.0, True),
        ({"attested_at": 1500.0}, 1400.0, False),
        ({"attested_at": 1500.0, "kind": "token"}, 2000.0, False),
    ],
)
def test_is_again(changes: dict[str, Any], at: float, again: bool) -> None:
    assert is_again(incident(**changes), at=at) is again


@pytest.mark.parametrize(
    ("changes", "party", "expected"),
    [
        ({"subject": "", "subject_issuer": ""}, WHO, True),
        ({"subject": "", "subject_issuer": ""}, None, False),
        ({}, WHO, False),
        ({}, None, False),
    ],
)
def test_lacks(changes: dict[str, Any], party: Party | None, *, expected: bool) -> None:
    known = incident(**{"kind": "token", "value": "j", **changes})
    assert lacks(known, Exposure("token", "j", party=party, txn="t")) is expected
