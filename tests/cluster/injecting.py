"""The injector under a real API server: the chart's objects, its Service, its rights, its webhooks.

Two replicas run as processes with a token of the chart's service account. The API server finds them by
the Service that the webhooks name, over TLS that they made themselves.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import pytest_asyncio

from tests.cluster import expected
from tests.cluster.installed import (
    INJECTED,
    INJECTOR,
    NAMESPACE,
    RELEASE,
    RESTRICTED,
    Replica,
    bundles,
    calling,
    restricted,
    run_helm,
    values,
)
from tests.cluster.others import Others
from tests.cluster.shapes import FEATURES, shapes
from tests.support import helm, kubernetes
from tests.support.kubernetes import Answer, Client, Cluster, Service
from tests.support.waiting import until
from valetkey.injector.core.rotation import State

pytestmark = [
    pytest.mark.skipif(bool(kubernetes.missing()), reason=kubernetes.missing()),
    pytest.mark.skipif(bool(helm.missing()), reason=helm.missing()),
    pytest.mark.asyncio(loop_scope="module"),
]

DAY: Final = 86_400.0
PODS: Final = 200
AT_ONCE: Final = 6
SECRET: Final = f"/api/v1/namespaces/{NAMESPACE}/secrets/{INJECTOR}-tls"
KINDS: Final = ("mutatingwebhookconfigurations", "validatingwebhookconfigurations")
# Where something is injected: the namespace of the twins, where nothing is.
TWINS: Final = {"agents": "agents-twins", "loose": "loose-twins", "bounded": "bounded-twins"}

Json = dict[str, Any]


@dataclass
class Stand:
    cluster: Cluster
    client: Client
    service: Service
    replicas: list[Replica]

    async def make(self, pod: Json, namespace: str, **query: str) -> Answer:
        made = copy.deepcopy(pod)
        made["metadata"]["namespace"] = namespace
        return await self.client.create(made, **query)

    async def make_both(self, pod: Json, namespace: str) -> tuple[Answer, Json]:
        """With what the API server makes of it where nothing is injected."""
        twin = await self.make(pod, TWINS[namespace])
        return await self.make(pod, namespace), twin.ok()

    def up(self) -> None:
        """What the endpoints' controller does with readiness."""
        self.service.endpoints = [each.port for each in self.replicas if each.program.running]

    async def count(self, pattern: str) -> float:
        """A metric's sum over both replicas."""
        texts = [await replica.metrics() for replica in self.replicas]
        return sum(float(value) for text in texts for value in re.findall(pattern, text))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stand(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stand]:
    async with Client(cluster) as client:
        await client.add_namespace(NAMESPACE, **RESTRICTED)
        for name in ("agents", "bounded"):
            await client.add_namespace(name, **RESTRICTED, **INJECTED)
            await client.add_namespace(TWINS[name], **RESTRICTED)
        await client.add_namespace("loose", **INJECTED)
        await client.add_namespace(TWINS["loose"])
        await client.add_namespace("monitoring", **INJECTED)
        for name in ("agents", TWINS["agents"]):
            account = {"name": "bot", "namespace": name}
            await client.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
        given = values(
            pods={"excluded": ["monitoring"]},
            redirect={"image": "registry.example.com/redirect:1"},
        )
        await run_helm("helm3", cluster, "install", RELEASE, helm.CHART, given=given)
        path = f"/api/v1/namespaces/{NAMESPACE}"
        address = (await client.call("GET", f"{path}/services/{INJECTOR}")).ok()["spec"]
        settings = (await client.call("GET", f"{path}/configmaps/{INJECTOR}")).ok()["data"]
        token = await client.token_of(NAMESPACE, INJECTOR)
        quick = settings["injector.yaml"].replace(
            "  own:\n", "  own:\n    check_every: 1s\n    overlap: 5s\n"
        )
        directory = Path(tmp_path_factory.mktemp("replicas"))
        replicas = [Replica(directory / name, quick, token, cluster) for name in ("one", "two")]
        async with Service(address["clusterIP"], 443) as service:
            stand = Stand(cluster, client, service, replicas)
            try:
                await asyncio.gather(*(replica.start() for replica in replicas))
                stand.up()
                await until(lambda: _is_injecting(stand), "the first pod with a sidecar", poll=0.2)
                yield stand
            finally:
                for replica in replicas:
                    replica.program.kill()


