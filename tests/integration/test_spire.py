"""A real SPIRE (tests/support/spire.py): agent → sidecar → broker → target, and tokens by mTLS."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
import trustme

from tests.support import spire as support
from tests.support.canaries import CANARIES
from tests.support.fleet import TICKETS, Fleet
from tests.support.ports import free_port
from tests.support.spire import Spire
from valetkey.contracts import oauth
from valetkey.contracts.binding import thumbprint
from valetkey.proxy.identity.workload_api import WorkloadApi, WorkloadApiFailed, X509Svid

VAULT = "https://vault.test.example"
PATH = "/ns/agents/sa/bot"


class Domain:
    """A SPIRE, and a fleet that trusts it by its bundle endpoint."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.spire = Spire(directory / "spire")
        self.fleet = Fleet(directory)
        self.authority = trustme.CA()
        self.certificate, self.key = directory / "server.pem", directory / "server.key"
        self.ca = directory / "ca.pem"
        server = self.authority.issue_cert("localhost")
        server.private_key_pem.write_to_path(self.key)
        for chain in server.cert_chain_pems:
            chain.write_to_path(self.certificate, append=True)
        self.authority.cert_pem.write_to_path(self.ca)
        fleet, port = self.fleet, free_port()
        fleet.broker_url = f"https://localhost:{fleet.broker_port}"
        self.mtls = f"https://localhost:{port}"
        spiffe = {"spiffe": {"socket": self.spire.socket}}
        collector = f"http://127.0.0.1:{fleet.collector_port}"
        trust = {"jwks_url": self.spire.bundle_url, "jwks_ca_file": str(self.ca)}
        domain = {"issuer": self.spire.name, "kind": "spiffe", "use": "workload"}
        fleet.broker_changes = {
            "issuer": fleet.broker_url,
            "tls": {"cert_file": str(self.certificate), "key_file": str(self.key)},
            "mtls": {"bind": f"127.0.0.1:{port}", "url": self.mtls},
            "issuers": [
                {**domain, **trust, "audience": fleet.broker_url},
                fleet.people.trust(fleet.broker_url, "user"),
            ],
            "targets": {
                "tickets": {"audience": TICKETS, "credential": "bearer"},
                "vault": {"audience": VAULT, "credential": "mtls"},
            },
        }
        fleet.collector_changes = {"issuers": [{**domain, **trust, "audience": collector}]}
        fleet.sidecar_changes = {
            "workload": {"identity": spiffe},
            # A token of its own, for the collector alone.
            "collector": {"url": collector, "identity": spiffe},
            "broker": {
                "url": fleet.broker_url,
                "mtls_url": self.mtls,
                "ca_file": str(self.ca),
                "timeout": "5s",
            },
        }

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Fleet]:
        fleet = self.fleet
        await asyncio.to_thread(self.spire.start, self.certificate, self.key)
        try:
            self.workload = await asyncio.to_thread(self.spire.register, PATH, "unix:uid:0")
            async with fleet.running(broker=False, sidecar=False):
                self._grant()
                fleet.broker.start()
                await fleet.broker.listening()
                fleet.sidecar.start()
                # The agent learns of new entries every five seconds.
                await fleet.sidecar.ready(f"{fleet.admin}/readyz", timeout=60)
                yield fleet
        finally:
            await asyncio.to_thread(self.spire.stop)

    def _grant(self) -> None:
        grant = {"workload": self.spire.name + "/ns/*/sa/bot", "issuer": self.spire.name}
        grants = [
            {**grant, "id": "bot", "target": "tickets", "scopes": ["t:read"]},
            {**grant, "id": "vault", "target": "vault", "scopes": ["v:read"]},
        ]
        (self.directory / "grants.yaml").write_text(json.dumps({"grants": grants}))

    def context(self, svid: X509Svid) -> ssl.SSLContext:
        file = self.directory / "client.pem"
        file.touch(mode=0o600)
        file.write_bytes(svid.chain + svid.key)
        context = ssl.create_default_context(cafile=self.ca)
        context.load_cert_chain(file)
        file.unlink()
        return context


