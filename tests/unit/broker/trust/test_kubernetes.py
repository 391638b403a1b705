"""Service account tokens: by the cluster's keys, and by a real server that answers TokenReviews."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.support.canaries import CANARIES
from tests.support.idp import Idp
from valetkey.broker.trust.kubernetes import KubernetesIssuer
from valetkey.contracts import jose
from valetkey.contracts.errors import CallerError
from valetkey.contracts.issuer import IssuerSettings, ReviewSettings
from valetkey.contracts.jose import TokenInvalid, VerifiedClaims

CLUSTER = "https://kubernetes.default.svc.cluster.local"
BROKER = "https://broker.example"
BOT = "system:serviceaccount:agents:bot"
BOUND = {
    "namespace": "agents",
    "serviceaccount": {"name": "bot", "uid": "u-1"},
    "pod": {"name": "bot-7f", "uid": "u-2"},
    "node": {"name": "node-3", "uid": "u-3"},
}
ATTRIBUTES = {
    "namespace": "agents",
    "service_account": "bot",
    "service_account_uid": "u-1",
    "pod": "bot-7f",
    "pod_uid": "u-2",
    "node": "node-3",
    "node_uid": "u-3",
}


class ApiServer:
    """The TokenReview endpoint, with answers as kube-apiserver gives them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = ""
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.status: dict[str, Any] = {
            "authenticated": True,
            "audiences": [BROKER],
            "user": {
                "username": BOT,
                "uid": "u-1",
                "groups": ["system:serviceaccounts"],
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["bot-7f"],
                    "authentication.kubernetes.io/pod-uid": ["u-2"],
                    "authentication.kubernetes.io/node-name": ["node-3"],
                },
            },
        }
        self.answer: web.Response | None = None

    async def review(self, request: web.Request) -> web.Response:
        self.asked.append((request.headers["Authorization"], await request.json()))
        return self.answer or web.json_response(
            {
                "kind": "TokenReview",
                "apiVersion": "authentication.k8s.io/v1",
                "metadata": {},
                "spec": {"token": "…"},
                "status": self.status,
            },
            status=201,
        )

    def issuer(self, **changes: Any) -> KubernetesIssuer:
        review = ReviewSettings(url=self.url, token_file=self.root / "own-token")
        return KubernetesIssuer(settings(review=review, **changes))


def settings(**changes: Any) -> IssuerSettings:
    return IssuerSettings(
        **{
            "issuer": CLUSTER,
            "kind": "kubernetes",
            "audience": BROKER,
            "use": "workload",
            **changes,
        }
    )


@pytest.fixture
def cluster(tmp_path: Path) -> Idp:
    return Idp(tmp_path, issuer=CLUSTER)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[ApiServer]:
    server = ApiServer(tmp_path)
    (tmp_path / "own-token").write_text("own-token-of-the-broker\n")
    CANARIES.add("own-token-of-the-broker", name="TokenReview token", allow=[tmp_path])
    app = web.Application()
    app.router.add_post("/apis/authentication.k8s.io/v1/tokenreviews", server.review)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


async def verify(issuer: KubernetesIssuer, token: str) -> VerifiedClaims:
    return await issuer.verify(jose.parse(token), now=time.time())


def projected(cluster: Idp, sub: Any = BOT, aud: Any = None, **claims: Any) -> str:
    """A token as the kubelet projects it."""
    claims = {"kubernetes.io": BOUND, **claims}
    return cluster.mint(sub, [BROKER] if aud is None else aud, **claims)


# --- offline -------------------------------------------------------------------------------------
async def test_offline_by_the_cluster_keys(cluster: Idp) -> None:
    issuer = KubernetesIssuer(settings(jwks_file=cluster.jwks_file))
    verified = await verify(issuer, projected(cluster))
    assert (verified.issuer, verified.subject) == (CLUSTER, BOT)
    assert verified.attributes == ATTRIBUTES
    assert issuer.settings.reusable
    assert issuer.settings.audience_list


async def test_a_token_that_is_bound_to_nothing(cluster: Idp) -> None:
    issuer = KubernetesIssuer(settings(jwks_file=cluster.jwks_file))
    verified = await verify(issuer, cluster.mint(BOT, [BROKER]))
    assert verified.attributes == {"namespace": "agents", "service_account": "bot"}


