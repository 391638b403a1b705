"""The chart in a real API server: what it takes, what pods of it are admitted, what is left of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
import pytest_asyncio
import yaml

from tests.cluster.installed import (
    INJECTOR,
    NAMESPACE,
    RELEASE,
    RESTRICTED,
    add_prometheus,
    live,
    pods_of,
    run_helm,
    uninstall,
    values,
)
from tests.support import helm, kubernetes
from tests.support.kubernetes import Client, Cluster

pytestmark = [
    pytest.mark.skipif(bool(kubernetes.missing()), reason=kubernetes.missing()),
    pytest.mark.skipif(bool(helm.missing()), reason=helm.missing()),
    pytest.mark.asyncio(loop_scope="module"),
]

BOTH: Final = pytest.mark.parametrize("program", ["helm3", "helm4"])
EACH: Final = pytest.mark.parametrize("example", ["minimal", "fleet"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(cluster: Cluster) -> AsyncIterator[Client]:
    async with Client(cluster) as client:
        await client.add_namespace(NAMESPACE, **RESTRICTED)
        await add_prometheus(client)
        yield client


@EACH
async def test_every_object_is_valid_to_the_last_field(client: Client, example: str) -> None:
    rendered = helm.objects(helm.render(values(example)))
    assert len(rendered) > 15
    for key, document in rendered.items():
        answer = await client.create(document, dryRun="All", fieldValidation="Strict")
        assert (answer.status, answer.warnings) == (201, ()), (key, answer.message)
        misspelt = {**document, "speck": {}}
        answer = await client.create(misspelt, dryRun="All", fieldValidation="Strict")
        assert answer.status == 400, key


@EACH
@BOTH
async def test_it_is_installed_and_its_pods_are_admitted(
    client: Client, program: str, example: str
) -> None:
    """In a namespace whose pods must be `restricted`; installed again, it is the same."""
    await run_helm(program, client.cluster, "install", RELEASE, helm.CHART, given=values(example))
    manifests = await run_helm(program, client.cluster, "get", "manifest", RELEASE)
    there = await live(client, manifests)
    pods = await pods_of(client, manifests)
    assert len(pods) == 3
    for pod in pods:
        answer = await client.create(pod)
        assert (answer.status, answer.warnings) == (201, ()), answer.message
    await run_helm(program, client.cluster, "upgrade", RELEASE, helm.CHART, given=values(example))
    for key, after in (await live(client, manifests)).items():
        assert after["metadata"]["uid"] == there[key]["metadata"]["uid"], key
        assert _said(after) == _said(there[key]), key
    claims = {("PersistentVolumeClaim", f"{RELEASE}-{name}") for name in _volumes(example)}
    assert await uninstall(program, client) == claims
    # What was revoked, and the record, are there for the next one.
    await run_helm(program, client.cluster, "install", RELEASE, helm.CHART, given=values(example))
    assert await uninstall(program, client) == claims
    for _, name in claims:
        path = await client.path("v1", "PersistentVolumeClaim", NAMESPACE, name)
        await client.call("DELETE", path)
        # No controller takes off what protects it.
        merge = "application/merge-patch+json"
        await client.call("PATCH", path, {"metadata": {"finalizers": None}}, media=merge)


def _volumes(example: str) -> set[str]:
    return {"broker", "collector"} if example == "minimal" else {"collector"}


def _said(document: dict[str, Any]) -> Any:
    return {key: held for key, held in document.items() if key not in {"metadata", "status"}}


async def test_a_pod_that_is_not_restricted_is_refused_there(client: Client) -> None:
    """Else the test above could not fail."""
    document = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "a", "namespace": NAMESPACE},
        "spec": {"containers": [{"name": "a", "image": "a"}]},
    }
    answer = await client.create(document)
    assert answer.status == 403
    assert "violates PodSecurity" in answer.message


async def test_the_broker_may_ask_about_tokens_and_the_collector_nothing(client: Client) -> None:
    """Token reviews as they are: for the audience that they are asked for, and no other."""
    given = values()
    await run_helm("helm3", client.cluster, "install", RELEASE, helm.CHART, given=given)
    manifests = await run_helm("helm3", client.cluster, "get", "manifest", RELEASE)
    objects = helm.objects(manifests)
    settings = yaml.safe_load(objects["ConfigMap", f"{RELEASE}-broker"]["data"]["broker.yaml"])
    (issuer,) = settings["issuers"]
    path = await client.path("v1", "ServiceAccount", NAMESPACE, "default")
    request = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"audiences": [issuer["audience"]]},
    }
    token = (await client.call("POST", f"{path}/token", request)).ok()["status"]["token"]
    review = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "metadata": {},
        "spec": {"token": token, "audiences": [issuer["audience"]]},
    }
    for program, status in (("broker", 201), ("collector", 403), ("injector", 403)):
        account = await client.token_of(NAMESPACE, f"{RELEASE}-{program}")
        async with Client(client.cluster, account) as asking:
            answer = await asking.create(review)
            assert answer.status == status, program
            if status == 201:
                assert answer.body["status"]["authenticated"] is True
                assert answer.body["status"]["audiences"] == [issuer["audience"]]
                assert answer.body["status"]["user"]["username"] == (
                    f"system:serviceaccount:{NAMESPACE}:default"
                )
                for kind in ("Secret", "Pod", "ConfigMap"):
                    there = await asking.path("v1", kind, NAMESPACE)
                    assert (await asking.call("GET", there)).status == 403
    await uninstall("helm3", client)


async def test_the_cluster_s_keys_are_where_the_page_says(client: Client) -> None:
    """docs/how-to/install.md: what the collector is given, and the issuer's name."""
    keys = (await client.call("GET", "/openid/v1/jwks")).ok()["keys"]
    assert [key["alg"] for key in keys] == ["RS256"]
    found = (await client.call("GET", "/.well-known/openid-configuration")).ok()
    assert found["issuer"] == kubernetes.ISSUER


async def test_the_injector_is_where_its_webhooks_say(client: Client) -> None:
    """Service, port and name of the port are one thing in four objects."""
    await run_helm("helm4", client.cluster, "install", RELEASE, helm.CHART, given=values())
    manifests = await run_helm("helm4", client.cluster, "get", "manifest", RELEASE)
    objects = await live(client, manifests)
    service = objects["Service", INJECTOR]
    (pod,) = (
        pod
        for pod in await pods_of(client, manifests)
        if INJECTOR in pod["metadata"]["generateName"]
    )
    labels = pod["metadata"]["labels"].items()
    assert service["spec"]["selector"].items() <= labels
    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for kind in ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"):
        (webhook,) = objects[kind, INJECTOR]["webhooks"]
        named = webhook["clientConfig"]["service"]
        assert (named["namespace"], named["name"]) == (NAMESPACE, INJECTOR)
        (port,) = (each for each in service["spec"]["ports"] if each["port"] == named["port"])
        assert ports[port["targetPort"]] == 9443
    await uninstall("helm4", client)
