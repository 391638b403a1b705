"""A real NATS server with JetStream for the tests, on loopback, with files of its own.

Debian: ``apt-get install nats-server`` (a service that the package may have started is left alone).
It runs as whoever runs the tests; a client of the same library that the collector uses makes the
streams.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from tests.support.ports import free_port
from tests.support.waiting import until_sync

STREAM = "VALETKEY"
SUBJECT = "valetkey.record"


def program() -> str | None:
    return shutil.which(
        "nats-server", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    )


class NatsServer:
    """One server over one directory. ``config`` is put behind what it needs anyway."""

    def __init__(self, directory: Path, config: str = "") -> None:
        found = program()
        if found is None:
            pytest.skip("nats-server is not installed (Debian: apt-get install nats-server)")
        self._program = found
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.scheme = "nats"
        self.configure(config)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def configure(self, config: str, *, jetstream: str = "") -> None:
        """What holds from the next start on."""
        self._config = self._directory / "nats.conf"
        store = self._directory / "store"
        limits = jetstream or "max_mem: 64MB, max_file: 1GB"
        self._config.write_text(
            f"host: 127.0.0.1\nport: {self.port}\n"
            f'jetstream {{ store_dir: "{store}", {limits} }}\n{config}\n'
        )

    def start(self) -> None:
        with (self._directory / "nats.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-c", self._config], stdout=log, stderr=log, cwd=self._directory
            )
        until_sync(self._listens, "nats-server takes connections")

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._directory / "nats.log").read_text()[-2000:]
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                return connection.recv(4) == b"INFO"
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL: what it has acknowledged is in its files all the same."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(30)
            self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[Client]:
        client = await nats.connect(self.url, **options)
        try:
            yield client
        finally:
            await client.close()

    @asynccontextmanager
    async def jetstream(self, **options: Any) -> AsyncIterator[JetStreamContext]:
        async with self.client(**options) as client:
            yield client.jetstream()

    async def make_stream(self, **changes: Any) -> None:
        """The stream of the how-to page, with ``changes``; in place of one that is there."""
        async with self.jetstream() as stream:
            await stream.add_stream(fitting(**changes))


def fitting(**changes: Any) -> StreamConfig:
    """As docs/how-to/hand-the-record-to-nats.md makes it."""
    config: dict[str, Any] = {
        "name": STREAM,
        "subjects": [f"{SUBJECT}.>"],
        "retention": RetentionPolicy.LIMITS,
        "storage": StorageType.FILE,
        "discard": DiscardPolicy.NEW,
        "duplicate_window": 120,
        "max_msgs": -1,
        "max_bytes": -1,
        "deny_delete": True,
        "deny_purge": True,
    }
    return StreamConfig(**(config | changes))


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path / "nats")
    server.start()
    yield server
    server.stop()
