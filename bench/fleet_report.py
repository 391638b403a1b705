"""The results of `bench.fleet` as Markdown; figures are as they came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from bench.measurements import quantile

_MIB: Final = 1 << 20
_DAY: Final = 86_400
AWAY: Final = 0.1
"""How long after the end of a replica an incident is opened at the other one, seconds."""
# What a sidecar does on its own: a poll each 20 s, a heartbeat each 30 s.
_HEARTBEATS: Final = _DAY / 30


def report(found: Mapping[str, Any], measured: str) -> str:
    """``found`` is fleet.json; ``measured`` says where and when."""
    sections = [
        (
            f"{found['sidecars']:,} simulated sidecars, two broker replicas over one PostgreSQL, "
            "one collector over another database of it; what is measured and how: "
            "`bench/fleet.py`."
        ),
        _begin(found),
        _steady(found),
        _incidents(found),
        _kill(found),
        _collector(found),
        _sizes(found),
        measured,
        (
            "One machine carries all of this and the load as well, which takes more of it than "
            "the brokers do: times are upper bounds, and CPU is what to reckon with. Plain HTTP: "
            "TLS comes on top."
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _begin(found: Mapping[str, Any]) -> str:
    seconds = found["registered"]
    refused = _failures(found["cold_counts"])
    use = ", ".join(f"{name} {value:.1f} s" for name, value in found["cold_use"].items())
    return (
        "### They begin\n\n"
        f"All within {found['within']:g} s, each with a stream, a poll and a credential. The "
        f"last had its credential after {found['all_registered']:.1f} s; each needed "
        f"{_ms(seconds, 0.5)} (p50), {_ms(seconds, 0.99)} (p99), {_ms(seconds, 1.0)} at most. "
        f"{found['unregistered']} of {found['sidecars']:,} got none. Refused or unanswered, and "
        f"tried again: {refused}. CPU: {use}."
    )


def _failures(counts: Mapping[str, int]) -> str:
    failed = sum(count for name, count in counts.items() if " failed " in name)
    return f"{failed:,}"


def _steady(found: Mapping[str, Any]) -> str:
    rows = [("both replicas", found["steady"])]
    if found["alone"]:
        rows.append(("one replica", found["alone"]))
    lines = [
        "### They go on",
        "",
        "| A second | " + " | ".join(name for name, _ in rows) + " |",
        "|---|" + "---:|" * len(rows),
    ]

    def row(name: str, values: Sequence[str]) -> None:
        lines.append(f"| {name} | {' | '.join(values)} |")

    for kind, title in (
        ("poll", "polls answered"),
        ("exchange", "exchanges (a credential lasts for 96 s, and these are the first)"),
        ("introspection", "questions about credentials"),
        ("batch", "batches at the collector"),
        ("event", "events at the collector"),
    ):
        row(title, [f"{one['counts'].get(kind, 0) / one['seconds']:,.0f}" for _, one in rows])
    row("not answered as they should", [_failures(one["counts"]) for _, one in rows])
    for kind in ("exchange", "introspection"):
        row(
            f"{kind}, p50 / p99 ms",
            [
                f"{one['p50_ms'].get(kind, 0):.1f} / {one['p99_ms'].get(kind, 0):.0f}"
                for _, one in rows
            ],
        )
    for name in sorted({name for _, one in rows for name in one["use"]}):
        row(
            f"{name}: cores / MiB",
            [
                f"{one['use'][name]['cpu']:.2f} / {one['use'][name]['rss'] / _MIB:.0f}"
                if name in one["use"]
                else "ended"
                for _, one in rows
            ],
        )
    for name, title in (
        ("broker commits", "brokers' transactions"),
        ("broker updated", "brokers' rows updated"),
        ("broker inserted", "brokers' rows inserted"),
        ("broker connections", "brokers' connections to PostgreSQL, in all"),
    ):
        row(title, [f"{one['postgres'][name]:,.0f}" for _, one in rows])
    return "\n".join(lines)


def _incidents(found: Mapping[str, Any]) -> str:
    lines = [
        "### Incidents",
        "",
        (
            "From the request for it to the sidecar, and until the broker reports that the last "
            "has acknowledged it."
        ),
        "",
        "| About | told | p50 | p99 | last | answered | acknowledged by all |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for one in found["incidents"]:
        groups.setdefault(one["about"], []).append(one)
    titles = {"token_hash": "a token: all", "subject": "a workload: its own"}
    for about, group in groups.items():
        lines.append(_told(f"{titles[about]} ({len(group)} incidents)", group))
    if found["while_away"]:
        lines.append(_told("a token, a replica having just ended", [found["while_away"]]))
    return "\n".join(lines)


def _told(title: str, group: Sequence[Mapping[str, Any]]) -> str:
    seconds = [at for one in group for at in one["seconds"]]
    expected = sum(one["expected"] for one in group)
    acknowledged = [one["acknowledged"] for one in group if one["acknowledged"] is not None]
    answered = [one["answered"] for one in group]
    return (
        f"| {title} | {len(seconds):,} of {expected:,} | {_ms(seconds, 0.5)} | "
        f"{_ms(seconds, 0.99)} | {_ms(seconds, 1.0)} | {_ms(answered, 1.0)} | "
        f"{_ms(acknowledged, 1.0)} |"
    )


def _kill(found: Mapping[str, Any]) -> str:
    back = found["back"]
    return (
        "### A replica is killed\n\n"
        f"{found['killed']:,} sidecars followed it. They heard the other one again after "
        f"{_ms(back, 0.5)} (p50), {_ms(back, 0.99)} (p99), {_ms(back, 1.0)} (the last); "
        f"{len(back):,} did. An incident that was opened {AWAY:g} s after the end came to as many "
        "as the table above says."
    )


def _collector(found: Mapping[str, Any]) -> str:
    lines = [
        "### A collector by itself",
        "",
        (
            "16 sidecars that send the next batch when the last is acknowledged. CPU: collector "
            "and database, for each event."
        ),
        "",
        (
            "| Database | events of a batch | batches a second | events a second | p50 ms | "
            "p99 ms | CPU µs | refused |"
        ),
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {one['database']} | {one['batch']} | {one['batches']:,.0f} | {one['events']:,.0f} | "
        f"{one['p50_ms']:.0f} | {one['p99_ms']:.0f} | {one['cpu_us']:,.0f} | {one['refused']} |"
        for one in found["ingest"]
    ]
    return "\n".join(lines)


def _sizes(found: Mapping[str, Any]) -> str:
    spooled = found["spooled_per_call"]
    lines = [
        "### Sizes",
        "",
        "| What | Bytes an event | A call (two events) | A million calls |",
        "|---|---:|---:|---:|",
        f"| in a sidecar's spool | {spooled / 2:,.0f} | {spooled:,.0f} | {_gib(spooled)} |",
    ]
    for one in found["stored"]:
        each = one["bytes_each"]
        title = f"in {one['database']}, with its indexes"
        lines.append(f"| {title} | {each:,.0f} | {2 * each:,.0f} | {_gib(2 * each)} |")
    lines += ["", _sizing(found)]
    return "\n".join(lines)


def _sizing(found: Mapping[str, Any]) -> str:
    """What 1,000 sidecars cost, by division."""
    steady, fleet = found["steady"], found["sidecars"] / 1000
    brokers = [use for name, use in steady["use"].items() if name.startswith("broker")]
    cores = sum(use["cpu"] for use in brokers) / fleet
    lines = [
        "| 1,000 sidecars | |",
        "|---|---:|",
        f"| cores of all brokers together | {cores:.3f} |",
    ]
    if found["alone"]:
        alone = found["alone"]
        (use,) = (use for name, use in alone["use"].items() if name.startswith("broker"))
        memory = (use["rss"] - brokers[0]["rss"]) / (fleet * 500)
        lines += [
            f"| cores of a broker that is alone | {use['cpu'] / fleet:.3f} |",
            f"| memory of a broker for one more sidecar | {memory / 1024:.1f} KiB |",
        ]
    commits = steady["postgres"]["broker commits"]
    lines += [
        f"| cores of PostgreSQL | {steady['use']['PostgreSQL']['cpu'] / fleet:.3f} |",
        f"| brokers' transactions a second | {commits / fleet:.1f} |",
        f"| heartbeats a day | {1000 * _HEARTBEATS:,.0f} |",
    ]
    return "\n".join(lines)


def _ms(seconds: Sequence[float], share: float) -> str:
    if not seconds:
        return "–"
    return f"{quantile(list(seconds), share) * 1000:,.0f} ms"


def _gib(bytes_each: float) -> str:
    return f"{bytes_each * 1e6 / (1 << 30):.2f} GiB"
