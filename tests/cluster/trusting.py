"""The broker trusts this cluster's tokens: by asking its API server, and by its keys.

The issuers are those of the chart's examples, with addresses and files of this machine. Tokens are made as the
kubelet makes them: by a TokenRequest, bound to a pod.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
import yaml

from tests.cluster.installed import (
    NAMESPACE,
    RELEASE,
    RESTRICTED,
    restricted,
    run_helm,
    values,
)
from tests.integration.broker_support import Served, World, claims_of, serving
from tests.support import helm, kubernetes
from tests.support.canaries import CANARIES
from tests.support.kubernetes import Client, Cluster
from tests.support.ports import free_url
from tests.support.waiting import until

pytestmark = [
    pytest.mark.skipif(bool(kubernetes.missing()), reason=kubernetes.missing()),
    pytest.mark.skipif(bool(helm.missing()), reason=helm.missing()),
    pytest.mark.asyncio(loop_scope="module"),
]

ACCOUNT: Final = "system:serviceaccount:agents:bot"
GRANT: Final = {
    "id": "bot-reads-tickets",
    "workload": ACCOUNT,
    "issuer": kubernetes.ISSUER,
    "target": "tickets",
    "scopes": ["tickets:read"],
}

Json = dict[str, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(cluster: Cluster) -> AsyncIterator[Client]:
    async with Client(cluster) as client:
        await client.add_namespace(NAMESPACE, **RESTRICTED)
        await client.add_namespace("agents", **RESTRICTED)
        for name in ("bot", "other"):
            account = {"name": name, "namespace": "agents"}
            document = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}
            (await client.create(document)).ok()
        await run_helm("helm3", cluster, "install", RELEASE, helm.CHART, given=values())
        yield client


class Workload:
    """A pod, and tokens that end with it."""

    def __init__(self, client: Client, pod: Json) -> None:
        self._client = client
        self._pod = pod

    async def token(self, audience: str) -> str:
        metadata, account = self._pod["metadata"], self._pod["spec"]["serviceAccountName"]
        bound = {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": metadata["name"],
            "uid": metadata["uid"],
        }
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": [audience], "expirationSeconds": 3600, "boundObjectRef": bound},
        }
        path = await self._client.path("v1", "ServiceAccount", "agents", account)
        made = (await self._client.call("POST", f"{path}/token", request)).ok()
        token: str = made["status"]["token"]
        CANARIES.add(token, name="a workload's token")
        return token

    async def delete(self) -> None:
        path = await self._client.place(self._pod, named=True)
        assert (await self._client.call("DELETE", path, gracePeriodSeconds="0")).status == 200


async def workload(client: Client, account: str = "bot") -> Workload:
    pod = restricted(serviceAccountName=account)
    pod["metadata"]["namespace"] = "agents"
    return Workload(client, (await client.create(pod)).ok())


@asynccontextmanager
async def broker(
    client: Client, directory: Path, *, reviewer: str = "broker", **issuer: Any
) -> AsyncIterator[Served]:
    """With the chart's issuer, asked as the service account of ``reviewer``; or another ``issuer``."""
    path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/{RELEASE}-broker"
    text = (await client.call("GET", path)).ok()["data"]["broker.yaml"]
    [given] = yaml.safe_load(text)["issuers"]
    world = World(directory, free_url())
    directory.mkdir()
    file = directory / "token"
    token = await client.token_of(NAMESPACE, f"{RELEASE}-{reviewer}")
    CANARIES.add(token, name="the reviewer's token", allow=[file])
    file.write_text(token)
    given["review"] |= {
        "url": client.cluster.url, "token_file": str(file), "ca_file": str(client.cluster.ca_file),
    }  # fmt: skip
    trusted = {**(issuer or given), "audience": world.url}
    world.overrides["issuers"] = [*world.document()["issuers"], trusted]
    world.write()
    world.write_grants([GRANT])
    async with serving(world) as served:
        yield served


async def test_a_token_counts_until_its_pod_is_deleted(client: Client, tmp_path: Path) -> None:
    async with broker(client, tmp_path / "broker") as served:
        pod = await workload(client)
        token = await pod.token(served.world.url)
        status, body, _ = await served.exchange(served.world.form(token))
        assert status == 200, body
        claims = claims_of(body["access_token"])
        assert (claims["sub"], claims["scope"]) == (ACCOUNT, "tickets:read")
        await pod.delete()

        async def refused() -> Json | None:
            served.world.clock.advance(11)  # for so long the broker remembers an answer
            status, body, _ = await served.exchange(served.world.form(token))
            return body if status != 200 else None

        # The API server remembers its own for ten seconds.
        body = await until(refused, "the end of the pod's token", poll=0.5)
        assert body is not None
        assert body["code"] == "actor.invalid"


async def test_a_token_for_others_does_not_count(client: Client, tmp_path: Path) -> None:
    async with broker(client, tmp_path / "broker") as served:
        for audience in (kubernetes.ISSUER, "https://elsewhere.example.com"):
            token = await (await workload(client)).token(audience)
            status, body, _ = await served.exchange(served.world.form(token))
            assert (status, body["code"]) == (401, "actor.invalid"), audience
        # Another account is authenticated, and has no grant.
        token = await (await workload(client, "other")).token(served.world.url)
        status, body, _ = await served.exchange(served.world.form(token))
        assert (status, body["code"].partition(".")[0]) == (400, "grant"), body


async def test_who_may_not_ask_lets_nobody_in(client: Client, tmp_path: Path) -> None:
    """`broker.tokenReview: false`: the API server refuses the question, not the token."""
    async with broker(client, tmp_path / "broker", reviewer="collector") as served:
        token = await (await workload(client)).token(served.world.url)
        proof = served.world.proof(nonce=await served.nonce())
        status, body, _ = await served.post(served.world.form(token), proofs=[proof])
        assert (status, body["code"]) == (503, "service.unavailable")


async def test_the_cluster_s_keys_do_without_asking(client: Client, tmp_path: Path) -> None:
    """As the tutorial has it: `kubectl get --raw /openid/v1/jwks`."""
    keys = tmp_path / "cluster-jwks.json"
    keys.write_text(await client.text("/openid/v1/jwks"))
    issuer = {
        "issuer": kubernetes.ISSUER, "use": "workload", "jwks_file": str(keys),
        "algorithms": ["RS256"], "audience_list": True, "reusable": True,
    }  # fmt: skip
    async with broker(client, tmp_path / "broker", **issuer) as served:
        pod = await workload(client)
        token = await pod.token(served.world.url)
        status, body, _ = await served.exchange(served.world.form(token))
        assert status == 200, body
        assert claims_of(body["access_token"])["sub"] == ACCOUNT
        token = await pod.token("https://elsewhere.example.com")
        status, body, _ = await served.exchange(served.world.form(token))
        assert (status, body["code"]) == (401, "actor.invalid")
