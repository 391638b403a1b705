"""The dashboard of the collector."""

from __future__ import annotations

from typing import Final

from valetkey.cli.dashboards.grafana import (
    RATE,
    Dashboard,
    Panel,
    Query,
    Row,
    per,
    percentiles,
    stat,
)

COLLECTOR: Final = Dashboard(
    uid="valetkey-collector",
    title="Valetkey / Collector",
    about="Whether the record arrives, and whether it holds.",
    rows=(
        Row(
            "Now",
            (
                stat(
                    "Collectors",
                    "That answer when they are scraped.",
                    'sum(up{job=~"(.+-)?valetkey-collector"})',
                    width=6,
                ),
                stat(
                    "Open gaps",
                    "Places where events are missing that may still come.",
                    "max(valetkey_collector_gaps)",
                    bad=1,
                    width=6,
                ),
                stat(
                    "Breaks",
                    "Places where a chain of stored events does not hold.",
                    "max(valetkey_collector_breaks)",
                    bad=1,
                    width=6,
                ),
                stat(
                    "Conflicts",
                    "Other bytes that came under a known id, in the time shown.",
                    "sum(increase(valetkey_collector_conflicts_total[$__range]))",
                    bad=1,
                    width=6,
                ),
            ),
        ),
        Row(
            "What arrives",
            (
                Panel(
                    "Events by what became of them",
                    "duplicate: sent again because an answer was lost.",
                    (per("valetkey_collector_events_total", "result"),),
                    unit="ops",
                    stacked=True,
                ),
                Panel(
                    "Written and stored",
                    "By all sidecars, and here: side by side they are the same over time.",
                    (
                        Query(f"sum(rate(valetkey_events_written_total{RATE}))", "written"),
                        Query(
                            f'sum(rate(valetkey_collector_events_total{{result="stored"}}{RATE}))',
                            "stored",
                        ),
                    ),
                    unit="ops",
                ),
                Panel(
                    "Events that wait in spools",
                    "Of all sidecars, as far as they are of the present run.",
                    (Query("sum(valetkey_spool_events)", "waiting"),),
                ),
                Panel(
                    "Time of a batch",
                    "From its last byte to its commit.",
                    percentiles("valetkey_collector_batches_seconds"),
                    unit="s",
                ),
                Panel(
                    "Batches under way",
                    "That have arrived and are not answered.",
                    (Query("sum by (instance) (valetkey_collector_in_flight)", "{{instance}}"),),
                ),
                Panel(
                    "Batches that failed, by workload",
                    "The ten with the most; they are tried again.",
                    (
                        Query(
                            "topk(10, sum by (namespace, workload) "
                            f"(rate(valetkey_ship_failures_total{RATE})))",
                            "{{namespace}}/{{workload}}",
                        ),
                    ),
                    unit="ops",
                ),
            ),
        ),
        Row(
            "Whether it holds",
            (
                Panel(
                    "Open gaps",
                    "A gap closes when what is missing comes, or is declared lost.",
                    (Query("sum by (instance) (valetkey_collector_gaps)", "{{instance}}"),),
                    width=12,
                ),
                Panel(
                    "Events lost at sidecars",
                    "Declared, so that the record says what it lacks.",
                    (per("valetkey_events_lost_total", "namespace, workload", of="increase"),),
                    width=12,
                ),
            ),
        ),
    ),
)
