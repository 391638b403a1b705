"""The injector's Prometheus metrics."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from valetkey import __version__


@dataclass(frozen=True, slots=True)
class Metrics:
    """All metrics over one registry."""

    registry: CollectorRegistry
    reviews: Counter
    seconds: Histogram
    certificates: Counter
    expiry: Gauge


def make_metrics() -> Metrics:
    registry = CollectorRegistry()
    Info("valetkey_build", "What is running.", registry=registry).info(
        {
            "program": "injector",
            "version": __version__,
            "python": platform.python_version(),
        }
    )
    certificates = Counter(
        "valetkey_injector_certificates",
        "Looks at the webhook's certificate by what came of them: taken_up, failed.",
        ["result"],
        registry=registry,
    )
    for result in ("taken_up", "failed"):
        certificates.labels(result)
    return Metrics(
        registry,
        Counter(
            "valetkey_injector_reviews",
            "Reviews by webhook (mutate, validate), result (injected, untouched, allowed, refused, "
            "bad) and code.",
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
        certificates,
        Gauge(
            "valetkey_injector_certificate_expiry_timestamp_seconds",
            "When the certificate that is served ends.",
            registry=registry,
        ),
    )
