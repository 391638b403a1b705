"""Trusted issuers, with real JWKS servers: pinned, refetched once, never opened by a failure."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.support.idp import Idp
from valetkey.contracts import jose
from valetkey.contracts import keys as module
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.issuer import IssuerSettings, ReviewSettings, TrustedIssuers
from valetkey.contracts.jose import TokenInvalid, UnknownKey

AUDIENCE = "https://broker.test.example"


class JwksServer:
    """An issuer's JWKS endpoint: says what it is told to, counts who asks."""

    def __init__(self, idp: Idp) -> None:
        self.idp = idp
        self.asked = 0
        self.answer: web.Response | None = None
        self.url = ""

    async def jwks(self, _request: web.Request) -> web.Response:
        self.asked += 1
        await asyncio.sleep(0)  # let others ask at the same time, if they would
        return self.answer or web.json_response(self.idp.jwks())


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[JwksServer]:
    jwks = JwksServer(Idp(tmp_path))
    app = web.Application()
    app.router.add_get("/jwks", jwks.jwks)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    jwks.url = f"http://127.0.0.1:{runner.addresses[0][1]}/jwks"
    yield jwks
    await runner.cleanup()


def trust(**changes: Any) -> TrustedIssuers:
    settings: dict[str, Any] = {
        "issuer": "https://idp.test.example",
        "audience": AUDIENCE,
        "use": "workload",
        **changes,
    }
    return TrustedIssuers((IssuerSettings(**settings),))


async def verify(issuers: TrustedIssuers, token: str) -> str:
    parsed = jose.parse(token)
    return (await issuers.find(parsed).verify(parsed, now=time.time())).subject


async def test_a_token_verifies_with_keys_fetched_once(server: JwksServer) -> None:
    issuers = trust(jwks_url=server.url)
    for _ in range(3):
        assert await verify(issuers, server.idp.mint("bot", AUDIENCE)) == "bot"
    assert server.asked == 1


async def test_many_at_once_fetch_once(server: JwksServer) -> None:
    issuers = trust(jwks_url=server.url)
    token = server.idp.mint("bot", AUDIENCE)
    assert await asyncio.gather(*(verify(issuers, token) for _ in range(50))) == ["bot"] * 50
    assert server.asked == 1