async def _is_injecting(stand: Stand) -> bool:
    return (await stand.make(SIMPLE, "agents", dryRun="All")).status == 201


SIMPLE: Final = restricted()


# --- 200 pods, while certificates are exchanged -----------------------------------------------------


async def test_each_of_many_pods_comes_out_right_while_certificates_are_exchanged(
    stand: Stand,
) -> None:
    """All pods of `shapes`, beside their twins; and the same again, made of what came out."""
    seen: Counter[str] = Counter()
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(shape: Any) -> None:
        async with gate:
            answer, twin = await stand.make_both(shape.pod, "agents")
            pod = answer.ok()
        seen.update(shape.features)
        if "opted_out" in shape.features:
            expected.check_untouched(pod, twin)
            return
        try:
            expected.check(pod, twin)
        except AssertionError as error:
            error.add_note(f"pod {shape.number}: {', '.join(sorted(shape.features))}")
            raise
        told = [each for each in answer.warnings if "is the pod's own and was kept" in each]
        assert len(told) == expected.kept(pod)
        grace = twin["spec"]["terminationGracePeriodSeconds"]
        assert any("calls in flight may be cut" in each for each in answer.warnings) == (grace < 30)
        async with gate:
            again = await stand.make(_anew(pod, f"again-{shape.number}"), "agents")
        expected.check_untouched(again.ok(), pod)
        assert again.warnings == answer.warnings

    async with calling(lambda: stand.make(SIMPLE, "agents", dryRun="All")) as calls:
        exchange = asyncio.create_task(_exchange_certificates(stand))
        await asyncio.gather(*(one(shape) for shape in shapes(PODS)))
        await exchange
        before = calls.made
        await until(lambda: calls.made > before + 10, "calls by the new CA alone")
    assert calls.failed == []
    assert calls.made > 30
    assert min(seen[name] for name in FEATURES) >= 5


def _anew(pod: Json, name: str) -> Json:
    """What came out, as somebody would write it who has copied it."""
    keys = ("labels", "annotations", "ownerReferences", "generateName")
    metadata = {key: pod["metadata"][key] for key in keys if key in pod["metadata"]}
    if "generateName" not in metadata:
        metadata["name"] = name
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod["spec"]}


async def _stored(stand: Stand) -> tuple[Json, State]:
    secret = (await stand.client.call("GET", SECRET)).ok()
    encoded = base64.b64decode(secret["data"]["state.json"])
    return secret, msgspec.json.decode(encoded, type=State)


async def _exchange_certificates(stand: Stand) -> None:
    """As it comes when a CA gets past half of its life and a leaf past two thirds."""
    secret, state = await _stored(stand)
    (old,) = state.authorities
    replace = msgspec.structs.replace
    aged = State(
        (replace(old, made=old.made - 50 * DAY),),
        replace(state.leaf, made=state.leaf.made - 6 * DAY),
    )
    encoded = base64.b64encode(msgspec.json.encode(aged)).decode()
    put = await stand.client.call("PUT", SECRET, {**secret, "data": {"state.json": encoded}})
    put.ok()

    async def is_over() -> bool:
        _, now = await _stored(stand)
        (first, *more) = now.authorities
        return not more and first.certificate != old.certificate

    both = {old.certificate}

    async def trusts_two() -> bool:
        (bundle, *others) = await bundles(stand.client)
        both.add(bundle.replace(old.certificate, ""))
        return not others and bundle.count("BEGIN CERTIFICATE") == 2

    await until(trusts_two, "trust in both", poll=0.2)
    await until(is_over, "the end of the old CA", seconds=60, poll=0.5)

    async def trusts_one() -> bool:
        return await bundles(stand.client) == {(await _stored(stand))[1].authorities[0].certificate}

    await until(trusts_one, "its last trace", poll=0.2)


