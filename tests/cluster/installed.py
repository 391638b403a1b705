"""The chart in a cluster, and the programs of its pods as processes of this machine."""

from __future__ import annotations

import asyncio
import copy
import json
from pathlib import Path
from typing import Any, Final

import aiohttp
import yaml

from tests.support import helm
from tests.support.canaries import CANARIES
from tests.support.kubernetes import Client, Cluster
from tests.support.procs import Program

NAMESPACE: Final = "valetkey"
RELEASE: Final = "valetkey"
INJECTOR: Final = "valetkey-injector"
RESTRICTED: Final = {"pod_security.kubernetes.io__enforce": "restricted"}
INJECTED: Final = {"valetkey__inject": "enabled"}

Json = dict[str, Any]


def values(example: str = "minimal", **injector: Any) -> Json:
    """An example's values with an injector, whose settings some are given."""
    read: Json = yaml.safe_load((helm.CHART / f"ci/{example}-values.yaml").read_text())
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
    program: str, cluster: Cluster, *arguments: str | Path, given: Json | None = None
) -> str:
    """Helm's output; it must end well. ``given`` are values."""
    more: list[str | Path] = ["--kubeconfig", cluster.kubeconfig, "--namespace", NAMESPACE]
    if given is not None:
        file = cluster.directory / "values.json"
        file.write_text(json.dumps(given))
        more += ["--values", file]
    done = await asyncio.to_thread(helm.run, program, *arguments, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warn" not in done.stderr.lower(), done.stderr
    return done.stdout


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