BAD: dict[str, dict[str, Any]] = {
    "another audience": {"aud": ["https://other"]},
    "two audiences": {"aud": [BROKER, "https://other"]},
    "the API server's audience": {"aud": [CLUSTER]},
    "no audience": {"aud": []},
    "expired": {"ttl": -60},
    "no expiry": {"exp": None},
    "a user": {"sub": "alice"},
    "a node": {"sub": "system:node:node-3"},
    "no name": {"sub": "system:serviceaccount:agents:"},
    "no namespace": {"sub": "system:serviceaccount::bot"},
    "one part more": {"sub": "system:serviceaccount:agents:bot:x"},
    "capitals": {"sub": "system:serviceaccount:Agents:bot"},
    "a namespace with a dot": {"sub": "system:serviceaccount:a.b:bot"},
    "a namespace that is too long": {"sub": f"system:serviceaccount:{'a' * 64}:bot"},
    "a name that is too long": {"sub": f"system:serviceaccount:agents:{'a' * 254}"},
    "a newline": {"sub": BOT + "\n"},
    "another namespace inside": {"kubernetes.io": {**BOUND, "namespace": "kube-system"}},
    "another account inside": {
        "kubernetes.io": {**BOUND, "serviceaccount": {"name": "admin", "uid": "u-1"}}
    },
    "a pod without a name": {"kubernetes.io": {**BOUND, "pod": {"uid": "u-2"}}},
    "a pod that is no object": {"kubernetes.io": {**BOUND, "pod": "bot-7f"}},
    "bound to a list": {"kubernetes.io": []},
    "another issuer": {"iss": "https://other.example"},
    "an unknown key": {"headers": {"kid": "other"}},
}


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD)
async def test_offline_refusals(cluster: Idp, changes: dict[str, Any]) -> None:
    issuer = KubernetesIssuer(settings(jwks_file=cluster.jwks_file))
    with pytest.raises(TokenInvalid):
        await verify(issuer, projected(cluster, **changes))


@pytest.mark.parametrize("online", [False, True], ids=["offline", "by review"])
async def test_claim_tables_are_about_the_attributes(
    cluster: Idp, api: ApiServer, online: bool
) -> None:
    def issuer(*tables: dict[str, tuple[str, ...]]) -> KubernetesIssuer:
        if online:
            return api.issuer(claims=tables)
        return KubernetesIssuer(settings(jwks_file=cluster.jwks_file, claims=tables))

    await verify(issuer({"namespace": ("x",)}, {"namespace": ("agents",)}), projected(cluster))
    await verify(issuer({"pod": ("bot-7f",), "node": ("node-3",)}), projected(cluster))
    with pytest.raises(TokenInvalid, match="no claim table"):
        await verify(issuer({"node": ("node-4",)}), projected(cluster))


async def test_subjects_may_have_a_star(cluster: Idp) -> None:
    issuer = KubernetesIssuer(
        settings(jwks_file=cluster.jwks_file, subjects=("system:serviceaccount:agents:*",))
    )
    await verify(issuer, projected(cluster))
    other = {"kubernetes.io": {}, "sub": "system:serviceaccount:other:bot"}
    with pytest.raises(TokenInvalid, match="not trusted for this subject"):
        await verify(issuer, projected(cluster, **other))


# --- by TokenReview ------------------------------------------------------------------------------
async def test_the_api_server_is_asked(cluster: Idp, api: ApiServer) -> None:
    token = projected(cluster)
    issuer = api.issuer()
    verified = await verify(issuer, token)
    assert (verified.issuer, verified.subject) == (CLUSTER, BOT)
    assert verified.attributes == ATTRIBUTES
    assert issuer.remember == 10
    ((authorization, document),) = api.asked
    assert authorization == "Bearer own-token-of-the-broker"
    assert document == {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": [BROKER]},
    }


