"""A real SPIRE: server and agent, built from their Go module, started by the tests that want them.

``make spire`` builds both once, into ``.spire/VERSION``. Of the plugins only those stay that the tests use:
with all of them, the SDKs of three clouds and Kubernetes take most of a build that costs 13 minutes
of processor time; without, it is under four. What is left out is left out by deleting lines of the
module's own catalogues, nothing is patched.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.ports import free_port

VERSION = "v1.13.3"
_MODULE = "github.com/spiffe/spire"
_ROOT = Path(__file__).resolve().parents[2] / ".spire"
_PLACE = _ROOT / VERSION  # another version is built anew; put here at last, so that it is whole
_PLUGINS = {"disk", "memory", "jointoken", "unix", "uniqueid"}
_IMPORT = re.compile(
    rf'\t(?:(\w+) )?"{re.escape(_MODULE)}/pkg/(?:server|agent)/plugin/\w+/(\w+)"\n'
)
_BUILT_IN = re.compile(r"\t\t(\w+)\.BuiltIn\(\),\n")
_DEADLINE = 60.0


def missing() -> str:
    """Why there is no SPIRE to start, or empty."""
    built = all((_PLACE / "bin" / name).is_file() for name in ("spire-server", "spire-agent"))
    return "" if built else "no SPIRE: `make spire` builds it (Go, minutes at the first time)"


def build() -> None:
    """Fetch the module (its checksum is verified by Go) and build both programs, unless they are."""
    _ROOT.mkdir(exist_ok=True)
    with (_ROOT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if missing():  # nobody else built it meanwhile
            with tempfile.TemporaryDirectory(prefix="build-", dir=_ROOT) as name:
                _build(Path(name))
                shutil.rmtree(_PLACE, ignore_errors=True)
                (Path(name) / "built").rename(_PLACE)


def _build(directory: Path) -> None:
    fetched = subprocess.run(
        ["go", "mod", "download", "-json", f"{_MODULE}@{VERSION}"],
        check=True,
        stdout=subprocess.PIPE,
    )
    source = directory / "src"
    # The module's own files may not be written; the copy must be.
    shutil.copytree(json.loads(fetched.stdout)["Dir"], source, copy_function=shutil.copyfile)
    for folder in (source, *(path for path in source.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    for file in source.glob("pkg/*/catalog/*.go"):
        file.write_text(_without_plugins(file.read_text()))
    programs = ["./cmd/spire-server", "./cmd/spire-agent"]
    subprocess.run(
        [
            "go",
            "build",
            "-trimpath",
            "-ldflags",
            "-s -w",
            "-o",
            f"{directory / 'built/bin'}/",
            *programs,
        ],
        check=True,
        cwd=source,
    )


def _without_plugins(text: str) -> str:
    dropped: set[str] = set()
    kept = []
    for line in text.splitlines(keepends=True):
        imported, listed = _IMPORT.fullmatch(line), _BUILT_IN.fullmatch(line)
        if imported and imported[2] not in _PLUGINS:
            dropped.add(imported[1] or imported[2])
        elif not (listed and listed[1] in dropped):
            kept.append(line)
    return "".join(kept)


class Spire:
    """A trust domain with one agent on this machine, whose workloads are processes by their user."""

    def __init__(self, directory: Path, *, trust_domain: str = "spire.test.example") -> None:
        directory.mkdir(parents=True)
        self.name = f"spiffe://{trust_domain}"
        self._trust_domain = trust_domain
        self._directory = directory
        self._ports = free_port(), free_port()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.agent_socket = directory / "agent.sock"
        self._server_socket = directory / "server.sock"

    @property
    def socket(self) -> str:
        return f"unix://{self.agent_socket}"

    @property
    def bundle_url(self) -> str:
        """The ``https_web`` bundle endpoint."""
        return f"https://localhost:{self._ports[1]}/"

    def start(self, certificate: Path, key: Path) -> None:
        """Server, then an agent that joins by a token. The certificate is the bundle endpoint's."""
        self._write("server.conf", _server(self, certificate, key))
        self._run("server", "spire-server", "run", "-config", self._path("server.conf"))
        self._until(lambda: self._server_says("healthcheck") is not None, "server")
        self._path("bundle.pem").write_text(self._server_says("bundle", "show") or "")
        answer = self._server_says("token", "generate", "-spiffeID", f"{self.name}/node")
        token = re.fullmatch(r"Token: (\S+)\s*", answer or "")
        assert token is not None, answer
        self._write("agent.conf", _agent(self))
        self.start_agent(token[1])

    def start_agent(self, token: str = "") -> None:
        """With a token, attest; without, go on as the agent that it was."""
        join = ["-joinToken", token] if token else []
        self._run("agent", "spire-agent", "run", "-config", self._path("agent.conf"), *join)
        self._until(self.agent_socket.exists, "agent")

    def stop_agent(self) -> None:
        self._stop("agent")

    def register(self, path: str, *selectors: str) -> str:
        """Give processes with these selectors an identity; its SPIFFE ID."""
        identity = self.name + path
        chosen = [word for selector in selectors for word in ("-selector", selector)]
        answer = self._server_says(
            "entry", "create", "-parentID", f"{self.name}/node", "-spiffeID", identity, *chosen
        )
        assert answer is not None
        return identity

    def stop(self) -> None:
        for name in list(self._processes):
            self._stop(name)

    def _path(self, name: str) -> Path:
        return self._directory / name

    def _write(self, name: str, document: dict[str, Any]) -> None:
        # HCL, SPIRE's language of settings, reads JSON.
        self._path(name).write_text(json.dumps(document))

    def _run(self, name: str, program: str, *arguments: Any) -> None:
        with self._path(f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [_PLACE / "bin" / program, *arguments], stdout=log, stderr=log
            )

    def _stop(self, name: str) -> None:
        process = self._processes.pop(name)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _server_says(self, *command: str) -> str | None:
        """The output of a command to the server, or nothing if it failed."""
        done = subprocess.run(
            [_PLACE / "bin/spire-server", *command, "-socketPath", self._server_socket],
            check=False,
            capture_output=True,
            text=True,
        )
        return None if done.returncode else done.stdout

    def _until(self, holds: Callable[[], bool], name: str) -> None:
        deadline = time.monotonic() + _DEADLINE
        while not holds():
            running = self._processes[name].poll() is None
            if not running or time.monotonic() > deadline:
                log = self._path(f"{name}.log").read_text(errors="replace")
                raise AssertionError(f"SPIRE {name} did not start\n{log[-2000:]}")
            time.sleep(0.05)


