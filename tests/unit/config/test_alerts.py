"""The rules for Prometheus: each alert fires when it should, not when it should not, and has a page."""

from __future__ import annotations

import re
import subprocess
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.support.prometheus import promtool

ROOT = Path(__file__).parents[3]
RULES = ROOT / "config/prometheus/valetkey.rules.yaml"
SCRAPING = ROOT / "config/prometheus/prometheus.yaml"
RUNBOOKS = ROOT / "docs/runbooks"
HOW_TO = ROOT / "docs/how-to/watch-it.md"
GROUPS: Final[list[dict[str, Any]]] = yaml.safe_load(RULES.read_text())["groups"]
ALERTS: Final = [rule for group in GROUPS for rule in group["rules"] if "alert" in rule]
NAMES = sorted({rule["alert"] for rule in ALERTS})
EACH = pytest.mark.parametrize("alert", NAMES)
BOT: Final = 'namespace="agents",workload="bot",pod="bot-0"'
DAY: Final = "1470m"
OF_BOT: Final = {"namespace": "agents", "workload": "bot"}


@dataclass(frozen=True, slots=True)
class Case:
    """What Prometheus has, a value a minute (promtool's notation), and which alerts that makes.

    ``fires`` are the labels of each that fires at ``at``, without its severity; none: it is quiet.
    """

    alert: str
    title: str
    at: str
    series: dict[str, str]
    fires: tuple[dict[str, str], ...] = ()


def exchanges(ok: str, failed: str, code: str = "broker.unavailable") -> dict[str, str]:
    return {
        f'valetkey_exchanges_total{{{BOT},result="ok"}}': ok,
        f'valetkey_exchanges_total{{{BOT},result="{code}"}}': failed,
    }


def lags(within: str, later: str) -> dict[str, str]:
    name = f"valetkey_feed_lag_seconds_bucket{{{BOT}"
    return {
        f'{name},le="5.0"}}': within,
        f'{name},le="10.0"}}': later,
        f'{name},le="+Inf"}}': later,
    }


def denials(values: str, code: str = "grant.scope") -> dict[str, str]:
    return {f'valetkey_denials_total{{{BOT},code="{code}"}}': values}


def received(stored: str, written: str) -> dict[str, str]:
    return {
        'valetkey_collector_events_total{instance="c",result="stored"}': stored,
        f"valetkey_events_written_total{{{BOT}}}": written,
    }


def one(metric: str, values: str, labels: str = BOT) -> dict[str, str]:
    return {f"{metric}{{{labels}}}": values}


BROKER: Final = 'job="valetkey-broker",instance="a"'
_INJECTOR: Final = 'job="valetkey-injector",instance="a"'


def certificate(program: str, ends: str, lifetime: int) -> dict[str, str]:
    name = f"valetkey_{program}_certificate"
    return one(f"{name}_expiry_timestamp_seconds", ends, BROKER) | one(
        f"{name}_lifetime_seconds", f"{lifetime}x30", BROKER
    )


INJECTOR: Final = 'job="valetkey-injector",instance="{}"'


def injectors(metric: str, of_a: str, of_b: str) -> dict[str, str]:
    return one(metric, of_a, INJECTOR.format("a")) | one(metric, of_b, INJECTOR.format("b"))


def reviews(within: str, later: str) -> dict[str, str]:
    name = 'valetkey_injector_reviews_seconds_bucket{webhook="mutate",instance="a"'
    return {
        f'{name},le="1.0"}}': within,
        f'{name},le="2.5"}}': later,
        f'{name},le="+Inf"}}': later,
    }


def refusals(values: str) -> dict[str, str]:
    labels = 'webhook="mutate",result="refused",code="inject.name_taken",instance="a"'
    return one("valetkey_injector_reviews_total", values, labels)


