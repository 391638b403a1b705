"""The sidecar's numbers, as Prometheus reads them."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from valetkey import __version__
from valetkey.proxy.metrics import ADDED_BUCKETS, Histogram, Metrics


def scrape(metrics):
    """Samples by name and labels, through the text format."""
    registry = CollectorRegistry()
    registry.register(metrics)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def test_an_idle_sidecar_exports_what_must_be_seen():
    samples = scrape(Metrics())
    assert samples["valetkey_build_info", (("version", __version__),)] == 1
    assert samples["valetkey_config_reloads_total", (("result", "applied"),)] == 0
    assert samples["valetkey_config_reloads_total", (("result", "rejected"),)] == 0
    assert samples["valetkey_exchange_seconds_count", ()] == 0
    assert samples["valetkey_mcp_hidden_tools_total", ()] == 0


def test_requests_by_decision_and_class_of_status():
    metrics = Metrics()
    for status in (200, 204, 404, 0):
        metrics.requests.add(None, "allowed", status)
    metrics.requests.add(None, "denied", 403)
    samples = scrape(metrics)

    def count(decision, status):
        labels = (("decision", decision), ("route", ""), ("status_class", status))
        return samples["valetkey_requests_total", labels]

    assert count("allowed", "2xx") == 2
    assert count("allowed", "4xx") == count("allowed", "none") == count("denied", "4xx") == 1


@pytest.mark.parametrize(
    ("value", "bound"),
    [(0.0, "5e-05"), (0.00005, "5e-05"), (0.00006, "0.0001"), (5.0, "5.0"), (6.0, "+Inf")],
)
def test_a_value_is_counted_in_its_bucket_and_all_above(value, bound):
    histogram = Histogram(ADDED_BUCKETS)
    histogram.observe(value)
    buckets, total = histogram.buckets()
    assert total == value
    assert next(name for name, count in buckets if count) == bound
    counts = [count for _, count in buckets]
    assert counts == sorted(counts)
    assert buckets[-1] == ("+Inf", 1)


def test_times_are_kept_by_target():
    metrics = Metrics()
    metrics.target("a").added.observe(0.001)
    metrics.target("a").target.observe(0.2)
    assert metrics.target("a") is metrics.target("a")
    samples = scrape(metrics)
    assert samples["valetkey_added_latency_seconds_count", (("target", "a"),)] == 1
    assert samples["valetkey_target_latency_seconds_sum", (("target", "a"),)] == 0.2


def test_gauges_and_counters_are_read_when_scraped():
    metrics = Metrics()
    value = [1.0]
    metrics.gauges["valetkey_spool_bytes"] = ("text", lambda: value[0])
    metrics.counters["valetkey_events_lost_total"] = ("text", lambda: value[0])
    value[0] = 7.0
    samples = scrape(metrics)
    assert samples["valetkey_spool_bytes", ()] == 7
    assert samples["valetkey_events_lost_total", ()] == 7


def test_streams_by_kind_and_rechecks_by_result():
    metrics = Metrics()
    metrics.streams["websocket"] = 3
    metrics.rechecks["permitted"] = 5
    samples = scrape(metrics)
    assert samples["valetkey_streams", (("kind", "websocket"),)] == 3
    assert samples["valetkey_stream_rechecks_total", (("result", "permitted"),)] == 5