REFUSED: dict[str, dict[str, Any]] = {
    "not authenticated": {"authenticated": False},
    "authenticated is left out": {"authenticated": None},
    "an error beside it": {"error": "token is expired"},
    "another audience": {"audiences": ["https://kubernetes.default.svc"]},
    "no audience": {"audiences": []},
    "audiences left out": {"audiences": None},
    "no user": {"user": None},
    "a user without a name": {"user": {}},
    # As kube-apiserver 1.37 says it of a token whose pod was deleted.
    "all that is said of a token that ended": {
        "authenticated": None,
        "audiences": None,
        "user": {},
        "error": "[invalid bearer token, service account token has been invalidated]",
    },
    "another user": {"user": {"username": "system:serviceaccount:agents:other"}},
}


@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED)
async def test_answers_that_let_nobody_in(
    cluster: Idp, api: ApiServer, changes: dict[str, Any]
) -> None:
    status = {**api.status, **changes}
    api.status = {name: value for name, value in status.items() if value is not None}
    with pytest.raises(TokenInvalid):
        await verify(api.issuer(), projected(cluster))


@pytest.mark.parametrize(
    "changes", [v for n, v in BAD.items() if n != "an unknown key"],
    ids=[n for n in BAD if n != "an unknown key"],
)  # fmt: skip
async def test_what_can_be_judged_here_is_judged_here(
    cluster: Idp, api: ApiServer, changes: dict[str, Any]
) -> None:
    with pytest.raises(TokenInvalid):
        await verify(api.issuer(), projected(cluster, **changes))
    if "kubernetes.io" not in changes:
        assert not api.asked, "the token went no further"


async def test_a_refusal_is_remembered(cluster: Idp, api: ApiServer) -> None:
    api.status = {"user": {}, "error": "invalid bearer token"}
    issuer, token = api.issuer(), projected(cluster)
    for _ in range(3):
        with pytest.raises(TokenInvalid, match="does not authenticate"):
            await verify(issuer, token)
    assert len(api.asked) == 1


BROKEN = {
    "403": lambda: web.json_response({"kind": "Status"}, status=403),
    "500": lambda: web.Response(status=500),
    "a redirect": lambda: web.Response(status=307, headers={"Location": "http://127.0.0.1:1"}),
    "not JSON": lambda: web.Response(text="ok", status=201),
    "no status": lambda: web.json_response(
        {"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1"}, status=201
    ),
    "another kind": lambda: web.json_response(
        {"kind": "Status", "apiVersion": "v1", "status": {"authenticated": True}}, status=201
    ),
    "authenticated is a text": lambda: web.json_response(
        {
            "kind": "TokenReview",
            "apiVersion": "authentication.k8s.io/v1",
            "status": {"authenticated": "true"},
        },
        status=201,
    ),
    "too large": lambda: web.Response(body=b" " * (256 * 1024 + 1), status=201),
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN)
async def test_an_api_server_that_fails_lets_nobody_in(
    cluster: Idp, api: ApiServer, answer: Any
) -> None:
    api.answer = answer()
    issuer, token = api.issuer(), projected(cluster)
    with pytest.raises(CallerError) as refused:
        await verify(issuer, token)
    assert refused.value.code.name == "service.unavailable"
    api.answer = None
    assert (await verify(issuer, token)).subject == BOT, "a failure is not remembered"


async def test_without_its_own_token_nobody_comes_in(cluster: Idp, api: ApiServer) -> None:
    (api.root / "own-token").unlink()
    with pytest.raises(CallerError, match=r"service\.unavailable"):
        await verify(api.issuer(), projected(cluster))
    assert not api.asked


async def test_the_token_file_is_read_anew(cluster: Idp, api: ApiServer) -> None:
    issuer = api.issuer()
    await verify(issuer, projected(cluster))
    (api.root / "own-token").write_text("rotated")
    await verify(issuer, projected(cluster, jti="another"))
    assert [authorization for authorization, _ in api.asked] == [
        "Bearer own-token-of-the-broker",
        "Bearer rotated",
    ]


def test_the_support_writes_tokens_as_kubernetes_does(cluster: Idp) -> None:
    claims = jose.parse(projected(cluster)).unverified_claims
    assert json.loads(json.dumps(claims["kubernetes.io"])) == BOUND
    assert claims["aud"] == [BROKER]
