"""Dashboards and rules on a real Prometheus that scrapes the running demo: each finds what it names.

The demo's story is told with Prometheus watching, and more happens beside it: streams, lists of tools,
approvals that wait, events that are pushed, calls that go wrong. Then each query of each panel is asked,
each rule is looked at, and what they name is compared with what the programs really export.
"""

from __future__ import annotations

import http.client
import json
import math
import re
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from click.testing import CliRunner

from tests.support.pods import pod
from tests.support.prometheus import Prometheus
from tests.support.waiting import until_sync
from tests.support.watched_demo import WatchedStage
from valetkey.cli.dashboards import DASHBOARDS
from valetkey.cli.dashboards.grafana import Dashboard, Panel
from valetkey.cli.demo.identity import AGENT, WORKLOADS
from valetkey.cli.demo.screen import Checks
from valetkey.cli.demo.story import Story
from valetkey.cli.main import main
from valetkey.contracts import codes

ROOT = Path(__file__).parents[2]
RULES = ROOT / "config/prometheus/valetkey.rules.yaml"
SCRAPING = yaml.safe_load((ROOT / "config/prometheus/prometheus.yaml").read_text())
PAGE = (ROOT / "docs/reference/metrics.md").read_text()
SIDECAR: Final = {"namespace": "demo", "workload": "agent", "pod": "agent-1"}
OF_SCRAPING: Final = {"job", "instance", *SIDECAR}

# Panels with a query that stays 0 where all is well, and which: every other one must have been more.
WELL: Final = {
    "Without the feed": "valetkey_feed_lost",
    "Sidecars that follow the feed": "valetkey_feed_lost",
    "Events lost": "valetkey_events_lost_total",
    "Events": "valetkey_events_lost_total",
    "Events lost at sidecars": "valetkey_events_lost_total",
    "Credentials that targets sent back": "valetkey_credentials_echoed_total",
    # It failed, once: a series that begins counts from its second time on.
    "Exchanges that failed": "broker[.]unavailable",
    "Bad files": "reload_failing",
    "Open gaps": "valetkey_collector_gaps",
    "Breaks": "valetkey_collector_breaks",
    "Conflicts": "valetkey_collector_conflicts_total",
    # Each is there for milliseconds: whether one is scraped is chance.
    "Batches under way": "valetkey_collector_in_flight",
}
PANELS: Final = [
    pytest.param(dashboard, panel, id=f"{dashboard.uid}-{panel.title}")
    for dashboard in DASHBOARDS
    for row in dashboard.rows
    for panel in row.panels
]
ALL_RULES: Final[list[dict[str, Any]]] = [
    rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
]
EACH_EXPRESSION = pytest.mark.parametrize(
    "expr",
    [
        pytest.param(query.expr, id=f"{dashboard.uid}-{panel.title}-{number}")
        for dashboard in DASHBOARDS
        for row in dashboard.rows
        for panel in row.panels
        for number, query in enumerate(panel.queries)
    ]
    + [pytest.param(rule["expr"], id=rule.get("alert") or rule["record"]) for rule in ALL_RULES],
)


def scraping(stage: WatchedStage) -> dict[str, Any]:
    """The jobs of the configuration that is shipped, with the demo's addresses in place of pods."""
    ports = {
        "valetkey-sidecar": (stage.admin_port, SIDECAR),
        "valetkey-broker": (stage.broker_port, {}),
        "valetkey-collector": (stage.collector_port, {}),
        "valetkey-injector": (stage.injector_admin_port, {}),
    }
    jobs = [job["job_name"] for job in SCRAPING["scrape_configs"]]
    assert set(jobs) == set(ports)
    return {
        "global": {"scrape_interval": "250ms", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {
                "job_name": job,
                "static_configs": [
                    {"targets": [f"127.0.0.1:{ports[job][0]}"], "labels": ports[job][1]}
                ],
            }
            for job in jobs
        ],
    }


def go_wrong(stage: WatchedStage) -> None:
    """A head that is none, one that is too large: refused before they are calls."""
    for sent in (
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
    ):
        with closing(socket.create_connection(("127.0.0.1", stage.proxy_port), 10)) as connection:
            connection.settimeout(10)
            try:
                connection.sendall(sent)
                assert connection.recv(100).startswith(b"HTTP/1.1 4")
            except ConnectionError:  # it does not read to the end what is too much
                pass


