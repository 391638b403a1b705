"""The demo's ticketing API is a resource server that can be relied on to refuse.

What the demo shows is worth as much as this API's refusals: each of them is tried here, with real
tokens of an authorization server made for the purpose.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.support.idp import Idp
from valetkey.cli.demo.ticket_api import ATTACHMENTS, TICKETS, make_app
from valetkey.contracts.dpop import ProofKey, token_hash

AT = {"typ": "at+jwt"}


class Site:
    """The API, and the authorization server that it trusts."""

    def __init__(self, server: Idp, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.record = io.StringIO()
        self.url = ""
        self._session = session

    def token(self, aud: str = TICKETS, scope: str = "tickets:read", **changes: Any) -> str:
        claims = {"scope": scope, "client_id": "c", "jti": "j", "headers": AT, **changes}
        return self.server.mint("bot", aud, claims.pop("ttl", 60), **claims)

    async def call(
        self, path: str, headers: dict[str, str] | list[tuple[str, str]], method: str = "GET"
    ) -> tuple[int, str, str]:
        """Status, ``error``, and the nonce given."""
        async with self._session.request(method, self.url + path, headers=headers) as response:
            body = await response.json()
            nonce = response.headers.get("DPoP-Nonce", "")
            return response.status, body.get("error", ""), nonce

    def seen(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.record.getvalue().splitlines()]


async def _serve(app: web.Application) -> tuple[web.AppRunner, str]:
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    keys = Idp(tmp_path)

    async def jwks(_request: web.Request) -> web.Response:
        return web.json_response(keys.jwks())

    broker = web.Application()
    broker.router.add_get("/jwks", jwks)
    broker_runner, keys.issuer = await _serve(broker)
    async with aiohttp.ClientSession() as session:
        here = Site(keys, session)
        # The API has to know its own URL before it has a port: proofs name it.
        probe, here.url = await _serve(web.Application())
        await probe.cleanup()
        runner = web.AppRunner(make_app(keys.issuer, here.url, here.record))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", int(here.url.rpartition(":")[2])).start()
        yield here
        await runner.cleanup()
    await broker_runner.cleanup()


async def test_a_good_token_opens_what_its_scope_says_and_no_more(site: Site) -> None:
    bearer = {"Authorization": f"Bearer {site.token()}"}
    assert await site.call("/api/tickets/7", bearer) == (200, "", "")
    refused = await site.call("/api/tickets/7", bearer, "DELETE")
    assert refused == (403, "insufficient_scope", "")
    assert [call["status"] for call in site.seen()] == [200, 403]
    assert site.seen()[0]["sub"] == "bot"


BAD: dict[str, Callable[[Site], str]] = {
    "none": lambda _site: "",
    "not a token": lambda _site: "Bearer x",
    "basic": lambda _site: "Basic dXNlcjpwYXNz",
    "scheme DPoP on a bearer endpoint": lambda site: f"DPoP {site.token()}",
    "typ JWT": lambda site: f"Bearer {site.token(headers={'typ': 'JWT'})}",
    "expired": lambda site: f"Bearer {site.token(ttl=-1)}",
    "another audience": lambda site: f"Bearer {site.token(ATTACHMENTS)}",
    "another issuer": lambda site: f"Bearer {site.token(iss='https://evil.test.example')}",
    "unknown key": lambda site: f"Bearer {site.token(headers={**AT, 'kid': 'stranger'})}",
    "no jti": lambda site: f"Bearer {site.token(jti=None)}",
    "no client_id": lambda site: f"Bearer {site.token(client_id=None)}",
    "signature of another token": lambda site: (
        f"Bearer {site.token().rpartition('.')[0]}.{site.token(jti='k').rpartition('.')[2]}"
    ),
    "bound to a key": lambda site: f"Bearer {site.token(cnf={'jkt': 'thumbprint'})}",
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD)
async def test_what_is_refused_as_a_bearer_token(site: Site, make: Callable[[Site], str]) -> None:
    assert await site.call("/api/tickets/7", {"Authorization": make(site)}) == (
        401,
        "invalid_token",
        "",
    )


PATH = "/api/attachments/7"


class Holder:
    """A client with a proof key and a token that is bound to it."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.key = ProofKey()
        self.token = site.token(ATTACHMENTS, "attachments:read", cnf={"jkt": self.key.thumbprint})
        self.nonce = ""

    async def learn_nonce(self) -> None:
        status, error, self.nonce = await self.site.call(PATH, self.headers())
        assert (status, error) == (401, "use_dpop_nonce")
        assert self.nonce

    def headers(self, **changes: Any) -> dict[str, str]:
        proof = {
            "method": "GET",
            "url": self.site.url + PATH,
            "jti": "p1",
            "now": int(time.time()),
            "ath": token_hash(self.token),
            "nonce": self.nonce,
            **changes,
        }
        return {"Authorization": f"DPoP {self.token}", "DPoP": self.key.proof(**proof)}


async def test_a_bound_token_needs_a_fresh_proof_of_its_key(site: Site) -> None:
    holder = Holder(site)
    await holder.learn_nonce()
    assert (await site.call(PATH, holder.headers()))[:2] == (200, "")
    assert site.seen()[-1]["proved_by"] == holder.key.thumbprint
    replayed = await site.call(PATH, holder.headers())
    assert replayed[:2] == (401, "invalid_dpop_proof")


BAD_PROOFS: dict[str, tuple[dict[str, Any], str]] = {
    "another method": ({"method": "POST"}, "invalid_dpop_proof"),
    "another URL": ({"url": "http://127.0.0.1:1/api/attachments/7"}, "invalid_dpop_proof"),
    "too old": ({"now": 1_600_000_000}, "invalid_dpop_proof"),
    "for another token": ({"ath": token_hash("other")}, "invalid_dpop_proof"),
    "another server's nonce": ({"nonce": "n0"}, "use_dpop_nonce"),
}


@pytest.mark.parametrize(("changes", "error"), BAD_PROOFS.values(), ids=BAD_PROOFS)
async def test_proofs_that_are_refused(site: Site, changes: dict[str, Any], error: str) -> None:
    holder = Holder(site)
    await holder.learn_nonce()
    assert (await site.call(PATH, holder.headers(**changes)))[:2] == (401, error)


async def test_proofs_are_one_and_of_the_right_key(site: Site) -> None:
    holder, thief = Holder(site), Holder(site)
    await holder.learn_nonce()
    thief.token, thief.nonce = holder.token, holder.nonce
    assert (await site.call(PATH, thief.headers()))[:2] == (401, "invalid_token")
    authorization = {"Authorization": f"DPoP {holder.token}"}
    assert (await site.call(PATH, authorization))[:2] == (401, "invalid_dpop_proof")
    twice = [*holder.headers().items(), ("DPoP", "x.y.z")]
    assert (await site.call(PATH, twice))[:2] == (401, "invalid_dpop_proof")
    bearer = {**holder.headers(), "Authorization": f"Bearer {holder.token}"}
    assert (await site.call(PATH, bearer))[:2] == (401, "invalid_token")


async def test_an_unbound_token_does_not_pass_with_any_proof(site: Site) -> None:
    holder = Holder(site)
    await holder.learn_nonce()
    holder.token = site.token(ATTACHMENTS, "attachments:read")
    assert (await site.call(PATH, holder.headers()))[:2] == (401, "invalid_token")


async def test_the_record_keeps_digests_and_never_a_value(site: Site) -> None:
    token = site.token()
    await site.call("/api/tickets/7", {"Authorization": f"Bearer {token}"})
    assert token not in site.record.getvalue()
    assert token.rpartition(".")[2] not in site.record.getvalue()
