"""Discovery against a real server: the issuer's own metadata, keys at its own origin."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.support.idp import Idp
from valetkey.broker.trust.oidc import OidcIssuer
from valetkey.contracts import jose, keys
from valetkey.contracts.issuer import IssuerSettings
from valetkey.contracts.jose import TokenInvalid

BROKER = "https://broker.example"


class Provider:
    """An OpenID provider whose metadata say what a test wants."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = ""
        self.changes: dict[str, Any] = {}
        self.status = 200
        self.asked: list[str] = []

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/realms/a/.well-known/openid-configuration", self.metadata)
        app.router.add_get("/realms/a/certs", self.certs)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/realms/a"
        self.idp = Idp(self.root, issuer=self.url)
        return runner

    async def metadata(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        document = {"issuer": self.url, "jwks_uri": f"{self.url}/certs", **self.changes}
        document = {name: value for name, value in document.items() if value is not None}
        headers = {"Location": self.url + "/certs"} if self.status == 302 else None
        return web.json_response(document, status=self.status, headers=headers)

    async def certs(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        return web.json_response(self.idp.jwks())

    def issuer(self, **changes: Any) -> OidcIssuer:
        settings = {
            "issuer": self.url,
            "audience": BROKER,
            "use": "user",
            "discovery": True,
            **changes,
        }
        return OidcIssuer(IssuerSettings(**settings))

    async def verify(self, issuer: OidcIssuer, **claims: Any) -> str:
        token = jose.parse(self.idp.mint("alice", BROKER, **claims))
        return (await issuer.verify(token, now=time.time())).subject


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[Provider]:
    provider = Provider(tmp_path)
    runner = await provider.start()
    yield provider
    await runner.cleanup()


async def test_keys_are_found_once(provider: Provider) -> None:
    issuer = provider.issuer()
    for _ in range(3):
        assert await provider.verify(issuer) == "alice"
    assert provider.asked == ["/realms/a/.well-known/openid-configuration", "/realms/a/certs"]


async def test_a_slash_at_the_end_of_the_issuer(provider: Provider) -> None:
    issuer = provider.issuer(issuer=provider.url + "/")
    provider.changes = {"issuer": provider.url + "/"}
    assert await provider.verify(issuer, iss=provider.url + "/") == "alice"


async def test_a_rotated_key_is_found(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "REFETCH_COOLDOWN", 0.0)
    issuer = provider.issuer()
    await provider.verify(issuer)
    provider.idp.rotate("idp-2")
    assert await provider.verify(issuer) == "alice"


async def test_pinned_keys_need_no_metadata(provider: Provider) -> None:
    issuer = provider.issuer(discovery=False, jwks_url=provider.url + "/certs")
    assert await provider.verify(issuer) == "alice"
    assert provider.asked == ["/realms/a/certs"]


BAD: dict[str, dict[str, Any]] = {
    "another issuer": {"issuer": "https://evil.example"},
    "the issuer with a slash": {"issuer": "http://127.0.0.1/realms/a/"},
    "no issuer": {"issuer": None},
    "no keys": {"jwks_uri": None},
    "keys are no text": {"jwks_uri": ["x"]},
    "keys at another host": {"jwks_uri": "https://evil.example/certs"},
    "keys at another port": {"jwks_uri": "http://127.0.0.1:1/certs"},
    "keys of the metadata service": {"jwks_uri": "http://169.254.169.254/latest"},
    "keys in a file": {"jwks_uri": "file:///etc/passwd"},
    "keys with a user": {"jwks_uri": "http://me@127.0.0.1/certs"},
}


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD)
async def test_metadata_that_are_refused(provider: Provider, changes: dict[str, Any]) -> None:
    provider.changes = changes
    with pytest.raises(TokenInvalid, match="keys are not available"):
        await provider.verify(provider.issuer())
    assert provider.asked == ["/realms/a/.well-known/openid-configuration"], "nothing else asked"


@pytest.mark.parametrize("status", [302, 404, 500])
async def test_answers_that_are_no_metadata(provider: Provider, status: int) -> None:
    provider.status = status
    with pytest.raises(TokenInvalid, match="keys are not available"):
        await provider.verify(provider.issuer())
    assert len(provider.asked) == 1, "no redirect is followed"