A: Final = {"job": "valetkey-broker", "instance": "a"}
FAST, SLOW = {"window": "1h"}, {"window": "6h"}
CASES: Final = (
    Case("ValetkeyDenialsRising", "a day of none, then one a second", DAY,
         denials("0x1440 60+60x30"), (OF_BOT,)),
    Case("ValetkeyDenialsRising", "as many as ever", DAY, denials("0+60x1470")),
    Case("ValetkeyDenialsRising", "few, even if there were none", DAY, denials("0x1440 1+1x30")),
    Case("ValetkeyDenialsRising", "calls that wait for people", DAY,
         denials("0x1440 60+60x30", "approval.pending")),
    Case("ValetkeyDenialsRising", "a new workload that is refused from its first call on", "30m",
         denials("0+60x30"), (OF_BOT,)),
    Case("ValetkeyCredentialEchoed", "the first answer already", "15m",
         one("valetkey_credentials_echoed_total", "_x10 1x10", f'{BOT},target="tickets"'),
         ({**OF_BOT, "target": "tickets"},)),
    Case("ValetkeyCredentialEchoed", "long ago", "60m",
         one("valetkey_credentials_echoed_total", "1x60", f'{BOT},target="tickets"')),
    Case("ValetkeyBrokerUnavailable", "a release of another name is there, and up", "5m",
         one("up", "1x5", 'job="team-valetkey-broker",instance="a"')),
    Case("ValetkeySettingsRejected", "a change that is bad", "10m",
         one("valetkey_config_rejected", "0x5 1x5", f'{BOT},layer="owner"'),
         ({**OF_BOT, "layer": "owner"},)),
    Case("ValetkeySettingsRejected", "one that was put right since", "15m",
         one("valetkey_config_rejected", "0x5 1x5 0x5", f'{BOT},layer="operator"')),
    Case("ValetkeySettingsRejected", "one that is put right at once", "6m",
         one("valetkey_config_rejected", "0x5 1x1", f'{BOT},layer="operator"')),
    Case("ValetkeyRoutesWithheld", "what the operator took away", "10m",
         one("valetkey_config_withheld_routes", "0x5 2x5"), (OF_BOT,)),
    Case("ValetkeyRoutesWithheld", "the file was mended", "15m",
         one("valetkey_config_withheld_routes", "2x5 0x10")),
    Case("ValetkeyInterceptionCaEnds", "in less than a day", "5m",
         one("valetkey_interception_ca_expiry_timestamp_seconds", "80000x5"), (OF_BOT,)),
    Case("ValetkeyInterceptionCaEnds", "in two days", "5m",
         one("valetkey_interception_ca_expiry_timestamp_seconds", "172800x5")),
    Case("ValetkeyInterceptionCaEnds", "there is none", "5m",
         one("valetkey_interception_ca_expiry_timestamp_seconds", "0x5")),
    Case("ValetkeyBrokerUnavailable", "all replicas are down", "5m",
         one("up", "0x5", BROKER) | one("up", "0x5", 'job="valetkey-broker",instance="b"'), ({},)),
    Case("ValetkeyBrokerUnavailable", "nothing is known of any", "5m",
         one("up", "1x5", 'job="valetkey-collector",instance="c"'), ({},)),
    Case("ValetkeyBrokerUnavailable", "one of two is down", "5m",
         one("up", "0x5", BROKER) | one("up", "1x5", 'job="valetkey-broker",instance="b"')),
    Case("ValetkeyBrokerErrorBudgetBurn", "3 % fail", "80m",
         exchanges("0+970x80", "0+30x80"), (FAST, SLOW)),
    Case("ValetkeyBrokerErrorBudgetBurn", "0.8 % fail", "80m",
         exchanges("0+992x80", "0+8x80"), (SLOW,)),
    Case("ValetkeyBrokerErrorBudgetBurn", "0.05 % fail", "80m", exchanges("0+9995x80", "0+5x80")),
    Case("ValetkeyBrokerErrorBudgetBurn", "3 % failed, until ten minutes ago", "90m",
         exchanges("0+970x90", "0+30x75 2250x15"), (SLOW,)),
    Case("ValetkeyBrokerErrorBudgetBurn", "half is refused by policy", "80m",
         exchanges("0+500x80", "0+500x80", "grant.scope")),
    Case("ValetkeyBrokerErrorBudgetBurn", "all fail, for half a minute", "80m",
         exchanges("0+1000x80", "0x77 30+30x3")),
    Case("ValetkeyBrokerErrorBudgetBurn", "2 % fail, for half an hour", "400m",
         exchanges("0+1000x400", "0x370 20+20x30")),
    Case("ValetkeyBrokerErrorBudgetBurn", "3 % failed, until an hour ago", "140m",
         exchanges("0+970x140", "0+30x75 2250x65")),
    Case("ValetkeyDatabaseNotCurrent", "the database is away", "5m",
         one("valetkey_broker_changes_age_seconds", "0.2 60+60x5", BROKER), (A,)),
    Case("ValetkeyDatabaseNotCurrent", "a look is late, once", "5m",
         one("valetkey_broker_changes_age_seconds", "0.2x3 6 0.2x5", BROKER)),
    Case("ValetkeyPolicyFileRejected", "the grants", "5m",
         one("valetkey_broker_grants_reload_failing", "1x5", BROKER)
         | one("valetkey_broker_policies_reload_failing", "0x5", BROKER), ({**A, "file": "grants"},)),
    Case("ValetkeyPolicyFileRejected", "both", "5m",
         one("valetkey_broker_grants_reload_failing", "1x5", BROKER)
         | one("valetkey_broker_policies_reload_failing", "1x5", BROKER),
         ({**A, "file": "grants"}, {**A, "file": "policies"})),
    Case("ValetkeyPolicyFileRejected", "neither", "5m",
         one("valetkey_broker_grants_reload_failing", "0x5", BROKER)
         | one("valetkey_broker_policies_reload_failing", "0x5", BROKER)),
    Case("ValetkeySigningKeyOverdue", "half an hour ago", "30m",
         one("valetkey_broker_signing_key_due_timestamp_seconds", "0x30", BROKER), (A,)),
    Case("ValetkeySigningKeyOverdue", "a key that a long stop made late", "14m",
         one("valetkey_broker_signing_key_due_timestamp_seconds", "0x14", BROKER)),
    Case("ValetkeySigningKeyOverdue", "tomorrow", "30m",
         one("valetkey_broker_signing_key_due_timestamp_seconds", "86400x30", BROKER)),
    Case("ValetkeyApprovalsWaiting", "eleven minutes; two replicas say so", "15m",
         one("valetkey_broker_approvals_longest_wait_seconds", "0+60x15", BROKER)
         | one("valetkey_broker_approvals_longest_wait_seconds", "0+60x15",
               'job="valetkey-broker",instance="b"'), ({},)),
    Case("ValetkeyApprovalsWaiting", "each is decided on within minutes", "15m",
         one("valetkey_broker_approvals_longest_wait_seconds", "0 60 120 0 60 120 180 0x8", BROKER)),
    Case("ValetkeyNoticesGivenUp", "the first one already", "15m",
         one("valetkey_broker_notices_total", "_x10 1x10", f'{BROKER},channel="ops",result="given_up"'),
         ({"channel": "ops"},)),
    Case("ValetkeyNoticesGivenUp", "an attempt that failed is made again", "15m",
         one("valetkey_broker_notices_total", "_x10 1x10", f'{BROKER},channel="ops",result="failed"')),
    Case("ValetkeyNoticesGivenUp", "long ago", "60m",
         one("valetkey_broker_notices_total", "1x60", f'{BROKER},channel="ops",result="given_up"')),
    Case("ValetkeyCertificateEnds", "90 days, of which half a day is left", "5m",
         certificate("broker", "40000x5", 90 * 86_400), ({**A, "program": "broker"},)),
    Case("ValetkeyCertificateEnds", "an hour, of which ten minutes are left", "5m",
         certificate("collector", "900x5", 3600), ({**A, "program": "collector"},)),
    Case("ValetkeyCertificateEnds", "an hour, of which half is left", "5m",
         certificate("broker", "2100x5", 3600)),
    Case("ValetkeyCertificateEnds", "90 days, of which 30 are left", "5m",
         certificate("collector", "2592000x5", 90 * 86_400)),
    Case("ValetkeyCertificateEnds", "it has ended", "20m",
         certificate("broker", "600x20", 3600), ({**A, "program": "broker"},)),
    Case("ValetkeyCertificateEnds", "there is no TLS", "5m", certificate("broker", "0x5", 0)),
    Case("ValetkeyCertificateRejected", "for ten minutes", "10m",
         one("valetkey_broker_certificate_failing", "1x10", BROKER)
         | one("valetkey_collector_certificate_failing", "0x10", BROKER),
         ({**A, "program": "broker"},)),
    Case("ValetkeyCertificateRejected", "files that are written one after the other", "10m",
         one("valetkey_collector_certificate_failing", "0x3 1 0x10", BROKER)),
    Case("ValetkeyCertificateEnds", "a week, of which half a day is left", "5m",
         certificate("injector", "40000x5", 7 * 86_400), ({**A, "program": "injector"},)),
    Case("ValetkeyCertificateRejected", "the injector's", "10m",
         one("valetkey_injector_certificate_failing", "1x10", BROKER),
         ({**A, "program": "injector"},)),
    Case("ValetkeyInjectorUnavailable", "both are down", "5m",
         injectors("up", "0x5", "0x5"), ({},)),
    Case("ValetkeyInjectorUnavailable", "both are up, and not ready", "5m",
         injectors("up", "1x5", "1x5") | injectors("valetkey_injector_ready", "0x5", "0x5"),
         ({},)),
    Case("ValetkeyInjectorUnavailable", "one of two is ready", "5m",
         injectors("up", "1x5", "1x5") | injectors("valetkey_injector_ready", "0x5", "1x5")),
    Case("ValetkeyInjectorUnavailable", "there is no injector", "5m", one("up", "1x5", BROKER)),
    Case("ValetkeyInjectorNotReady", "one of two is not ready", "10m",
         injectors("up", "1x10", "1x10") | injectors("valetkey_injector_ready", "0x10", "1x10"),
         ({"job": "valetkey-injector", "instance": "a"},)),
    Case("ValetkeyInjectorNotReady", "one of two is down", "10m",
         injectors("up", "1x10", "0x10")
         | one("valetkey_injector_ready", "1x10", INJECTOR.format("a")),
         ({"job": "valetkey-injector", "instance": "b"},)),
    Case("ValetkeyInjectorNotReady", "both start", "10m",
         injectors("up", "1x10", "1x10")
         | injectors("valetkey_injector_ready", "0x2 1x8", "0x3 1x8")),
    Case("ValetkeyInjectorNotReady", "none is: that is another alert", "10m",
         injectors("up", "1x10", "1x10") | injectors("valetkey_injector_ready", "0x10", "0x10")),
    Case("ValetkeyOperatorFileStuck", "it is bad, as one of two replicas sees it", "15m",
         one("valetkey_injector_operator_rejected", "0x2 1x15", _INJECTOR),
         ({"job": "valetkey-injector"},)),
    Case("ValetkeyOperatorFileStuck", "a namespace does not have it", "15m",
         one("valetkey_injector_operator_copies", "0x2 3x15", f'{_INJECTOR},state="due"'),
         ({"job": "valetkey-injector"},)),
    Case("ValetkeyOperatorFileStuck", "a namespace had to wait for a moment", "15m",
         one("valetkey_injector_operator_copies", "0x2 1x2 0x11", f'{_INJECTOR},state="due"')),
    Case("ValetkeyInjectorSlow", "half takes longer than a second", "15m",
         reviews("0+2x15", "0+4x15"), ({"webhook": "mutate"},)),
    Case("ValetkeyInjectorSlow", "all are quick", "15m", reviews("0+4x15", "0+4x15")),
    Case("ValetkeyInjectorSlow", "there are none", "15m", reviews("4x15", "4x15")),
    Case("ValetkeyPodsRefused", "one a minute, for half an hour", "30m",
         refusals("0+1x30"), ({"webhook": "mutate", "code": "inject.name_taken"},)),
    Case("ValetkeyPodsRefused", "three, until it was mended", "30m", refusals("0 1 2 3x27")),
    Case("ValetkeyRootsRejected", "one of two, for ten minutes", "10m",
         one("valetkey_roots_failing", "1x10")
         | one("valetkey_roots_failing", "0x10", BOT.replace("bot-0", "bot-1")), (OF_BOT,)),
    Case("ValetkeyRootsRejected", "put right at once", "10m",
         one("valetkey_roots_failing", "1x2 0x10")),
    Case("ValetkeyHandoffBehind", "at both collectors", "20m",
         one("valetkey_collector_handoff_age_seconds", "301+60x20", 'instance="c"')
         | one("valetkey_collector_handoff_age_seconds", "301+60x20", 'instance="d"'), ({},)),
    Case("ValetkeyHandoffBehind", "a server that was restarted", "13m",
         one("valetkey_collector_handoff_age_seconds", "0x5 60+60x8 0x10", 'instance="c"')),
    Case("ValetkeySidecarWithoutFeed", "one of two", "5m",
         one("valetkey_feed_lost", "1x5")
         | one("valetkey_feed_lost", "0x5", 'namespace="agents",workload="bot",pod="bot-1"'), (OF_BOT,)),
    Case("ValetkeySidecarWithoutFeed", "all hear", "5m", one("valetkey_feed_lost", "0x5")),
    Case("ValetkeyRevocationSlow", "half takes longer than five seconds", "20m",
         lags("0+1x20", "0+2x20"), ({},)),
    Case("ValetkeyRevocationSlow", "all is in force in time", "20m", lags("0+2x20", "0+2x20")),
    Case("ValetkeyRevocationSlow", "nothing ended", "20m", lags("7x20", "7x20")),
    Case("ValetkeySpoolOld", "two minutes, for long", "10m",
         one("valetkey_spool_age_seconds", "120x10"), (OF_BOT,)),
    Case("ValetkeySpoolOld", "a collector that was started anew", "10m",
         one("valetkey_spool_age_seconds", "0 60 120 0x10")),
    Case("ValetkeySpoolFilling", "nine tenths", "5m",
         one("valetkey_spool_bytes", "900x5") | one("valetkey_spool_limit_bytes", "1000x5"), (OF_BOT,)),
    Case("ValetkeySpoolFilling", "half", "5m",
         one("valetkey_spool_bytes", "500x5") | one("valetkey_spool_limit_bytes", "1000x5")),
    Case("ValetkeyEventsLost", "some", "10m",
         one("valetkey_events_lost_total", "0x5 1+1x5"), (OF_BOT,)),
    Case("ValetkeyEventsLost", "long ago", "30m", one("valetkey_events_lost_total", "7x30")),
    Case("ValetkeyRecordHasGaps", "for long", "15m",
         one("valetkey_collector_gaps", "2x15", 'instance="c"'), ({"instance": "c"},)),
    Case("ValetkeyRecordHasGaps", "closed again", "15m",
         one("valetkey_collector_gaps", "2x5 0x10", 'instance="c"')),
    Case("ValetkeyRecordDoesNotHold", "a break", "5m",
         one("valetkey_collector_breaks", "1x5", 'instance="c"')
         | one("valetkey_collector_conflicts_total", "0x5", 'instance="c"'), ({"instance": "c"},)),
    Case("ValetkeyRecordDoesNotHold", "a conflict", "10m",
         one("valetkey_collector_breaks", "0x10", 'instance="c"')
         | one("valetkey_collector_conflicts_total", "0x5 1x5", 'instance="c"'), ({"instance": "c"},)),
    Case("ValetkeyRecordDoesNotHold", "it holds", "10m",
         one("valetkey_collector_breaks", "0x10", 'instance="c"')
         | one("valetkey_collector_conflicts_total", "3x10", 'instance="c"')),
    Case("ValetkeyCollectorNotReceiving", "it answers, and stores nothing", "20m",
         received("5x20", "0+10x20"), ({},)),
    Case("ValetkeyCollectorNotReceiving", "it is away", "20m",
         one("valetkey_events_written_total", "0+10x20"), ({},)),
    Case("ValetkeyCollectorNotReceiving", "it stores", "20m", received("0+10x20", "0+10x20")),
    Case("ValetkeyCollectorNotReceiving", "nobody calls anything", "20m", received("5x20", "5x20")),
)  # fmt: skip

