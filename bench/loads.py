"""The loads, always from the load's core: at saturation, and the open loop at a fixed rate.

At saturation wrk, and where TLS is spoken tls_load.go, since wrk knows no CONNECT.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from bench.certificates import SERVER
from bench.measurements import LatencyRound, ThroughputRound
from bench.processes import Memory, NotRun
from bench.rows import LOAD_CORE, Row
from bench.servers import HERE, LOAD_PATH, Running, Site, load_path

CONNECTIONS: Final = 32
RATE: Final = 1000.0
_SAMPLE_EVERY: Final = 0.5
_GRACE: Final = 20.0  # wrk waits for answers in flight; nothing takes longer than that


def _saturating(row: Row, site: Site, running: Running, seconds: float) -> subprocess.Popen[str]:
    command = (_tls_load if row.tls else _wrk)(row, site, running, max(1, round(seconds)))
    return subprocess.Popen(
        ["taskset", "-c", str(LOAD_CORE), *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _wrk(row: Row, site: Site, running: Running, seconds: int) -> list[str | Path]:
    binary = shutil.which("wrk")
    if binary is None:
        raise NotRun("wrk is missing: apt-get install wrk")
    script = "load_unique.lua" if row.unique_heads else "load.lua"
    if row.body == "upload":
        script = "load_upload.lua"
    command: list[str | Path] = [
        *(binary, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", HERE / script),
    ]
    if row.kind == "direct":  # nobody injects here
        command += ["-H", f"Authorization: Bearer {site.static_token}"]
    return [*command, f"http://127.0.0.1:{running.port}{load_path(row)}"]


def _tls_load(row: Row, site: Site, running: Running, seconds: int) -> list[str | Path]:
    assert running.ca is not None
    command: list[str | Path] = [
        *(site.tls_load(), "-address", f"127.0.0.1:{running.port}", "-name", SERVER),
        *("-ca", running.ca, "-path", load_path(row)),
        *("-connections", str(CONNECTIONS), "-seconds", str(seconds)),
    ]
    if row.kind == "direct":
        command += ["-authorization", f"Bearer {site.static_token}"]
    if running.tunnel:
        command += ["-connect", running.tunnel]
    return command


def _finish(load: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    try:
        output, _ = load.communicate(timeout=seconds + _GRACE)
    except subprocess.TimeoutExpired:
        raise NotRun("the load did not end in time") from None
    finally:
        if load.poll() is None:
            load.kill()
            load.wait()
    return parse_report(output)


def parse_report(output: str) -> dict[str, Any]:
    """The line of JSON in a load's output. Raises `NotRun` where there is none."""
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            report: dict[str, Any] = json.loads(line)
            return report
    raise NotRun(f"the load failed: {output.strip()[-300:]}")


def saturate(
    row: Row, site: Site, running: Running, number: int, seconds: float
) -> ThroughputRound:
    """`CONNECTIONS` connections, one call after the other on each. Raises `NotRun`.

    Memory is sampled while the load runs.
    """
    _finish(_saturating(row, site, running, 1), 1)  # warm-up, not counted
    cpu_before = sum(process.cpu_seconds() for process in running.proxy)
    load = _saturating(row, site, running, seconds)
    started, peak, memory = time.monotonic(), 0, Memory(0, 0, 0)
    while load.poll() is None and time.monotonic() < started + seconds - _SAMPLE_EVERY:
        time.sleep(min(_SAMPLE_EVERY, seconds / 3))
        peak = max(peak, sum(process.rss() for process in running.proxy))
    if load.poll() is None:  # once, near the end: reading the maps stops the process for a moment
        parts = [process.memory() for process in running.proxy]
        memory = Memory(
            rss=sum(part.rss for part in parts),
            pss=sum(part.pss for part in parts),
            anonymous=sum(part.anonymous for part in parts),
        )
    report = _finish(load, seconds)
    cpu = sum(process.cpu_seconds() for process in running.proxy) - cpu_before
    requests = report["requests"]
    if not requests:
        raise NotRun("no call was answered under load")
    return ThroughputRound(
        row=row.name,
        round=number,
        requests=requests,
        requests_per_second=requests / report["seconds"],
        p50_ms=report["p50_ms"],
        p90_ms=report["p90_ms"],
        p99_ms=report["p99_ms"],
        max_ms=report["max_ms"],
        not_2xx=report["not_2xx"],
        broken=report["broken"],
        ready_seconds=running.ready_seconds,
        rss_peak=max(peak, memory.rss),
        rss=memory.rss,
        pss=memory.pss,
        anonymous=memory.anonymous,
        cpu_us_per_request=cpu / requests * 1e6,
        tls=report.get("tls", ""),
    )


def fixed_rate(row: Row, site: Site, running: Running, number: int, seconds: float) -> LatencyRound:
    """`RATE` calls a second from the open loop. Raises `NotRun`."""
    command = [
        *("taskset", "-c", str(LOAD_CORE), sys.executable, "-m", "bench.fixed_rate"),
        *("--port", str(running.port), "--path", LOAD_PATH, "--rate", str(RATE)),
        *("--seconds", str(seconds), "--connections", str(CONNECTIONS)),
    ]
    if row.kind == "direct":
        command += ["--authorization", f"Bearer {site.static_token}"]
    cpu_before = sum(process.cpu_seconds() for process in running.proxy)
    load = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=HERE.parent
    )
    report = _finish(load, seconds)
    cpu = sum(process.cpu_seconds() for process in running.proxy) - cpu_before
    if not report["calls"]:
        raise NotRun("no call was answered at the fixed rate")
    return LatencyRound(
        row=row.name,
        round=number,
        rate=RATE,
        cpu_us_per_request=cpu / report["calls"] * 1e6,
        **report,
    )


def broker_exchanges(seconds: float) -> dict[str, float]:
    """What the broker's own load program prints. Raises `NotRun`."""
    script = HERE / "broker_load.py"
    if not script.is_file():
        raise NotRun("bench/broker_load.py is missing")
    load = subprocess.Popen(
        [sys.executable, str(script), "--seconds", f"{seconds:g}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=HERE.parent,
    )
    return _finish(load, seconds + 40)  # it starts a broker and makes its proofs beforehand
