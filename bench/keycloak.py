"""Keycloak as another server that exchanges tokens (RFC 8693), built for production and pinned.

The distribution is of Maven Central, unpacked once below ``.keycloak/`` in the checkout. Its realm
has one client that may exchange its own tokens for those of one audience, signed with ES256 as
ours are. The client authenticates by a secret, without DPoP and authorization details: Keycloak
has less to do for each exchange than the broker beside it.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from bench.processes import NotRun, Process, Processes, free_port, wait_until_ready

VERSION: Final = "26.7.3"
_ARTIFACT: Final = f"org.keycloak:keycloak-quarkus-dist:{VERSION}:zip"
# Of its own name: what an earlier way of unpacking left half done below .keycloak/ is not trusted.
_PLACE: Final = Path(__file__).resolve().parents[1] / ".keycloak" / "whole"
_FETCH_TIMEOUT: Final = 300.0
_BUILD_TIMEOUT: Final = 300.0
_START_TIMEOUT: Final = 120.0
_CLIENT: Final = "requester"
_SECRET: Final = "not-a-secret-outside-of-this-benchmark"
_AUDIENCE: Final = "tickets"
_ES256: Final = {"access.token.signed.response.alg": "ES256"}
_REALM: Final[dict[str, Any]] = {
    "realm": "bench",
    "enabled": True,
    "accessTokenLifespan": 3600,
    "sslRequired": "none",
    "clients": [
        {
            "clientId": _CLIENT,
            "secret": _SECRET,
            "serviceAccountsEnabled": True,
            "standardFlowEnabled": False,
            "attributes": {"standard.token.exchange.enabled": "true", **_ES256},
            "protocolMappers": [
                {
                    "name": "audience",
                    "protocol": "openid-connect",
                    "protocolMapper": "oidc-audience-mapper",
                    "config": {
                        "included.client.audience": _AUDIENCE,
                        "access.token.claim": "true",
                    },
                }
            ],
        },
        {"clientId": _AUDIENCE, "secret": _SECRET, "attributes": _ES256},
    ],
}


def distribution(place: Path = _PLACE) -> Path:
    """The unpacked distribution below ``place``, fetched if it is not there. Raises `NotRun`.

    It is unpacked beside its place and put there at last: what is there is whole.
    """
    home = place / f"keycloak-{VERSION}"
    if home.is_dir():
        return home
    if shutil.which("mvn") is None or shutil.which("java") is None:
        raise NotRun("mvn or java is missing: apt-get install maven default-jdk-headless")
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not home.is_dir():  # nobody else fetched it meanwhile
            with tempfile.TemporaryDirectory(prefix="unpacked-", dir=place) as name:
                _fetch(Path(name)).rename(home)
    return home


def _fetch(directory: Path) -> Path:
    command = ["mvn", "-q", "-B", "dependency:copy", f"-Dartifact={_ARTIFACT}"]
    try:
        subprocess.run(
            [*command, f"-DoutputDirectory={directory}"],
            check=True, capture_output=True, timeout=_FETCH_TIMEOUT,
        )  # fmt: skip
        with zipfile.ZipFile(directory / f"keycloak-quarkus-dist-{VERSION}.zip") as archive:
            archive.extractall(directory)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise NotRun(f"{_ARTIFACT} can't be had from Maven Central") from error
    except (OSError, zipfile.BadZipFile) as error:
        raise NotRun(f"what came for {_ARTIFACT} can't be unpacked") from error
    unpacked = directory / f"keycloak-{VERSION}"
    (unpacked / "bin/kc.sh").chmod(0o755)
    return unpacked


class Keycloak:
    """A server of its own for one run, on one core."""

    def __init__(self, directory: Path, processes: Processes, *, core: int) -> None:
        home = directory / "keycloak"
        shutil.copytree(distribution(), home)
        imported = home / "data/import"
        imported.mkdir(parents=True)
        (imported / "bench.json").write_text(json.dumps(_REALM))
        self.port = free_port()
        self._command = home / "bin/kc.sh"
        self._environment = (
            {"JAVA_HOME": os.environ.get("JAVA_HOME", "")} if os.environ.get("JAVA_HOME") else {}
        )
        self._build(directory)
        self.process = self._start(processes, core)

    @property
    def path(self) -> str:
        return "/realms/bench/protocol/openid-connect/token"

    def form(self) -> bytes:
        """An exchange, which may be sent again and again, as a sidecar would."""
        token = self._token()
        return urlencode(
            {
                "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
                "client_id": _CLIENT,
                "client_secret": _SECRET,
                "subject_token": token,
                "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
                "audience": _AUDIENCE,
            }
        ).encode()

    def _build(self, directory: Path) -> None:
        try:
            subprocess.run(
                [self._command, "build", "--db=dev-file"],
                check=True, capture_output=True, timeout=_BUILD_TIMEOUT, cwd=directory,
            )  # fmt: skip
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise NotRun("Keycloak could not be built for production") from error

    def _start(self, processes: Processes, core: int) -> Process:
        process = processes.start(
            "keycloak",
            [
                self._command, "start", "--optimized", "--http-enabled=true",
                "--hostname-strict=false", "--http-host=127.0.0.1",
                f"--http-port={self.port}", "--import-realm",
            ],
            core=core,
            env=self._environment,
        )  # fmt: skip

        def listens() -> bool:
            return "Listening on" in process.log.read_text(errors="replace")

        wait_until_ready(process, listens, timeout=_START_TIMEOUT, interval=0.1)
        return process

    def _token(self) -> str:
        form = urlencode(
            {
                "grant_type": "client_credentials",
                "client_id": _CLIENT,
                "client_secret": _SECRET,
            }
        )
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            connection.request("POST", self.path, form, headers)
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        if "access_token" not in answer:
            raise NotRun(f"Keycloak gives no token: {answer.get('error')}")
        return str(answer["access_token"])