# When the first of an alert's cases that fire has begun, but not for as long as its `for` says.
BEGUN: Final = {
    "ValetkeyDenialsRising": "3m",
    "ValetkeySettingsRejected": "6m",
    "ValetkeyRoutesWithheld": "6m",
    "ValetkeyBrokerUnavailable": "0m",
    "ValetkeyBrokerErrorBudgetBurn": "2m",
    "ValetkeyDatabaseNotCurrent": "1m",
    "ValetkeyPolicyFileRejected": "0m",
    "ValetkeySigningKeyOverdue": "18m",
    "ValetkeyApprovalsWaiting": "11m",
    "ValetkeyCertificateRejected": "2m",
    "ValetkeyInjectorUnavailable": "0m",
    "ValetkeyInjectorNotReady": "2m",
    "ValetkeyOperatorFileStuck": "4m",
    "ValetkeyInjectorSlow": "3m",
    "ValetkeyPodsRefused": "12m",
    "ValetkeyRootsRejected": "2m",
    "ValetkeyHandoffBehind": "5m",
    "ValetkeySidecarWithoutFeed": "0m",
    "ValetkeyRevocationSlow": "1m",
    "ValetkeySpoolOld": "3m",
    "ValetkeySpoolFilling": "1m",
    "ValetkeyRecordHasGaps": "5m",
    "ValetkeyCollectorNotReceiving": "3m",
}
FIRST: Final = {
    alert: next(case for case in CASES if case.alert == alert and case.fires and case.at != DAY)
    for alert in BEGUN
}


