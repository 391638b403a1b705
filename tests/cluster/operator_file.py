"""The operator's file under a real API server: the injector's rights suffice, an owner's do not.

What the fake of the other tests can't show: that a list may be bound to a name by its field selector,
that ``matchConditions`` spare everything else, and what the API server does when no injector is up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio
import yaml

from tests.cluster.installed import INJECTED, INJECTOR, NAMESPACE, Replica, run_helm, values
from tests.support import helm, kubernetes
from tests.support.kubernetes import Answer, Client, Cluster, Service
from tests.support.waiting import until
from valetkey.injector.core import names

pytestmark = [
    pytest.mark.skipif(bool(kubernetes.missing()), reason=kubernetes.missing()),
    pytest.mark.skipif(bool(helm.missing()), reason=helm.missing()),
    pytest.mark.asyncio(loop_scope="module"),
]

ROOT: Final = Path(__file__).parents[2]
NAME: Final = "valetkey-operator"
KEY: Final = "operator.yaml"
FILE: Final = yaml.safe_load((ROOT / "config" / KEY).read_text())
POD: Final = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"generateName": "agent-", "namespace": "agents"},
    "spec": {"containers": [{"name": "app", "image": "registry.example.com/app:1"}]},
}

Json = dict[str, Any]


@dataclass
class Stand:
    admin: Client
    owner: Client
    """Who may do everything with ConfigMaps of the namespace ``agents``, and of ``early``."""
    service: Service
    replicas: list[Replica]

    def up(self) -> None:
        self.service.endpoints = [each.port for each in self.replicas if each.program.running]

    async def copy(self, namespace: str = "agents") -> Any:
        """The operator's file there, read."""
        answer = await self.admin.call("GET", place(namespace, NAME))
        return yaml.safe_load(answer.ok()["data"][KEY]) if answer.status == 200 else None

    async def is_there(self, file: Json, namespace: str = "agents") -> None:
        async def so() -> bool:
            return bool(await self.copy(namespace) == file)

        await until(so, f"the file in {namespace}", poll=0.1)


def place(namespace: str, name: str = "") -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps{f'/{name}' if name else ''}"


def config_map(name: str, text: str = "x", namespace: str = "agents") -> Json:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {KEY: text}}


async def add_owner(admin: Client, namespace: str) -> None:
    rule = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]}
    api = "rbac.authorization.k8s.io"
    metadata = {"name": "owner", "namespace": namespace}
    subject = {"kind": "ServiceAccount", "name": "owner", "namespace": "agents"}
    documents: list[Json] = [
        {"apiVersion": f"{api}/v1", "kind": "Role", "metadata": metadata, "rules": [rule]},
        {
            "apiVersion": f"{api}/v1", "kind": "RoleBinding", "metadata": metadata,
            "roleRef": {"apiGroup": api, "kind": "Role", "name": "owner"}, "subjects": [subject],
        },
    ]  # fmt: skip
    for document in documents:
        (await admin.create(document)).ok()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stand(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stand]:
    async with Client(cluster) as admin:
        await admin.add_namespace(NAMESPACE)
        await admin.add_namespace("agents", **INJECTED)
        await admin.add_namespace("early")
        account = {"name": "owner", "namespace": "agents"}
        (
            await admin.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
        ).ok()
        for namespace in ("agents", "early"):
            await add_owner(admin, namespace)
        given = values()
        del given["injector"]["settings"]["sidecar"]["targets"]
        given["injector"]["operator"] = FILE
        await run_helm("helm3", cluster, "install", "valetkey", helm.CHART, given=given)
        path = f"/api/v1/namespaces/{NAMESPACE}"
        address = (await admin.call("GET", f"{path}/services/{INJECTOR}")).ok()["spec"]
        settings = (await admin.call("GET", place(NAMESPACE, INJECTOR))).ok()["data"]
        quick = settings["injector.yaml"].replace(
            "  operator:\n", "  operator:\n    check_every: 500ms\n"
        )
        token = await admin.token_of(NAMESPACE, INJECTOR)
        directory = Path(tmp_path_factory.mktemp("replicas"))
        replicas = [Replica(directory / name, quick, token, cluster) for name in ("one", "two")]
        owner = Client(cluster, await admin.token_of("agents", "owner"))
        async with owner, Service(address["clusterIP"], 443) as service:
            stand = Stand(admin, owner, service, replicas)
            try:
                await asyncio.gather(*(replica.start() for replica in replicas))
                stand.up()

                async def takes_pods() -> bool:
                    return (await admin.create(POD, dryRun="All")).status == 201

                await until(takes_pods, "the first pod with a sidecar", poll=0.2)
                yield stand
            finally:
                for replica in replicas:
                    replica.program.kill()


