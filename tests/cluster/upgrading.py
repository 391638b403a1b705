"""From a chart of before to this one and back, by either Helm, with an injector at work meanwhile.

``charts`` has the charts of before, packed as they were, with their examples' values.
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
    INJECTED,
    INJECTOR,
    NAMESPACE,
    RELEASE,
    RESTRICTED,
    Replica,
    add_prometheus,
    bundles,
    calling,
    live,
    pods_of,
    restricted,
    run_helm,
    uninstall,
    values,
)
from tests.support import helm, kubernetes
from tests.support.kubernetes import Client, Cluster, Service
from tests.support.waiting import until

pytestmark = [
    pytest.mark.skipif(bool(kubernetes.missing()), reason=kubernetes.missing()),
    pytest.mark.skipif(bool(helm.missing()), reason=helm.missing()),
    pytest.mark.asyncio(loop_scope="module"),
]

CHARTS: Final = Path(__file__).parent / "charts"
BEFORE: Final = sorted(path.name for path in CHARTS.iterdir() if path.is_dir())
NOW: Final = yaml.safe_load((helm.CHART / "Chart.yaml").read_text())["version"]
# Who installed, and who upgrades and goes back.
WAYS: Final = [("helm3", "helm3"), ("helm4", "helm4"), ("helm3", "helm4")]
SECRET: Final = f"/api/v1/namespaces/{NAMESPACE}/secrets/{INJECTOR}-tls"
DIGEST: Final = f"sha256:{'1' * 64}"

Json = dict[str, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(cluster: Cluster) -> AsyncIterator[Client]:
    async with Client(cluster) as client:
        await client.add_namespace(NAMESPACE, **RESTRICTED)
        await client.add_namespace("agents", **RESTRICTED, **INJECTED)
        await add_prometheus(client)
        yield client


def packed(version: str) -> Path:
    return CHARTS / f"{RELEASE}-{version}.tgz"


def before(version: str, example: str) -> Json:
    return values(example, of=CHARTS / version)


def changed(example: str) -> Json:
    """Another image, other settings, other labels and numbers."""
    given = values(example)
    given["image"]["digest"] = DIGEST
    given["commonLabels"] = {**given.get("commonLabels", {}), "team": "others"}
    given["broker"]["settings"]["log_level"] = "debug"
    given["injector"]["replicas"] = 3
    given["networkPolicy"] = {"enabled": False}
    return given


def said(document: Json) -> Json:
    """What of an object is not the API server's: also what the injector wrote into it."""
    return {key: held for key, held in document.items() if key not in {"metadata", "status"}}


@asynccontextmanager
async def an_injector(client: Client, directory: Path) -> AsyncIterator[Replica]:
    path = f"/api/v1/namespaces/{NAMESPACE}"
    service = (await client.call("GET", f"{path}/services/{INJECTOR}")).ok()["spec"]
    settings = (await client.call("GET", f"{path}/configmaps/{INJECTOR}")).ok()["data"]
    token = await client.token_of(NAMESPACE, INJECTOR)
    replica = Replica(directory, settings["injector.yaml"], token, client.cluster)
    async with Service(service["clusterIP"], 443) as port:
        try:
            await replica.start()
            port.endpoints = [replica.port]
            await until(lambda: _is_injecting(client), "a pod with a sidecar", poll=0.2)
            yield replica
        finally:
            replica.program.kill()


def agent() -> Json:
    pod = restricted()
    pod["metadata"]["namespace"] = "agents"
    return pod


async def _is_injecting(client: Client) -> bool:
    return (await client.create(agent(), dryRun="All")).status == 201


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _nothing_of_it_stays(client: Client) -> AsyncIterator[None]:
    """Uninstalled at the end, and what is kept for the next one is taken away."""
    yield
    for kind, name in await uninstall("helm4", client):
        assert (kind, name) == ("Secret", f"{INJECTOR}-tls") or kind == "PersistentVolumeClaim"
        path = await client.path("v1", kind, NAMESPACE, name)
        await client.call("DELETE", path)
        # No controller takes off what protects a claim.
        merge = "application/merge-patch+json"
        await client.call("PATCH", path, {"metadata": {"finalizers": None}}, media=merge)


