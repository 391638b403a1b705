"""httpbin, as its package has it, under gunicorn: a target that nobody here wrote."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.support.clients import BIN
from tests.support.ports import free_port

_PATIENCE: Final = 20.0


class Httpbin:
    """One server process with its worker. ``certificate`` and ``key`` make it speak TLS."""

    def __init__(
        self,
        address: str,
        directory: Path,
        *,
        certificate: Path | None = None,
        key: Path | None = None,
    ) -> None:
        self.address = address
        self.port = free_port()
        self._log = directory / f"httpbin-{self.port}.log"
        self._argv = [
            str(BIN / "gunicorn"), "--bind", f"{address}:{self.port}", "--worker-class", "gthread",
            "--threads", "8", "--keep-alive", "60", "--log-level", "warning",
            "--worker-tmp-dir", str(directory),
        ]  # fmt: skip
        if certificate is not None:
            self._argv += ["--certfile", str(certificate), "--keyfile", str(key)]
        self._argv.append("httpbin:app")

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            # Sets are written in the same order by all of them (Allow, for one).
            environ = {**os.environ, "PYTHONHASHSEED": "0"}
            self._process = subprocess.Popen(self._argv, stdout=log, stderr=log, env=environ)
        deadline = time.monotonic() + _PATIENCE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._end()
                raise AssertionError(f"httpbin did not start: {self._log.read_text()[-2000:]}")
            time.sleep(0.02)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection((self.address, self.port), timeout=1).close()
            return True
        return False

    def _end(self) -> None:
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