def test_the_rules_are_rules() -> None:
    promtool("check", "rules", str(RULES))


def scraping(directory: Path) -> dict[str, Any]:
    """The configuration, but for its service discovery: Debian's is built without Kubernetes."""
    document: dict[str, Any] = yaml.safe_load(SCRAPING.read_text())
    for job in document["scrape_configs"]:
        assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
        job["static_configs"] = [{"targets": ["127.0.0.1:7071"]}]
    assert document["rule_files"] == [RULES.name]
    (directory / RULES.name).write_text(RULES.read_text())
    return document


def check_config(directory: Path, document: dict[str, Any]) -> None:
    config = directory / "prometheus.yaml"
    config.write_text(yaml.safe_dump(document))
    promtool("check", "config", str(config))


def test_the_scrape_configuration_is_one(tmp_path: Path) -> None:
    check_config(tmp_path, scraping(tmp_path))


def test_what_is_dropped_as_the_page_says_is_what_it_names(tmp_path: Path) -> None:
    blocks = re.findall(r"((?:^    .*\n)+)", HOW_TO.read_text(), re.MULTILINE)
    [block] = [block for block in blocks if "metric_relabel_configs" in block]
    document = scraping(tmp_path)
    document["scrape_configs"][1] |= yaml.safe_load(textwrap.dedent(block))
    check_config(tmp_path, document)


