"""Measurements as Markdown. Figures are medians of rounds, with the spread beside throughput."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.aims import judge
from bench.measurements import Measurements
from bench.rows import LATENCY, THROUGHPUT, Row

_MIB = 1 << 20


def markdown(measured: Measurements) -> str:
    """The whole report; headings start at the third level so that it can be included."""
    sections = [
        _throughput(measured),
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
    header = ["At saturation, one core", "req/s", "min–max", "p50 ms", "p99 ms", "CPU µs/req",
              "RSS MiB", "PSS MiB", "anon. MiB", "ready s", "errors"]  # fmt: skip
    rows = []
    for row in THROUGHPUT:
        entries = measured.of_row(row.name)
        if not entries:
            rows.append(_not_run(measured, row, len(header)))
            continue
        rates = [entry.requests_per_second for entry in entries]
        proxied = row.kind != "direct"

        def middle(value: Callable[..., float], form: str, name: str = row.name) -> str:
            return _number(measured.median(name, value), form)

        rows.append([
            row.title,
            middle(lambda entry: entry.requests_per_second, "{:,.0f}"),
            f"{min(rates):,.0f}–{max(rates):,.0f}",
            middle(lambda entry: entry.p50_ms, "{:.2f}"),
            middle(lambda entry: entry.p99_ms, "{:.2f}"),
            middle(lambda entry: entry.cpu_us_per_request, "{:.1f}") if proxied else "",
            middle(lambda entry: entry.rss_peak / _MIB, "{:.1f}") if proxied else "",
            middle(lambda entry: entry.pss / _MIB, "{:.1f}") if proxied else "",
            middle(lambda entry: entry.anonymous / _MIB, "{:.1f}") if proxied else "",
            middle(lambda entry: entry.ready_seconds, "{:.2f}") if proxied else "",
            str(measured.errors(row.name)),
        ])  # fmt: skip
    return "### Throughput\n\n" + _table(header, rows)


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


def _method(measured: Measurements) -> str:
    machine, method = measured.machine, measured.method
    versions = ", ".join(f"{name} {text}" for name, text in machine["versions"].items())
    machine_line = (
        f"Measured {measured.date} at commit {machine['commit']}: {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['memory_gib']} GiB, Linux {machine['kernel']}, "
        f"spool on {machine['spool_file_system']}, TCP "
        f"{machine['tcp_congestion_control']}, load average before the start "
        f"{machine['load_average']}; {versions}."
    )
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
