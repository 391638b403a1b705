"""A client that knows nothing of this project: oauth4webapi on Node, with DPoP (RFC 9449).

It starts with what is installed by ``npm ci`` from ``requirements/node/package-lock.json`` (``make
.venv-clients/.done``) and ``node tests/integration/clients/oauth_client.mjs``. Discovery, client
assertions, token exchange, the nonces of the broker and of a resource server, introspection and
revocation all go through the library; nothing is adapted. The broker is a real process on the real
clock; the resource server verifies tokens and proofs here.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web

from tests.integration.broker_support import PAYMENTS, SELF_SIGNED, TICKETS, World
from tests.support.canaries import CANARIES
from tests.support.clients import NODE_MODULES
from tests.support.ports import free_url
from tests.support.procs import Program
from valetkey.contracts import dpop

CLIENT = Path(__file__).parent / "clients" / "oauth_client.mjs"
REFUSED = (
    ({"audience": TICKETS, "scope": "tickets:delete"}, "invalid_scope"),
    ({"audience": "https://nowhere.example", "scope": "tickets:read"}, "invalid_target"),
    ({"audience": PAYMENTS, "scope": "payments:read"}, "invalid_dpop_proof"),
    ({"audience": TICKETS, "scope": "tickets:read", "actor_token_type": "x"}, "invalid_request"),
)


class PaymentsApi:
    """A resource server: RFC 9068 tokens, bound to a key, with a nonce of its own (§9)."""

    NONCE = "nonce-of-the-payments-api"

    def __init__(self, issuer: str) -> None:
        self.issuer = issuer
        self.url = ""
        self.challenged = 0

    async def handle(self, request: web.Request) -> web.Response:
        scheme, _, token = request.headers["Authorization"].partition(" ")
        (proof,) = request.headers.getall("DPoP")
        if jwt.decode(proof, options={"verify_signature": False}).get("nonce") != self.NONCE:
            self.challenged += 1
            challenge = 'DPoP error="use_dpop_nonce"'
            headers = {"WWW-Authenticate": challenge, "DPoP-Nonce": self.NONCE}
            return web.json_response({}, status=401, headers=headers)
        verified = dpop.verify_proof(
            proof, method="GET", url=self.url, now=time.time(), access_token=token
        )
        async with aiohttp.ClientSession() as session, session.get(f"{self.issuer}/jwks") as keys:
            jwks = jwt.PyJWKSet.from_dict(await keys.json(content_type=None))
        header = jwt.get_unverified_header(token)
        claims = jwt.decode(token, jwks[header["kid"]].key, ["ES256"], audience=PAYMENTS)
        bound = claims["cnf"]["jkt"] == verified.thumbprint
        good = scheme == "DPoP" and header["typ"] == "at+jwt" and bound
        return web.json_response({"good": good, "sub": claims["sub"]})


@asynccontextmanager
async def payments_api(issuer: str) -> AsyncIterator[PaymentsApi]:
    api = PaymentsApi(issuer)
    app = web.Application()
    app.router.add_get("/payments", api.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    api.url = f"http://127.0.0.1:{runner.addresses[0][1]}/payments"
    try:
        yield api
    finally:
        await runner.cleanup()


async def run_client(given: dict[str, Any]) -> dict[str, Any]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed (Debian: apt-get install nodejs npm)")
    if not (NODE_MODULES / "oauth4webapi").exists():
        pytest.skip("oauth4webapi is not installed (make .venv-clients/.done)")
    process = await asyncio.create_subprocess_exec(
        node, str(CLIENT),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        out, err = await process.communicate(json.dumps(given).encode())
    assert process.returncode == 0, err.decode()
    return dict(json.loads(out))


async def test_a_client_of_the_web_platform_gets_and_uses_tokens(tmp_path: Path) -> None:
    world = World(tmp_path / "world", free_url(), overrides={"log_level": "info"})
    world.overrides["bind"] = world.url.removeprefix("http://")
    key = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(world.own.key))
    async with (
        Program.of("broker", world.write(), tmp_path / "run"),
        payments_api(world.url) as api,
    ):
        got = await run_client(
            {
                "node_modules": str(NODE_MODULES),
                "issuer": world.url,
                "client_id": SELF_SIGNED,
                "kid": world.own.kid,
                "key": {name: key[name] for name in ("kty", "crv", "x", "y", "d")},
                "bearer": {"audience": TICKETS, "scope": "tickets:read"},
                "bound": {"audience": PAYMENTS, "scope": "payments:read"},
                "resource": api.url,
                "refused": [parameters for parameters, _ in REFUSED],
            }
        )
    for name in ("bearer", "bound"):
        CANARIES.add(got[name]["access_token"], name="access token")
    assert (got["bearer"]["token_type"], got["bearer"]["scope"]) == ("bearer", "tickets:read")
    assert got["bound"]["token_type"] == "dpop"
    claims = jwt.decode(got["bound"]["access_token"], options={"verify_signature": False})
    assert claims["cnf"] == {"jkt": got["thumbprint"]}
    # One nonce from the broker and one from the resource server, each asked for once.
    assert (got["nonces"], api.challenged) == (2, 1)
    assert got["resource"] == {"status": 200, "body": {"good": True, "sub": SELF_SIGNED}}
    assert got["refused"] == [error for _, error in REFUSED]
    assert got["before"]["active"] is True
    assert got["after"] == {"active": False}
