"""The dashboard of the broker."""

from __future__ import annotations

from typing import Final

from valetkey.cli.dashboards.grafana import Dashboard, Panel, Query, Row, per, percentiles, stat

_FAILED: Final = 'result=~"broker[.]unavailable|broker[.]bad_response"'

BROKER: Final = Dashboard(
    uid="valetkey-broker",
    title="Valetkey / Broker",
    about="What the broker gives and refuses, who waits for people, what was revoked, what is unused.",
    rows=(
        Row(
            "Now",
            (
                stat(
                    "Replicas",
                    "That answer when they are scraped.",
                    'sum(up{job=~"(.+-)?valetkey-broker"})',
                ),
                stat(
                    "Exchanges that failed",
                    "As sidecars find it, refusals by policy not included, in the time shown. The budget "
                    "is 0.1 % in 30 days.",
                    f"(sum(rate(valetkey_exchanges_total{{{_FAILED}}}[$__range])) or vector(0)) / "
                    "sum(rate(valetkey_exchanges_total[$__range]))",
                    unit="percentunit",
                    bad=0.001,
                ),
                stat(
                    "Approvals waiting",
                    "That people have not decided on.",
                    "max(valetkey_broker_approvals_waiting)",
                ),
                stat(
                    "Longest wait",
                    "Of the oldest of them.",
                    "max(valetkey_broker_approvals_longest_wait_seconds)",
                    unit="s",
                    bad=600,
                ),
                stat(
                    "Behind the database",
                    "Since everything that any replica changed was known to be applied, at the replica "
                    "that is furthest behind. Over 5 s it answers nothing.",
                    "max(valetkey_broker_changes_age_seconds)",
                    unit="s",
                    bad=5,
                ),
                stat(
                    "Bad files",
                    "Grants or policies on disk that were not taken up: the last good ones are in force.",
                    "sum(valetkey_broker_grants_reload_failing) + "
                    "sum(valetkey_broker_policies_reload_failing)",
                    bad=1,
                ),
            ),
        ),
        Row(
            "Exchanges",
            (
                Panel(
                    "Exchanges",
                    "issued and refused, refusals for an approval that is not there included.",
                    (per("valetkey_broker_exchanges_total", "result"),),
                    unit="reqps",
                    stacked=True,
                ),
                Panel(
                    "Refused, by code",
                    "What each code says is in docs/reference/codes.md.",
                    (per("valetkey_broker_exchanges_total", "code", 'result="refused"'),),
                    unit="reqps",
                    stacked=True,
                ),
                Panel(
                    "Time of an exchange",
                    "From the head of a request to its answer.",
                    percentiles("valetkey_broker_exchange_seconds"),
                    unit="s",
                ),
            ),
        ),
        Row(
            "Approvals",
            (
                Panel(
                    "Waiting",
                    "All replicas say the same, of the database.",
                    (Query("max(valetkey_broker_approvals_waiting)", "waiting"),),
                ),
                Panel(
                    "What became of them",
                    "requested, approved, denied, revoked; and uses.",
                    (per("valetkey_broker_approvals_total", "event", of="increase"),),
                    stacked=True,
                ),
                Panel(
                    "Notices",
                    "Attempts to tell people, by channel; failed ones are tried again, until given up.",
                    (per("valetkey_broker_notices_total", "channel, result", of="increase"),),
                    stacked=True,
                    on_failure=True,
                ),
            ),
        ),
        Row(
            "Revocation",
            (
                Panel(
                    "From an end to its acknowledgement",
                    "By each receiver of the feed: what was acknowledged when.",
                    percentiles("valetkey_broker_feed_acknowledge_seconds"),
                    unit="s",
                ),
                Panel(
                    "From an incident to the last acknowledgement",
                    "When nothing went out any more by what leaked, anywhere.",
                    percentiles("valetkey_broker_incident_contain_seconds"),
                    unit="s",
                ),
                Panel(
                    "Events of the feed",
                    "In answers to polls, acknowledged, and refused by their receivers.",
                    (per("valetkey_broker_feed_events_total", "result", of="increase"),),
                ),
                Panel(
                    "Receivers that wait",
                    "Whose poll waits for the next event: as many as there are sidecars, or a little less.",
                    (Query("sum(valetkey_broker_feed_waiting)", "waiting"),),
                ),
                Panel(
                    "Incidents and revoked tokens",
                    "Incidents by what opened, or renewed, them.",
                    (
                        per("valetkey_broker_incidents_total", "source", of="increase"),
                        Query(
                            "sum(increase(valetkey_broker_revocations_total[$__rate_interval]))",
                            "tokens revoked",
                        ),
                    ),
                ),
                Panel(
                    "Events pushed",
                    "To receivers that do not poll: delivered, refused, disbelieved, failed.",
                    (per("valetkey_broker_feed_pushes_total", "result", of="increase"),),
                    on_failure=True,
                ),
            ),
        ),
        Row(
            "Review debt",
            (
                stat(
                    "Grants not used",
                    "Grants of the file under which no token was issued in the time shown. Choose weeks.",
                    "count(sum by (grant) (increase(valetkey_broker_grant_tokens_total[$__range])) == 0) "
                    "or vector(0)",
                    width=6,
                ),
                stat("Grants", "Of the file, in force.", "max(valetkey_broker_grants)", width=6),
                stat(
                    "Grants by API",
                    "In force, or ended in the last hour: they end by themselves.",
                    "max(valetkey_broker_grants_made)",
                    width=6,
                ),
                stat(
                    "Deployment windows",
                    "That are open.",
                    "max(valetkey_broker_windows_open)",
                    width=6,
                ),
                Panel(
                    "Tokens by grant, the fewest first",
                    "In the time shown. What stays at 0 for weeks is to be taken away, or explained.",
                    (
                        Query(
                            "sort(bottomk(50, sum by (grant) ("
                            "increase(valetkey_broker_grant_tokens_total[$__range]))))"
                        ),
                    ),
                    kind="table",
                    width=12,
                ),
                Panel(
                    "Grants and policies",
                    "Of files, and made by API.",
                    (
                        Query("max(valetkey_broker_grants)", "grants of the file"),
                        Query("max(valetkey_broker_grants_made)", "grants by API"),
                        Query("max(valetkey_broker_policies)", "policies"),
                    ),
                    width=12,
                ),
            ),
        ),
        Row(
            "Keys and state",
            (
                Panel(
                    "The signing key is replaced in",
                    "Below 0 its successor could not be made.",
                    (
                        Query(
                            "valetkey_broker_signing_key_due_timestamp_seconds - time()",
                            "{{instance}}",
                        ),
                    ),
                    unit="s",
                ),
                Panel(
                    "Behind the database",
                    "By replica: since it was last known to have applied everything.",
                    (Query("valetkey_broker_changes_age_seconds", "{{instance}}"),),
                    unit="s",
                ),
                Panel(
                    "Proofs remembered",
                    "DPoP proofs that are not taken twice, by replica.",
                    (Query("valetkey_broker_replay_memory_proofs", "{{instance}}"),),
                ),
            ),
        ),
    ),
)
