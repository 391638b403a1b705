"""The injector on a cluster that has it otherwise: plain sidecars, certificates of somebody else.

The API server pulls all images always (AlwaysPullImages), as clusters of several tenants do. The
chart is told that nodes are too old for native sidecars, that pods keep the API's token, and where the
webhook's certificate is; so the injector needs no rights at all.
"""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
import trustme

from tests.cluster import expected
from tests.cluster.installed import (
    INJECTED,
    INJECTOR,
    NAMESPACE,
    RELEASE,
    RESTRICTED,
    Replica,
    calling,
    restricted,
    run_helm,
    values,
)
from tests.cluster.shapes import shapes
from tests.support import helm, kubernetes
from tests.support.canaries import CANARIES
from tests.support.kubernetes import Answer, Client, Cluster, Service
from tests.support.waiting import until

pytestmark = [
    pytest.mark.skipif(bool(kubernetes.missing()), reason=kubernetes.missing()),
    pytest.mark.skipif(bool(helm.missing()), reason=helm.missing()),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.parametrize("cluster", [("AlwaysPullImages",)], indirect=True),
]

PODS: Final = 60
HOST: Final = f"{INJECTOR}.{NAMESPACE}.svc"

Json = dict[str, Any]


@dataclass
class Stand:
    client: Client
    replica: Replica
    authority: trustme.CA
    mounted: Path

    async def make(self, pod: Json, namespace: str = "agents", **query: str) -> Answer:
        metadata = {**pod["metadata"], "namespace": namespace}
        return await self.client.create({**pod, "metadata": metadata}, **query)


def _mount(directory: Path, authority: trustme.CA) -> None:
    """A Secret's volume as the kubelet makes it, and makes it anew: a link that is exchanged."""
    issued = authority.issue_cert(HOST)
    version = directory / f"..{time.monotonic_ns()}"
    version.mkdir(parents=True)
    issued.cert_chain_pems[0].write_to_path(str(version / "tls.crt"))
    issued.private_key_pem.write_to_path(str(version / "tls.key"))
    CANARIES.allow(version / "tls.key")
    (directory / "new").symlink_to(version.name)
    (directory / "new").replace(directory / "..data")
    for name in ("tls.crt", "tls.key"):
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(f"..data/{name}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stand(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stand]:
    directory = Path(tmp_path_factory.mktemp("otherwise"))
    authority = trustme.CA()
    _mount(directory / "tls", authority)
    async with Client(cluster) as client:
        await client.add_namespace(NAMESPACE, **RESTRICTED)
        await client.add_namespace("agents", **RESTRICTED, **INJECTED)
        await client.add_namespace("twins", **RESTRICTED)
        for name in ("agents", "twins"):
            account = {"name": "bot", "namespace": name}
            await client.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
        given = values(pods={"kubernetes": "1.28", "api_access": "keep"})
        given["injector"]["tls"] = {
            "existingSecret": "webhook", "caBundle": authority.cert_pem.bytes().decode(),
        }  # fmt: skip
        await run_helm("helm4", cluster, "install", RELEASE, helm.CHART, given=given)
        path = f"/api/v1/namespaces/{NAMESPACE}"
        address = (await client.call("GET", f"{path}/services/{INJECTOR}")).ok()["spec"]
        settings = (await client.call("GET", f"{path}/configmaps/{INJECTOR}")).ok()["data"]
        text = settings["injector.yaml"].replace("/etc/valetkey/", f"{directory}/")
        token = await client.token_of(NAMESPACE, INJECTOR)
        replica = Replica(directory / "replica", text, token, cluster)
        async with Service(address["clusterIP"], 443) as service:
            try:
                await replica.start()
                service.endpoints = [replica.port]
                stand = Stand(client, replica, authority, directory / "tls")

                async def injects() -> bool:
                    return (await stand.make(restricted(), dryRun="All")).status == 201

                await until(injects, "a pod with a sidecar", poll=0.2)
                yield stand
            finally:
                replica.program.kill()


async def test_plain_sidecars_are_admitted_and_come_out_the_same_again(stand: Stand) -> None:
    made = 0
    for shape in shapes(PODS):
        answer = await stand.make(shape.pod)
        if "opted_out" in shape.features:
            answer.ok()
            continue
        if shape.pod["spec"].get("restartPolicy", "Always") != "Always":
            assert "denied the request: inject.never_ends:" in answer.message
            continue
        pod = answer.ok()
        twin = (await stand.make(shape.pod, "twins")).ok()
        _check(pod, twin)
        metadata = {"name": f"again-{shape.number}", "annotations": pod["metadata"]["annotations"]}
        again = await stand.make({**pod, "metadata": metadata, "status": {}})
        assert expected.plain_spec(again.ok()) == expected.plain_spec(pod)
        made += 1
    assert made > PODS // 2


def _check(pod: Json, twin: Json) -> None:
    sidecar, *others = pod["spec"]["containers"]
    assert (sidecar["name"], sidecar["imagePullPolicy"]) == ("valetkey", "Always")
    assert "restartPolicy" not in sidecar
    assert sidecar["lifecycle"]["postStart"]["exec"]["command"][:3] == [
        "python3", "-m", "valetkey.injector.wait",
    ]  # fmt: skip
    names = [each["name"] for each in others]
    assert names == [each["name"] for each in twin["spec"]["containers"]]
    # What runs before the sidecar is left as it is, and everybody keeps the API's token.
    before, plain = expected.plain_spec(twin), expected.plain_spec(pod)
    assert plain.get("initContainers") == before.get("initContainers")
    token = "automountServiceAccountToken"
    assert plain.get(token) == before.get(token)
    for container, of_twin in zip(plain["containers"][1:], before["containers"], strict=True):
        mounts = of_twin.get("volumeMounts", [])
        assert container.get("volumeMounts", [])[: len(mounts)] == mounts
    assert pod["metadata"]["annotations"]["valetkey/injected"] == "plain"


async def test_the_certificate_s_files_are_exchanged_and_no_pod_fails(stand: Stand) -> None:
    taken_up = 'valetkey_injector_certificates_total{result="taken_up"} '

    async def count() -> float:
        text = await stand.replica.metrics()
        return float(text.partition(taken_up)[2].partition("\n")[0])

    before = await count()
    async with calling(lambda: stand.make(PLAIN, dryRun="All"), where="containers") as calls:
        _mount(stand.mounted, stand.authority)

        async def exchanged() -> bool:
            return await count() > before

        await until(exchanged, "another certificate", poll=0.2)
        so_far = calls.made
        await until(lambda: calls.made > so_far + 10, "calls")
    assert calls.failed == []


PLAIN: Final = restricted()


async def test_the_injector_has_no_rights(stand: Stand) -> None:
    assert await kubernetes.rules_of(stand.client, NAMESPACE, INJECTOR) == set()


async def test_the_ca_is_the_operator_s(stand: Stand) -> None:
    bundle = base64.b64encode(stand.authority.cert_pem.bytes()).decode()
    for kind in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"):
        path = f"/apis/admissionregistration.k8s.io/v1/{kind}/{INJECTOR}"
        (webhook,) = (await stand.client.call("GET", path)).ok()["webhooks"]
        assert webhook["clientConfig"]["caBundle"] == bundle
