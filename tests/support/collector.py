"""A collector as a real process on loopback, and an identity provider that signs real tokens."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.chain import WORKLOAD
from valetkey.contracts.jose import b64url

AUDIENCE = "https://collector.test"
WORKLOADS = "https://workloads.test"
PEOPLE = "https://people.test"
READER = "security-team"


class Issuer:
    """An issuer with one P-256 key."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._key = ec.generate_private_key(ec.SECP256R1())

    def jwks(self) -> dict[str, Any]:
        numbers = self._key.public_key().public_numbers()
        key = {
            "kty": "EC",
            "crv": "P-256",
            "x": b64url(numbers.x.to_bytes(32)),
            "y": b64url(numbers.y.to_bytes(32)),
            "kid": "k1",
            "alg": "ES256",
            "use": "sig",
        }
        return {"keys": [key]}

    def token(self, subject: str, *, audience: str = AUDIENCE, lifetime: float = 300) -> str:
        now = time.time()
        claims = {
            "iss": self.name,
            "sub": subject,
            "aud": audience,
            "iat": now,
            "exp": now + lifetime,
        }
        return jwt.encode(claims, self._key, algorithm="ES256", headers={"kid": "k1"})


@dataclass
class Collector:
    """Settings, keys and database in one directory; the process comes and goes."""

    directory: Path
    workloads: Issuer = field(default_factory=lambda: Issuer(WORKLOADS))
    people: Issuer = field(default_factory=lambda: Issuer(PEOPLE))
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def database(self) -> Path:
        return self.directory / "collector.db"

    @property
    def config(self) -> Path:
        return self.directory / "collector.yaml"

    def sidecar(self, subject: str = WORKLOAD) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self.workloads.token(subject)}",
            "Content-Type": "application/cloudevents-batch+json",
        }

    def reader(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.people.token(READER)}"}

    def settings(self, **changes: Any) -> dict[str, Any]:
        issuers = []
        for issuer, use in ((self.workloads, "workload"), (self.people, "user")):
            file = self.directory / f"{use}-jwks.json"
            file.write_text(json.dumps(issuer.jwks()))
            issuers.append({
                "issuer": issuer.name, "audience": AUDIENCE, "use": use, "jwks_file": str(file),
            })  # fmt: skip
        return {
            "bind": "127.0.0.1:0",
            "database": f"sqlite+aiosqlite:///{self.database}",
            "issuers": issuers,
            "readers": [{"issuer": PEOPLE, "subject": READER}],
        } | changes

    def start(self, *command: str, **changes: Any) -> str:
        """Start the process (``command`` replaces ``python -m valetkey.collector``); the base URL."""
        self.config.write_text(json.dumps(self.settings(**changes)))
        program = command or (sys.executable, "-m", "valetkey.collector")
        environ = {k: v for k, v in os.environ.items() if not k.startswith("VALETKEY_")}
        self.process = subprocess.Popen(
            [*program, "--config", str(self.config)], stderr=subprocess.PIPE, env=environ
        )
        self.port = _listening(self.process)
        return self.url

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(number)
        assert process.stderr is not None
        with process.stderr:
            process.stderr.read()
        return process.wait(20)


def _listening(process: subprocess.Popen[bytes], within: float = 20) -> int:
    """The port from the line that says so."""
    assert process.stderr is not None
    deadline = time.monotonic() + within
    said = []
    while time.monotonic() < deadline:
        if not select.select([process.stderr], [], [], 0.2)[0]:
            continue
        line = process.stderr.readline()
        if not line:
            break
        said.append(line.decode())
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if entry.get("event") == "listening":
                return int(entry["port"])
    process.kill()
    process.wait()
    raise AssertionError(f"the collector did not come up: {said}")


@contextlib.contextmanager
def running(directory: Path, **changes: Any) -> Iterator[Collector]:
    """A collector that is stopped at the end, whatever happened."""
    collector = Collector(directory)
    collector.start(**changes)
    try:
        yield collector
    finally:
        if collector.process is not None:
            collector.stop()
