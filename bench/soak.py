"""``python -m bench.soak``: a steady load, alone and beside a crowd of idle and slow connections.

Each round, a fresh sidecar: the load alone, the load beside the crowd (`bench.crowd`), the load
alone once more. The load's p99 beside the crowd may be twice its own without it. What a connection
costs in memory is measured in between. Results go to bench/results/soak.md and soak.json.

Exit status 0 if it was measured and held, 1 if not all held, 2 when nothing can be measured here.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from bench import loads, machine
from bench.measurements import LatencyRound
from bench.processes import NotRun, Processes
from bench.report import measured_on
from bench.rows import LOAD_CORE, VALETKEY
from bench.servers import HERE, LOAD_PATH, Running, Site, start, subdirectory, verify

AIM: Final = 2.0
_SETTLE: Final = 2.0
_PATIENCE: Final = 120.0


class Round(msgspec.Struct, frozen=True):
    """One sidecar's life. Bytes; sockets' are those of the kernel, of the whole machine."""

    before: LatencyRound
    beside: LatencyRound
    after: LatencyRound
    idle_resident: int
    idle_anonymous: int
    idle_sockets: int
    slow_resident: int
    slow_sockets: int
    crowd: dict[str, Any]

    @property
    def alone_p99_ms(self) -> float:
        """The larger of the two would flatter the crowd: their middle."""
        return statistics.mean((self.before.p99_ms, self.after.p99_ms))

    @property
    def ratio(self) -> float:
        return self.beside.p99_ms / self.alone_p99_ms

    @property
    def held(self) -> bool:
        """Whether every call of the load was answered, and every connection that should be held."""
        loads_held = not (self.before.broken or self.beside.broken or self.after.broken)
        return loads_held and not self.crowd["broken"] and not self.crowd["idle_lost"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--idle", type=int, default=5000)
    parser.add_argument("--slow", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="of load, three times a round")
    parser.add_argument("--name", default="soak", help="of the files that are written")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs gets stopped
    if shutil.which("taskset") is None:
        print("soak: taskset is missing: apt-get install util-linux", file=sys.stderr)
        return 2
    try:
        with tempfile.TemporaryDirectory(prefix="valetkey-soak-") as name:
            date = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
            described = machine.describe(Path(name), Path("none"))
            rounds = _measure(options, Path(name))
    except NotRun as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    text = report(rounds, options.seconds, measured_on(date, described))
    print(text)
    options.output.mkdir(exist_ok=True)
    (options.output / f"{options.name}.md").write_text(text)
    encoded = msgspec.json.encode({"date": date, "machine": described, "rounds": rounds})
    (options.output / f"{options.name}.json").write_bytes(msgspec.json.format(encoded) + b"\n")
    held = all(item.held for item in rounds) and _ratio(rounds) <= AIM
    return 0 if held else 1


def _measure(options: argparse.Namespace, directory: Path) -> list[Round]:
    rounds: list[Round] = []
    for number in range(options.rounds):
        place = subdirectory(directory, f"round-{number}")
        with Processes(place) as processes:
            site = Site(place, processes, Path("none"))
            running = start(VALETKEY, site, processes, subdirectory(place, "sidecar"))
            verify(VALETKEY, site, running)
            rounds.append(_round(options, site, running, number))
            print(f"round {number}: {rounds[-1].ratio:.2f} x", file=sys.stderr, flush=True)
    return rounds


def _round(options: argparse.Namespace, site: Site, running: Running, number: int) -> Round:
    def load() -> LatencyRound:
        return loads.fixed_rate(VALETKEY, site, running, number, options.seconds)

    before = load()
    command = [
        *("taskset", "-c", str(LOAD_CORE), sys.executable, "-m", "bench.crowd"),
        *("--port", str(running.port), "--idle", str(options.idle), "--slow", str(options.slow)),
        *("--call", LOAD_PATH, "--upload", "/api/tickets/upload"),
        *("--download", "/api/tickets/file"),
    ]
    resident, anonymous, sockets = _memory(running)
    crowd = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=HERE.parent,
    )
    try:
        _said(crowd, "gathered")
        time.sleep(_SETTLE)
        idle_resident, idle_anonymous, idle_sockets = _memory(running)
        _tell(crowd)
        _said(crowd, "slow")
        time.sleep(_SETTLE)
        slow_resident, _, slow_sockets = _memory(running)
        beside = load()
        _tell(crowd)
        fared = _said(crowd, "idle_lost")
    finally:
        crowd.kill()
        crowd.communicate()
    time.sleep(_SETTLE)
    return Round(
        before=before,
        beside=beside,
        after=load(),
        idle_resident=(idle_resident - resident) // options.idle,
        idle_anonymous=(idle_anonymous - anonymous) // options.idle,
        idle_sockets=(idle_sockets - sockets) // options.idle,
        slow_resident=(slow_resident - idle_resident) // options.slow,
        slow_sockets=(slow_sockets - idle_sockets) // options.slow,
        crowd=fared,
    )


def _tell(crowd: subprocess.Popen[str]) -> None:
    assert crowd.stdin is not None
    crowd.stdin.write("\n")
    crowd.stdin.flush()


def _said(crowd: subprocess.Popen[str], key: str) -> dict[str, Any]:
    """The crowd's next line, which must have that member. Raises `NotRun`."""
    assert crowd.stdout is not None
    line = crowd.stdout.readline()
    said: dict[str, Any] = json.loads(line) if line else {}
    if key not in said:
        raise NotRun(f"the crowd failed: {line!r}")
    return said