# --- what the API server's own plugins, and others, make of pods -------------------------------------


async def test_a_limit_range_adds_and_nothing_is_refused(stand: Stand) -> None:
    for namespace in ("bounded", TWINS["bounded"]):
        limits = {
            "type": "Container",
            "default": {"cpu": "2", "memory": "1Gi"},
            "defaultRequest": {"cpu": "20m"},
        }
        metadata = {"name": "limits", "namespace": namespace}
        spec = {"limits": [limits]}
        (
            await stand.client.create(
                {"apiVersion": "v1", "kind": "LimitRange", "metadata": metadata, "spec": spec}
            )
        ).ok()
    # The plugin learns of it a moment later.
    twin: Json = {}
    for namespace in ("bounded", TWINS["bounded"]):

        async def limited(namespace: str = namespace) -> bool:
            answer = await stand.make(SIMPLE, namespace, dryRun="All")
            return "limits" in answer.ok()["spec"]["containers"][0].get("resources", {})

        await until(limited, "a pod with limits", poll=0.1)
    answer, twin = await stand.make_both(SIMPLE, "bounded")
    pod = answer.ok()
    expected.check(pod, twin, limited=True)
    sidecar = pod["spec"]["initContainers"][0]
    assert sidecar["resources"]["limits"] == {"cpu": "2", "memory": "256Mi"}
    again = await stand.make(_anew(pod, "again"), "bounded")
    expected.check_untouched(again.ok(), pod)


@pytest.mark.parametrize("name", ["a-adder", "z-adder"])
async def test_a_container_that_another_webhook_adds_is_equipped(stand: Stand, name: str) -> None:
    """Configurations are called by name: one before ours, one after, which has ours called again."""
    injected = r'reviews_total\{code="",result="injected",webhook="mutate"\} (\S+)'
    async with Others(stand.client, TWINS["loose"]) as others:
        await others.register(name, "add")
        before = await stand.count(injected)
        answer = await stand.make(_labelled(SIMPLE, name), "agents")
        after = await stand.count(injected)
    app, late = answer.ok()["spec"]["containers"]
    assert late["name"] == "late"
    assert late["env"] == app["env"]
    assert [mount["name"] for mount in late["volumeMounts"]] == ["valetkey-trust"]
    assert after - before == (2 if name == "z-adder" else 1)


TAMPERED: Final = {
    "image": "inject.sidecar_changed",
    "variable": "inject.sidecar_changed",
    "removed": "inject.sidecar_missing",
    "volume": "inject.sidecar_changed",
    "token": "inject.token_mounted",
    "token_of_its_own": "inject.token_requested",
    "processes": "inject.shared_processes",
    "opt_out_of_checks": "inject.annotation_unknown",
}


@pytest.mark.parametrize("way", TAMPERED)
async def test_a_sidecar_that_a_later_webhook_changed_is_found(stand: Stand, way: str) -> None:
    """It does so when it is called again itself: by then nobody else is, but what validates."""
    async with Others(stand.client, TWINS["loose"]) as others:
        await others.register("z-tamperer", f"tamper/{way}", reinvocation="IfNeeded")
        answer = await stand.make(_labelled(SIMPLE, "z-tamperer"), "loose")
    assert answer.status in {403, 422}, answer.message
    assert (
        f'webhook "check.valetkey.example" denied the request: {TAMPERED[way]}:' in answer.message
    )


