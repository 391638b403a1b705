"""The sidecar's numbers: plain integers on the data path, Prometheus families when scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from valetkey import __version__
from valetkey.proxy.histogram import Histogram
from valetkey.proxy.limits import LimitHits
from valetkey.proxy.tally import RequestTally

# Seconds. The sidecar's own share is tens of microseconds, a target's is up to minutes.
ADDED_BUCKETS: Final = (
    0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0,
)  # fmt: skip
TARGET_BUCKETS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
)  # fmt: skip
# Seconds from when something ended to when that is in force here.
LAG_BUCKETS: Final = (
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0,
)  # fmt: skip


class TargetTally:
    """The times of one target, and what it did with credentials."""

    __slots__ = ("added", "echoed", "sessions", "target")

    def __init__(self) -> None:
        self.echoed = 0
        self.sessions = 0
        self.added = Histogram(ADDED_BUCKETS)
        self.target = Histogram(TARGET_BUCKETS)


class Metrics(Collector):
    """Everything that is counted. Gauges are read from their owners at scrape time."""

    def __init__(self) -> None:
        self.requests = RequestTally()
        self.denials: dict[str, int] = {}
        self.refused_heads: dict[str, int] = {}
        self.limit_hits = LimitHits()
        self.tunnels: dict[str, int] = {}
        self.targets: dict[str, TargetTally] = {}
        self.exchanges = Histogram(TARGET_BUCKETS)
        self.exchange_results: dict[str, int] = {}
        self.hidden_tools = 0
        self.streams: dict[str, int] = {}
        """Open ones, by kind."""
        self.rechecks: dict[str, int] = {}
        self.feed_lag = Histogram(LAG_BUCKETS)
        self.feed_events: dict[str, int] = {}
        """By what they ended; ``refused``: they can't be believed."""
        self.shipped = 0
        self.ship_failures = 0
        self.reloads: dict[str, int] = {"applied": 0, "rejected": 0}
        self.rejected: dict[str, int] = {}
        """By layer of the settings: 1 where its file, as it is now, is not in force."""
        self.withheld_routes = 0
        self.gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self.counters: dict[str, tuple[str, Callable[[], float]]] = {}

    def target(self, name: str) -> TargetTally:
        """The times of a target, made at first use."""
        tally = self.targets.get(name)
        if tally is None:
            tally = self.targets[name] = TargetTally()
        return tally

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("valetkey_build", "Version.", {"version": __version__})
        requests = CounterMetricFamily(
            "valetkey_requests_total",
            "Calls by route, decision and class of the answer's status.",
            labels=["route", "decision", "status_class"],
        )
        for route, decision, status, count in self.requests.counts():
            requests.add_metric([route, decision, f"{status}xx" if status else "none"], count)
        yield requests
        yield _counts("valetkey_denials_total", "Refused calls.", "code", self.denials)
        yield _counts(
            "valetkey_refused_heads_total",
            "Requests refused before they could be read whole.",
            "code",
            self.refused_heads,
        )
        yield _counts(
            "valetkey_limit_hits_total",
            "Refused or cut off for a limit, by its settings key.",
            "limit",
            self.limit_hits.counts,
        )
        yield _counts(
            "valetkey_tunnels_total",
            "Tunnels opened: intercepted or plain (calls inside are decided on), or opaque.",
            "kind",
            self.tunnels,
        )
        yield _counts(
            "valetkey_exchanges_total", "Exchanges by result.", "result", self.exchange_results
        )
        yield CounterMetricFamily(
            "valetkey_mcp_hidden_tools_total",
            "Tools that were taken out of lists.",
            value=self.hidden_tools,
        )
        yield _counts(
            "valetkey_stream_rechecks_total",
            "Calls under way that were decided on again.",
            "result",
            self.rechecks,
        )
        streams = GaugeMetricFamily("valetkey_streams", "Open streams.", labels=["kind"])
        for kind, count in self.streams.items():
            streams.add_metric([kind], count)
        yield streams
        yield _counts("valetkey_config_reloads_total", "Reloads.", "result", self.reloads)
        rejected = GaugeMetricFamily(
            "valetkey_config_rejected",
            "Whether the settings file, as it is on disk, was refused and is not in force.",
            labels=["layer"],
        )
        for layer, count in self.rejected.items():
            rejected.add_metric([layer], count)
        yield rejected
        yield GaugeMetricFamily(
            "valetkey_config_withheld_routes",
            "Routes of the workload's owner that are not in force, since they would widen.",
            value=self.withheld_routes,
        )
        added = HistogramMetricFamily(
            "valetkey_added_latency_seconds",
            "Time that the sidecar added to a call, the target's own time not included.",
            labels=["target"],
        )
        target_time = HistogramMetricFamily(
            "valetkey_target_latency_seconds",
            "Time from the request sent to the first byte of the target's answer.",
            labels=["target"],
        )
        echoed = CounterMetricFamily(
            "valetkey_credentials_echoed_total",
            "Answers in which the target sent its credential back; it was overwritten.",
            labels=["target"],
        )
        sessions = CounterMetricFamily(
            "valetkey_sessions_dropped_total",
            "Answers that set cookies which the workload did not get.",
            labels=["target"],
        )
        for name, tally in self.targets.items():
            echoed.add_metric([name], tally.echoed)
            sessions.add_metric([name], tally.sessions)
            buckets, total = tally.added.buckets()
            added.add_metric([name], buckets, total)
            buckets, total = tally.target.buckets()
            target_time.add_metric([name], buckets, total)
        yield echoed
        yield sessions
        yield added
        yield target_time
        exchange = HistogramMetricFamily("valetkey_exchange_seconds", "Time of an exchange.")
        exchange.add_metric([], *self.exchanges.buckets())
        yield exchange
        yield _counts(
            "valetkey_feed_events_total",
            "Events of the feed by what they ended.",
            "kind",
            self.feed_events,
        )
        lag = HistogramMetricFamily(
            "valetkey_feed_lag_seconds", "Time from an end to its being in force here."
        )
        lag.add_metric([], *self.feed_lag.buckets())
        yield lag
        for name, (text, read) in self.counters.items():
            yield CounterMetricFamily(name, text, value=read())
        for name, (text, read) in self.gauges.items():
            yield GaugeMetricFamily(name, text, value=read())


def _counts(name: str, text: str, label: str, counts: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family
