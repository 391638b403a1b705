"""Panels that the dashboards of all sidecars and of one workload's share."""

from __future__ import annotations

from typing import Final

from valetkey.cli.dashboards.grafana import RATE, Panel, Query, Variable, per, percentiles

# What only sidecars have: the other programs have `valetkey_build_info`, too.
NAMESPACE: Final = Variable("namespace", "valetkey_feed_connected")
OF_NAMESPACE: Final = 'valetkey_feed_connected{namespace=~"$namespace"}'


def cache(who: str) -> tuple[Panel, ...]:
    return (
        Panel(
            "Calls served from the cache",
            "Share of credentials that were there already. What is left waits for an exchange.",
            (
                Query(
                    f"sum(rate(valetkey_cache_hits_total{{{who}}}{RATE})) / "
                    f"(sum(rate(valetkey_cache_hits_total{{{who}}}{RATE})) + "
                    f"sum(rate(valetkey_cache_misses_total{{{who}}}{RATE})))",
                    "from the cache",
                ),
            ),
            unit="percentunit",
        ),
        Panel(
            "Exchanges by result",
            "Exchanges at the broker: ok, or the code that it or the way there ended with.",
            (per("valetkey_exchanges_total", "result", who),),
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Time of an exchange",
            "As the sidecar sees it, the network included.",
            percentiles("valetkey_exchange_seconds", who),
            unit="s",
        ),
        Panel(
            "Credentials renewed and dropped",
            "Refreshed ahead of their end; evicted after a target's 401; dropped because they ended, "
            "or may have.",
            (
                Query(f"sum(rate(valetkey_cache_refreshes_total{{{who}}}{RATE}))", "refreshed"),
                Query(f"sum(rate(valetkey_cache_evictions_total{{{who}}}{RATE}))", "evicted"),
                Query(f"sum(rate(valetkey_cache_revocations_total{{{who}}}{RATE}))", "dropped"),
            ),
            unit="ops",
        ),
    )


def feed(who: str) -> tuple[Panel, ...]:
    return (
        Panel(
            "From an end to its being in force",
            "Revocation lag, the sidecars' side: an incident, a revoked token, a narrowed grant, until "
            "nothing goes out by it any more. Over 5 s for one in a hundred, there is an alert.",
            percentiles("valetkey_feed_lag_seconds", who),
            unit="s",
        ),
        Panel(
            "What ended, by kind",
            "Events of the feed by what they ended; refused: not to be believed.",
            (per("valetkey_feed_events_total", "kind", who, of="increase"),),
            stacked=True,
        ),
        Panel(
            "Sidecars that follow the feed",
            "Connected: the last poll was answered. Lost: not heard from for longer than is "
            "tolerated; they use credentials for a short time only, or none, as settings say.",
            (
                Query(f"sum(valetkey_feed_connected{{{who}}})", "connected"),
                Query(f"sum(valetkey_feed_lost{{{who}}})", "lost"),
            ),
        ),
    )