def test_links_to_the_pages_are_made_as_the_page_says(tmp_path: Path) -> None:
    [line] = re.findall(r"^    (sed .*)$", HOW_TO.read_text(), re.MULTILINE)
    (tmp_path / RULES.name).write_text(RULES.read_text())
    (tmp_path / "rules").mkdir()
    subprocess.run(line, shell=True, check=True, cwd=tmp_path, timeout=30)
    made = tmp_path / "rules/valetkey.yaml"
    promtool("check", "rules", str(made))
    links = [
        rule["annotations"]["runbook_url"]
        for group in yaml.safe_load(made.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert len(links) == len(ALERTS)
    for link in links:
        assert re.fullmatch(r"https://git\.example/\S+/docs/runbooks/\w+\.md", link)


def test_the_jobs_of_the_scrape_configuration_are_those_of_the_rules() -> None:
    jobs = {job["job_name"] for job in yaml.safe_load(SCRAPING.read_text())["scrape_configs"]}
    assert jobs == {
        "valetkey-sidecar", "valetkey-broker", "valetkey-collector", "valetkey-injector",
    }  # fmt: skip
    patterns = set(re.findall(r'job=~?"([^"]+)"', RULES.read_text()))
    assert patterns
    for pattern in patterns:
        assert [job for job in jobs if re.fullmatch(pattern, job)], pattern


def test_each_alert_fires_when_it_should_and_not_otherwise(tmp_path: Path) -> None:
    severities = {}
    for rule in ALERTS:
        severities[rule["alert"], rule["labels"].get("window")] = rule["labels"]["severity"]

    def series_of(case: Case, labels: dict[str, str]) -> str:
        severity = severities[case.alert, labels.get("window")]
        every = {"alertname": case.alert, "alertstate": "firing", "severity": severity, **labels}
        said = ",".join(f'{name}="{value}"' for name, value in every.items())
        return f"ALERTS{{{said}}}"

    def begun(case: Case) -> list[dict[str, Any]]:
        if FIRST.get(case.alert) is not case:
            return []
        of_alert = f'ALERTS{{alertname="{case.alert}",alertstate=%s}}'
        waits = [{"labels": "{}", "value": len(case.fires)}]
        return [
            {"expr": f"count({of_alert % state})", "eval_time": BEGUN[case.alert], **expected}
            for state, expected in (('"pending"', {"exp_samples": waits}), ('"firing"', {}))
        ]

    def tried(case: Case) -> dict[str, Any]:
        return {
            "name": f"{case.alert}: {case.title}",
            "interval": "1m",
            "input_series": [
                {"series": name, "values": values} for name, values in case.series.items()
            ],
            "promql_expr_test": [
                {
                    "expr": f'ALERTS{{alertname="{case.alert}",alertstate="firing"}}',
                    "eval_time": case.at,
                    "exp_samples": [
                        {"labels": series_of(case, labels), "value": 1} for labels in case.fires
                    ],
                },
                *begun(case),
            ],
        }

    # What is about days is looked at every ten minutes: 1,500 evaluations of all rules take seconds.
    for often, cases in (
        ("1m", [case for case in CASES if case.at != DAY]),
        ("10m", [case for case in CASES if case.at == DAY]),
    ):
        file = tmp_path / f"{often}.yaml"
        document = {
            "rule_files": [str(RULES)],
            "evaluation_interval": often,
            # Else it is by chance, and at ten minutes what was recorded before is too old to be seen.
            "group_eval_order": [group["name"] for group in GROUPS],
            "tests": [tried(case) for case in cases],
        }
        file.write_text(yaml.safe_dump(document))
        promtool("test", "rules", str(file))


def test_each_alert_that_waits_is_tried_while_it_does() -> None:
    assert {rule["alert"] for rule in ALERTS if "for" in rule} == set(BEGUN)


@EACH
def test_each_alert_is_tried_both_ways(alert: str) -> None:
    assert {bool(case.fires) for case in CASES if case.alert == alert} == {True, False}


def test_no_case_is_about_an_alert_that_is_not_there() -> None:
    assert {case.alert for case in CASES} == set(NAMES)


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_each_alert_says_how_bad_what_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["summary"].endswith(".")
    assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{rule['alert']}.md"


def test_each_alert_that_the_how_to_names_is_one() -> None:
    assert set(re.findall(r"Valetkey[A-Z]\w+", HOW_TO.read_text())) <= set(NAMES)


def test_each_alert_has_a_page_and_each_page_its_alert() -> None:
    pages = {page.stem for page in RUNBOOKS.glob("*.md")} - {"README"}
    assert pages == set(NAMES)
    listed = re.findall(
        r"^\| \[(\w+)\]\((\w+)\.md\)", (RUNBOOKS / "README.md").read_text(), re.MULTILINE
    )
    assert sorted(name for name, _ in listed) == NAMES
    assert all(name == file for name, file in listed)


@EACH
def test_each_page_answers_what_is_asked_at_night(alert: str) -> None:
    page = (RUNBOOKS / f"{alert}.md").read_text()
    assert page.startswith(f"# {alert}\n")
    assert re.findall(r"^\*\*(.+?)\.?\*\*", page, re.MULTILINE) == [
        "What it means", "What is felt", "Look", "Do", "Over",
    ]  # fmt: skip
    severities = {rule["labels"]["severity"] for rule in ALERTS if rule["alert"] == alert}
    assert all(severity in page.splitlines()[2].lower() for severity in severities)


def test_the_list_says_each_alert_s_severity() -> None:
    rows = re.findall(
        r"^\| \[(\w+)\]\(\w+\.md\) \| ([a-z, ]+) \|",
        (RUNBOOKS / "README.md").read_text(),
        re.MULTILINE,
    )
    real: dict[str, set[str]] = {}
    for rule in ALERTS:
        real.setdefault(rule["alert"], set()).add(rule["labels"]["severity"])
    assert {name: set(said.split(", ")) for name, said in rows} == real