def _server(spire: Spire, certificate: Path, key: Path) -> dict[str, Any]:
    own, bundle = spire._ports
    endpoint = {
        "address": "127.0.0.1",
        "port": bundle,
        "profile": [
            {
                "https_web": {
                    "serving_cert_file": {
                        "cert_file_path": str(certificate),
                        "key_file_path": str(key),
                        "file_sync_interval": "1h",
                    }
                }
            }
        ],
    }
    return {
        "server": {
            "bind_address": "127.0.0.1",
            "bind_port": str(own),
            "socket_path": str(spire._server_socket),
            "trust_domain": spire._trust_domain,
            "data_dir": str(spire._path("server")),
            "default_x509_svid_ttl": "2m",
            "default_jwt_svid_ttl": "30s",
            "federation": {"bundle_endpoint": endpoint},
        },
        "plugins": {
            "DataStore": {
                "sql": {
                    "plugin_data": {
                        "database_type": "sqlite3",
                        "connection_string": str(spire._path("server.sqlite3")),
                    }
                }
            },
            "KeyManager": {"memory": {"plugin_data": {}}},
            "NodeAttestor": {"join_token": {"plugin_data": {}}},
        },
    }


def _agent(spire: Spire) -> dict[str, Any]:
    return {
        "agent": {
            "data_dir": str(spire._path("agent")),
            "server_address": "127.0.0.1",
            "server_port": str(spire._ports[0]),
            "socket_path": str(spire.agent_socket),
            "trust_domain": spire._trust_domain,
            "trust_bundle_path": str(spire._path("bundle.pem")),
        },
        "plugins": {
            # On disk, so that an agent that is started again is the same one.
            "KeyManager": {"disk": {"plugin_data": {"directory": str(spire._path("agent"))}}},
            "NodeAttestor": {"join_token": {"plugin_data": {}}},
            "WorkloadAttestor": {"unix": {"plugin_data": {}}},
        },
    }


if __name__ == "__main__":
    if missing():
        build()
    sys.exit(missing() or 0)
