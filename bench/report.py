"""Measurements as Markdown. Figures are medians of rounds, with the spread beside throughput."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.aims import judge
from bench.measurements import Measurements, ThroughputRound
from bench.rows import BODIES, INTERCEPTION, LATENCY, THROUGHPUT, Row
from bench.servers import LARGE_BODY_SIZE

_MIB = 1 << 20


def markdown(measured: Measurements) -> str:
    """The whole report; headings start at the third level so that it can be included."""
    sections = [
        _throughput(measured),
        _interception(measured),
        _bodies(measured),
        _latency(measured),
        _broker(measured),
        _aims(measured),
        _method(measured),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def _number(value: float | None, form: str = "{:,.2f}") -> str:
    return "–" if value is None else form.format(value)


def _not_run(measured: Measurements, row: Row, columns: int) -> list[str]:
    reason = measured.not_run.get(row.name, "not asked for")
    return [row.title, f"not run: {reason}", *("" for _ in range(columns - 2))]


def _throughput(measured: Measurements) -> str:
    figures = (_RATE, _SPREAD, *_LATENCIES, _CPU, _RSS, _PSS, _ANONYMOUS, _READY, _ERRORS)
    table = _at_saturation(measured, "At saturation, one core", THROUGHPUT, figures)
    return f"### Throughput\n\n{table}"


def _interception(measured: Measurements) -> str:
    figures = (_RATE, _SPREAD, *_LATENCIES, _CPU, _RSS, _ANONYMOUS, _TLS, _ERRORS)
    table = _at_saturation(measured, "TLS in, TLS out", INTERCEPTION, figures)
    return f"### Interception\n\n{table}"


def _bodies(measured: Measurements) -> str:
    figures = (_RATE, _SPREAD, _THROUGH, *_LATENCIES, _CPU, _RSS, _ANONYMOUS, _ERRORS)
    table = _at_saturation(measured, "Bodies of 1 MiB", BODIES, figures)
    return f"### Large bodies\n\n{table}"


@dataclass(frozen=True, slots=True)
class _Figure:
    """A column: ``text`` of a row that has rounds. ``proxied``: `direct` has none of it."""

    header: str
    text: Callable[[Measurements, Row], str]
    proxied: bool = False


def _median(
    header: str,
    value: Callable[[ThroughputRound], float],
    form: str = "{:.2f}",
    *,
    proxied: bool = False,
) -> _Figure:
    return _Figure(
        header, lambda measured, row: _number(measured.median(row.name, value), form), proxied
    )


def _spread(measured: Measurements, row: Row) -> str:
    rates = [entry.requests_per_second for entry in measured.of_row(row.name)]
    return f"{min(rates):,.0f}–{max(rates):,.0f}"


_RATE: Final = _median("req/s", lambda entry: entry.requests_per_second, "{:,.0f}")
_SPREAD: Final = _Figure("min–max", _spread)
_THROUGH: Final = _median(
    "MiB/s", lambda entry: entry.requests_per_second * LARGE_BODY_SIZE / _MIB, "{:,.0f}"
)
_LATENCIES: Final = (
    _median("p50 ms", lambda entry: entry.p50_ms),
    _median("p99 ms", lambda entry: entry.p99_ms),
)
_CPU: Final = _median("CPU µs/req", lambda entry: entry.cpu_us_per_request, "{:.1f}", proxied=True)
_RSS: Final = _median("RSS MiB", lambda entry: entry.rss_peak / _MIB, "{:.1f}", proxied=True)
_PSS: Final = _median("PSS MiB", lambda entry: entry.pss / _MIB, "{:.1f}", proxied=True)
_ANONYMOUS: Final = _median(
    "anon. MiB", lambda entry: entry.anonymous / _MIB, "{:.1f}", proxied=True
)
_READY: Final = _median("ready s", lambda entry: entry.ready_seconds, proxied=True)
_TLS: Final = _Figure("TLS in", lambda measured, row: measured.of_row(row.name)[-1].tls)
_ERRORS: Final = _Figure("errors", lambda measured, row: str(measured.errors(row.name)))


def _at_saturation(
    measured: Measurements, title: str, rows: Sequence[Row], figures: Sequence[_Figure]
) -> str:
    header = [title, *(figure.header for figure in figures)]
    lines = []
    for row in rows:
        if not measured.of_row(row.name):
            lines.append(_not_run(measured, row, len(header)))
            continue
        lines.append([
            row.title,
            *(
                "" if figure.proxied and row.kind == "direct" else figure.text(measured, row)
                for figure in figures
            ),
        ])  # fmt: skip
    return _table(header, lines)


def _latency(measured: Measurements) -> str:
    if not measured.latency:
        return ""
    header = [
        *("At 1,000 req/s", "p50 ms", "p99 ms", "added p50 ms", "added p99 ms", "CPU µs/req"),
        *("load late, p99 ms", "errors"),
    ]
    rows = []
    for row in LATENCY:
        if all(entry.row != row.name for entry in measured.latency):
            rows.append(_not_run(measured, row, len(header)))
            continue
        proxied = row.kind != "direct"
        cpu = measured.latency_median(row.name, lambda entry: entry.cpu_us_per_request)
        rows.append([
            row.title,
            _number(measured.latency_median(row.name, lambda entry: entry.p50_ms), "{:.3f}"),
            _number(measured.latency_median(row.name, lambda entry: entry.p99_ms), "{:.3f}"),
            _number(measured.added(row.name, lambda e: e.p50_ms), "{:+.3f}") if proxied else "",
            _number(measured.added(row.name, lambda e: e.p99_ms), "{:+.3f}") if proxied else "",
            _number(cpu, "{:.1f}") if proxied else "",
            _number(measured.latency_median(row.name, lambda e: e.late_p99_ms), "{:.3f}"),
            str(sum(entry.broken for entry in measured.latency if entry.row == row.name)),
        ])  # fmt: skip
    text = "### Latency\n\n" + _table(header, rows)
    shipped = [entry for entry in measured.latency if entry.recorded]
    if shipped:
        calls = sum(entry.calls for entry in shipped)
        events = sum(entry.recorded for entry in shipped)
        text += (
            f"\n\nWith a collector: {events:,} events arrived there, two for each of the {calls:,} "
            "counted calls, of the calls of the warm-up and of the checked one, and the sidecar's "
            "own. The collector shares the load's core and delays the load itself: see how late "
            "that was."
        )
    return text


def _broker(measured: Measurements) -> str:
    if not measured.broker:
        reason = measured.not_run.get("broker")
        return f"### Broker\n\nNot run: {reason}." if reason else ""
    figures = measured.broker
    return (
        "### Broker\n\n"
        f"{figures['exchanges_per_second']:,.0f} exchanges per second on one core "
        f"(p50 {figures['p50_ms']:.2f} ms, p99 {figures['p99_ms']:.2f} ms, "
        f"{figures['count']:,.0f} exchanges)."
    )


def _aims(measured: Measurements) -> str:
    rows = [
        [finding.what, finding.aim, finding.least, finding.measured, finding.verdict]
        for finding in judge(measured)
    ]
    return "### Aims\n\n" + _table(["", "aim", "least", "measured", "verdict"], rows)


def measured_on(date: str, machine: dict[str, Any]) -> str:
    """When, and on what: see `bench.machine.describe`."""
    versions = ", ".join(f"{name} {text}" for name, text in machine["versions"].items())
    return (
        f"Measured {date} at commit {machine['commit']}: {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['memory_gib']} GiB, Linux {machine['kernel']}, "
        f"spool on {machine['spool_file_system']}, TCP "
        f"{machine['tcp_congestion_control']}, load average before the start "
        f"{machine['load_average']}; {versions}."
    )


def _method(measured: Measurements) -> str:
    method = measured.method
    machine_line = measured_on(measured.date, measured.machine)
    rounds = (
        f"Rounds: {method['rounds']} of {method['seconds']:g} s per row, interleaved over all rows "
        "and run in alternating order, each after a warm-up; figures are medians of the rounds."
    )
    points = [
        (
            "The proxy, and with `ext_authz` the service that it asks, is pinned to core 0; load, "
            "upstream, broker and collector share core 1, which bounds every row at about what "
            "`direct` shows. Each proxy has one worker and is started anew for each round."
        ),
        rounds,
        (
            "Upstream: one nginx worker, 100 bytes of JSON, keep-alive. It answers 401 to a call "
            "without a credential, and that counts as an error. Before each round one checked call "
            "shows that the row's own credential reaches the upstream in place of the one that the "
            "caller brought."
        ),
        (
            "Static credentials are as long as a token that the broker mints. The sidecar runs "
            "with all routes, decisions, two events per call with group commit, and metrics on; "
            "its credential comes from the real broker."
        ),
        (
            f"Saturation: wrk, {method['connections']} connections. “Every head different”: "
            "another path and another header in each call."
        ),
        (
            "Interception: the load makes its connections once (through CONNECT where the row is "
            "the sidecar's), verifies the certificate, and calls over TLS; the calls leave over "
            "TLS 1.3 to the same upstream, whose certificate is verified by name. Keep-alive on "
            "both sides, so this is encryption and HTTP, not handshakes. The load is "
            "bench/tls_load.go in all these rows, `direct` included; it is another than wrk, so "
            "compare them among themselves."
        ),
        (
            "Large bodies: plain HTTP, 1 MiB in the answer or in the request, sized, passed on as "
            "they come. The upstream reads a request whole before it answers. wrk reads 8 KiB at "
            "a time and shares its core with the upstream: `direct` shows their own limit."
        ),
        (
            f"Fixed rate: an open loop over {method['connections']} connections; latency counts "
            "from the moment at which a call was due. “Added” is the median over the rounds of the "
            "difference from direct in the same round."
        ),
        (
            "RSS is the peak over the process tree during load. It counts the pages of programs "
            "and libraries, which processes share; “anon.” doesn't. Ready: from the start of the "
            "process until it reports ready, or, where it has no such report, accepts."
        ),
        "Each row's configuration is one file in bench/configs/.",
    ]
    return f"### Method\n\n{machine_line}\n\n" + "\n".join(f"- {point}" for point in points)
