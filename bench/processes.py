"""Programs under test: started on one core, awaited, measured through /proc, stopped by pid.

Every wait has a deadline, and leaving `Processes` stops whatever it started, in reverse order.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

STOP_AFTER: Final = 10.0
_CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class NotRun(Exception):  # noqa: N818 - it is a result, told in the table
    """A row can't be measured here; the text says why."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, summed over a process tree. ``pss`` counts a shared page once, ``anonymous`` none."""

    rss: int
    pss: int
    anonymous: int


@dataclass(frozen=True, slots=True)
class Process:
    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    def tree(self) -> list[int]:
        """Pids of this process and everything below it."""
        pids = [self.popen.pid]
        for pid in pids:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with suppress(OSError):
                    pids += map(int, children.read_text().split())
        return pids

    def rss(self) -> int:
        """Resident bytes of the tree, cheaply enough to sample under load."""
        return sum(_resident(pid) for pid in self.tree())

    def memory(self) -> Memory:
        sums = [_smaps_rollup(pid) for pid in self.tree()]
        return Memory(
            rss=sum(s.get("Rss", 0) for s in sums),
            pss=sum(s.get("Pss", 0) for s in sums),
            anonymous=sum(s.get("Anonymous", 0) for s in sums),
        )

    def cpu_seconds(self) -> float:
        """User and system time of the tree so far."""
        return sum(_cpu_ticks(pid) for pid in self.tree()) / _CLOCK_TICKS

    def last_words(self) -> str:
        """The end of its output, for the reason why a row was not run."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return without_places(lines[-1][-300:]) if lines else "no output"


def without_places(text: str) -> str:
    """Absolute paths cut to their last part: a report says nothing of where it was made."""
    return re.sub(r"(?<![\w/:])(?:/[\w.@+-]+)+/([\w.@+-]+)", r"\1", text)


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):  # gone in between
        return 0


def _smaps_rollup(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except PermissionError as error:
        raise RuntimeError("the sidecar's memory is closed to others: run this as root") from error
    except OSError:
        return {}
    return {
        name: int(rest.split()[0]) * 1024 for name, _, rest in (i.partition(":") for i in lines)
    }


def _cpu_ticks(pid: int) -> int:
    try:
        # proc(5): the name in parentheses may hold anything; utime and stime are fields 14 and 15.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


class Processes:
    """Starts programs pinned to a core; a context that stops them all."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: list[Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in reversed(self._running):
            _stop(process)
        self._running.clear()

    def start(
        self, name: str, command: Sequence[str | Path], *, core: int, env: Mapping[str, str] = {}
    ) -> Process:
        """Start ``command`` on ``core``. Its output goes to a file in the directory.

        The environment is a clean one: no setting or proxy variable of the caller comes through.
        """
        log = self._directory / f"{name}.log"
        clean = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", **env}
        with log.open("wb") as output:
            popen = subprocess.Popen(
                ["taskset", "-c", str(core), *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=clean,
                cwd=self._directory,
                start_new_session=True,
            )
        process = Process(name, popen, log)
        self._running.append(process)
        return process


def _stop(process: Process) -> None:
    pids = process.tree()
    process.popen.terminate()
    try:
        process.popen.wait(STOP_AFTER)
    except subprocess.TimeoutExpired:
        process.popen.kill()
        process.popen.wait()
    for pid in pids[1:]:  # children of a parent that did not take them along
        with suppress(ProcessLookupError):
            if os.getsid(pid) == process.popen.pid:  # still the one that we started
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + STOP_AFTER
        while is_running(pid) and time.monotonic() < deadline:
            time.sleep(0.005)


def is_running(pid: int) -> bool:
    """Whether that process exists and is no zombie (proc(5), the state is field 3)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def free_port() -> int:
    """A loopback port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_ready(
    process: Process, check: Callable[[], bool], *, timeout: float, interval: float = 0.002
) -> None:
    """Poll ``check`` until it holds. Raises `NotRun` when the process ends or time is up."""
    deadline = time.monotonic() + timeout
    while not check():
        if process.popen.poll() is not None:
            raise NotRun(
                f"{process.name} ended with {process.popen.returncode}: {process.last_words()}"
            )
        if time.monotonic() > deadline:
            raise NotRun(f"{process.name} not ready in {timeout:.0f} s: {process.last_words()}")
        time.sleep(interval)


def accepts(port: int) -> Callable[[], bool]:
    """Ready when a connection is accepted."""

    def check() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return False
        return True

    return check


def answers_200(port: int, path: str) -> Callable[[], bool]:
    """Ready when a GET is answered with 200."""

    def check() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    return check
