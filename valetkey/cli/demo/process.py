"""One program of the demo: a real process with its output in a file, ended by its pid."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

_START: Final = 60.0
_STOP: Final = 30.0
_POLL: Final = 0.02


class ProgramFailed(Exception):  # noqa: N818 - it is what happened
    """A program did not come up or did not go down."""


class Program:
    """A program that can be started, asked for readiness, stopped, killed and started again."""

    def __init__(self, name: str, argv: tuple[str, ...], log: Path, ready: str) -> None:
        self.name = name
        self.log = log
        self.url = ready.rpartition("/")[0]
        self._argv = (sys.executable, *argv)
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; `wait_ready` waits."""
        # What is set for the reader's own programs must not configure those of the demo.
        env = {
            name: value for name, value in os.environ.items() if not name.startswith("VALETKEY_")
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own programs, no shell
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=env,
                # Ctrl-C goes to the demo alone, which then stops everything in order.
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        deadline = time.monotonic() + _START
        while time.monotonic() < deadline:
            if not self.running:
                raise ProgramFailed(f"{self.name} ended at its start: see {self.log}")
            if _answers(self._ready):
                return
            time.sleep(_POLL)
        raise ProgramFailed(f"{self.name} is not ready: see {self.log}")

    def wait_for(self, name: str, value: str) -> None:
        """Wait until its ``/readyz`` says so."""
        deadline = time.monotonic() + _START
        while time.monotonic() < deadline:
            if _details(self._ready).get(name) == value:
                return
            time.sleep(_POLL)
        raise ProgramFailed(f"{self.name}: {name} is not {value}: see {self.log}")

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: no chance to tidy up."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if self.running:
            self._process.send_signal(number)
        try:
            self._process.wait(_STOP)
        except subprocess.TimeoutExpired as error:
            self._process.kill()
            self._process.wait(_STOP)
            raise ProgramFailed(f"{self.name} did not stop: see {self.log}") from error


def _answers(url: str) -> bool:
    return bool(_details(url))


def _details(url: str) -> dict[str, Any]:
    """What a probe says while it answers 200; else nothing."""
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=2)
    try:
        connection.request("GET", f"/{path}")
        response = connection.getresponse()
        body = response.read()
        return dict(json.loads(body)) if response.status == http.HTTPStatus.OK else {}
    except (OSError, http.client.HTTPException):
        return {}
    finally:
        connection.close()