async def test_a_webhook_that_changes_it_at_once_is_found_by_ours_when_it_is_called_again(
    stand: Stand,
) -> None:
    async with Others(stand.client, TWINS["loose"]) as others:
        await others.register("z-tamperer", "tamper-at-once/image")
        answer = await stand.make(_labelled(SIMPLE, "z-tamperer"), "loose")
    assert (
        'webhook "inject.valetkey.example" denied the request: inject.name_taken:' in answer.message
    )


def _labelled(pod: Json, name: str) -> Json:
    made = copy.deepcopy(pod)
    made["metadata"]["labels"]["webhook"] = name
    return made


# --- refusals ---------------------------------------------------------------------------------------

TOKEN: Final = {"serviceAccountToken": {"path": "token", "audience": expected.BROKER}}
REFUSED: Final[dict[str, tuple[Json, int, str]]] = {
    "host network": ({"hostNetwork": True}, 403, "inject.host_network"),
    "host processes": ({"hostPID": True}, 403, "inject.shared_processes"),
    "shared processes": ({"shareProcessNamespace": True}, 403, "inject.shared_processes"),
    "Windows": ({"os": {"name": "windows"}}, 422, "inject.os"),
    "our name": ({"containers": [{"name": "valetkey", "image": "a"}]}, 409, "inject.name_taken"),
    "our volume": ({"volumes": [{"name": "valetkey-token", "emptyDir": {}}]}, 409, "inject.name_taken"),
    "the broker's token": ({"volumes": [{"name": "t", "projected": {"sources": [TOKEN]}}]}, 403, "inject.token_requested"),
    "our token's volume": ({"containers": [{"name": "a", "image": "a", "volumeMounts": [{"name": "valetkey-token", "mountPath": "/t"}]}]}, 403, "inject.token_mounted"),
    "our spool": ({"containers": [{"name": "a", "image": "a", "volumeMounts": [{"name": "valetkey-spool", "mountPath": "/t"}]}]}, 403, "inject.volume_mounted"),
    "our port": ({"containers": [{"name": "a", "image": "a", "ports": [{"containerPort": 7071}]}]}, 409, "inject.port_taken"),
    "our path": ({"volumes": [{"name": "v", "emptyDir": {}}], "containers": [{"name": "a", "image": "a", "volumeMounts": [{"name": "v", "mountPath": "/var/run/valetkey"}]}]}, 409, "inject.path_taken"),
}  # fmt: skip
ANNOTATED: Final = {
    "valetkey/mod": ("forward", 422, "inject.annotation_unknown"),
    "valetkey/mode": ("Forward", 422, "inject.mode_invalid"),
    "valetkey/inject": ("yes", 422, "inject.inject_invalid"),
    "valetkey/targets": ("tickets, payments", 422, "inject.targets_invalid"),
    "valetkey/routes": ("../routes", 422, "inject.routes_invalid"),
    "valetkey/resources": ('{"limits":{"gpu":"1"}}', 422, "inject.resources_invalid"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_pod_that_can_have_no_sidecar_is_refused(stand: Stand, name: str) -> None:
    spec, status, code = REFUSED[name]
    await _is_refused(stand, restricted(**copy.deepcopy(spec)), status, code)


@pytest.mark.parametrize("name", ANNOTATED)
async def test_an_annotation_that_is_written_wrong_refuses(stand: Stand, name: str) -> None:
    value, status, code = ANNOTATED[name]
    pod = restricted()
    pod["metadata"]["annotations"][name] = value
    await _is_refused(stand, pod, status, code)


async def test_a_target_that_there_is_not_refuses(stand: Stand) -> None:
    pod = restricted()
    pod["metadata"]["annotations"]["valetkey/targets"] = "tickets,unknown"
    await _is_refused(stand, pod, 403, "inject.target_unknown")


async def _is_refused(stand: Stand, pod: Json, status: int, code: str) -> None:
    answer = await stand.make(pod, "loose")
    assert (answer.status, answer.body["kind"]) == (status, "Status"), answer.message
    assert f'webhook "inject.valetkey.example" denied the request: {code}:' in answer.message


async def test_the_redirect_needs_more_than_restricted_allows(stand: Stand) -> None:
    pod = restricted()
    pod["metadata"]["annotations"]["valetkey/mode"] = "transparent"
    answer = await stand.make(pod, "agents")
    assert answer.status == 403
    assert 'violates PodSecurity "restricted' in answer.message
    redirect, sidecar = (await stand.make(pod, "loose")).ok()["spec"]["initContainers"]
    assert (redirect["name"], sidecar["name"]) == ("valetkey-redirect", "valetkey")
    assert redirect["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    assert "for uid in 1000;" in redirect["command"][2]


# --- pods that run ----------------------------------------------------------------------------------

DEBUG: Final = {
    "plain": ({}, ""),
    "beside the app": ({"targetContainerName": "app"}, ""),
    "beside the sidecar": ({"targetContainerName": "valetkey"}, "inject.shared_processes"),
    "with the token": ({"volumeMounts": [{"name": "valetkey-token", "mountPath": "/t"}]}, "inject.token_mounted"),
    "with the spool": ({"volumeMounts": [{"name": "valetkey-spool", "mountPath": "/t"}]}, "inject.volume_mounted"),
}  # fmt: skip


@pytest.mark.parametrize("name", DEBUG)
async def test_a_debug_container_that_comes_later(stand: Stand, name: str) -> None:
    more, code = DEBUG[name]
    made = (await stand.make(SIMPLE, "agents")).ok()
    debug = {**restricted()["spec"]["containers"][0], "name": "debug", **more}
    answer = await _patch(stand, made, {"ephemeralContainers": [debug]}, "/ephemeralcontainers")
    if code:
        assert f"denied the request: {code}:" in answer.message
    else:
        assert answer.ok()["spec"]["ephemeralContainers"][0]["name"] == "debug"


async def test_of_a_pod_that_runs_only_the_sidecar_stays_as_it_is(stand: Stand) -> None:
    made = (await stand.make(SIMPLE, "agents")).ok()
    other = [{"name": "valetkey", "image": "registry.example.com/other:1"}]
    answer = await _patch(stand, made, {"initContainers": other})
    assert "denied the request: inject.sidecar_changed:" in answer.message
    app = [{"name": "app", "image": "registry.example.com/app:2"}]
    assert (await _patch(stand, made, {"containers": app})).status == 200
    # Resources are the pod's to choose, at its start and later.
    larger = [{"name": "valetkey", "resources": {"limits": {"memory": "512Mi"}}}]
    answer = await _patch(stand, made, {"initContainers": larger}, "/resize")
    assert answer.ok()["spec"]["initContainers"][0]["resources"]["limits"] == {"memory": "512Mi"}
    path = await stand.client.place(made, named=True)
    labels = {"metadata": {"labels": {"more": "yes"}}}
    merge = "application/merge-patch+json"
    assert (await stand.client.call("PATCH", path, labels, media=merge)).status == 200


async def _patch(stand: Stand, pod: Json, spec: Json, under: str = "") -> Answer:
    path = await stand.client.place(pod, named=True) + under
    media = "application/strategic-merge-patch+json"
    return await stand.client.call("PATCH", path, {"spec": spec}, media=media)


# --- namespaces, outages, rights --------------------------------------------------------------------


async def test_excluded_namespaces_are_not_even_asked_about(stand: Stand) -> None:
    reviews = r"reviews_total\{[^}]*\} (\S+)"
    await _label(stand, NAMESPACE, "enabled")
    await _label(stand, "kube-system", "enabled")
    await _made_by_the_test(stand, "kube-system")
    before = await stand.count(reviews)
    twin = (await stand.make(SIMPLE, TWINS["agents"])).ok()
    for namespace in ("monitoring", NAMESPACE, "kube-system"):
        expected.check_untouched((await stand.make(SIMPLE, namespace)).ok(), twin)
    assert await stand.count(reviews) == before


async def _made_by_the_test(stand: Stand, namespace: str) -> None:
    """The API server makes this namespace; its service account is a controller's work."""
    account = {"name": "default", "namespace": namespace}
    answer = await stand.client.create(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}
    )
    assert answer.status in {201, 409}


async def _label(stand: Stand, namespace: str, value: str) -> None:
    labels = {"metadata": {"labels": {"valetkey/inject": value}}}
    path = f"/api/v1/namespaces/{namespace}"
    media = "application/merge-patch+json"
    (await stand.client.call("PATCH", path, labels, media=media)).ok()


async def test_without_any_replica_no_pod_is_let_through(stand: Stand) -> None:
    running = (await stand.make(SIMPLE, "agents")).ok()
    await _label(stand, NAMESPACE, "enabled")
    await _label(stand, "kube-system", "enabled")
    await _made_by_the_test(stand, "kube-system")
    for replica in stand.replicas:
        replica.program.kill()
    stand.up()
    try:
        for pod in (SIMPLE, _opted_out()):
            answer = await stand.make(pod, "agents")
            assert answer.status == 500
            assert 'failed calling webhook "inject.valetkey.example"' in answer.message
        other = [{"name": "valetkey", "image": "registry.example.com/other:1"}]
        assert (await _patch(stand, running, {"initContainers": other})).status == 500
        # The injector's own pods, the system's, and whatever nobody labelled, start.
        for namespace in (NAMESPACE, "kube-system", "monitoring", TWINS["agents"]):
            assert (await stand.make(SIMPLE, namespace)).status == 201, namespace
        # Nodes go on: what they say of pods and to what node those go is nobody's business here.
        path = await stand.client.place(running, named=True)
        binding = {
            "apiVersion": "v1", "kind": "Binding",
            "metadata": {"name": running["metadata"]["name"], "namespace": "agents"},
            "target": {"kind": "Node", "name": "node-1"},
        }  # fmt: skip
        assert (await stand.client.call("POST", f"{path}/binding", binding)).status == 201
        status = {"status": {"message": "said by a node"}}
        merge = "application/merge-patch+json"
        assert (
            await stand.client.call("PATCH", f"{path}/status", status, media=merge)
        ).status == 200
        gone = await stand.client.call("DELETE", path, gracePeriodSeconds="0")
        assert gone.status == 200
    finally:
        await asyncio.gather(*(replica.start() for replica in stand.replicas))
        stand.up()
    await until(lambda: _is_injecting(stand), "a pod with a sidecar", poll=0.2)


def _opted_out() -> Json:
    pod = restricted()
    pod["metadata"]["annotations"]["valetkey/inject"] = "false"
    return pod


async def test_replicas_that_are_restarted_one_after_the_other_cost_no_pod(stand: Stand) -> None:
    """Told to stop, a replica goes on until the endpoints have left it out."""
    async with calling(lambda: stand.make(SIMPLE, "agents", dryRun="All")) as calls:
        for replica in stand.replicas:
            replica.program.terminate()
            await replica.program.event("draining")
            stand.service.endpoints.remove(replica.port)
            assert await replica.program.ended() == 0
            await replica.start()
            stand.up()
            before = calls.made
            await until(lambda before=before: calls.made > before + 10, "calls")  # type: ignore[misc]
    assert calls.failed == []


async def test_the_injector_may_what_it_does_and_no_more(stand: Stand) -> None:
    """Each right that the chart gives was made use of by now, and nothing else was tried."""
    user = f"system:serviceaccount:{NAMESPACE}:{INJECTOR}"
    used = set()
    for event in stand.cluster.audited():
        if event["user"]["username"] == user and "objectRef" in event:
            about = event["objectRef"]
            assert event["responseStatus"]["code"] != 403, event
            name = about.get("name", "") if event["verb"] != "create" else ""
            used.add((event["verb"], about["resource"], about.get("namespace", ""), name))
    given = {
        ("create", "secrets", NAMESPACE, ""),
        *((verb, "secrets", NAMESPACE, f"{INJECTOR}-tls") for verb in ("get", "update")),
        *((verb, kind, "", INJECTOR) for verb in ("get", "update") for kind in KINDS),
    }
    assert used == given
    assert await kubernetes.rules_of(stand.client, NAMESPACE, INJECTOR) == {
        (verb, resource, name) for verb, resource, _, name in given
    }
    # In other namespaces: nothing of all that is in one.
    async with Client(stand.cluster, await stand.client.token_of(NAMESPACE, INJECTOR)) as injector:
        elsewhere = await kubernetes.rules(injector, "agents")
    assert not [rule for rule in elsewhere if rule[1] == "secrets"]


# --- how long it takes ------------------------------------------------------------------------------


async def test_how_long_webhooks_take_is_known(stand: Stand, figures: list[str]) -> None:
    """One after the other, with and without a sidecar in turn; what each webhook took, by the API server."""
    took: dict[str, list[float]] = {"agents": [], TWINS["agents"]: []}
    pod = restricted(*({"name": f"app-{number}", "image": "a"} for number in range(3)))
    before = await _durations(stand)
    for _ in range(300):
        for namespace, seconds in took.items():
            began = time.perf_counter()
            (await stand.make(pod, namespace, dryRun="All")).ok()
            seconds.append(time.perf_counter() - began)
    for namespace, title in (("agents", "with a sidecar"), (TWINS["agents"], "without")):
        figures.append(f"a pod is made {title}: {_quantiles(took[namespace])}")
    for name, buckets in (await _durations(stand)).items():
        counts = {edge: count - before[name][edge] for edge, count in buckets.items()}
        total = counts[float("inf")]
        assert total == 300, name
        within = ", ".join(
            f"{edge * 1000:g} ms {counts[edge] / total:.1%}" for edge in sorted(counts)[:3]
        )
        figures.append(f"{name} by the API server: within {within}")
    for name in ("mutate", "validate"):
        total = await stand.count(rf'reviews_seconds_sum\{{webhook="{name}"\}} (\S+)')
        count = await stand.count(rf'reviews_seconds_count\{{webhook="{name}"\}} (\S+)')
        figures.append(
            f"{name} by the injector: {total / count * 1000:.2f} ms a review on average, {count:.0f} reviews"
        )
    # Far below the five seconds after which the API server gives up.
    assert sorted(took["agents"])[-3] < 5


def _quantiles(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    return ", ".join(
        f"p{share} {ordered[len(ordered) * share // 100] * 1000:.1f} ms" for share in (50, 90, 99)
    )


async def _durations(stand: Stand) -> dict[str, dict[float, int]]:
    """``apiserver_admission_webhook_admission_duration_seconds`` of what was made: cumulated."""
    text = await stand.client.text("/metrics")
    found: dict[str, dict[float, int]] = {}
    for labels, count in re.findall(
        r"apiserver_admission_webhook_admission_duration_seconds_bucket\{([^}]*)\} (\d+)", text
    ):
        of = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if of["name"].endswith(".valetkey.example") and (of["operation"], of["rejected"]) == (
            "CREATE",
            "false",
        ):
            found.setdefault(of["name"], {})[float(of["le"])] = int(count)
    return found


# --- and in the end ---------------------------------------------------------------------------------


async def test_no_pod_came_without_its_sidecar(stand: Stand) -> None:
    """Of all that this file made, where it was to be."""
    for namespace in ("agents", "loose", "bounded"):
        pods = (await stand.client.call("GET", f"/api/v1/namespaces/{namespace}/pods")).ok()[
            "items"
        ]
        assert pods
        for pod in pods:
            names = [each["name"] for each in pod["spec"].get("initContainers", ())]
            out = pod["metadata"].get("annotations", {}).get("valetkey/inject") == "false"
            assert ("valetkey" in names) is not out, pod["metadata"]["name"]
