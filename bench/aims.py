"""The aims of the benchmark, and what became of each. A verdict is a finding, never a failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from bench.measurements import LatencyRound, Measurements, ThroughputRound

Verdict = Literal["met", "least met", "missed", "not measured"]
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table of aims. ``least`` is empty where the aim itself is the least."""

    what: str
    aim: str
    least: str
    measured: str
    verdict: Verdict


def judge(measured: Measurements) -> list[Finding]:
    """Every aim, in the order in which they are stated."""
    envoy = "envoy-injector"
    broker = measured.broker.get("exchanges_per_second")
    return [
        _ratio(
            measured, "Throughput over Envoy `credential_injector`", "valetkey", envoy, 2.0, 1.5
        ),
        _ratio(
            measured, "The same, every head different", "valetkey-unique", "envoy-unique", 2.0, 1.5
        ),
        _ratio(measured, "Throughput over Envoy `ext_authz`", "valetkey", "envoy-ext-authz", 4.0),
        _ratio(measured, "Throughput over nginx", "valetkey", "nginx", 0.5),
        _at_most("Added median at 1,000 req/s", measured.added("valetkey", _p50), 0.2, "ms"),
        _at_most("Added p99 at 1,000 req/s", measured.added("valetkey", _p99), 1.0, "ms"),
        _routes(measured),
        _memory(measured),
        _at_most("Time to ready, 1,000 routes", _ready(measured), 0.6, "s"),
        _saturation_p99(measured),
        _at_least("Broker exchanges per second, one core", broker, 1500.0, number="{:,.0f}"),
        _ratio(
            measured, "DPoP per call over Envoy `credential_injector`", "valetkey-dpop", envoy, 0.5
        ),
        _ratio(measured, "Interception over Envoy, TLS in and out", "tls-valetkey", "tls-envoy", 1),
        _ratio(measured, "Answers of 1 MiB over Envoy", "download-valetkey", "download-envoy", 1),
        _ratio(measured, "Requests of 1 MiB over Envoy", "upload-valetkey", "upload-envoy", 1),
    ]


def _rps(entry: ThroughputRound) -> float:
    return entry.requests_per_second


def _p50(entry: LatencyRound) -> float:
    return entry.p50_ms


def _p99(entry: LatencyRound) -> float:
    return entry.p99_ms


def _ready(measured: Measurements) -> float | None:
    return measured.median("valetkey", lambda entry: entry.ready_seconds)


def _ratio(
    measured: Measurements,
    what: str,
    row: str,
    other: str,
    aim: float,
    least: float | None = None,
) -> Finding:
    ours, theirs = measured.median(row, _rps), measured.median(other, _rps)
    value = ours / theirs if ours is not None and theirs else None
    return _at_least(what, value, aim, least, number="{:.2f} ×")


def _routes(measured: Measurements) -> Finding:
    few, many = measured.median("valetkey-10", _rps), measured.median("valetkey-10000", _rps)
    value = few / many if few is not None and many else None
    return _at_most("Cost of 10,000 routes over 10", value, 1.1, "×")


def _memory(measured: Measurements) -> Finding:
    ours = measured.median("valetkey", lambda entry: entry.rss_peak / _MIB)
    envoy = measured.median("envoy-injector", lambda entry: entry.rss_peak / _MIB)
    what = "Resident memory under load (least: Envoy's)"
    return _at_most(what, ours, 56.0, "MiB", least=envoy)


def _saturation_p99(measured: Measurements) -> Finding:
    envoy = measured.median("envoy-injector", lambda entry: entry.p99_ms)
    ours = measured.median("valetkey", lambda entry: entry.p99_ms)
    what = "p99 at saturation (aim: Envoy's)"
    if envoy is None:
        return Finding(what, "–", "", "–", "not measured")
    return _at_most(what, ours, envoy, "ms")


def _at_least(
    what: str, value: float | None, aim: float, least: float | None = None, *, number: str
) -> Finding:
    return _finding(what, value, aim, least, number, "≥ ", lambda left, right: left >= right)


def _at_most(
    what: str, value: float | None, aim: float, unit: str, *, least: float | None = None
) -> Finding:
    number = "{:.1f} " + unit if unit == "MiB" else "{:.2f} " + unit
    return _finding(what, value, aim, least, number, "≤ ", lambda left, right: left <= right)


def _finding(
    what: str,
    value: float | None,
    aim: float,
    least: float | None,
    number: str,
    sign: str,
    holds: Callable[[float, float], bool],
) -> Finding:
    verdict: Verdict
    if value is None:
        verdict = "not measured"
    elif holds(value, aim):
        verdict = "met"
    elif least is not None and holds(value, least):
        verdict = "least met"
    else:
        verdict = "missed"
    return Finding(
        what=what,
        aim=sign + number.format(aim),
        least="" if least is None else sign + number.format(least),
        measured="–" if value is None else number.format(value),
        verdict=verdict,
    )
