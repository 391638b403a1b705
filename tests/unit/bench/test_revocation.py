"""The report of the revocation benchmark: quantiles, groups, and what was missed."""

from __future__ import annotations

import pytest

from bench.revocation import Incident, quantile, report


def incident(late: float, about: str = "token", **more) -> Incident:
    values = {
        "id": "inc", "about": about, "watched": "j", "asked": 0.0, "told": 1.0,
        "replica_killed": False, "late_ms": late, "since_asked_ms": late + 40,
        "acknowledged": 3, "concerned": 3, **more,
    }  # fmt: skip
    return Incident(**values)


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (0.0, 1), (1.0, 100)])
def test_quantiles(share: float, value: float) -> None:
    assert quantile([float(n) for n in range(100, 0, -1)], share) == value


def test_each_group_has_its_line_and_the_aim_its_verdict() -> None:
    text = report([incident(10), incident(30, "subject", replica_killed=True)], 1000, "Here.")
    assert "1,000 simulated sidecars" in text
    assert "| all | 2 | 10 ms | 30 ms | 30 ms | 50 ms | 70 ms |" in text
    assert "| about a token, told to all | 1 | 10 ms |" in text
    assert "| while a replica was killed | 1 | 30 ms |" in text
    assert "p99: 30 ms (aim 250 ms: met)" in text
    assert "Never in force, by the target's own notes: 0 of 2; later than a second: 0." in text
    assert "Acknowledged by the broker's report: 6 of 6" in text


def test_what_was_missed_or_late_is_said() -> None:
    text = report([incident(1400, missed=True, acknowledged=1)], 10, "")
    assert "aim 250 ms: missed" in text
    assert "notes: 1 of 1; later than a second: 1." in text
    assert "report: 1 of 3" in text
