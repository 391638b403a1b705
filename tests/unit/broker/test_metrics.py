"""Names and values of the metrics."""

from __future__ import annotations

from prometheus_client.exposition import generate_latest

from valetkey.broker.metrics import Metrics
from valetkey.contracts import codes


def test_names_and_values() -> None:
    metrics = Metrics()
    metrics.watch(key_age=lambda: 12.5, proofs=lambda: 3.0)
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