def _memory(running: Running) -> tuple[int, int, int]:
    """Resident and anonymous bytes of the sidecar; bytes of all TCP sockets of the machine."""
    parts = [process.memory() for process in running.proxy]
    match = re.search(r"^TCP:.* mem (\d+)", Path("/proc/net/sockstat").read_text(), re.MULTILINE)
    pages = int(match[1]) if match else 0
    resident = sum(part.rss for part in parts)
    return resident, sum(part.anonymous for part in parts), pages * 4096


def _ratio(rounds: Sequence[Round]) -> float:
    return statistics.median(item.ratio for item in rounds)


def report(rounds: Sequence[Round], seconds: float, measured: str) -> str:
    """The results as Markdown."""
    crowd, ratio = rounds[0].crowd, _ratio(rounds)
    verdict = f"aim: at most {AIM:g}, {'met' if ratio <= AIM else 'missed'}"
    each_round = ", ".join(f"{item.ratio:.2f}" for item in rounds)
    broken = sum(i.before.broken + i.beside.broken + i.after.broken for i in rounds)
    lost = sum(item.crowd["idle_lost"] + len(item.crowd["broken"]) for item in rounds)
    ended = sum(item.crowd["heads_ended"] for item in rounds)
    rate = f"{rounds[0].before.rate:,.0f} calls a second on {loads.CONNECTIONS} connections"
    beside = f"beside {crowd['idle']:,} idle and {crowd['slow']:,} slow connections"
    memory = [
        ("sidecar, resident", "idle_resident", "slow_resident"),
        ("sidecar, anonymous", "idle_anonymous", ""),
        ("kernel, both ends of the sockets", "idle_sockets", "slow_sockets"),
    ]
    held = (
        f"Of the load, {broken} calls were not answered. Of the crowd, {lost} connections that "
        f"should have held were lost, and {ended:,} slow heads ended by their time limit; each "
        "came anew."
    )
    method = (
        f"{len(rounds)} rounds, a fresh sidecar each; {seconds:g} s of load three times in each; "
        "figures are medians of the rounds, with their range. The sidecar "
        f"({VALETKEY.title}) is pinned to one core; load, crowd and upstream share the other. A "
        "third each of the slow connections: a head of a byte a second, a body of 300 bytes a "
        "second, a reader of 2 KiB a second."
    )
    lines = [
        f"| {rate} | p50 ms | p99 ms | longest ms |",
        "| --- | ---: | ---: | ---: |",
        _latency("alone, before", [item.before for item in rounds]),
        _latency(beside, [item.beside for item in rounds]),
        _latency("alone, after", [item.after for item in rounds]),
        "",
        f"p99 beside the crowd over p99 alone: **{ratio:.2f} ×** ({each_round}; {verdict}).",
        "",
        "| Memory | an idle connection | a slow connection |",
        "| --- | ---: | ---: |",
        *(
            f"| {name} | {_kib(rounds, idle)} | {_kib(rounds, slow)} |"
            for name, idle, slow in memory
        ),
        "",
        held,
        "",
        measured,
        "",
        method,
    ]
    return "\n".join(lines) + "\n"


def _latency(name: str, of: Sequence[LatencyRound]) -> str:
    cells = (
        f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
        for values in (
            [item.p50_ms for item in of],
            [item.p99_ms for item in of],
            [item.max_ms for item in of],
        )
    )
    return f"| {name} | {' | '.join(cells)} |"


def _kib(rounds: Sequence[Round], field: str) -> str:
    if not field:
        return ""
    return f"{statistics.median(getattr(item, field) for item in rounds) / 1024:.1f} KiB"


if __name__ == "__main__":
    sys.exit(main())