def call(stage: WatchedStage, method: str = "GET", path: str = "/tickets/api/tickets/7") -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", stage.proxy_port, timeout=30)) as agent:
        agent.request(method, path)
        return agent.getresponse().status


def report(stage: WatchedStage) -> None:
    """An incident about a token that nobody has: told to the sidecar, acknowledged, and no more."""
    told = ("--token-hash", secrets.token_hex(32), "--reason", "seen in a log")
    who = ("--broker", stage.broker_url, "--token-file", str(stage.operator_token_file))
    done = CliRunner().invoke(main, ["incidents", "open", *told, *who])
    assert done.exit_code == 0, done.output


def grant(stage: WatchedStage) -> None:
    """By API, for two hours."""
    what = ("--workload", AGENT, "--issuer", WORKLOADS, "--target", "tools", "--scope", "tools:use")
    why = ("--for", "2h", "--reason", "a night's migration")
    who = ("--broker", stage.broker_url, "--token-file", str(stage.operator_token_file))
    done = CliRunner().invoke(main, ["grants", "create", *what, *why, *who])
    assert done.exit_code == 0, done.output


class Watched:
    """The demo's programs, and the Prometheus that watched its story."""

    def __init__(
        self, stage: WatchedStage, prometheus: Prometheus, pages: dict[str, str], began: float
    ) -> None:
        self.stage = stage
        self._when = {"start": str(began), "end": str(time.time() + 2), "step": "1"}
        self.prometheus = prometheus
        self.types: dict[str, str] = {}
        for page in pages.values():
            self.types |= dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE))
        self.series: dict[str, list[dict[str, str]]] = {}
        for labels in prometheus.ask("series", **{"match[]": '{__name__=~"valetkey_.+|up"}'}):
            self.series.setdefault(labels.pop("__name__"), []).append(labels)

    def graph(self, expr: str) -> list[float]:
        """All values of all series of an expression, from the beginning until now."""
        found = self.prometheus.ask("query_range", query=expr, **self._when)
        return [float(value) for series in found["result"] for _, value in series["values"]]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    directory = tmp_path_factory.mktemp("demo")
    stage = WatchedStage(directory)
    began = time.time()
    with Prometheus(directory / "prometheus", scraping(stage)) as prometheus, stage:
        until_sync(lambda: len(prometheus.query("up == 1")) == 4, "all are scraped", poll=0.1)
        for title, step in Story(stage).steps():
            checks = Checks()
            step(checks)
            assert checks.hold, title
        stage.have_events_pushed()
        stage.open_streams()
        stage.exchange_the_injector_s_certificate()
        grant(stage)
        held = []
        for number in range(3):  # the first makes a series, the others are what is counted
            go_wrong(stage)
            report(stage)
            held.append(stage.ask_for_approval(20 + number))
            assert stage.list_tools() == ["get_ticket"]
            stage.revoke()
            stage.change_settings()
            assert call(stage, path="/tools/closed") == 401
            assert stage.review("/mutate", pod())
            assert stage.review("/mutate", pod(hostNetwork=True)) is False
            assert stage.review("/mutate", None) is None
            assert stage.review("/validate", pod()) is False
            assert {call(stage), call(stage, "DELETE")} <= {200, 403}
            seen = time.time()
            until_sync(
                lambda seen=seen: min(
                    value for _, value in prometheus.query("timestamp(up)")
                ) > seen,
                "all were scraped again",
                poll=0.1,
            )  # fmt: skip
        until_sync(
            lambda: prometheus.query("valetkey_broker_incident_contain_seconds_count > 2"),
            "all sidecars have acknowledged",
            poll=0.1,
        )
        for caller in held:
            caller.join(60)
        for counter, what in (
            ("valetkey_stream_rechecks_total", "streams outlived their credentials"),
            ("valetkey_config_reloads_total", "settings are taken up"),
            ("valetkey_cache_revocations_total", "what was revoked is dropped"),
            ("valetkey_broker_notices_total", "people are told"),
            ("valetkey_broker_feed_pushes_total", "events are pushed"),
        ):
            until_sync(
                lambda counter=counter: prometheus.query(f"sum(rate({counter}[1m])) > 0"),
                what,
                poll=0.1,
            )
        # Of each rule, one evaluation at least after that.
        until_sync(
            lambda: all(rule["health"] == "ok" for rule in rules_of(prometheus)),
            "each rule was evaluated",
            poll=0.1,
        )
        pages = {}
        ports = (
            stage.admin_port,
            stage.broker_port,
            stage.collector_port,
            stage.injector_admin_port,
        )
        for port in ports:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
                connection.request("GET", "/metrics")
                pages[str(port)] = connection.getresponse().read().decode()
        yield Watched(stage, prometheus, pages, began)