def refused(answer: Answer) -> None:
    assert answer.status == 403, answer.message
    assert "inject.operator_protected" in answer.message


async def test_the_file_is_where_sidecars_are_and_nowhere_else(stand: Stand) -> None:
    await stand.is_there(FILE)
    assert (await stand.admin.call("GET", place("early", NAME))).status == 404


async def test_an_owner_can_not_write_it_in_any_way(stand: Stand) -> None:
    await stand.is_there(FILE)
    there = (await stand.owner.call("GET", place("agents", NAME))).ok()
    wider = {**there, "data": {KEY: "targets: {}"}}
    refused(await stand.owner.call("PUT", place("agents", NAME), wider))
    patch = {"data": {KEY: "x"}}
    for media in ("application/merge-patch+json", "application/apply-patch+yaml"):
        document = {**config_map(NAME), **patch} if "apply" in media else patch
        more = {"fieldManager": "valetkey-injector", "force": "true"} if "apply" in media else {}
        refused(
            await stand.owner.call("PATCH", place("agents", NAME), document, media=media, **more)
        )
    assert await stand.copy() == FILE
    # Gone, it may not be made by anybody else, and comes back.
    deleted = await stand.owner.call("DELETE", place("agents", NAME))
    assert deleted.status == 200, deleted.message
    answer = await stand.owner.create(config_map(NAME))
    assert answer.status in {403, 409}, answer.message
    await stand.is_there(FILE)
    # All others are the owner's.
    (await stand.owner.create(config_map("routes"))).ok()


async def test_what_was_written_before_the_namespace_was_labelled_does_not_count(
    stand: Stand,
) -> None:
    wider = yaml.safe_dump(FILE | {"passthrough": [{"host": "*.example.org"}]})
    (await stand.owner.create(config_map(NAME, wider, "early"))).ok()
    label = {"metadata": {"labels": {"valetkey/inject": "enabled"}}}
    path = "/api/v1/namespaces/early"
    media = "application/merge-patch+json"
    (await stand.admin.call("PATCH", path, label, media=media)).ok()
    document = {**POD, "metadata": {"generateName": "agent-", "namespace": "early"}}

    async def made() -> Any:
        answer = await stand.admin.create(document)
        if answer.status != 201:
            return None
        injected = names.CONTAINER in str(answer.body["spec"].get("initContainers"))
        return (answer.body, await stand.copy("early")) if injected else None

    _, copy = await until(made, "a pod with a sidecar", poll=0.1)
    assert copy == FILE, "a pod was made beside what its owner wrote"


async def test_a_pod_mounts_both_layers_and_no_other(stand: Stand) -> None:
    metadata = {**POD["metadata"], "annotations": {names.ROUTES_FROM: "routes"}}
    made = (await stand.admin.create({**POD, "metadata": metadata})).ok()
    volumes = {each["name"]: each for each in made["spec"]["volumes"]}
    assert volumes[names.OPERATOR]["configMap"]["name"] == NAME
    assert volumes[names.ROUTES]["configMap"]["name"] == "routes"
    spec = {**POD["spec"], "volumes": [{"name": names.OPERATOR, "configMap": {"name": "routes"}}]}
    answer = await stand.admin.create({**POD, "spec": spec})
    assert answer.status == 409
    assert "inject.name_taken" in answer.message


async def test_a_change_of_the_operator_s_goes_everywhere(stand: Stand) -> None:
    other = {**FILE, "routes": FILE["routes"][:1]}
    text = yaml.safe_dump(other)
    (await stand.admin.call("PUT", place(NAMESPACE, NAME), config_map(NAME, text, NAMESPACE))).ok()
    await stand.is_there(other)
    (
        await stand.admin.call(
            "PUT", place(NAMESPACE, NAME), config_map(NAME, yaml.safe_dump(FILE), NAMESPACE)
        )
    ).ok()
    await stand.is_there(FILE)


async def test_with_no_injector_up_nobody_writes_it(stand: Stand) -> None:
    """And all else in the namespace is written as ever."""
    await stand.is_there(FILE)
    for replica in stand.replicas:
        replica.program.kill()
    stand.up()
    answer = await stand.owner.call("PUT", place("agents", NAME), config_map(NAME))
    assert answer.status == 500, answer.message
    assert "failed calling webhook" in answer.message
    (await stand.owner.create(config_map("more-routes"))).ok()
    assert await stand.copy() == FILE
