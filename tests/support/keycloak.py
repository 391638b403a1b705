"""A real Keycloak for the tests, from Maven Central: a realm with one user, started in development.

The distribution is the one of the benchmark (`bench.keycloak`), fetched by Maven once and copied for
each start, so that nothing of one is there for the next. It takes about 25 s of processor time.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from bench.keycloak import distribution
from bench.processes import NotRun
from tests.support.canaries import CANARIES
from tests.support.ports import free_port

USER = "alice"
CLIENT = "desk"
_REALM = "staff"
_DEADLINE = 240.0


def missing() -> str:
    """Why there is no Keycloak to start, or empty. May fetch it."""
    try:
        distribution()
    except NotRun as error:
        return str(error)
    return ""


class Keycloak:
    """One server with a realm whose users' tokens are for ``audience`` alone."""

    def __init__(self, directory: Path, *, audience: str) -> None:
        self._directory = directory
        self._home = directory / "keycloak"
        self._audience = audience
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._password = secrets.token_urlsafe(12)
        CANARIES.add(self._password, name="password at Keycloak", allow=[self._home])
        self.issuer = f"http://127.0.0.1:{self._port}/realms/{_REALM}"

    def start(self) -> None:
        shutil.copytree(distribution(), self._home)
        imported = self._home / "data/import"
        imported.mkdir(parents=True)
        (imported / "staff.json").write_text(json.dumps(self._realm()))
        command = [
            self._home / "bin/kc.sh", "start-dev", "--import-realm", "--db=dev-mem",
            "--cache=local", "--http-host=127.0.0.1", f"--http-port={self._port}",
        ]  # fmt: skip
        # A short life: what the second compiler would win, it costs here.
        environment = {"JAVA_OPTS_APPEND": "-XX:TieredStopAtLevel=1"}
        with (self._directory / "keycloak.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**_environment(), **environment}
            )
        deadline = time.monotonic() + _DEADLINE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError("Keycloak did not start\n" + self.log()[-2000:])
            time.sleep(0.2)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._home, ignore_errors=True)

    def log(self) -> str:
        return (self._directory / "keycloak.log").read_text(errors="replace")

    def form(self) -> dict[str, str]:
        """The user signs in (RFC 6749 §4.3: the one flow that needs no browser)."""
        return {
            "grant_type": "password",
            "client_id": CLIENT,
            "username": USER,
            "password": self._password,
        }

    def _answers(self) -> bool:
        url = self.issuer + "/.well-known/openid-configuration"
        try:
            with urllib.request.urlopen(url, timeout=2) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _realm(self) -> dict[str, Any]:
        audience = {
            "name": "broker",
            "protocol": "openid-connect",
            "protocolMapper": "oidc-audience-mapper",
            "config": {
                "included.custom.audience": self._audience,
                "access.token.claim": "true",
            },
        }
        return {
            "realm": _REALM,
            "enabled": True,
            "sslRequired": "none",
            "accessTokenLifespan": 300,
            "roles": {"realm": [{"name": "support"}]},
            "clients": [
                {
                    "clientId": CLIENT,
                    "publicClient": True,
                    "standardFlowEnabled": False,
                    "directAccessGrantsEnabled": True,
                    "fullScopeAllowed": False,
                    "attributes": {"access.token.signed.response.alg": "ES256"},
                    # Without the scope "roles", whose tokens are for the account service as well.
                    "defaultClientScopes": ["basic"],
                    "optionalClientScopes": [],
                    "protocolMappers": [audience],
                }
            ],
            "users": [
                {
                    "username": USER,
                    "enabled": True,
                    "email": "alice@staff.test.example",
                    "emailVerified": True,
                    "firstName": "Alice",
                    "lastName": "Tester",
                    "credentials": [{"type": "password", "value": self._password}],
                    "realmRoles": ["support"],
                }
            ],
        }


def _environment() -> dict[str, str]:
    import os

    return {name: os.environ[name] for name in ("PATH", "JAVA_HOME", "HOME") if name in os.environ}
