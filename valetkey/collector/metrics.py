"""The collector's Prometheus metrics."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from valetkey import __version__
from valetkey.collector.sinks.metrics import HandoffMetrics
from valetkey.contracts.certificate_files import CertificateMetrics


@dataclass(frozen=True, slots=True)
class Metrics:
    """All metrics over one registry. ``gaps`` and ``breaks`` count what is in the database."""

    registry: CollectorRegistry
    events: Counter
    batch_seconds: Histogram
    in_flight: Gauge
    gaps: Gauge
    breaks: Gauge
    conflicts: Counter
    certificate: CertificateMetrics
    handoff: HandoffMetrics


def make_metrics() -> Metrics:
    registry = CollectorRegistry()
    Info("valetkey_build", "What is running.", registry=registry).info(
        {
            "program": "collector",
            "version": __version__,
            "python": platform.python_version(),
        }
    )
    events = Counter(
        "valetkey_collector_events",
        "Events by what became of them: stored, duplicate, refused, conflict.",
        ["result"],
        registry=registry,
    )
    for result in ("stored", "duplicate", "refused", "conflict"):
        events.labels(result)
    return Metrics(
        registry,
        events,
        Histogram(
            "valetkey_collector_batches_seconds",
            "From the last byte of a batch to its commit.",
            registry=registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
        ),
        Gauge(
            "valetkey_collector_in_flight",
            "Batches that have arrived and are not answered.",
            registry=registry,
        ),
        Gauge("valetkey_collector_gaps", "Gaps that are still open.", registry=registry),
        Gauge(
            "valetkey_collector_breaks",
            "Places where a chain of stored events does not hold.",
            registry=registry,
        ),
        Counter(
            "valetkey_collector_conflicts",
            "Batches refused for other bytes under a known id.",
            registry=registry,
        ),
        CertificateMetrics(registry, "valetkey_collector"),
        HandoffMetrics(registry),
    )
