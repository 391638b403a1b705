"""The dashboard of the injector."""

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

_REVIEWS: Final = "valetkey_injector_reviews_total"
_ENDS: Final = "valetkey_injector_certificate_expiry_timestamp_seconds"

INJECTOR: Final = Dashboard(
    uid="valetkey-injector",
    title="Valetkey / Injector",
    about="Whether new pods get their sidecar, how long that takes, who is refused, and the webhook's certificate.",
    rows=(
        Row(
            "Now",
            (
                stat(
                    "Injectors",
                    "That answer when they are scraped.",
                    'sum(up{job=~"(.+-)?valetkey-injector"})',
                ),
                stat(
                    "Ready",
                    "That API servers can use. Without one, no pod is made in namespaces with sidecars.",
                    "sum(valetkey_injector_ready)",
                ),
                stat(
                    "Injected",
                    "Pods that got a sidecar, in the time shown.",
                    f'sum(increase({_REVIEWS}{{result="injected"}}[$__range]))',
                ),
                stat(
                    "Refused",
                    "Pods that were refused, in the time shown; each is tried again by what makes it.",
                    f'sum(increase({_REVIEWS}{{result="refused"}}[$__range]))',
                ),
                stat(
                    "Slowest in a hundred",
                    "Reviews by either webhook take no longer, but for one in a hundred.",
                    f"histogram_quantile(0.99, sum by (le) (rate(valetkey_injector_reviews_seconds_bucket{RATE})))",
                    unit="s",
                    bad=1,
                ),
                stat(
                    "Certificate ends in",
                    "The first of those that are served; 0 before there is one.",
                    f"min({_ENDS} - time() > 0) or vector(0)",
                    unit="s",
                ),
            ),
        ),
        Row(
            "Reviews",
            (
                Panel(
                    "Reviews",
                    "By webhook and result. untouched: nothing to be done; bad: no review that can be read.",
                    (per(_REVIEWS, "webhook, result"),),
                    unit="reqps",
                    stacked=True,
                ),
                Panel(
                    "Refused, by code",
                    "What each code says is in docs/reference/codes.md.",
                    (per(_REVIEWS, "webhook, code", 'result="refused"', of="increase"),),
                    stacked=True,
                    on_failure=True,
                ),
                Panel(
                    "Reviews by replica",
                    "API servers keep their connections, so shares are not the same.",
                    (per(_REVIEWS, "instance"),),
                    unit="reqps",
                ),
            ),
        ),
        Row(
            "Time",
            (
                Panel(
                    "Time of a review",
                    "From the whole request to the answer. API servers wait for five seconds, and then make no pod.",
                    percentiles("valetkey_injector_reviews_seconds", by="webhook"),
                    unit="s",
                    width=12,
                ),
                Panel(
                    "Ready, by replica",
                    "0: no good certificate, or the cluster's version is not known, or it is about to stop.",
                    (Query("valetkey_injector_ready", "{{instance}}"),),
                    width=12,
                ),
            ),
        ),
        Row(
            "Certificate",
            (
                Panel(
                    "It ends in",
                    "By replica. One that the injector makes is replaced when a third of its life is left.",
                    (Query(f"{_ENDS} - time()", "{{instance}}"),),
                    unit="s",
                ),
                Panel(
                    "Looks",
                    "taken_up: there was another, which is served since. failed: the last good one still is.",
                    (per("valetkey_injector_certificates_total", "result", of="increase"),),
                ),
                Panel(
                    "Can't use the newest",
                    "Replicas whose last look failed; their /readyz says why.",
                    (Query("sum(valetkey_injector_certificate_failing)", "replicas"),),
                ),
            ),
        ),
    ),
)
