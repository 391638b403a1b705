"""The operator's file in every namespace of sidecars: who copies it, when, and who may not write it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
import yaml

from tests.integration.test_injector import Process, ask, kube, own, review, session
from tests.support.kube_api import NAMESPACE, USER, KubeApi
from tests.support.pods import pod
from tests.support.waiting import until

__all__ = ["kube", "session"]  # fixtures

ROOT: Final = Path(__file__).parents[2]
NAME: Final = "valetkey-operator"
KEY: Final = "operator.yaml"
FILE: Final = (ROOT / "config" / KEY).read_text()
OTHER: Final = FILE.replace("tickets:list", "tickets:browse")
LABEL: Final = {"valetkey/inject": "enabled"}


class Replica(Process):
    """With the operator's file in place of a list of targets."""

    def __init__(self, directory: Path, kube: KubeApi, **operator: Any) -> None:
        super().__init__(directory, **own(kube))
        file = directory / "injector.yaml"
        tree = yaml.safe_load(file.read_text())
        del tree["sidecar"]["targets"]
        tree["sidecar"]["operator"] = {"check_every": "100ms", **operator}
        file.write_text(yaml.safe_dump(tree))

    async def details(self) -> str:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.admin}/readyz") as response,
        ):
            return str((await response.json())["operator_file"])


@pytest.fixture
async def replicas(tmp_path: Path, kube: KubeApi) -> AsyncIterator[list[Replica]]:
    """Two, over one API server."""
    kube.put_config_map(NAMESPACE, NAME, {KEY: FILE})
    kube.add_namespace("agents", **LABEL)
    kube.add_namespace("bare")
    kube.add_namespace("kube-system", **LABEL)
    made = [Replica(tmp_path / name, kube) for name in ("one", "two")]
    try:
        for replica in made:
            await replica.start()
        for replica in made:
            await replica.ready()
        yield made
    finally:
        for replica in made:
            if replica.program.running:
                await replica.program.stop()


async def holds(kube: KubeApi, namespace: str, text: str = FILE) -> None:
    await until(lambda: kube.config_map(namespace, NAME) == {KEY: text}, f"the file in {namespace}")


async def test_each_namespace_of_sidecars_has_the_file_as_it_is(
    replicas: list[Replica], kube: KubeApi
) -> None:
    await holds(kube, "agents")
    kube.add_namespace("more", **LABEL)
    await holds(kube, "more")
    kube.put_config_map(NAMESPACE, NAME, {KEY: OTHER})
    for namespace in ("agents", "more"):
        await holds(kube, namespace, OTHER)
    # What somebody wrote where nobody kept him from it, or took away, is put right.
    kube.put_config_map("agents", NAME, {KEY: "routes: []", "more": "x"})
    await holds(kube, "agents", OTHER)
    kube.put_config_map("agents", NAME, None)
    await holds(kube, "agents", OTHER)
    for namespace in ("bare", "kube-system"):
        assert kube.config_map(namespace, NAME) is None
    # Once all is as it should be, nothing is written.
    await asyncio.sleep(0.3)
    count = len(kube.writes)
    await asyncio.sleep(0.5)
    assert len(kube.writes) == count


BAD = {
    "no YAML": "{",
    "a broker": FILE + "broker: {url: https://x}\n",
    "two routes that could both win": FILE.replace("/api/tickets/{id}/close", "/api/{a}/{b}/close")
    + "  - {id: x, target: tickets, match: {methods: [POST], path: '/api/x/{c}/{d}'}, scopes: [a]}\n",
}


async def test_a_bad_file_is_copied_nowhere_and_the_good_one_outlives_a_restart(
    replicas: list[Replica], kube: KubeApi, session: aiohttp.ClientSession
) -> None:
    await holds(kube, "agents")
    for name, text in BAD.items():
        kube.put_config_map(NAMESPACE, NAME, {KEY: text})
        for replica in replicas:
            line = await replica.program.event("operator_file_rejected")
            assert KEY in line["reason"], name

            async def said(replica: Replica = replica) -> bool:
                return KEY in await replica.details()

            await until(said, name)
        kube.add_namespace(f"new-{len(name)}", **LABEL)
        await holds(kube, f"new-{len(name)}")
        assert kube.config_map("agents", NAME) == {KEY: FILE}, name
    kube.put_config_map(NAMESPACE, NAME, None)
    await replicas[0].program.stop()
    await replicas[1].program.stop()
    again = await replicas[0].start()
    await again.ready()
    kube.add_namespace("late", **LABEL)
    await holds(kube, "late")
    async with session.get(f"{again.admin}/metrics") as response:
        assert "valetkey_injector_operator_rejected 1.0" in await response.text()
    kube.put_config_map(NAMESPACE, NAME, {KEY: OTHER})
    await holds(kube, "agents", OTHER)
    await until(lambda: _details(again, "in force"), "said to be in force")