async def test_an_unknown_key_leads_to_one_refetch_per_cooldown(
    server: JwksServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuers = trust(jwks_url=server.url)
    await verify(issuers, server.idp.mint("bot", AUDIENCE))
    server.idp.rotate("idp-2")
    token = server.idp.mint("bot", AUDIENCE)
    for _ in range(5):  # within the cooldown nothing is asked, whatever strangers send
        with pytest.raises(UnknownKey):
            await verify(issuers, token)
    assert server.asked == 1
    monkeypatch.setattr(module, "REFETCH_COOLDOWN", 0.0)
    assert await verify(issuers, token) == "bot"
    assert server.asked == 2


async def test_a_known_key_never_leads_to_a_refetch(
    server: JwksServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REFETCH_COOLDOWN", 0.0)
    issuers = trust(jwks_url=server.url)
    await verify(issuers, server.idp.mint("bot", AUDIENCE))
    with pytest.raises(TokenInvalid, match="expired"):
        await verify(issuers, server.idp.mint("bot", AUDIENCE, ttl=-60))
    assert server.asked == 1


BAD_ANSWERS = {
    "empty set": lambda: web.json_response({"keys": []}),
    "500": lambda: web.Response(status=500),
    "not JSON": lambda: web.Response(text="oops"),
    "too large": lambda: web.Response(body=b" " * (256 * 1024 + 1)),
    "private key": lambda: web.json_response({"keys": [{"kty": "EC", "crv": "P-256", "d": "AA"}]}),
}


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
async def test_a_bad_answer_keeps_the_old_keys(
    server: JwksServer, answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REFETCH_COOLDOWN", 0.0)
    issuers = trust(jwks_url=server.url)
    good = server.idp.mint("bot", AUDIENCE)
    await verify(issuers, good)
    server.answer = answer()
    with pytest.raises(UnknownKey):
        await verify(issuers, server.idp.mint("bot", AUDIENCE, headers={"kid": "stranger"}))
    assert server.asked == 2
    assert await verify(issuers, good) == "bot"


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
async def test_a_bad_first_answer_lets_nobody_in(server: JwksServer, answer: Any) -> None:
    server.answer = answer()
    with pytest.raises(TokenInvalid, match="keys are not available"):
        await verify(trust(jwks_url=server.url), server.idp.mint("bot", AUDIENCE))


async def test_a_redirect_is_not_followed(server: JwksServer) -> None:
    server.answer = web.Response(status=302, headers={"Location": server.url})
    with pytest.raises(TokenInvalid, match="keys are not available"):
        await verify(trust(jwks_url=server.url), server.idp.mint("bot", AUDIENCE))
    assert server.asked == 1


async def test_nobody_listening_lets_nobody_in(tmp_path: Path) -> None:
    idp = Idp(tmp_path)
    with pytest.raises(TokenInvalid, match="keys are not available"):
        await verify(trust(jwks_url="http://127.0.0.1:1/jwks"), idp.mint("bot", AUDIENCE))


async def test_keys_from_a_file_are_reread_for_a_new_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REFETCH_COOLDOWN", 0.0)
    idp = Idp(tmp_path)
    issuers = trust(jwks_file=idp.jwks_file)
    assert await verify(issuers, idp.mint("bot", AUDIENCE)) == "bot"
    idp.rotate("idp-2")
    assert await verify(issuers, idp.mint("bot", AUDIENCE)) == "bot"


async def test_keys_over_tls_need_the_pinned_ca(tmp_path: Path) -> None:
    import ssl

    import trustme

    idp, authority = Idp(tmp_path), trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    jwks = JwksServer(idp)
    app = web.Application()
    app.router.add_get("/jwks", jwks.jwks)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    url = f"https://localhost:{runner.addresses[0][1]}/jwks"
    token = idp.mint("bot", AUDIENCE)
    try:
        assert await verify(trust(jwks_url=url, jwks_ca_file=tmp_path / "ca.pem"), token) == "bot"
        with pytest.raises(TokenInvalid, match="keys are not available"):
            await verify(trust(jwks_url=url, jwks_ca_file=tmp_path / "other.pem"), token)
    finally:
        await runner.cleanup()
    assert jwks.asked == 1


async def test_the_issuer_is_exact(tmp_path: Path) -> None:
    idp = Idp(tmp_path)
    issuers = trust(jwks_file=idp.jwks_file)
    for name in ("https://idp.test.example/", "https://IDP.test.example", "", None):
        with pytest.raises(TokenInvalid, match="issuer is not trusted"):
            await verify(issuers, idp.mint("bot", AUDIENCE, headers={"kid": "k"}, iss=name))


async def test_a_list_of_one_audience_is_a_setting(tmp_path: Path) -> None:
    idp = Idp(tmp_path)
    token = idp.mint("bot", [AUDIENCE])
    with pytest.raises(TokenInvalid, match="aud is not this audience alone"):
        await verify(trust(jwks_file=idp.jwks_file), token)
    assert await verify(trust(jwks_file=idp.jwks_file, audience_list=True), token) == "bot"


FILE = Path("/jwks.json")
BAD_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "no source of keys": ({}, "give one of jwks_file, jwks_url and discovery"),
    "two sources of keys": (
        {"jwks_file": FILE, "jwks_url": "https://x.test.example"},
        "give one of jwks_file, jwks_url and discovery",
    ),
    "keys and discovery": (
        {"jwks_file": FILE, "discovery": True},
        "give one of jwks_file, jwks_url and discovery",
    ),
    "keys from plain http": ({"jwks_url": "http://x.test.example/jwks"}, "https"),
    "no keys of a cluster": ({"kind": "kubernetes"}, "jwks_file, jwks_url and review"),
    "discovery of a cluster": ({"kind": "kubernetes", "discovery": True}, "kind: oidc"),
    "a cluster's users": (
        {"kind": "kubernetes", "jwks_file": FILE, "use": "user"},
        "kind: kubernetes is for use: workload",
    ),
    "review of others": (
        {"review": ReviewSettings(url="https://api", token_file=FILE)},
        "review is for kind: kubernetes",
    ),
    "no bundle": ({"kind": "spiffe", "issuer": "spiffe://a.example"}, "jwks_file and jwks_url"),
    "a trust domain's users": (
        {"kind": "spiffe", "issuer": "spiffe://a.example", "jwks_file": FILE, "use": "user"},
        "kind: spiffe is for use: workload",
    ),
    "no trust domain": ({"kind": "spiffe", "jwks_file": FILE}, "begins with spiffe://"),
    "a workload as trust domain": (
        {"kind": "spiffe", "issuer": "spiffe://a.example/bot", "jwks_file": FILE},
        "a trust domain has no path",
    ),
    "EdDSA of a trust domain": (
        {
            "kind": "spiffe",
            "issuer": "spiffe://a.example",
            "jwks_file": FILE,
            "algorithms": ("EdDSA",),
        },
        "never signed with EdDSA",
    ),
    "roots of tokens": ({"jwks_file": FILE, "ca_file": FILE}, "give one of"),
    "roots alone": ({"ca_file": FILE}, "ca_file is for kind: x509"),
    "a PKI without roots": ({"kind": "x509", "audience": ""}, "give ca_file"),
    "a PKI with keys": (
        {"kind": "x509", "audience": "", "ca_file": FILE, "jwks_file": FILE},
        "give ca_file, and no other",
    ),
    "a PKI with an audience": ({"kind": "x509", "ca_file": FILE}, "leave audience and claims out"),
    "a PKI's users": (
        {"kind": "x509", "audience": "", "ca_file": FILE, "use": "user"},
        "kind: x509 is for use: workload",
    ),
    "a PKI for nobody": (
        {"kind": "x509", "audience": "", "ca_file": FILE, "subjects": ()},
        "subjects is empty",
    ),
    "no subjects": ({"jwks_file": FILE, "subjects": ()}, "subjects is empty"),
    "a subject of two stars": ({"jwks_file": FILE, "subjects": ("a/*/*",)}, r"one \*"),
    "no claim tables": ({"jwks_file": FILE, "claims": ()}, "claims is empty"),
    "no algorithms": ({"jwks_file": FILE, "algorithms": ()}, "algorithms is empty"),
    "no issuer": ({"jwks_file": FILE, "issuer": ""}, "an issuer needs issuer and audience"),
    "no audience": ({"jwks_file": FILE, "audience": ""}, "an issuer needs issuer and audience"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_settings_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trust(**changes)


def test_no_issuer_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="issuers is empty"):
        TrustedIssuers(())


def test_an_issuer_twice_is_refused() -> None:
    one = IssuerSettings(issuer="i", audience="a", use="workload", jwks_file=FILE)
    two = IssuerSettings(issuer="i", audience="b", use="user", jwks_file=FILE)
    with pytest.raises(ConfigError, match="an issuer is listed twice"):
        TrustedIssuers((one, two))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"discovery": True}, "discovery is for the broker alone"),
        ({"kind": "kubernetes", "jwks_file": FILE}, "kind kubernetes is for the broker alone"),
    ],
)
def test_what_a_program_does_not_read_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trust(**changes)


