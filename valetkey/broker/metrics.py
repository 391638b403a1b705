"""The broker's Prometheus metrics."""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from valetkey import __version__
from valetkey.broker.core.grants import LiveGrants
from valetkey.contracts.certificate_files import CertificateMetrics
from valetkey.contracts.codes import Code

# From a warm exchange on an idle core (0.5 ms) to one that waited for an issuer's keys (5 s).
_BUCKETS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
)  # fmt: skip

# From a push on one machine to a sidecar that was away for minutes.
_CONTAINED: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0)


class GrantTokens:
    """Tokens by the grants of the file that they rest on, in Prometheus's text format.

    All grants in force are there from the start, with 0: what is granted and never used shows.
    Those made by API end by themselves, and each would be one more series.

    Not through the registry, which takes 7 µs for a series: with 10,000 grants everything else
    would wait 76 ms for each scrape. This takes 5.
    """

    NAME: Final = "valetkey_broker_grant_tokens_total"

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._shown: Collection[str] | None = None
        self._heads: dict[str, str] = {}
        self.written: Callable[[], Collection[str]] = tuple
        """The ids of the grants that the file in force has, the same object until it changes."""

    def add(self, rests_on: Collection[str]) -> None:
        """Count a token. What is among them and no grant of the file is left out."""
        written = self.written()
        for grant in rests_on:
            if grant in written:
                self._counts[grant] = self._counts.get(grant, 0) + 1

    def text(self) -> bytes:
        written = self.written()
        if written is not self._shown:
            self._shown = written
            self._counts = {grant: self._counts.get(grant, 0) for grant in written}
            self._heads = {grant: f'{self.NAME}{{grant="{_escaped(grant)}"}} ' for grant in written}
        lines = [f"{head}{self._counts.get(grant, 0)}\n" for grant, head in self._heads.items()]
        about = f"# HELP {self.NAME} Tokens issued under each grant of the file.\n"
        return "".join((about, f"# TYPE {self.NAME} counter\n", *lines)).encode()


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