async def _details(replica: Replica, text: str) -> bool:
    return await replica.details() == text


async def test_a_pod_waits_for_its_settings(
    replicas: list[Replica], kube: KubeApi, session: aiohttp.ClientSession
) -> None:
    """What its namespace has, its owner could have written before the injector saw it."""
    await holds(kube, "agents")
    kube.put_config_map("agents", NAME, {KEY: FILE})
    bundle = kube.bundles()[0]
    document = review(pod(), namespace="somewhere")
    for replica in replicas:
        answer = await ask(session, replica.url, bundle, document)
        assert answer["status"]["code"] == 503
        assert answer["status"]["message"].startswith("inject.operator_missing")
    kube.put_config_map("somewhere", NAME, {KEY: "targets: {}"})
    kube.add_namespace("somewhere", **LABEL)
    for replica in replicas:

        async def let_in(replica: Replica = replica) -> bool:
            return bool((await ask(session, replica.url, bundle, document))["allowed"])

        await until(let_in, "the pod is made")
        assert kube.config_map("somewhere", NAME) == {KEY: FILE}
    # Nothing is missing for a pod that is to have no sidecar.
    bare = pod(annotations={"valetkey/inject": "false"})
    answer = await ask(session, replicas[0].url, bundle, review(bare, namespace="elsewhere"))
    assert answer["allowed"]


WRITES: Final = {
    "its owner": ({"userInfo": {"username": "alice"}}, False),
    "its owner, anew": ({"userInfo": {"username": "alice"}, "operation": "CREATE"}, False),
    "nobody": ({}, False),
    "the injector": ({"userInfo": {"username": USER}}, True),
    "another file": ({"userInfo": {"username": "alice"}, "name": "valetkey-routes"}, True),
    "no file, for it comes back": ({"userInfo": {"username": "alice"}, "operation": "DELETE"}, True),
}  # fmt: skip


async def test_nobody_else_writes_it(
    replicas: list[Replica], kube: KubeApi, session: aiohttp.ClientSession
) -> None:
    await holds(kube, "agents")
    kind = {"group": "", "version": "v1", "kind": "ConfigMap"}
    for name, (more, allowed) in WRITES.items():
        said = {"kind": kind, "operation": "UPDATE", "name": NAME, **more}
        document = review({"metadata": {"name": NAME}}, **said)
        for replica in replicas:
            answer = await ask(session, replica.url, kube.bundles()[0], document, "/protect")
            assert answer["allowed"] is allowed, name
            if not allowed:
                assert answer["status"]["code"] == 403
                assert answer["status"]["message"].startswith("inject.operator_protected")
    other = review({}, kind={**kind, "kind": "Secret"}, name=NAME)
    answer = await ask(session, replicas[0].url, kube.bundles()[0], other, "/protect")
    assert not answer["allowed"]


async def test_while_the_api_is_away_nothing_is_lost(
    replicas: list[Replica], kube: KubeApi, session: aiohttp.ClientSession
) -> None:
    await holds(kube, "agents")
    bundle = kube.bundles()[0]
    document = review(pod())
    for replica in replicas:

        async def let_in(replica: Replica = replica) -> bool:
            return bool((await ask(session, replica.url, bundle, document))["allowed"])

        await until(let_in, "a pod")
    kube.down = True
    await replicas[0].program.event("operator_file_not_everywhere")
    for replica in replicas:
        assert (await ask(session, replica.url, bundle, document))["allowed"]
    kube.down = False
    kube.put_config_map(NAMESPACE, NAME, {KEY: OTHER})
    await holds(kube, "agents", OTHER)