SUBJECTS = {
    "one of them": (("bot",), "bot", True),
    "not one of them": (("bot",), "bot2", False),
    "a segment": (("repo:acme/*",), "repo:acme/shop", True),
    "more than a segment": (("repo:acme/*",), "repo:acme/shop:ref", False),
    "nothing for the star": (("repo:acme/*",), "repo:acme/", False),
}


@pytest.mark.parametrize(("subjects", "subject", "good"), SUBJECTS.values(), ids=SUBJECTS)
async def test_subjects_are_exact_or_one_segment(
    tmp_path: Path, subjects: tuple[str, ...], subject: str, good: bool
) -> None:
    idp = Idp(tmp_path)
    issuers = trust(jwks_file=idp.jwks_file, subjects=subjects)
    token = idp.mint(subject, AUDIENCE)
    if good:
        assert await verify(issuers, token) == subject
    else:
        with pytest.raises(TokenInvalid, match="not trusted for this subject"):
            await verify(issuers, token)


async def test_a_claim_table_has_to_hold(tmp_path: Path) -> None:
    idp = Idp(tmp_path)
    issuers = trust(jwks_file=idp.jwks_file, claims=({"repository": ("acme/shop",)},))
    assert await verify(issuers, idp.mint("ci", AUDIENCE, repository="acme/shop")) == "ci"
    for claims in ({}, {"repository": "acme/other"}, {"repository": ["acme/shop"]}):
        with pytest.raises(TokenInvalid, match="no claim table of the issuer holds"):
            await verify(issuers, idp.mint("ci", AUDIENCE, **claims))


def test_the_jwks_of_this_support_are_public(tmp_path: Path) -> None:
    assert "d" not in json.loads(Idp(tmp_path).jwks_file.read_text())["keys"][0]
