"""Names and values of the metrics."""

from __future__ import annotations

import time

from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from valetkey.broker.metrics import Metrics
from valetkey.contracts import codes


def test_names_and_values() -> None:
    metrics = Metrics()
    metrics.watch(
        key_age=lambda: 12.5,
        key_due=lambda: 86_400.5,
        changes_age=lambda: 0.25,
        proofs=lambda: 3.0,
    )
    metrics.issued(0.0007)
    metrics.issued(0.002)
    metrics.refused(codes.GRANT_SCOPE, 0.001)
    text = generate_latest(metrics.registry).decode()
    for line in (
        'valetkey_broker_exchanges_total{code="ok",result="issued"} 2.0',
        'valetkey_broker_exchanges_total{code="grant.scope",result="refused"} 1.0',
        'valetkey_broker_exchange_seconds_bucket{le="0.001"} 2.0',
        "valetkey_broker_exchange_seconds_count 3.0",
        "valetkey_broker_signing_key_age_seconds 12.5",
        "valetkey_broker_signing_key_due_timestamp_seconds 86400.5",
        "valetkey_broker_changes_age_seconds 0.25",
        "valetkey_broker_approvals_waiting 0.0",
        "valetkey_broker_approvals_longest_wait_seconds 0.0",
        "valetkey_broker_replay_memory_proofs 3.0",
        "valetkey_broker_revocations_total 0.0",
        'valetkey_broker_grants_reload_total{result="ok"} 0.0',
        'valetkey_broker_grants_reload_total{result="failed"} 0.0',
        "valetkey_broker_grants_reload_failing 0.0",
    ):
        assert line in text.splitlines()
    assert "valetkey_broker_build_info{" in text


def test_two_brokers_in_one_process_do_not_share() -> None:
    one, two = Metrics(), Metrics()
    one.revocations.inc()
    assert "valetkey_broker_revocations_total 0.0" in generate_latest(two.registry).decode()


def tokens(metrics: Metrics) -> dict[str, float]:
    return {
        sample.labels["grant"]: sample.value
        for family in text_string_to_metric_families(metrics.grant_tokens.text().decode())
        for sample in family.samples
    }


def test_each_grant_of_the_file_is_there_from_the_start() -> None:
    metrics = Metrics()
    assert tokens(metrics) == {}
    metrics.grant_tokens.written = lambda: {"read", "write"}
    assert tokens(metrics) == {"read": 0, "write": 0}
    metrics.grant_tokens.add(("read", "jit-1", "win:1"))
    metrics.grant_tokens.add(("read", "write"))
    assert tokens(metrics) == {"read": 2, "write": 1}


def test_a_grant_that_is_taken_out_is_forgotten() -> None:
    metrics = Metrics()
    metrics.grant_tokens.written = lambda: {"read", "write"}
    metrics.grant_tokens.add(("read", "write"))
    metrics.grant_tokens.written = lambda: {"write"}
    assert tokens(metrics) == {"write": 1}
    metrics.grant_tokens.written = lambda: {"read", "write"}
    assert tokens(metrics) == {"read": 0, "write": 1}


def test_what_a_grant_is_called_breaks_no_line() -> None:
    metrics = Metrics()
    metrics.grant_tokens.written = lambda: {'a "b" \\ c\nd'}
    assert tokens(metrics) == {'a "b" \\ c\nd': 0}


def test_many_grants_are_shown_at_no_cost_for_others() -> None:
    """A scrape holds up the loop: of 10,000 grants it takes a few milliseconds, not tens."""
    metrics = Metrics()
    written = {f"grant-{number}": None for number in range(10_000)}
    metrics.grant_tokens.written = lambda: written
    metrics.grant_tokens.text()
    taken = []
    for _ in range(5):
        begun = time.process_time()
        metrics.grant_tokens.text()
        taken.append(time.process_time() - begun)
    assert min(taken) < 0.03
