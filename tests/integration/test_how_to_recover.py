"""The commands of the page on recovery, as they stand there: traffic, copies, loss, restoration.

Broker, collector and sidecar are real programs. What the restored database had forgotten, kind by
kind, and the commands for PostgreSQL: test_restored.py.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path
from typing import Any

import jwt

from tests.integration.recovery_support import (
    BROKER,
    COLLECTOR,
    COPIES,
    VERIFY,
    needs_sqlite3,
    section,
    shell,
)
from tests.support.canaries import CANARIES
from tests.support.fleet import Fleet, token_of
from tests.support.procs import Program
from valetkey.contracts import oauth
from valetkey.contracts.dpop import ProofKey

SECURITY = "security-team"

pytestmark = needs_sqlite3


class Recovery:
    """A fleet whose broker has administrators, and a shell in its directory."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
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
        self.admin = fleet.directory / "admin.token"
        fleet.people.token_file(self.admin, SECURITY, audience)

    async def run(self, command: str) -> str:
        """What a command of the page says."""
        environment = {
            "VALETKEY_BROKER_URL": self.fleet.broker_url,
            "VALETKEY_TOKEN_FILE": str(self.admin),
        }
        return await asyncio.to_thread(shell, command, self.fleet.directory, environment)

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


async def test_from_the_copy_to_the_end(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    recovery = Recovery(fleet)
    async with fleet.running():
        assert (await fleet.call())[0] == 200
        leaked = token_of(fleet.received[-1])
        assert await recovery.is_active(leaked)
        await fleet.delivered()
        before = len(fleet.events())
        for command in section(COPIES, "^sqlite3"):
            await recovery.run(command)
        for copy in (tmp_path / "backup").iterdir():
            CANARIES.allow(copy)

        # After the copy: a token is revoked, an incident opened, and much is recorded.
        await fleet.revoke(leaked)
        [again] = section(BROKER, "incidents open")
        await recovery.run(again)

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

        *put_back, declared, moved, _ = section(BROKER, r"^(?!pg_)")
        assert moved.endswith(" --complete")
        for command in put_back:
            await recovery.run(command)

        # A broker knows the copy as one; what it would not know: test_restored.py.
        fleet.broker.start()
        assert await fleet.broker.ended() == 2
        assert "restored.undeclared" in fleet.broker.stderr_file.read_text()

        said = await recovery.run(declared)
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
        await fleet.broker.stop()
        said = await recovery.run(moved)
        assert said.splitlines()[0] == "nothing was ended"
        fleet.broker.start()
        await fleet.broker.ready(f"{fleet.broker_url}/readyz")
        assert await recovery.is_active(newest)

        for command in section(COLLECTOR):
            await recovery.run(command)
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

        record, incidents, _ = [await recovery.run(command) for command in section(VERIFY)]
        assert "the record holds" in record
        assert "spiffe://acme/ns/a/sa/bot" not in incidents
        await recovery.run(again)
        assert "spiffe://acme/ns/a/sa/bot" in await recovery.run("valetkey incidents list --json")