def rules_of(prometheus: Prometheus) -> list[dict[str, Any]]:
    return [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]


def filled_in(expr: str) -> str:
    """What Grafana asks for "All" of everything, in a window that has the whole story."""
    for variable, value in (
        ("$__rate_interval", "5m"),
        ("$__range", "5m"),
        ('workload="$workload"', f'workload="{SIDECAR["workload"]}"'),
        ("$namespace", ".*"),
        ("$workload", ".*"),
    ):
        expr = expr.replace(variable, value)
    assert "$" not in expr
    return expr


@pytest.mark.parametrize(("dashboard", "panel"), PANELS)
def test_each_panel_shows_something(watched: Watched, dashboard: Dashboard, panel: Panel) -> None:
    found = {query: watched.prometheus.query(filled_in(query.expr)) for query in panel.queries}
    for query, series in found.items():
        assert series, query.expr
        assert any(math.isfinite(value) for _, value in series), query.expr
        for label in re.findall(r"\{\{(\w+)\}\}", query.legend):
            assert all(label in labels for labels, _ in series if label != "route"), query.legend


@pytest.mark.parametrize(("dashboard", "panel"), PANELS)
def test_each_panel_shows_more_than_0_unless_that_were_bad(
    watched: Watched, dashboard: Dashboard, panel: Panel
) -> None:
    for query in panel.queries:
        values = watched.graph(filled_in(query.expr))
        rises = any(math.isfinite(value) and value != 0 for value in values)
        assert rises or (panel.title in WELL and WELL[panel.title] in query.expr), query.expr


def test_what_may_stay_0_is_there() -> None:
    queries = {panel.title: panel.queries for _, panel in (param.values for param in PANELS)}
    for title, part in WELL.items():
        assert [query for query in queries[title] if part in query.expr], title


def test_variables_offer_what_there_is(watched: Watched) -> None:
    for dashboard in DASHBOARDS:
        for variable in dashboard.variables:
            values = watched.prometheus.ask(
                f"label/{variable.name}/values", **{"match[]": filled_in(variable.selector)}
            )
            assert values == [SIDECAR[variable.name]]


