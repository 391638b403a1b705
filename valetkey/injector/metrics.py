"""The injector's Prometheus metrics."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from valetkey import __version__
from valetkey.contracts.certificate_files import CertificateMetrics


@dataclass(frozen=True, slots=True)
class Metrics:
    """All metrics over one registry."""

    registry: CollectorRegistry
    reviews: Counter
    seconds: Histogram
    certificates: CertificateMetrics
    ready: Gauge
    operator_rejected: Gauge
    operator_copies: Gauge


def make_metrics() -> Metrics:
    registry = CollectorRegistry()
    Info("valetkey_build", "What is running.", registry=registry).info(
        {
            "program": "injector",
            "version": __version__,
            "python": platform.python_version(),
        }
    )
    return Metrics(
        registry,
        Counter(
            "valetkey_injector_reviews",
            "Reviews by webhook (mutate, validate, protect), result (injected, untouched, allowed, "
            "refused, bad) and code.",
            ["webhook", "result", "code"],
            registry=registry,
        ),
        Histogram(
            "valetkey_injector_reviews_seconds",
            "From the whole request to the answer.",
            ["webhook"],
            registry=registry,
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
        ),
        CertificateMetrics(registry, "valetkey_injector"),
        Gauge(
            "valetkey_injector_ready",
            "1 while API servers can use this replica: as /readyz says.",
            registry=registry,
        ),
        Gauge(
            "valetkey_injector_operator_rejected",
            "Whether the operator's file is bad as it is now, so that the one before is kept.",
            registry=registry,
        ),
        Gauge(
            "valetkey_injector_operator_copies",
            "Namespaces of sidecars: the operator's file is there (current) or not yet (due).",
            ["state"],
            registry=registry,
        ),
    )
