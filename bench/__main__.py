"""``python -m bench``: measure all rows side by side, write bench/results/, print the table.

Exit status 0 when it measured, whatever the verdicts; 2 when nothing can be measured here.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from bench import loads, machine, picture, report
from bench.measurements import LatencyRound, Measurements, ThroughputRound
from bench.processes import NotRun, Processes
from bench.rows import AT_SATURATION, BODIES, INTERCEPTION, LATENCY, LOAD_CORE, THROUGHPUT, Row
from bench.servers import HERE, Running, Site, start, verify
from bench.whole import ROUNDS, SECONDS, is_whole

PARTS: Final = ("throughput", "interception", "bodies", "latency", "broker")
T = TypeVar("T")
Load = Callable[[Row, Site, Running, int, float], T]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs gets stopped
    try:
        _check_machine()
        with tempfile.TemporaryDirectory(prefix="valetkey-bench-") as name:
            measured = _measure(options, Path(name))
    except NotRun as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    _write(measured, options.output, "latest" if is_whole(options, PARTS) else "trial")
    return 0 if measured.throughput or measured.latency or measured.broker else 2


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of a run. Ends the program for those that can't be."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    known = list(dict.fromkeys(row.name for row in (*AT_SATURATION, *LATENCY)))
    parser.add_argument("--quick", action="store_true", help="1 round of 1 s: shows that it works")
    parser.add_argument("--rows", type=lambda text: text.split(","), help=", ".join(known))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of load per row and round")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument(
        "--mitmdump", type=Path, default=HERE.parent / ".venv-mitmproxy" / "bin" / "mitmdump"
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.rows or ()) - set(known):
        parser.error(f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such parts: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    options.rounds = options.rounds or (1 if options.quick else ROUNDS)
    options.seconds = options.seconds or (1.0 if options.quick else SECONDS)
    return options


def _check_machine() -> None:
    """What every row needs, and this program off the proxy's core."""
    if (os.cpu_count() or 1) < 2:
        raise NotRun("two cores are needed: one for the proxy, one for load and upstream")
    for program, package in (("wrk", "wrk"), ("taskset", "util-linux")):
        if shutil.which(program) is None:
            raise NotRun(f"{program} is missing: apt-get install {package}")
    os.sched_setaffinity(0, {LOAD_CORE})


def _measure(options: argparse.Namespace, directory: Path) -> Measurements:
    measured = Measurements(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machine=machine.describe(directory, options.mitmdump),
        method={
            "rounds": options.rounds,
            "seconds": options.seconds,
            "connections": loads.CONNECTIONS,
            "rate": loads.RATE,
        },
    )
    with Processes(directory) as shared:
        site = Site(directory, shared, options.mitmdump)
        rounds = _Rounds(site, options, measured.not_run)
        for part, rows in (
            ("throughput", THROUGHPUT),
            ("interception", INTERCEPTION),
            ("bodies", BODIES),
        ):
            if part in options.parts:
                measured.throughput.extend(rounds.run(rows, loads.saturate, _show_throughput))
        if "latency" in options.parts:
            measured.latency.extend(rounds.run(LATENCY, _fixed_rate, _show_latency))
    if "broker" in options.parts and options.rows is None:
        try:
            measured.broker.update(loads.broker_exchanges(options.seconds))
        except NotRun as error:
            measured.not_run["broker"] = str(error)
    return measured


class _Rounds:
    """Interleaved rounds: every row once per round, in alternating order, each proxy anew."""

    def __init__(self, site: Site, options: argparse.Namespace, not_run: dict[str, str]) -> None:
        self._site = site
        self._options = options
        self._not_run = not_run

    def run(self, rows: Sequence[Row], load: Load[T], show: Callable[[T], str]) -> Iterator[T]:
        wanted = [row for row in rows if not self._options.rows or row.name in self._options.rows]
        for number in range(1, self._options.rounds + 1):
            for row in wanted if number % 2 else reversed(wanted):
                if row.name in self._not_run:
                    continue
                try:
                    with self._started(row) as running:
                        result = load(row, self._site, running, number, self._options.seconds)
                except NotRun as error:
                    self._not_run[row.name] = str(error)
                    print(f"  {number} {row.name:20} not run: {error}", file=sys.stderr)
                    continue
                print(f"  {number} {row.name:20} {show(result)}", file=sys.stderr)
                yield result

    @contextmanager
    def _started(self, row: Row) -> Iterator[Running]:
        with (
            tempfile.TemporaryDirectory(prefix="row-", dir=self._site.directory) as name,
            Processes(Path(name)) as processes,
        ):
            running = start(row, self._site, processes, Path(name))
            verify(row, self._site, running)
            yield running


def _fixed_rate(
    row: Row, site: Site, running: Running, number: int, seconds: float
) -> LatencyRound:
    result = loads.fixed_rate(row, site, running, number, seconds)
    if not running.collector_port:
        return result
    return msgspec.structs.replace(result, recorded=_recorded(running.collector_port, site))


def _recorded(port: int, site: Site) -> int:
    """Events that the collector holds once no more arrive. Raises `NotRun`."""
    token = site.identity.workload_token(site.broker_issuer)
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/sources", headers={"Authorization": f"Bearer {token}"}
    )
    count, deadline = -1, time.monotonic() + 20
    while time.monotonic() < deadline:
        with urllib.request.urlopen(request, timeout=5) as answer:
            document = json.load(answer)
        now = sum(source["count"] for source in document["sources"])
        if now == count:
            return count
        count = now
        time.sleep(1)
    raise NotRun("the collector's count did not settle")


def _show_throughput(entry: ThroughputRound) -> str:
    return (
        f"{entry.requests_per_second:9,.0f} req/s  p99 {entry.p99_ms:7.2f} ms  "
        f"rss {entry.rss_peak / 2**20:6.1f} MiB  ready {entry.ready_seconds:5.2f} s  "
        f"errors {entry.not_2xx + entry.broken}"
    )


def _show_latency(entry: LatencyRound) -> str:
    return (
        f"p50 {entry.p50_ms:.3f} ms  p99 {entry.p99_ms:.3f} ms  "
        f"late p50 {entry.late_p50_ms:.3f} p99 {entry.late_p99_ms:.3f}  errors {entry.broken}"
    )


def _write(measured: Measurements, directory: Path, name: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    text = report.markdown(measured)
    (directory / f"{name}.md").write_text(text)
    encoded = msgspec.json.format(msgspec.json.encode(measured), indent=1)
    (directory / f"{name}.json").write_bytes(encoded + b"\n")
    picture.draw(measured, directory / f"{name}.png")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
