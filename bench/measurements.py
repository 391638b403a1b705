"""What was measured: one record per round, and medians over rounds. This is latest.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import msgspec


class ThroughputRound(msgspec.Struct, frozen=True):
    """One row at saturation. Memory in bytes, summed over what runs on the proxy's core."""

    row: str
    round: int
    requests: int
    requests_per_second: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    not_2xx: int
    broken: int
    ready_seconds: float
    rss_peak: int
    rss: int
    pss: int
    anonymous: int
    cpu_us_per_request: float
    tls: str = ""
    """The cipher suite that the load and the proxy agreed on, in rows with TLS."""


class LatencyRound(msgspec.Struct, frozen=True):
    """One row at a fixed rate; see `bench.fixed_rate`. ``recorded`` counts a collector's events."""

    row: str
    round: int
    rate: float
    calls: int
    broken: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    late_p50_ms: float
    late_p99_ms: float
    cpu_us_per_request: float
    recorded: int = 0


class Measurements(msgspec.Struct):
    """Everything of one run."""

    date: str
    machine: dict[str, Any]
    method: dict[str, Any]
    throughput: list[ThroughputRound] = []
    latency: list[LatencyRound] = []
    broker: dict[str, float] = {}
    ready_seconds: dict[str, list[float]] = {}
    not_run: dict[str, str] = {}

    def of_row(self, row: str) -> list[ThroughputRound]:
        return [entry for entry in self.throughput if entry.row == row]

    def median(self, row: str, value: Callable[[ThroughputRound], float]) -> float | None:
        """Over the rounds at saturation; None where the row has none."""
        return median_of(value(entry) for entry in self.throughput if entry.row == row)

    def latency_median(self, row: str, value: Callable[[LatencyRound], float]) -> float | None:
        return median_of(value(entry) for entry in self.latency if entry.row == row)

    def added(self, row: str, value: Callable[[LatencyRound], float]) -> float | None:
        """Median over the rounds of (this row less ``direct`` in the same round)."""
        direct = {entry.round: value(entry) for entry in self.latency if entry.row == "direct"}
        return median_of(
            value(entry) - direct[entry.round]
            for entry in self.latency
            if entry.row == row and entry.round in direct
        )

    def errors(self, row: str) -> int:
        """Calls of the row, at saturation or at a fixed rate, that were not answered with 2xx."""
        at_saturation = sum(entry.not_2xx + entry.broken for entry in self.of_row(row))
        return at_saturation + sum(entry.broken for entry in self.latency if entry.row == row)


def median_of(values: Iterable[float]) -> float | None:
    listed = list(values)
    return median(listed) if listed else None


def quantile(values: list[float], share: float) -> float:
    """By nearest rank: the least value that at least ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]