@pytest.mark.timeout(400)
async def test_svids_of_a_real_spire(tmp_path: Path) -> None:
    if support.missing():
        pytest.skip(support.missing())
    domain = Domain(tmp_path)
    async with domain.running() as fleet:
        await _through_the_sidecar(domain, fleet)
        await _bound_to_the_certificate(domain, fleet)
        await _while_the_agent_is_away(domain, fleet)


async def _through_the_sidecar(domain: Domain, fleet: Fleet) -> None:
    status, _ = await fleet.call("/api/1")
    assert status == 200
    header = fleet.received[-1].headers["Authorization"]
    claims = jwt.decode(header.removeprefix("Bearer "), options={"verify_signature": False})
    assert (claims["sub"], claims["client_iss"]) == (domain.workload, domain.spire.name)
    assert claims["aud"] == TICKETS
    await fleet.delivered()
    assert {event["source"] for event in fleet.events()} == {"urn:valetkey:sidecar:agent-0"}
    (issued,) = [line for line in fleet.broker.log() if line.get("event") == "exchange_issued"]
    assert issued["workload"] == domain.workload


async def _bound_to_the_certificate(domain: Domain, fleet: Fleet) -> None:
    """What a client without a sidecar does with its SVIDs: by certificate, and by assertion."""
    api = WorkloadApi(domain.spire.socket, None)
    svid = await asyncio.to_thread(api.x509_svid)
    token = (await asyncio.to_thread(api.jwt_svid, fleet.broker_url)).token
    CANARIES.add(token, name="JWT-SVID of SPIRE")
    leaf = ssl.PEM_cert_to_DER_cert(svid.chain.decode())
    form = {
        "grant_type": oauth.GRANT_TOKEN_EXCHANGE,
        "subject_token": token,
        "subject_token_type": oauth.TOKEN_TYPE_JWT,
        "audience": VAULT,
        "scope": "v:read",
    }
    assertion = {
        "client_assertion_type": oauth.ASSERTION_JWT_SPIFFE,
        "client_assertion": token,
    }

    async def ask(more: dict[str, str]) -> tuple[int, dict[str, Any]]:
        async with (
            aiohttp.ClientSession() as client,
            client.post(
                domain.mtls + "/token", data=form | more, ssl=domain.context(svid)
            ) as response,
        ):
            return response.status, await response.json()

    for more in ({"client_id": domain.workload}, assertion):
        status, body = await ask(more)
        assert status == 200, body
        claims = jwt.decode(body["access_token"], options={"verify_signature": False})
        assert claims["cnf"] == {"x5t#S256": thumbprint(leaf)}
    for more in (
        {"client_id": domain.spire.name + "/ns/agents/sa/other"},
        {**assertion, "client_assertion_type": oauth.ASSERTION_JWT_BEARER},
    ):
        status, body = await ask(more)
        assert (status, body["error"]) == (401, "invalid_client")


async def _while_the_agent_is_away(domain: Domain, fleet: Fleet) -> None:
    """The last SVIDs go on; the agent that comes back is asked again."""
    await asyncio.to_thread(domain.spire.stop_agent)
    with pytest.raises(WorkloadApiFailed):
        await asyncio.to_thread(WorkloadApi(domain.spire.socket, None).x509_svid)
    status, _ = await fleet.call("/once/7")  # an exchange of its own
    assert status == 200
    await asyncio.to_thread(domain.spire.start_agent)
    seen = len([1 for line in fleet.sidecar.log() if line.get("event") == "identity_read"])

    def read_again() -> bool:
        return (
            len([1 for line in fleet.sidecar.log() if line.get("event") == "identity_read"]) > seen
        )

    await fleet.sidecar.until(read_again, "an SVID of the agent that came back", timeout=60)
    status, _ = await fleet.call("/once/8")
    assert status == 200
