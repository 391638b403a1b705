"""The dashboard of all sidecars."""

from __future__ import annotations

from typing import Final

from valetkey.cli.dashboards.grafana import (
    RATE,
    Dashboard,
    Panel,
    Query,
    Row,
    Variable,
    most,
    per,
    percentiles,
    stat,
)
from valetkey.cli.dashboards.sidecars import NAMESPACE, OF_NAMESPACE, cache, feed

_ALL: Final = 'namespace=~"$namespace",workload=~"$workload"'

FLEET: Final = Dashboard(
    uid="valetkey-fleet",
    title="Valetkey / Fleet",
    about="All sidecars: what they let out, what they add, and whether their record arrives.",
    variables=(NAMESPACE, Variable("workload", OF_NAMESPACE)),
    rows=(
        Row(
            "Now",
            (
                stat(
                    "Sidecars",
                    "Sidecars that are scraped.",
                    f"count(valetkey_feed_connected{{{_ALL}}})",
                ),
                stat(
                    "Calls",
                    "Calls a second, refused ones included.",
                    f"sum(rate(valetkey_requests_total{{{_ALL}}}{RATE}))",
                    unit="reqps",
                ),
                stat(
                    "Refused",
                    "Share of calls that were refused: those that wait for a person are among them.",
                    f'sum(rate(valetkey_requests_total{{{_ALL},decision="denied"}}{RATE})) / '
                    f"sum(rate(valetkey_requests_total{{{_ALL}}}{RATE}))",
                    unit="percentunit",
                ),
                stat(
                    "Without the feed",
                    "Sidecars that do not hear what has ended.",
                    f"sum(valetkey_feed_lost{{{_ALL}}})",
                    bad=1,
                ),
                stat(
                    "Oldest event that waits",
                    "How long the oldest event has waited for the collector, at any sidecar.",
                    f"max(valetkey_spool_age_seconds{{{_ALL}}})",
                    unit="s",
                    bad=60,
                ),
                stat(
                    "Events lost",
                    "Calls without a record in the time shown: none, unless a route allows it.",
                    f"sum(increase(valetkey_events_lost_total{{{_ALL}}}[$__range]))",
                    bad=1,
                ),
            ),
        ),
        Row(
            "Traffic",
            (
                Panel(
                    "Calls by decision",
                    "allowed: sent on; denied: refused; none: the caller left before there was one.",
                    (per("valetkey_requests_total", "decision", _ALL),),
                    unit="reqps",
                    stacked=True,
                ),
                Panel(
                    "Refused, by code",
                    "What each code says is in docs/reference/codes.md.",
                    (per("valetkey_denials_total", "code", _ALL),),
                    unit="reqps",
                    stacked=True,
                ),
                Panel(
                    "Refused, by workload",
                    "The ten with the most.",
                    (most(per("valetkey_denials_total", "namespace, workload", _ALL)),),
                    unit="reqps",
                ),
                Panel(
                    "Refused before they could be read",
                    "Requests whose head is none that may go on: not counted among calls.",
                    (per("valetkey_refused_heads_total", "code", _ALL),),
                    unit="reqps",
                    on_failure=True,
                ),
                Panel(
                    "Limits that were hit",
                    "By the settings key of the limit: docs/how-to/tune-limits.md.",
                    (per("valetkey_limit_hits_total", "limit", _ALL),),
                    unit="ops",
                    on_failure=True,
                ),
                Panel(
                    "Calls by workload",
                    "The ten with the most.",
                    (most(per("valetkey_requests_total", "namespace, workload", _ALL)),),
                    unit="reqps",
                ),
            ),
        ),
        Row(
            "Time",
            (
                Panel(
                    "Added by the sidecar",
                    "What a call takes longer for the sidecar, the target's own time not included.",
                    percentiles("valetkey_added_latency_seconds", _ALL),
                    unit="s",
                    width=12,
                ),
                Panel(
                    "Taken by targets",
                    "From the request sent to the first byte of the answer.",
                    percentiles("valetkey_target_latency_seconds", _ALL),
                    unit="s",
                    width=12,
                ),
            ),
        ),
        Row("Credentials", cache(_ALL)),
        Row("Revocation", feed(_ALL)),
        Row(
            "Record",
            (
                Panel(
                    "Oldest event that waits, by workload",
                    "The ten oldest. It falls to 0 whenever the collector has everything.",
                    (
                        Query(
                            f"topk(10, max by (namespace, workload) (valetkey_spool_age_seconds{{{_ALL}}}))",
                            "{{namespace}}/{{workload}}",
                        ),
                    ),
                    unit="s",
                ),
                Panel(
                    "Spools, as a share of what they may take",
                    "The ten fullest. At 100 % calls are refused, or go unrecorded where their route "
                    "says so.",
                    (
                        Query(
                            "topk(10, max by (namespace, workload) ("
                            f"valetkey_spool_bytes{{{_ALL}}} / valetkey_spool_limit_bytes{{{_ALL}}}))",
                            "{{namespace}}/{{workload}}",
                        ),
                    ),
                    unit="percentunit",
                ),
                Panel(
                    "Events",
                    "Written to spools, sent to the collector, lost; and batches that were tried again.",
                    (
                        Query(
                            f"sum(rate(valetkey_events_written_total{{{_ALL}}}{RATE}))", "written"
                        ),
                        Query(f"sum(rate(valetkey_events_shipped_total{{{_ALL}}}{RATE}))", "sent"),
                        Query(f"sum(rate(valetkey_events_lost_total{{{_ALL}}}{RATE}))", "lost"),
                        Query(
                            f"sum(rate(valetkey_ship_failures_total{{{_ALL}}}{RATE}))",
                            "batches that failed",
                        ),
                    ),
                    unit="ops",
                ),
            ),
        ),
    ),
)
