"""A real Prometheus for the tests, and promtool (Debian: ``apt-get install prometheus``).

It listens on loopback, keeps what it scrapes in a directory that is gone afterwards, and runs as
whoever runs the tests; a server that the package may have started is left alone.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import yaml

from tests.support.ports import free_port
from tests.support.waiting import until_sync


def program(name: str) -> str:
    """Where ``prometheus`` or ``promtool`` is; skips the test where it is not."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: apt-get install prometheus)")
    return found


def promtool(*words: str) -> None:
    """Run promtool, whose complaints become the failure's message."""
    done = subprocess.run(
        [program("promtool"), *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Prometheus:
    """``with`` starts it on ``config`` (a document) and stops it."""

    def __init__(self, directory: Path, config: dict[str, Any]) -> None:
        self._program = program("prometheus")
        self._directory = directory
        directory.mkdir(parents=True)
        (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._argv = [
            self._program,
            f"--config.file={directory / 'prometheus.yaml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with (self._directory / "log").open("wb") as log:
            self._process = subprocess.Popen(self._argv, stdout=log, stderr=log)
        try:
            until_sync(self._ready, "Prometheus is ready", poll=0.05)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.kill()  # nothing that it keeps is wanted
            self._process.wait(60)

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._directory / "log").read_text()
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def ask(self, path: str, **parameters: str | list[str]) -> Any:
        """The ``data`` of an answer of its API; what it refuses fails the test, with its reason."""
        query = urllib.parse.urlencode(parameters, doseq=True)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            pytest.fail(f"{path} {parameters}: {error.read().decode()}")

    def query(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """The series of an expression now, with their values."""
        found = self.ask("query", query=expr)
        assert found["resultType"] == "vector", expr
        return [(one["metric"], float(one["value"][1])) for one in found["result"]]
