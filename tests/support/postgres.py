"""A real PostgreSQL server for tests and benchmarks, with a database of its own for who asks.

Debian: ``apt-get install postgresql``. The server does not run as root, so its files belong to
the user ``postgres`` there, in a directory that this user can reach.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.ports import free_port

_DEADLINE = 30.0


def _programs() -> Path | None:
    """The directory with ``initdb`` and ``postgres``, the newest one."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return versions[-1].parent if versions else None


def _children(pid: int) -> list[int]:
    done = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True
    )
    return [int(line) for line in done.stdout.split()]


class Postgres:
    """A server on loopback; everybody on this machine may connect.

    ``durable`` is what a deployment has; tests save the time that fsync takes.
    """

    def __init__(self, programs: Path, directory: Path, *, durable: bool = False) -> None:
        # Databases of tests are in memory, where a log of a gigabyte would be, too.
        self._settings = [] if durable else ["-c", "fsync=off", "-c", "max_wal_size=96MB"]
        self._programs = programs
        self._directory = directory
        self._user = "postgres" if os.geteuid() == 0 else None
        self._made = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    def start(self) -> None:
        """Begin with an empty cluster."""
        if self._user is not None:
            shutil.chown(self._directory, self._user)
        data = str(self._directory / "data")
        self._run("initdb", "-D", data, "-U", "valetkey", "-A", "trust", "--no-sync")
        self._process = subprocess.Popen(
            [
                self._programs / "postgres", "-D", data, "-p", str(self.port),
                "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200",
                "-c", f"unix_socket_directories={self._directory}", *self._settings,
            ],
            user=self._user,
            cwd=self._directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + _DEADLINE
        while self._client("pg_isready").returncode:
            assert self._process.poll() is None, "PostgreSQL ended as it started"
            assert time.monotonic() < deadline, "PostgreSQL did not start"
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # does not wait for clients to leave
            self._process.wait(_DEADLINE)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """The server and all its sessions, in SIGSTOP: for the kernel all is well, nobody answers."""
        assert self._process is not None
        stopped = [self._process.pid]
        self._process.send_signal(signal.SIGSTOP)  # first: from then on it makes no sessions
        try:
            for session in _children(self._process.pid):
                with suppress(ProcessLookupError):  # it was just ending
                    os.kill(session, signal.SIGSTOP)
                    stopped.append(session)
            yield
        finally:
            for pid in stopped:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def database(self, template: str = "template0") -> str:
        """The URL of a new database: empty, or a copy of another."""
        self._made += 1
        name = f"test{self._made}"
        done = self._client("createdb", "-U", "valetkey", "-T", template, name)
        assert done.returncode == 0, done.stderr
        return f"postgresql+asyncpg://valetkey@127.0.0.1:{self.port}/{name}"

    def _client(self, program: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self._programs / program, "-h", "127.0.0.1", "-p", str(self.port), *arguments],
            capture_output=True, check=False, cwd=self._directory,
        )  # fmt: skip

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments],
            user=self._user, check=True, capture_output=True, cwd=self._directory,
        )  # fmt: skip


@contextmanager
def running(*, durable: bool = False) -> Iterator[Postgres | None]:
    """A running server; ``None`` where none is installed."""
    programs = _programs()
    if programs is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="valetkey-postgres-") as name:
        directory = Path(name)
        directory.chmod(0o711)
        server = Postgres(programs, directory, durable=durable)
        try:
            server.start()
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running server; skipped where none is installed."""
    with running() as server:
        if server is None:
            pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
        yield server
