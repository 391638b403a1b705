"""The chart in a cluster, and the programs of its pods as processes of this machine."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

import aiohttp
import yaml

from tests.support import helm
from tests.support.canaries import CANARIES
from tests.support.kubernetes import Answer, Client, Cluster
from tests.support.procs import Program
from tests.support.waiting import until

NAMESPACE: Final = "valetkey"
RELEASE: Final = "valetkey"
INJECTOR: Final = "valetkey-injector"
RESTRICTED: Final = {"pod_security.kubernetes.io__enforce": "restricted"}
INJECTED: Final = {"valetkey__inject": "enabled"}

# All kinds that the chart has, or ever had.
KINDS: Final = (
    ("v1", "ConfigMap"), ("v1", "PersistentVolumeClaim"), ("v1", "Secret"), ("v1", "Service"),
    ("v1", "ServiceAccount"), ("apps/v1", "Deployment"), ("batch/v1", "Job"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"), ("policy/v1", "PodDisruptionBudget"),
    ("networking.k8s.io/v1", "NetworkPolicy"), ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"),
    ("monitoring.coreos.com/v1", "PodMonitor"), ("monitoring.coreos.com/v1", "PrometheusRule"),
    ("monitoring.coreos.com/v1", "ServiceMonitor"),
)  # fmt: skip

Json = dict[str, Any]


class _AsWritten(yaml.SafeLoader):
    """Times stay what they are written as."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def values(example: str = "minimal", *, of: Path = helm.CHART / "ci", **injector: Any) -> Json:
    """An example's values with an injector, whose settings some are given."""
    read: Json = yaml.load((of / f"{example}-values.yaml").read_text(), _AsWritten)
    sidecar = {
        "broker": {"url": "https://valetkey-broker.valetkey.svc:7080"},
        "collector": {"url": "https://valetkey-collector.valetkey.svc:7090"},
        "trust": {"config_map": "valetkey-ca", "key": "ca.crt"},
        "targets": {
            name: {
                "url": f"https://{name}.example.com",
                "audience": f"https://{name}.example.com",
                "credential": {"kind": "bearer"},
            }
            for name in ("tickets", "payments")
        },
    }
    read["injector"] = {"enabled": True, "settings": {"sidecar": sidecar, **injector}}
    return read


async def run_helm(
    program: str,
    cluster: Cluster,
    *arguments: str | Path,
    given: Json | None = None,
    warns: bool = False,
) -> str:
    """Helm's output; it must end well, and without a warning. ``given`` are values."""
    more: list[str | Path] = ["--kubeconfig", cluster.kubeconfig, "--namespace", NAMESPACE]
    if given is not None:
        file = cluster.directory / "values.json"
        file.write_text(json.dumps(given))
        more += ["--values", file]
    done = await asyncio.to_thread(helm.run, program, *arguments, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert warns or "warn" not in done.stderr.lower(), done.stderr
    return done.stdout


async def uninstall(program: str, client: Client) -> set[tuple[str, str]]:
    """What is left of it: kind and name of all objects with its label, and what the injector made."""
    await run_helm(program, client.cluster, "uninstall", RELEASE, "--ignore-not-found")
    left = set()
    for version, kind in KINDS:
        path = await client.path(version, kind)
        for item in (await client.call("GET", path)).ok()["items"]:
            ours = item["metadata"].get("labels", {}).get("app.kubernetes.io/instance") == RELEASE
            if ours or item["metadata"]["name"].startswith(f"{RELEASE}-"):
                left.add((kind, item["metadata"]["name"]))
    return left


async def live(client: Client, manifests: str) -> dict[tuple[str, str], Json]:
    """What the cluster has of them by now; all are there."""
    found = {}
    for key, document in helm.objects(manifests).items():
        found[key] = (await client.get(document)).ok()
    return found


async def add_prometheus(client: Client) -> None:
    """The resources that the Prometheus Operator brings; they are served when this returns."""
    for definition in helm.prometheus_definitions():
        (await client.create(definition)).ok()
        path = f"/apis/{definition['spec']['group']}/v1/{definition['spec']['names']['plural']}"

        async def served(path: str = path) -> bool:
            return (await client.call("GET", path)).status == 200

        await until(served, f"{path} is served", poll=0.1)


async def pods_of(client: Client, manifests: str) -> list[Json]:
    """What controllers would make of Deployments that the cluster has: one pod of each."""
    found = []
    for (kind, name), document in helm.objects(manifests).items():
        if kind == "Deployment":
            deployment = (await client.get(document)).ok()
            template = copy.deepcopy(deployment["spec"]["template"])
            template["metadata"] |= {"generateName": f"{name}-", "namespace": NAMESPACE}
            found.append({"apiVersion": "v1", "kind": "Pod", **template})
    return found


def restricted(*containers: Json, **spec: Any) -> Json:
    context = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    given = containers or ({"name": "app", "image": "registry.example.com/app:1"},)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "agent-", "labels": {"app": "agent"}, "annotations": {}},
        "spec": {
            "securityContext": {
                "runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{"securityContext": context, **each} for each in given],
            **spec,
        },
    }  # fmt: skip