class Metrics:
    """One registry, children bound once; `grant_tokens` comes beside it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._exchanges = Counter(
            "valetkey_broker_exchanges",
            "Token exchanges by result (issued, refused) and decision code.",
            ("result", "code"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "valetkey_broker_exchange_seconds",
            "Time from the head of a token request to its answer.",
            registry=self.registry,
            buckets=_BUCKETS,
        )
        self.revocations = Counter(
            "valetkey_broker_revocations", "Tokens revoked.", registry=self.registry
        )
        self.incidents = Counter(
            "valetkey_broker_incidents",
            "Incidents opened (or renewed), by what opened them.",
            ("source",),
            registry=self.registry,
        )
        self.incident_contained = Histogram(
            "valetkey_broker_incident_contain_seconds",
            "From an incident to the last sidecar's acknowledgement.",
            registry=self.registry,
            buckets=_CONTAINED,
        )
        self.grants_reloads = Counter(
            "valetkey_broker_grants_reload",
            "Reloads of the grants file by result (ok, failed).",
            ("result",),
            registry=self.registry,
        )
        self.grants_failing = Gauge(
            "valetkey_broker_grants_reload_failing",
            "1 while the grants file on disk is bad and the last good one is in force.",
            registry=self.registry,
        )
        self.grants = Gauge("valetkey_broker_grants", "Grants in force.", registry=self.registry)
        self.policies_reloads = Counter(
            "valetkey_broker_policies_reload",
            "Reloads of the Cedar policies by result (ok, failed).",
            ("result",),
            registry=self.registry,
        )
        self.policies_failing = Gauge(
            "valetkey_broker_policies_reload_failing",
            "1 while the Cedar policies on disk are bad and the last good ones are in force.",
            registry=self.registry,
        )
        self.policies = Gauge(
            "valetkey_broker_policies", "Cedar policies in force.", registry=self.registry
        )
        self.notices = Counter(
            "valetkey_broker_notices",
            "Attempts to tell people of approvals, by channel and result (delivered, failed, "
            "given_up).",
            ("channel", "result"),
            registry=self.registry,
        )
        self.approvals = Counter(
            "valetkey_broker_approvals",
            "What became of approvals, by event (requested, approved, denied, revoked, used).",
            ("event",),
            registry=self.registry,
        )
        self.approvals_waiting = Gauge(
            "valetkey_broker_approvals_waiting",
            "Approvals that people have not decided on, of all replicas.",
            registry=self.registry,
        )
        self.approvals_longest_wait = Gauge(
            "valetkey_broker_approvals_longest_wait_seconds",
            "How long the oldest of them has waited; 0 where none waits.",
            registry=self.registry,
        )
        self.grant_tokens = GrantTokens()
        self.certificate = CertificateMetrics(self.registry, "valetkey_broker")
        self._grants_made = Gauge(
            "valetkey_broker_grants_made",
            "Grants made by API that are in force or ended in the last hour.",
            registry=self.registry,
        )
        self._windows = Gauge(
            "valetkey_broker_windows_open", "Deployment windows open.", registry=self.registry
        )
        self._key_age = Gauge(
            "valetkey_broker_signing_key_age_seconds",
            "Age of the key that signs.",
            registry=self.registry,
        )
        self._key_due = Gauge(
            "valetkey_broker_signing_key_due_timestamp_seconds",
            "When another key is to sign in place of the one that does now, Unix time.",
            registry=self.registry,
        )
        self._changes_age = Gauge(
            "valetkey_broker_changes_age_seconds",
            "Since everything that was committed was last known to be applied here.",
            registry=self.registry,
        )
        self._replay = Gauge(
            "valetkey_broker_replay_memory_proofs",
            "DPoP proofs remembered against replay.",
            registry=self.registry,
        )
        self.pushes = Counter(
            "valetkey_broker_feed_pushes",
            "Events pushed to receivers by result (delivered, refused, disbelieved, failed).",
            ("result",),
            registry=self.registry,
        )
        self._feed_waiting = Gauge(
            "valetkey_broker_feed_waiting",
            "Receivers whose poll waits for an event.",
            registry=self.registry,
        )
        self.feed_events = Counter(
            "valetkey_broker_feed_events",
            "Events by what became of them at receivers (delivered, acknowledged, refused).",
            ("result",),
            registry=self.registry,
        )
        self.feed_acknowledge = Histogram(
            "valetkey_broker_feed_acknowledge_seconds",
            "From an end to its acknowledgement by a receiver of the feed.",
            registry=self.registry,
            buckets=_CONTAINED,
        )
        self.turned_away = Counter(
            "valetkey_broker_turned_away",
            "Requests of sidecars answered with 503 because the replica was late.",
            registry=self.registry,
        )
        self._late = Gauge(
            "valetkey_broker_late_seconds",
            "By how much the replica is late with what has come.",
            registry=self.registry,
        )
        Info("valetkey_broker_build", "Version of the broker.", registry=self.registry).info(
            {
                "version": __version__,
                "python": platform.python_version(),
            }
        )
        for result in ("ok", "failed"):
            self.grants_reloads.labels(result)
            self.policies_reloads.labels(result)
        for event in ("requested", "approved", "denied", "revoked", "used"):
            self.approvals.labels(event)
        self._issued = self._exchanges.labels("issued", "ok")

    def watch_grants(self, live: LiveGrants) -> None:
        """Read these when scraped."""
        self._grants_made.set_function(lambda: float(len(live.made)))
        self._windows.set_function(lambda: float(live.windows))

    def watch(
        self,
        *,
        key_age: Callable[[], float],
        key_due: Callable[[], float],
        changes_age: Callable[[], float],
        proofs: Callable[[], float],
    ) -> None:
        """Read these when scraped."""
        self._key_age.set_function(key_age)
        self._key_due.set_function(key_due)
        self._changes_age.set_function(changes_age)
        self._replay.set_function(proofs)

    def watch_feed(self, *, waiting: Callable[[], float]) -> None:
        """Read this when scraped."""
        self._feed_waiting.set_function(waiting)

    def watch_lateness(self, late: Callable[[], float]) -> None:
        """Read this when scraped."""
        self._late.set_function(late)

    def issued(self, seconds: float) -> None:
        self._issued.inc()
        self._seconds.observe(seconds)

    def refused(self, code: Code, seconds: float) -> None:
        self._exchanges.labels("refused", code.name).inc()
        self._seconds.observe(seconds)
