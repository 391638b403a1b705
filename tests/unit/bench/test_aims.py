from __future__ import annotations

from typing import Any

import pytest

from bench.aims import judge
from bench.measurements import LatencyRound, Measurements, ThroughputRound


def throughput(row: str, rate: float, number: int = 1, **other: Any) -> ThroughputRound:
    fields: dict[str, Any] = {
        "requests": 1000,
        "p50_ms": 1.0,
        "p90_ms": 1.0,
        "p99_ms": 2.0,
        "max_ms": 9.0,
        "not_2xx": 0,
        "broken": 0,
        "ready_seconds": 0.3,
        "rss_peak": 50 << 20,
        "rss": 50 << 20,
        "pss": 40 << 20,
        "anonymous": 30 << 20,
        "cpu_us_per_request": 30.0,
        **other,
    }
    return ThroughputRound(row=row, round=number, requests_per_second=rate, **fields)


def latency(row: str, p50: float, p99: float, number: int = 1) -> LatencyRound:
    return LatencyRound(
        row=row,
        round=number,
        rate=1000.0,
        calls=5000,
        broken=0,
        p50_ms=p50,
        p90_ms=p50,
        p99_ms=p99,
        max_ms=p99,
        late_p50_ms=0.05,
        late_p99_ms=0.1,
        cpu_us_per_request=30.0,
    )


def measurements(**parts: Any) -> Measurements:
    return Measurements(date="2026-01-01", machine={}, method={}, **parts)


def findings(measured: Measurements) -> dict[str, Any]:
    return {finding.what: finding for finding in judge(measured)}


INJECTOR = "Throughput over Envoy `credential_injector`"


@pytest.mark.parametrize(
    ("ours", "verdict", "figure"),
    [
        (40_000, "met", "2.00 ×"),
        (39_000, "least met", "1.95 ×"),
        (30_000, "least met", "1.50 ×"),
        (29_000, "missed", "1.45 ×"),
    ],
)
def test_a_ratio_is_judged_by_aim_and_least(ours: float, verdict: str, figure: str) -> None:
    measured = measurements(
        throughput=[throughput("valetkey", ours), throughput("envoy-injector", 20_000)]
    )
    finding = findings(measured)[INJECTOR]
    assert (finding.verdict, finding.measured) == (verdict, figure)


def test_a_row_that_was_not_run_gives_no_verdict() -> None:
    measured = measurements(throughput=[throughput("valetkey", 30_000)])
    assert {finding.verdict for finding in judge(measurements())} == {"not measured"}
    assert findings(measured)[INJECTOR].verdict == "not measured"
    assert findings(measured)["p99 at saturation (aim: Envoy's)"].verdict == "not measured"


def test_the_median_of_the_rounds_counts_not_the_best() -> None:
    rounds = [throughput("valetkey", rate, n) for n, rate in enumerate((10_000, 29_000, 90_000))]
    measured = measurements(throughput=[*rounds, throughput("envoy-injector", 20_000)])
    assert findings(measured)[INJECTOR].measured == "1.45 ×"


@pytest.mark.parametrize(
    ("mebibytes", "envoy", "verdict"),
    [(56, 70, "met"), (60, 70, "least met"), (71, 70, "missed"), (50, 40, "met")],
)
def test_memory_has_envoy_as_its_least(mebibytes: int, envoy: int, verdict: str) -> None:
    measured = measurements(
        throughput=[
            throughput("valetkey", 1, rss_peak=mebibytes << 20),
            throughput("envoy-injector", 1, rss_peak=envoy << 20),
        ]
    )
    assert findings(measured)["Resident memory under load (least: Envoy's)"].verdict == verdict


def test_added_latency_is_paired_by_round() -> None:
    # The second round ran on a slower machine; both of its figures moved by the same.
    measured = measurements(
        latency=[
            latency("direct", 0.10, 0.20, 1),
            latency("valetkey", 0.25, 0.90, 1),
            latency("direct", 1.10, 1.20, 2),
            latency("valetkey", 1.25, 1.90, 2),
            latency("valetkey", 9.0, 9.0, 3),  # no direct round to compare with
        ]
    )
    assert findings(measured)["Added median at 1,000 req/s"].measured == "0.15 ms"
    assert findings(measured)["Added p99 at 1,000 req/s"].measured == "0.70 ms"


@pytest.mark.parametrize(("many", "verdict"), [(30_000, "met"), (27_000, "missed")])
def test_cost_of_routes(many: float, verdict: str) -> None:
    measured = measurements(
        throughput=[throughput("valetkey-10", 30_000), throughput("valetkey-10000", many)]
    )
    assert findings(measured)["Cost of 10,000 routes over 10"].verdict == verdict


@pytest.mark.parametrize(("rate", "verdict"), [(1500.0, "met"), (1499.0, "missed")])
def test_broker(rate: float, verdict: str) -> None:
    measured = measurements(broker={"exchanges_per_second": rate})
    assert findings(measured)["Broker exchanges per second, one core"].verdict == verdict


def test_different_heads_are_compared_with_different_heads() -> None:
    measured = measurements(
        throughput=[
            throughput("valetkey", 90_000),
            throughput("valetkey-unique", 24_000),
            throughput("envoy-injector", 20_000),
            throughput("envoy-unique", 16_000),
        ]
    )
    finding = findings(measured)["The same, every head different"]
    assert (finding.measured, finding.verdict) == ("1.50 ×", "least met")


@pytest.mark.parametrize(
    ("what", "ours", "theirs"),
    [
        ("Interception over Envoy, TLS in and out", "tls-valetkey", "tls-envoy"),
        ("Answers of 1 MiB over Envoy", "download-valetkey", "download-envoy"),
        ("Requests of 1 MiB over Envoy", "upload-valetkey", "upload-envoy"),
    ],
)
def test_each_kind_of_work_is_compared_with_the_same_work(
    what: str, ours: str, theirs: str
) -> None:
    others = [throughput("valetkey", 90_000), throughput("envoy-injector", 10)]
    measured = measurements(throughput=[*others, throughput(ours, 990), throughput(theirs, 1000)])
    assert (findings(measured)[what].measured, findings(measured)[what].verdict) == (
        "0.99 ×",
        "missed",
    )