@pytest.mark.parametrize("version", BEFORE)
@pytest.mark.parametrize(("first", "then"), WAYS)
async def test_up_and_back_while_pods_are_made(
    client: Client, tmp_path: Path, version: str, first: str, then: str
) -> None:
    """No pod fails, and what the injector wrote (its CA, trust in it) stays at every step."""
    cluster = client.cluster
    old = before(version, "minimal")
    await run_helm(first, cluster, "install", RELEASE, packed(version), given=old)
    async with an_injector(client, tmp_path / "replica") as replica:
        manifests = await run_helm(first, cluster, "get", "manifest", RELEASE)
        of_before = await live(client, manifests)
        secret = (await client.call("GET", SECRET)).ok()
        trusted = await bundles(client)
        assert len(trusted) == 1

        async def nothing_is_lost(after: dict[tuple[str, str], Json]) -> None:
            assert (await client.call("GET", SECRET)).ok() == secret
            assert await bundles(client) == trusted
            for key in after.keys() & of_before.keys():
                if key[0] == "NetworkPolicy":
                    continue  # made anew on the way back
                assert after[key]["metadata"]["uid"] == of_before[key]["metadata"]["uid"], key

        async with calling(lambda: client.create(agent(), dryRun="All")) as calls:
            for revision in (2, 4):
                await run_helm(
                    then, cluster, "upgrade", RELEASE, helm.CHART, given=changed("minimal")
                )
                upgraded = await run_helm(then, cluster, "get", "manifest", RELEASE)
                after = await live(client, upgraded)
                await nothing_is_lost(after)
                await _is_as_changed(client, upgraded, after)
                gone = of_before.keys() - after.keys()
                assert {kind for kind, _ in gone} == {"NetworkPolicy"}
                for key in gone:
                    assert (await client.get(of_before[key])).status == 404, key
                # Back to what was there at first, by its number and by the one before.
                number = ["1"] if revision == 2 else []
                await run_helm(then, cluster, "rollback", RELEASE, *number)
                back = await live(client, manifests)
                await nothing_is_lost(back)
                for key, document in back.items():
                    assert said(document) == said(of_before[key]), key
        assert calls.failed == []
        assert calls.made > 20
        # With what the API server says is its certificate by now, it may still write.
        assert replica.program.running


async def _is_as_changed(
    client: Client, manifests: str, after: dict[tuple[str, str], Json]
) -> None:
    for (kind, name), document in after.items():
        assert document["metadata"]["labels"]["team"] == "others", (kind, name)
        if kind == "Deployment":
            (container,) = document["spec"]["template"]["spec"]["containers"]
            assert container["image"].endswith(DIGEST)
    assert after["Deployment", INJECTOR]["spec"]["replicas"] == 3
    assert "log_level: debug" in after["ConfigMap", f"{RELEASE}-broker"]["data"]["broker.yaml"]
    for pod in await pods_of(client, manifests):
        answer = await client.create(pod, dryRun="All")
        assert (answer.status, answer.warnings) == (201, ()), answer.message


@pytest.mark.parametrize("version", BEFORE)
@pytest.mark.parametrize("program", ["helm3", "helm4"])
async def test_a_fleet_up_and_back(client: Client, version: str, program: str) -> None:
    """Everything that there is: scaling, policies, metrics, PostgreSQL."""
    cluster = client.cluster
    given = before(version, "fleet")
    await run_helm(program, cluster, "install", RELEASE, packed(version), given=given)
    manifests = await run_helm(program, cluster, "get", "manifest", RELEASE)
    of_before = await live(client, manifests)
    await run_helm(program, cluster, "upgrade", RELEASE, helm.CHART, given=changed("fleet"))
    await live(client, await run_helm(program, cluster, "get", "manifest", RELEASE))
    await run_helm(program, cluster, "rollback", RELEASE)
    for key, document in (await live(client, manifests)).items():
        assert said(document) == said(of_before[key]), key


@pytest.mark.parametrize("program", ["helm3", "helm4"])
async def test_from_sqlite_to_postgresql_and_back(client: Client, program: str) -> None:
    """The claim of SQLite is kept meanwhile, and taken up again."""
    cluster = client.cluster
    await run_helm(program, cluster, "install", RELEASE, helm.CHART, given=values("minimal"))
    manifests = await run_helm(program, cluster, "get", "manifest", RELEASE)
    of_before = await live(client, manifests)
    claim = of_before["PersistentVolumeClaim", f"{RELEASE}-broker"]
    fleet = values("fleet")
    del fleet["collector"]["volume"]  # a claim that is there does not change
    await run_helm(program, cluster, "upgrade", RELEASE, helm.CHART, given=fleet)
    kept = (await client.get(claim)).ok()
    assert kept["metadata"]["uid"] == claim["metadata"]["uid"]
    await run_helm(program, cluster, "upgrade", RELEASE, helm.CHART, given=values("minimal"))
    for key, document in (await live(client, manifests)).items():
        assert said(document) == said(of_before[key]), key
    await run_helm(program, cluster, "rollback", RELEASE)
    # Helm 4 says that the claim is there already.
    await run_helm(program, cluster, "rollback", RELEASE, "1", warns=True)
    for key, document in (await live(client, manifests)).items():
        assert said(document) == said(of_before[key]), key


@pytest.mark.parametrize("program", ["helm3", "helm4"])
async def test_a_new_chart_alone_starts_nothing_anew(
    client: Client, program: str, tmp_path: Path
) -> None:
    """Of the same programs and values: a broker on SQLite would be away meanwhile."""
    cluster = client.cluster
    await run_helm(program, cluster, "install", RELEASE, helm.CHART, given=values())
    manifests = await run_helm(program, cluster, "get", "manifest", RELEASE)
    of_before = await live(client, manifests)
    done = helm.run("helm3", "package", helm.CHART, "--version", "9.9.9", "--destination", tmp_path)
    assert done.returncode == 0, done.stderr
    (newer,) = tmp_path.glob("*.tgz")
    await run_helm(program, cluster, "upgrade", RELEASE, newer, given=values())
    for key, document in (await live(client, manifests)).items():
        assert document["metadata"]["labels"]["helm.sh/chart"] == f"{RELEASE}-9.9.9", key
        assert said(document) == said(of_before[key]), key


async def test_this_chart_is_none_of_before() -> None:
    assert NOW not in BEFORE
    assert BEFORE
