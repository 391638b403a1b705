"""Measurements as one picture: throughput, added latency, memory; TLS and large bodies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.measurements import Measurements
from bench.rows import BODIES, INTERCEPTION, LATENCY, THROUGHPUT, Row

_OURS, _OTHERS = "#2a6f97", "#b0b7bd"


def draw(measured: Measurements, target: Path) -> None:
    """Write a PNG. Rows that were not run are left out."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, ((left, middle, right), below) = plt.subplots(
        2,
        3,
        figsize=(17, 8.5),
        layout="constrained",
        gridspec_kw={"width_ratios": (3, 2, 2), "height_ratios": (3, 1)},
    )
    _throughput(left, measured, THROUGHPUT, "requests per second, medians")
    _latency(middle, measured)
    _memory(right, measured)
    tls, downloads, uploads = below
    _throughput(tls, measured, INTERCEPTION, "requests per second, TLS in and out")
    for axes, body, title in (
        (downloads, "download", "answers of 1 MiB per second"),
        (uploads, "upload", "requests of 1 MiB per second"),
    ):
        _throughput(axes, measured, [row for row in BODIES if row.body == body], title)
    figure.suptitle(
        f"{measured.machine['cpu']}, proxy on one core, load and upstream on another · "
        f"{measured.date[:10]}",
        fontsize=10,
    )
    figure.savefig(target, dpi=110)
    plt.close(figure)


def _bars(
    axes: Any, names: list[str], values: list[float], ours: list[bool], title: str, form: str
) -> Any:
    colours = [_OURS if own else _OTHERS for own in ours]
    bars = axes.barh(names[::-1], values[::-1], color=colours[::-1])
    axes.bar_label(
        bars, labels=[form.format(value) for value in values[::-1]], padding=6, fontsize=8
    )
    axes.set_title(title, fontsize=10)
    axes.margins(x=0.18)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return bars


def _throughput(axes: Any, measured: Measurements, rows: Sequence[Row], title: str) -> None:
    rows = [row for row in rows if measured.of_row(row.name)]
    if not rows:
        axes.set_axis_off()
        return
    values = [measured.median(row.name, lambda e: e.requests_per_second) or 0.0 for row in rows]
    ours = [row.kind == "valetkey" for row in rows]
    _bars(axes, [row.title for row in rows], values, ours, title, "{:,.0f}")
    for place, row in enumerate(reversed(rows)):
        rates = [entry.requests_per_second for entry in measured.of_row(row.name)]
        axes.plot([min(rates), max(rates)], [place, place], color="black", linewidth=1)


def _latency(axes: Any, measured: Measurements) -> None:
    rows = [
        row
        for row in LATENCY
        if row.kind != "direct" and measured.added(row.name, lambda e: e.p50_ms) is not None
    ]
    if not rows:
        axes.set_axis_off()
        return
    names = [row.title.replace("Valetkey, ", "Valetkey,\n") for row in reversed(rows)]
    places = range(len(rows))
    for shift, label, shade, pick in (
        (0.2, "median", _OURS, lambda e: e.p50_ms),
        (-0.2, "p99", _OTHERS, lambda e: e.p99_ms),
    ):
        values = [measured.added(row.name, pick) or 0.0 for row in reversed(rows)]
        bars = axes.barh(
            [place + shift for place in places], values, height=0.38, color=shade, label=label
        )
        axes.bar_label(bars, labels=[f"{value:.2f}" for value in values], padding=3, fontsize=8)
    axes.set_yticks(list(places), names, fontsize=8)
    axes.set_title("ms added over direct at 1,000 req/s", fontsize=10)
    axes.margins(x=0.18)
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _memory(axes: Any, measured: Measurements) -> None:
    rows = [row for row in THROUGHPUT if row.kind != "direct" and measured.of_row(row.name)]
    if not rows:
        axes.set_axis_off()
        return
    values = [(measured.median(row.name, lambda e: e.rss_peak) or 0.0) / (1 << 20) for row in rows]
    ours = [row.kind == "valetkey" for row in rows]
    names = [row.title.replace("Valetkey, 1,000 routes, ", "Valetkey, ") for row in rows]
    _bars(axes, names, values, ours, "resident MiB under load, peak", "{:.0f}")
