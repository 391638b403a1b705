"""Broker replicas over one PostgreSQL that a benchmark can kill, and what a load balancer does."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from aiohttp.abc import AbstractResolver

from tests.integration.broker_support import World


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Replicas:
    """Two brokers over one database; one of them can be killed. ``settings`` are of both."""

    def __init__(self, world: World, root: Path, database: str, **settings: Any) -> None:
        self.ports = [int(world.url.rpartition(":")[2]), free_port()]
        world.overrides["database"] = database
        world.write()
        self._processes: list[subprocess.Popen[bytes] | None] = [None, None]
        self._killed: dict[int, subprocess.Popen[bytes]] = {}
        self._configs: list[Path] = []
        self._root = root
        for number, port in enumerate(self.ports):
            document = {**world.document(), "bind": f"127.0.0.1:{port}", "log_level": "info"}
            path = root / f"broker-{number}.yaml"
            path.write_text(yaml.safe_dump({**document, **settings}))
            self._configs.append(path)

    def alive(self, number: int) -> bool:
        return self._processes[number] is not None

    def process(self, number: int) -> subprocess.Popen[bytes]:
        """One that is alive."""
        process = self._processes[number]
        assert process is not None
        return process

    def log(self, number: int) -> Path:
        return self._root / f"broker-{number}.log"

    async def start(self, number: int) -> None:
        if (killed := self._killed.pop(number, None)) is not None:
            await asyncio.to_thread(killed.wait, 10)
        command = ["-m", "valetkey.broker", "--config", str(self._configs[number])]
        self._processes[number] = await started(command, self.log(number))

    def kill(self, number: int) -> None:
        """Without waiting for the end: the sidecars in this process are to notice meanwhile."""
        process = self._killed[number] = self.process(number)
        self._processes[number] = None
        process.kill()

    def stop(self) -> None:
        for number in (0, 1):
            if self.alive(number):
                self.kill(number)
        for process in self._killed.values():
            process.wait(10)

    def port_for(self, preferred: int) -> int:
        """What a load balancer does: the sidecar's own replica, or the one that is there."""
        return self.ports[preferred if self.alive(preferred) else 1 - preferred]


class Balancer(AbstractResolver):
    """Leads connections to the broker's name to a replica that runs."""

    def __init__(self, replicas: Replicas, preferred: int) -> None:
        self._replicas, self._preferred = replicas, preferred

    async def resolve(self, host: str, *_where: Any, **_how: Any) -> list[Any]:
        return [
            {
                "hostname": host, "host": "127.0.0.1",
                "port": self._replicas.port_for(self._preferred),
                "family": socket.AF_INET, "proto": 0, "flags": 0,
            }
        ]  # fmt: skip

    async def close(self) -> None:
        """Nothing is held."""


async def started(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """One of our programs, once it takes requests. Raises `SystemExit`.

    A session of its own: where the kernel shares the processor out among sessions, each program is
    one, as each is a container of its own elsewhere.
    """
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, *command], stderr=stream, start_new_session=True
        )
    for _ in range(6000):
        if b'"listening"' in log.read_bytes():
            return process
        if process.poll() is not None:
            break
        await asyncio.sleep(0.01)
    process.kill()
    raise SystemExit(f"a program did not start:\n{log.read_text()[-2000:]}")
