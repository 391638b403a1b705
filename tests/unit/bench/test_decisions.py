"""The micro-benchmark of decisions: what it measures is what it says."""

from __future__ import annotations

import pytest

from bench import decisions


@pytest.mark.parametrize("kind", ["exact", "pattern"])
def test_a_row(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "_ROUNDS", 1)
    monkeypatch.setattr(decisions, "_CALLS", 1)
    (row,) = decisions.measure([(10, kind)])
    assert (row.others, row.kind) == (10, kind)
    assert min(row.decision, row.put, row.compile_ms) >= 0


def test_the_report_says_how_it_grows() -> None:
    rows = [
        decisions.Row(others, kind, time, 1.0, 2.0)
        for kind, times in (("exact", (10.0, 11.0, 12.0)), ("pattern", (10.0, 10.0, 20.0)))
        for others, time in zip((10, 1_000, 10_000), times, strict=True)
    ]
    text = decisions.report(rows)
    assert "| 10,000 | pattern | 20.0 µs | 1.0 µs | 2.0 ms |" in text
    assert "exact: 1.20× (aim: 1.5×)" in text
    assert "pattern: 2.00× (aim: 1.5×)" in text
