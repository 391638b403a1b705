"""The dashboard of one workload's sidecars."""

from __future__ import annotations

from typing import Final

from valetkey.cli.dashboards.grafana import Dashboard, Panel, Query, Row, Variable, per, percentiles
from valetkey.cli.dashboards.sidecars import NAMESPACE, OF_NAMESPACE, cache, feed

_ONE: Final = 'namespace=~"$namespace",workload="$workload"'

WORKLOAD: Final = Dashboard(
    uid="valetkey-workload",
    title="Valetkey / Workload",
    about="The sidecars of one workload: each route, each target, each pod.",
    variables=(NAMESPACE, Variable("workload", OF_NAMESPACE, several=False)),
    rows=(
        Row(
            "Traffic",
            (
                Panel(
                    "Calls by route",
                    "Refused ones included; without a route: nothing matched.",
                    (per("valetkey_requests_total", "route", _ONE),),
                    unit="reqps",
                    stacked=True,
                ),
                Panel(
                    "Refused, by route",
                    "Without a route: nothing matched.",
                    (per("valetkey_requests_total", "route", _ONE + ',decision="denied"'),),
                    unit="reqps",
                    stacked=True,
                ),
                Panel(
                    "Refused, by code",
                    "What each code says is in docs/reference/codes.md.",
                    (per("valetkey_denials_total", "code", _ONE),),
                    unit="reqps",
                    stacked=True,
                ),
                Panel(
                    "Answers by status",
                    "What the workload saw; none: the connection ended before an answer.",
                    (per("valetkey_requests_total", "status_class", _ONE),),
                    unit="reqps",
                    stacked=True,
                ),
                Panel(
                    "Calls that wait for a person",
                    "Held at the sidecar until somebody says yes, or the route's time is over.",
                    (Query(f"sum by (pod) (valetkey_calls_held{{{_ONE}}})", "{{pod}}"),),
                ),
                Panel(
                    "Calls by pod",
                    "Refused ones included.",
                    (per("valetkey_requests_total", "pod", _ONE),),
                    unit="reqps",
                ),
                Panel(
                    "MCP tools hidden",
                    "Taken out of lists that targets sent: no route lets the workload call them.",
                    (per("valetkey_mcp_hidden_tools_total", "pod", _ONE, of="increase"),),
                    on_failure=True,
                ),
            ),
        ),
        Row(
            "Time",
            (
                Panel(
                    "Added by the sidecar, by target",
                    "The target's own time not included.",
                    percentiles("valetkey_added_latency_seconds", _ONE, "target"),
                    unit="s",
                    width=12,
                ),
                Panel(
                    "Taken by targets",
                    "From the request sent to the first byte of the answer.",
                    percentiles("valetkey_target_latency_seconds", _ONE, "target"),
                    unit="s",
                    width=12,
                ),
            ),
        ),
        Row(
            "Credentials",
            (
                *cache(_ONE),
                Panel(
                    "Credentials held",
                    "By pod.",
                    (Query(f"sum by (pod) (valetkey_cache_entries{{{_ONE}}})", "{{pod}}"),),
                ),
                Panel(
                    "Credentials that targets sent back",
                    "Overwritten in answers' heads. A target that does this is to be mended.",
                    (per("valetkey_credentials_echoed_total", "target", _ONE, of="increase"),),
                ),
            ),
        ),
        Row("Revocation", feed(_ONE)),
        Row(
            "Connections",
            (
                Panel(
                    "Connections of the workload",
                    "Open ones, and how many are taken at most.",
                    (
                        Query(f"sum by (pod) (valetkey_connections{{{_ONE}}})", "{{pod}}"),
                        Query(f"max(valetkey_connections_limit{{{_ONE}}})", "limit of each"),
                    ),
                ),
                Panel(
                    "Streams",
                    "Open ones: event streams, WebSockets and other upgrades.",
                    (Query(f"sum by (kind) (valetkey_streams{{{_ONE}}})", "{{kind}}"),),
                    on_failure=True,
                ),
                Panel(
                    "Calls under way, decided on again",
                    "permitted, postponed, or the code that cut it.",
                    (per("valetkey_stream_rechecks_total", "result", _ONE),),
                    unit="ops",
                    on_failure=True,
                ),
            ),
        ),
        Row(
            "Record and settings",
            (
                Panel(
                    "Oldest event that waits, by pod",
                    "It falls to 0 whenever the collector has everything.",
                    (Query(f"max by (pod) (valetkey_spool_age_seconds{{{_ONE}}})", "{{pod}}"),),
                    unit="s",
                ),
                Panel(
                    "Spool, by pod",
                    "Bytes on disk, and how many may be.",
                    (
                        Query(f"max by (pod) (valetkey_spool_bytes{{{_ONE}}})", "{{pod}}"),
                        Query(f"max(valetkey_spool_limit_bytes{{{_ONE}}})", "limit of each"),
                    ),
                    unit="bytes",
                ),
                Panel(
                    "Reloads of settings",
                    "rejected: what was in force before stays in force.",
                    (per("valetkey_config_reloads_total", "result", _ONE, of="increase"),),
                ),
                Panel(
                    "Versions",
                    "Of the sidecars.",
                    (Query(f"count by (version) (valetkey_build_info{{{_ONE}}})"),),
                    kind="table",
                ),
                Panel(
                    "Interception CA ends in",
                    "By pod; only where TLS is intercepted.",
                    (
                        Query(
                            f"min by (pod) (valetkey_interception_ca_expiry_timestamp_seconds{{{_ONE}}} > 0) - time()",
                            "{{pod}}",
                        ),
                    ),
                    unit="s",
                    on_failure=True,
                ),
            ),
        ),
    ),
)
