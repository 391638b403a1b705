"""Programs under test as real processes: started, awaited with a deadline, killed by pid.

Standard output and error go to files beside each other in one directory, which the canary check
searches at the end of the session.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

# Of a machine that does much else at the same time; who waits in vain finds out by these.
START_TIMEOUT: Final = 60.0
STOP_TIMEOUT: Final = 60.0
_POLL: Final = 0.01
# RLIMIT_NOFILE, soft and hard, of what follows.
_LIMITED: Final = 'ulimit -n "$0" && exec "$@"'


class Failed(AssertionError):  # noqa: N818
    """The program did not do what was waited for; the message ends with its last lines."""


class Program:
    """One process. ``async with`` waits until it listens and stops it at the end.

    ``argv`` follows the interpreter: ``("-m", "valetkey.broker", "--config", "…")``. ``prefix`` is a
    command that becomes the interpreter, such as ``nsenter``; ``descriptors`` is how many files it
    may have open.
    """

    def __init__(
        self,
        argv: tuple[str, ...],
        directory: Path,
        *,
        name: str,
        env: Mapping[str, str] | None = None,
        cpu: int | None = None,
        prefix: tuple[str, ...] = (),
        descriptors: int | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.name = name
        self._argv = (
            *prefix,
            *(("taskset", "-c", str(cpu)) if cpu is not None else ()),
            *(("sh", "-c", _LIMITED, str(descriptors)) if descriptors is not None else ()),
            sys.executable,
            *argv,
        )
        # What the developer's shell sets must not configure the program under test.
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith("VALETKEY_")
        }
        self._env = {**inherited, **(env or {})}
        self._directory = directory
        self._starts = 0
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def of(cls, program: str, config: Path, directory: Path, **more: Any) -> Self:
        """``python -m valetkey.<program> --config <config>``."""
        argv = ("-m", f"valetkey.{program}", "--config", str(config))
        return cls(argv, directory, name=program, **more)

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    @property
    def stderr_file(self) -> Path:
        """Where the current run's log lines are."""
        return self._directory / f"{self.name}-{self._starts}.stderr"

    @property
    def stdout_file(self) -> Path:
        return self._directory / f"{self.name}-{self._starts}.stdout"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start it (again). Does not wait: see `listening`, `event`, `ready`."""
        assert not self.running, f"{self.name} runs already"
        self._starts += 1
        with self.stdout_file.open("wb") as out, self.stderr_file.open("wb") as err:
            self._process = subprocess.Popen(
                self._argv, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=self._env
            )
        return self

    def log(self) -> list[dict[str, Any]]:
        """The log lines of the current run so far; a line that is not JSON is an error."""
        lines = self.stderr_file.read_bytes().split(b"\n")
        # The last element is empty or a line that is still being written.
        return [json.loads(line) for line in lines[:-1] if line]

    async def event(
        self,
        event: str,
        *,
        timeout: float = START_TIMEOUT,
        where: Callable[[dict[str, Any]], bool] = lambda _line: True,
    ) -> dict[str, Any]:
        """The first log line of that event for which ``where`` holds, waiting for it."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            found.extend(
                line
                for line in (self.log() if self._log_is_json() else [])
                if line.get("event") == event and where(line)
            )
            return bool(found)

        await self.until(look, f"log line {event!r}", timeout=timeout)
        return found[0]

    async def listening(self, *, timeout: float = START_TIMEOUT) -> int:
        """The port of the first ``listening`` line."""
        return int((await self.event("listening", timeout=timeout))["port"])

    async def ready(self, url: str, *, timeout: float = START_TIMEOUT) -> None:
        """Wait until ``url`` (a ``/readyz``) answers 200."""
        deadline = time.monotonic() + timeout
        seen = "no answer"
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            while time.monotonic() < deadline and self.running:
                try:
                    async with session.get(url) as response:
                        if response.status == 200:
                            return
                        seen = f"{response.status} {await response.text()}"
                except (aiohttp.ClientError, TimeoutError) as error:
                    seen = type(error).__name__
                await asyncio.sleep(_POLL)
        raise Failed(f"{self.name} is not ready ({seen})\n{self.tail()}")

    async def until(self, holds: Callable[[], bool], what: str, *, timeout: float) -> None:
        """Poll ``holds`` until the deadline or the end of the program."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            ended = not self.running
            if holds():
                return
            if ended:
                raise Failed(f"{self.name} ended before {what}\n{self.tail()}")
            await asyncio.sleep(_POLL)
        raise Failed(f"{self.name}: no {what} within {timeout} s\n{self.tail()}")

    async def ended(self, *, timeout: float = STOP_TIMEOUT) -> int:
        """The exit status, waiting for it (negative: the signal that ended it)."""
        assert self._process is not None
        deadline = time.monotonic() + timeout
        while (status := self._process.poll()) is None:
            if time.monotonic() > deadline:
                raise Failed(f"{self.name} did not end within {timeout} s\n{self.tail()}")
            await asyncio.sleep(_POLL)
        return status

    def kill(self) -> None:
        """SIGKILL, and reap."""
        if self.running:
            os.kill(self.pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(STOP_TIMEOUT)

    def terminate(self) -> None:
        """SIGTERM: a clean stop begins."""
        if self.running:
            os.kill(self.pid, signal.SIGTERM)

    async def stop(self) -> int:
        """SIGTERM, and wait; SIGKILL and `Failed` when it does not end."""
        self.terminate()
        try:
            return await self.ended()
        except Failed:
            self.kill()
            raise

    def tail(self, lines: int = 20) -> str:
        """The last lines of its output, for messages."""
        text = self.stderr_file.read_text(errors="replace") if self._starts else ""
        return "\n".join(text.splitlines()[-lines:])

    async def __aenter__(self) -> Self:
        self.start()
        try:
            await self.listening()
        except BaseException:
            self.kill()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.running and kind is None:
            await self.stop()
        else:
            self.kill()

    def _log_is_json(self) -> bool:
        """Whether what was logged so far can be read as log lines (a ConfigError can't)."""
        try:
            self.log()
        except ValueError:
            return False
        return True
