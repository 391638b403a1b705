"""The commands of the page on recovery, as they stand there: traffic, copies, loss, restoration.

Broker, collector and sidecar are real programs. What the restored database had forgotten, kind by
kind: test_restored.py.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.support.canaries import CANARIES
from tests.support.fleet import Fleet, token_of
from tests.support.postgres import Postgres, libpq
from tests.support.procs import Program
from valetkey.contracts import oauth
from valetkey.contracts.dpop import ProofKey

PAGE = Path(__file__).parents[2] / "docs/how-to/recover.md"
# What the page calls the database of brokers that have PostgreSQL.
NAMED = "postgresql://broker@db.example/valetkey"
SECURITY = "security-team"

pytestmark = pytest.mark.skipif(
    shutil.which("sqlite3") is None, reason="no sqlite3 (Debian: apt-get install sqlite3)"
)


def section(title: str) -> list[str]:
    """The commands under a heading of the page, in its order."""
    text = PAGE.read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    return re.findall(r"^ {4,}((?:valetkey|sqlite3|pg_\w+|rm|cp) .*)$", text, re.MULTILINE)


class Recovery:
    """A fleet whose broker has one of the databases, and a shell in its directory."""

    def __init__(self, fleet: Fleet, server: Postgres | None) -> None:
        self.fleet = fleet
        self.server = server
        (fleet.directory / "backup").mkdir()
        fleet.sidecar_changes = {
            "spool": {"dir": str(fleet.spool), "segment_size": "64KiB", "max_size": "64MiB"}
        }
        audience = fleet.broker_url
        fleet.broker_changes = {
            "admin": {
                "issuers": [fleet.people.trust(audience, "admin")],
                "roles": [{"role": "admin", "issuer": fleet.people.issuer, "subjects": [SECURITY]}],
            },
            "issuers": [
                fleet.workloads.trust(audience, reusable=True),
                # As the page names it; nobody has a token of it.
                {**fleet.people.trust(audience), "issuer": "https://idp.example"},
            ],
        }
        self.url = server.database() if server is not None else ""
        if server is not None:
            fleet.broker_changes["database"] = self.url
        self.admin = fleet.directory / "admin.token"
        fleet.people.token_file(self.admin, SECURITY, audience)

    def ours(self, command: str) -> bool:
        """Whether it is for this database; the collector's is SQLite in any case."""
        for_postgres = command.startswith("pg_")
        for_sqlite = re.search(r"\bbroker\.db\b", command) is not None
        return not (for_postgres if self.server is None else for_sqlite)

    def shell(self, command: str) -> str:
        """What a command of the page says; it must succeed."""
        command = command.replace(NAMED, libpq(self.url))
        words = ["env", f"PATH={Path(sys.executable).parent}:/usr/bin:/bin"]
        words += [
            f"VALETKEY_BROKER_URL={self.fleet.broker_url}",
            f"VALETKEY_TOKEN_FILE={self.admin}",
        ]
        if self.server is not None and command.startswith("pg_"):
            return self.server.run("bash", "-c", f"cd {self.fleet.directory} && {command}")
        done = subprocess.run(
            [*words, "bash", "-euc", command],
            cwd=self.fleet.directory, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    async def do(self, title: str) -> dict[str, str]:
        """All commands of a section that are for this database, and what each said."""
        return {
            command: await asyncio.to_thread(self.shell, command)
            for command in section(title)
            if self.ours(command)
        }

    async def is_active(self, token: str) -> bool:
        """As the client that it was issued to asks."""
        key, nonce, url = ProofKey(), "", f"{self.fleet.broker_url}/introspect"
        form = {
            "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
            "client_assertion": self.fleet.token_file.read_text(),
            "token": token,
        }
        for _ in range(2):  # RFC 9449 §8: the first proof learns the nonce
            now, jti = int(time.time()), secrets.token_urlsafe(8)
            proof = key.proof(method="POST", url=url, jti=jti, now=now, nonce=nonce)
            headers = {"DPoP": proof}
            async with self.fleet.client.post(url, data=form, headers=headers) as response:
                nonce, status = response.headers["DPoP-Nonce"], response.status
                document: dict[str, Any] = await response.json()
        assert status == 200, document
        return bool(document["active"])


async def lose(program: Program, *files: Path) -> None:
    program.kill()
    for file in files:
        file.unlink(missing_ok=True)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_from_the_copy_to_the_end(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue("postgres") if kind == "postgres" else None
    fleet = Fleet(tmp_path)
    recovery = Recovery(fleet, server)
    async with fleet.running():
        assert (await fleet.call())[0] == 200
        leaked = token_of(fleet.received[-1])
        assert await recovery.is_active(leaked)
        await fleet.delivered()
        before = len(fleet.events())
        made = await recovery.do("Make copies")
        assert len(made) == 2
        for copy in (tmp_path / "backup").iterdir():
            CANARIES.allow(copy)

        # After the copy: a token is revoked, an incident opened, and much is recorded.
        await fleet.revoke(leaked)
        again = [line for line in section("Restore the broker") if "incidents open" in line]
        assert len(again) == 1
        await asyncio.to_thread(recovery.shell, again[0])

        async def another() -> bool:
            assert (await fleet.call())[0] == 200
            return token_of(fleet.received[-1]) != leaked

        await fleet.until(another, "the revocation has reached the sidecar")
        assert not await recovery.is_active(leaked)
        for _ in range(120):
            assert (await fleet.call())[0] == 200
        held = token_of(fleet.received[-1])
        await fleet.delivered()
        known = len(fleet.events())

        await lose(fleet.broker, tmp_path / "broker.db")
        await lose(fleet.collector, fleet.database)
        # What the sidecar holds goes on, until it expires.
        assert (await fleet.call())[0] == 200

        if server is not None:
            recovery.url = server.database()  # an empty one, in the place of the one that is gone
            fleet.broker_changes["database"] = recovery.url
        fleet._write_broker()
        commands = [line for line in section("Restore the broker") if recovery.ours(line)]
        *put_back, declared, _ = commands
        for command in put_back:
            await asyncio.to_thread(recovery.shell, command)

        # A broker on the copy alone takes what was revoked, as the page says.
        fleet.broker.start()
        await fleet.broker.ready(f"{fleet.broker_url}/readyz")
        assert await recovery.is_active(leaked)
        fleet.broker.kill()

        said = await asyncio.to_thread(recovery.shell, declared)
        assert said.splitlines()[0] == "signing keys: 1 ended"
        assert said.splitlines()[-1] == "ok: brokers may be started"
        fleet.broker.start()
        await fleet.broker.ready(f"{fleet.broker_url}/readyz")
        assert not await recovery.is_active(leaked)
        assert not await recovery.is_active(held)

        async def fresh() -> bool:
            status, body = await fleet.call()
            assert status == 200, body
            return token_of(fleet.received[-1]) != held

        await fleet.until(fresh, "the sidecar has dropped what it held")
        await fleet.followed()
        newest = token_of(fleet.received[-1])
        kids = [jwt.get_unverified_header(token)["kid"] for token in (held, newest)]
        assert len(set(kids)) == 2
        assert await recovery.is_active(newest)

        for command in section("Restore the collector"):
            await asyncio.to_thread(recovery.shell, command)
        fleet.collector.start()
        await fleet.collector.ready(f"http://127.0.0.1:{fleet.collector_port}/readyz")
        assert len(fleet.events()) == before

        async def resumed() -> bool:
            assert (await fleet.call())[0] == 200
            return any(event["type"] == "valetkey.record.gap.v1" for event in fleet.events())

        await fleet.until(resumed, "the sidecar has stated what the collector lost")
        await fleet.delivered()
        [gap] = fleet.events("valetkey.record.gap.v1")
        stated = gap["data"]["unmapped"]
        assert stated["reason"] == "the collector lost it"
        assert stated["first"] == before + 1
        assert stated["last"] < known, "what was still in the spool came again"

        verified = await recovery.do("Verify")
        assert list(verified) == section("Verify")
        assert "lost" in verified["valetkey audit verify --db collector.db"]
        assert "spiffe://acme/ns/a/sa/bot" not in verified["valetkey incidents list"]
        await asyncio.to_thread(recovery.shell, again[0])
        listed = await asyncio.to_thread(recovery.shell, "valetkey incidents list --json")
        assert "spiffe://acme/ns/a/sa/bot" in json.dumps(listed)
