"""Metrics of the hand-off. All are there, at 0, where the record is not handed on."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from valetkey.collector.sinks.sink import Reason


class HandoffMetrics:
    """``waiting`` and ``age`` say what is not in the stream yet, as this collector last saw it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.events = Counter(
            "valetkey_collector_handoff_events",
            "Events that the stream has acknowledged: published, or duplicate (it had them).",
            ["result"],
            registry=registry,
        )
        for result in ("published", "duplicate"):
            self.events.labels(result)
        self.failures = Counter(
            "valetkey_collector_handoff_failures",
            "Attempts to hand on that failed, by reason.",
            ["reason"],
            registry=registry,
        )
        for reason in Reason:
            self.failures.labels(reason)
        self.failing = Gauge(
            "valetkey_collector_handoff_failing",
            "1 while the record can't be handed on by this collector.",
            registry=registry,
        )
        self.waiting = Gauge(
            "valetkey_collector_handoff_waiting",
            "Events that are stored and not in the stream yet, about.",
            registry=registry,
        )
        self.age = Gauge(
            "valetkey_collector_handoff_age_seconds",
            "For how long the oldest of them has waited.",
            registry=registry,
        )