class Calls:
    def __init__(self) -> None:
        self.made = 0
        self.failed: list[str] = []


@asynccontextmanager
async def calling(
    make: Callable[[], Awaitable[Answer]], *, where: str = "initContainers"
) -> AsyncIterator[Calls]:
    """Somebody makes pods all the time, each of which is to have a sidecar, as the first there."""
    calls = Calls()

    async def call() -> None:
        while True:
            answer = await make()
            calls.made += 1
            first = answer.body.get("spec", {}).get(where, [{}])[0]
            if answer.status != 201 or first.get("name") != "valetkey":
                calls.failed.append(answer.message)
            await asyncio.sleep(0.01)

    task = asyncio.create_task(call())
    try:
        yield calls
        assert not task.done(), task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def bundles(client: Client) -> set[str]:
    """What both webhook configurations trust."""
    found = set()
    for kind in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"):
        path = f"/apis/admissionregistration.k8s.io/v1/{kind}/{INJECTOR}"
        (webhook,) = (await client.call("GET", path)).ok()["webhooks"]
        found.add(base64.b64decode(webhook["clientConfig"]["caBundle"]).decode())
    return found


class Replica:
    """An injector as its pod would run: settings, token and CA as its Deployment mounts them."""

    def __init__(self, directory: Path, settings: str, token: str, cluster: Cluster) -> None:
        directory.mkdir(parents=True)
        tree = yaml.safe_load(settings)
        account = directory / "account"
        account.mkdir()
        (account / "token").write_text(token)
        (account / "namespace").write_text(NAMESPACE)
        CANARIES.add(token, name="the injector's token", allow=[account])
        # Here, these are addresses and files of a pod of its own.
        tree["webhook"] |= {
            "bind": "127.0.0.1:0",
            "admin": "127.0.0.1:0",
            "api": {
                "url": cluster.url,
                "ca_file": str(cluster.ca_file),
                "token_file": str(account / "token"),
                "namespace_file": str(account / "namespace"),
            },
        }
        tree["webhook"].setdefault("linger", "1s")
        file = directory / "injector.yaml"
        file.write_text(yaml.safe_dump(tree))
        self.program = Program.of("injector", file, directory)
        self.port = 0

    async def start(self) -> None:
        """Until it is ready, as its probe says."""
        self.program.start()
        ports = {}
        for name in ("admin", "webhook"):
            line = await self.program.event(
                "listening", where=lambda line, name=name: line["listener"] == name
            )
            ports[name] = line["port"]
        self.port = ports["webhook"]
        self.admin = f"http://127.0.0.1:{ports['admin']}"
        await self.program.ready(f"{self.admin}/readyz")

    async def metrics(self) -> str:
        async with aiohttp.ClientSession() as session, session.get(f"{self.admin}/metrics") as got:
            return await got.text()
