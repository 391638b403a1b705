"""Who comes in, at a whole broker: a trust domain, a cluster, a provider found by discovery."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.integration.broker_support import (
    GRANTS,
    Issuer,
    Served,
    World,
    claims_of,
    serving,
)
from tests.support.ports import free_url
from tests.support.trust_domain import TrustDomain
from valetkey.contracts.oauth import ASSERTION_JWT_SPIFFE

CLUSTER = "https://kubernetes.default.svc.cluster.local"
ACCOUNT = "system:serviceaccount:agents:bot"
CI = "https://ci.example"


def grant(id_: str, issuer: str, workload: str) -> dict[str, Any]:
    return {
        "id": id_,
        "workload": workload,
        "issuer": issuer,
        "target": "tickets",
        "scopes": ["tickets:read"],
        "on_behalf_of": "users",
    }


class Realm:
    """A world that trusts a trust domain, a cluster, a CI and an OpenID provider besides."""

    def __init__(self, root: Path, provider: Issuer) -> None:
        self.domain = TrustDomain()
        self.cluster = Issuer(CLUSTER)
        self.ci = Issuer(CI)
        self.provider = provider
        self.world = World(root, free_url())
        root.mkdir(parents=True, exist_ok=True)
        self.bundle = self.domain.write(root / "bundle.json")
        for issuer, name in ((self.cluster, "cluster"), (self.ci, "builds")):
            (root / f"{name}.json").write_text(json.dumps(issuer.jwks()))
        url = self.world.url
        self.world.overrides["issuers"] = [
            *self.world.document()["issuers"],
            {
                "issuer": self.domain.name,
                "kind": "spiffe",
                "audience": url,
                "use": "workload",
                "jwks_file": str(self.bundle),
            },
            {
                "issuer": CLUSTER,
                "kind": "kubernetes",
                "audience": url,
                "use": "workload",
                "jwks_file": str(root / "cluster.json"),
                "claims": [{"namespace": ["agents"]}],
            },
            {
                "issuer": CI,
                "audience": url,
                "use": "workload",
                "jwks_file": str(root / "builds.json"),
                "reusable": True,
                "subjects": ["repo:acme/*"],
                "claims": [
                    {"ref": ["refs/heads/main"], "environment": ["production"]},
                    {"ref": ["refs/heads/hotfix"]},
                ],
            },
            {
                "issuer": provider.name,
                "audience": url,
                "use": "user",
                "discovery": True,
            },
        ]
        self.world.write()
        self.world.write_grants(
            [
                *GRANTS,
                grant("svid", self.domain.name, "spiffe://acme.example/ns/*/sa/bot"),
                grant("account", CLUSTER, ACCOUNT),
                grant("ci", CI, "repo:acme/shop"),
            ]
        )

    def svid(self, **more: Any) -> str:
        return self.domain.jwt_svid([self.world.url], now=self.world.clock(), **more)

    def spiffe_form(self, token: str, **changes: Any) -> dict[str, Any]:
        return self.world.form(token, **{"client_assertion_type": ASSERTION_JWT_SPIFFE, **changes})


@pytest.fixture
async def provider() -> AsyncIterator[Issuer]:
    """An OpenID provider of users: metadata and keys over HTTP."""
    issuer = Issuer("")
    app = web.Application()

    async def metadata(_request: web.Request) -> web.Response:
        return web.json_response({"issuer": issuer.name, "jwks_uri": issuer.name + "/keys"})

    async def keys(_request: web.Request) -> web.Response:
        return web.json_response(issuer.jwks())

    app.router.add_get("/.well-known/openid-configuration", metadata)
    app.router.add_get("/keys", keys)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    issuer.name = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield issuer
    await runner.cleanup()


@pytest.fixture
def realm(tmp_path: Path, provider: Issuer) -> Realm:
    return Realm(tmp_path, provider)


@pytest.fixture
async def broker(realm: Realm) -> AsyncIterator[Served]:
    async with serving(realm.world) as served:
        yield served


async def test_a_jwt_svid_is_exchanged(realm: Realm, broker: Served) -> None:
    form = realm.spiffe_form(realm.svid(), client_id=realm.domain.workload())
    status, body, _ = await broker.exchange(form)
    assert status == 200, body
    claims = claims_of(body["access_token"])
    assert (claims["client_iss"], claims["client_id"], claims["sub"]) == (
        realm.domain.name,
        realm.domain.workload(),
        realm.domain.workload(),
    )


async def test_a_workload_of_a_trust_domain_acts_for_a_user_of_a_discovered_issuer(
    realm: Realm, broker: Served
) -> None:
    own = realm.svid()
    user = realm.provider.token("alice", realm.world.url, now=realm.world.clock())
    form = realm.world.user_form(own, user, client_assertion_type=ASSERTION_JWT_SPIFFE)
    status, body, _ = await broker.exchange(form)
    assert status == 200, body
    claims = claims_of(body["access_token"])
    assert claims["sub"] == "alice"
    assert claims["act"] == {"sub": realm.domain.workload(), "iss": realm.domain.name}


REFUSED: dict[str, dict[str, Any]] = {
    "as jwt-bearer": {
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    },
    "another client_id": {"client_id": "spiffe://acme.example/ns/agents/sa/other"},
}


@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED)
async def test_jwt_spiffe_is_exact(realm: Realm, broker: Served, changes: dict[str, Any]) -> None:
    status, body, _ = await broker.exchange(realm.spiffe_form(realm.svid(), **changes))
    assert (status, body["error"], body["code"]) == (401, "invalid_client", "actor.invalid")


@pytest.mark.parametrize(
    "changes",
    [
        {"path": ""},
        {"sub": "spiffe://acme.example/ns/agents/sa/bot?x"},
        {"sub": "spiffe://acme.example:443/ns/agents/sa/bot"},
        {"sub": "spiffe://ACME.example/ns/agents/sa/bot"},
        {"sub": "spiffe://partner.example/ns/agents/sa/bot"},
        {"ttl": -60},
        {"headers": {"kid": "unknown"}},
    ],
    ids=["trust domain", "query", "port", "capitals", "foreign", "expired", "unknown kid"],
)
async def test_svids_that_are_refused(
    realm: Realm, broker: Served, changes: dict[str, Any]
) -> None:
    status, body, _ = await broker.exchange(realm.spiffe_form(realm.svid(**changes)))
    assert (status, body["code"]) == (401, "actor.invalid")


@pytest.mark.parametrize("audience", ["x", ["x"], ["BROKER", "x"], []], ids=str)
async def test_an_svid_for_others_is_refused(realm: Realm, broker: Served, audience: Any) -> None:
    audience = json.loads(json.dumps(audience).replace("BROKER", realm.world.url))
    token = realm.domain.jwt_svid(audience, now=realm.world.clock())
    status, body, _ = await broker.exchange(realm.spiffe_form(token))
    assert (status, body["code"]) == (401, "actor.invalid")


@pytest.mark.parametrize(
    ("subject", "good"),
    [(ACCOUNT, True), ("system:serviceaccount:other:bot", False), ("agents:bot", False)],
)
async def test_a_cluster(realm: Realm, broker: Served, subject: str, good: bool) -> None:
    token = realm.cluster.token(subject, [realm.world.url], now=realm.world.clock())
    status, body, _ = await broker.exchange(realm.world.form(token))
    assert (status, body.get("code")) == ((200, None) if good else (401, "actor.invalid"))


CI_CLAIMS: dict[str, tuple[dict[str, Any], bool]] = {
    "production from main": ({"ref": "refs/heads/main", "environment": "production"}, True),
    "a hotfix": ({"ref": "refs/heads/hotfix"}, True),
    "staging": ({"ref": "refs/heads/main", "environment": "staging"}, False),
    "no environment": ({"ref": "refs/heads/main"}, False),
    "a list": ({"ref": ["refs/heads/hotfix"]}, False),
    "a branch of that name": ({"ref": "refs/heads/hotfix2"}, False),
}


@pytest.mark.parametrize(("claims", "good"), CI_CLAIMS.values(), ids=CI_CLAIMS)
async def test_the_claim_tables_of_a_ci(
    realm: Realm, broker: Served, claims: dict[str, Any], good: bool
) -> None:
    token = realm.ci.token("repo:acme/shop", realm.world.url, now=realm.world.clock(), **claims)
    status, body, _ = await broker.exchange(realm.world.form(token))
    assert (status, body.get("code")) == ((200, None) if good else (401, "actor.invalid"))


async def test_the_metadata_name_the_methods(realm: Realm, broker: Served) -> None:
    _, body, _ = await broker.get("/.well-known/oauth-authorization-server")
    document = json.loads(body)
    for endpoint in ("token", "introspection", "revocation"):
        methods = document[f"{endpoint}_endpoint_auth_methods_supported"]
        assert methods == ["private_key_jwt", "spiffe_jwt"]


async def test_an_api_server_that_is_away_is_no_yes_and_no_final_no(realm: Realm) -> None:
    """What can't be asked is 503, so that the sidecar asks again; nobody comes in meanwhile."""
    root = realm.world.root
    (root / "reviewer-token").write_text("token-of-the-reviewer")
    (cluster,) = (one for one in realm.world.overrides["issuers"] if one["issuer"] == CLUSTER)
    del cluster["jwks_file"]
    cluster["review"] = {"url": free_url(), "token_file": str(root / "reviewer-token")}
    async with serving(realm.world) as broker:
        token = realm.cluster.token(ACCOUNT, [realm.world.url], now=realm.world.clock())
        proof = realm.world.proof(nonce=await broker.nonce())
        status, body, headers = await broker.post(realm.world.form(token), proofs=[proof])
        assert (status, body["error"], body["code"]) == (
            503,
            "temporarily_unavailable",
            "service.unavailable",
        )
        assert headers["Retry-After"] == "5"