def test_rules_are_evaluated_and_nothing_is_wrong_with_the_demo(watched: Watched) -> None:
    rules = rules_of(watched.prometheus)
    assert sorted(rule["name"] for rule in rules) == sorted(
        rule.get("alert") or rule["record"] for rule in ALL_RULES
    )
    assert [rule["lastError"] for rule in rules if "lastError" in rule] == []
    alerts = watched.prometheus.ask("alerts")["alerts"]
    assert [alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"] == []


@pytest.mark.parametrize(
    "record",
    # But for what looks back to before the last ten minutes: the demo is younger.
    [r["record"] for r in ALL_RULES if "record" in r and "offset" not in r["expr"]],
)
def test_each_recording_is_made(watched: Watched, record: str) -> None:
    assert watched.prometheus.query(record)


# --- names ------------------------------------------------------------------------------------


def documented() -> dict[str, set[str]]:
    """The labels of each metric, as the reference says."""
    found: dict[str, set[str]] = {}
    for names, labels in re.findall(r"^\| (`valetkey_[^|]+)\|([^|]*)\|", PAGE, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", names):
            found.setdefault(name, set()).update(re.findall(r"`(\w+)`", labels))
    return found


def base_of(name: str) -> str:
    """The metric that a series belongs to: of a histogram, without its ending."""
    return re.sub(r"_(bucket|sum|count)$", "", name)


def selectors(expr: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each metric of an expression, with the labels that are asked for and their values."""
    found = re.findall(r"(?<![:\w])((?:valetkey_|up\b)\w*)(?:\{([^}]*)\})?", expr)
    return [
        (name, re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', matchers))
        for name, matchers in found
        if not name.startswith("valetkey_denials:")
    ]


@EACH_EXPRESSION
def test_each_metric_that_is_named_exists_with_its_labels(watched: Watched, expr: str) -> None:
    known = documented()
    named: set[str] = set()
    for name, matchers in selectors(expr):
        if name == "up":
            labels = {"job", "instance"}
        else:
            assert base_of(name) in watched.types or name in watched.types, name
            labels = known[base_of(name)] | OF_SCRAPING
            labels |= {"le"} if name.endswith("_bucket") else set()
        named |= labels
        for label, value in matchers:
            assert label in labels, f"{name} has no {label}"
            if label == "job":
                jobs = [job["job_name"] for job in SCRAPING["scrape_configs"]]
                assert [job for job in jobs if re.fullmatch(value, job)], value
                continue
            for each in value.split("|"):
                assert exists(watched, name, label, each.replace("[.]", ".")), f"{name}: {each}"
    grouped = {
        label
        for group in re.findall(r"\b(?:by|on|without) \(([^)]*)\)", expr)
        for label in re.findall(r"\w+", group)
    }
    assert grouped <= named | {"namespace", "workload"}


def exists(watched: Watched, name: str, label: str, value: str) -> bool:
    """Whether a series has that value, or could: it is a code, or the reference names it."""
    if value.startswith("$"):
        return True
    if any(labels.get(label) == value for labels in watched.series.get(name, ())):
        return True
    if codes.by_name(value) is not None:
        return label in {"code", "result"}
    (row,) = [line for line in PAGE.splitlines() if f"`{name}`" in line]
    return f"`{value}`" in row


def test_the_reference_has_the_labels_that_there_are(watched: Watched) -> None:
    known = documented()
    for name, series in watched.series.items():
        if name.endswith("_created") or name == "up" or ":" in name:
            continue
        for labels in series:
            assert set(labels) - OF_SCRAPING - {"le"} <= known[base_of(name)], name
    for name, kind in watched.types.items():
        if not name.endswith("_created"):
            assert name in known or kind == "info", name


# --- the files --------------------------------------------------------------------------------


def test_each_file_is_a_dashboard_with_ids_of_its_own() -> None:
    files = sorted((ROOT / "config/grafana").glob("*.json"))
    documents = [json.loads(file.read_text()) for file in files]
    assert [file.stem for file in files] == sorted(document["uid"] for document in documents)
    assert len({document["title"] for document in documents}) == len(documents) == len(DASHBOARDS)
    for document in documents:
        ids = [panel["id"] for panel in document["panels"]]
        assert len(set(ids)) == len(ids)
        assert {panel["type"] for panel in document["panels"]} <= {
            "row", "timeseries", "stat", "table",
        }  # fmt: skip
        assert document["links"][0]["tags"] == ["valetkey"] == document["tags"]
        places: set[tuple[int, int]] = set()
        for panel in document["panels"]:
            if panel["type"] != "row":
                assert panel["description"].endswith(".")
                assert panel["fieldConfig"]["defaults"]["unit"]
            place = panel["gridPos"]
            taken = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not taken & places, f"{document['uid']}: {panel['title']} lies on another"
            assert place["x"] + place["w"] <= 24
            places |= taken


# --- the last one, since nothing works after it -------------------------------------------------


def test_a_broker_that_is_gone_is_seen_on_the_dashboards_and_by_the_rules(watched: Watched) -> None:
    prometheus = watched.prometheus
    [replicas] = [
        panel.queries[0].expr for param in PANELS for panel in param.values[1:]
        if panel.title == "Replicas"
    ]  # fmt: skip
    assert prometheus.query(replicas) == [({}, 1)]
    watched.stage.broker.kill()
    until_sync(lambda: prometheus.query(replicas) == [({}, 0)], "no replica answers", poll=0.1)
    until_sync(
        lambda: (
            "ValetkeyBrokerUnavailable"
            in {alert["labels"]["alertname"] for alert in prometheus.ask("alerts")["alerts"]}
        ),
        "the alert waits for its minute to be over",
        poll=0.1,
    )
    until_sync(
        lambda: prometheus.query("sum(valetkey_feed_connected)") == [({}, 0)],
        "the sidecar has noticed",
        poll=0.1,
    )
    assert call(watched.stage) == 200  # what it holds is good for a while
