"""The sidecar of an injected pod is started for real, with the variables and the command that it has.

Its directories and ports are the pod's; here they are moved into the test's own, and nothing else is.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.config_map import ConfigMapVolume
from tests.support.pods import loaded, pod
from tests.support.ports import free_port
from tests.support.procs import Program
from tests.support.sidecar import World, target, whole
from tests.support.waiting import until
from valetkey.injector import wait
from valetkey.injector.core import names
from valetkey.injector.core.mutation import Injected, Place, mutate

ROOT = Path(__file__).parents[2]
DIRECTORIES = (
    names.PRIVATE_DIR, names.TRUST_DIR, names.TOKEN_DIR, names.SPOOL_DIR, names.ROUTES_DIR,
    names.OPERATOR_DIR, names.ANCHORS_DIR,
)  # fmt: skip


class Node:
    """What a kubelet does with the pod's sidecar: its volumes, its files, its process.

    ``files`` are what is mounted at a directory of settings, by key.
    """

    def __init__(
        self,
        directory: Path,
        document: dict[str, Any],
        token: Path,
        files: dict[str, dict[str, Any]],
    ) -> None:
        self.ports = {port: free_port() for port in names.PORTS}
        self._directory = directory
        [self.container] = [
            each for each in document["spec"]["initContainers"] if each["name"] == names.CONTAINER
        ]
        for mount in self.container["volumeMounts"]:
            self.path(mount["mountPath"]).mkdir(parents=True)
        self.path(f"{names.TOKEN_DIR}/token").symlink_to(token)
        for place, keys in files.items():
            self.exchange(place, keys)
        python, *argv = [self.here(each) for each in self.container["command"]]
        assert python == "python3"
        self.program = Program(
            tuple(argv),
            directory,
            name="proxy",
            env={each["name"]: self.here(each["value"]) for each in self.container["env"]},
        )

    def path(self, path: str) -> Path:
        return Path(self.here(path))

    def here(self, text: str) -> str:
        for directory in DIRECTORIES:
            text = text.replace(f"{directory}/", f"{self._directory}/at{directory}/")
            if text == directory:
                text = f"{self._directory}/at{directory}"
        for port, free in self.ports.items():
            text = text.replace(f":{port}", f":{free}")
        return text

    def exchange(self, place: str, keys: dict[str, Any]) -> None:
        """Another version of a ConfigMap."""
        written = {key.replace(".", "__"): json.dumps(file) for key, file in keys.items()}
        ConfigMapVolume(self.path(place)).write(**written)

    @property
    def readyz(self) -> str:
        return f"http://127.0.0.1:{self.ports[names.ADMIN_PORT]}/readyz"


@pytest.fixture
def world(tmp_path: Path):
    world = World(tmp_path / "world")
    world.start()
    yield world
    world.broker.kill()


async def test_it_starts_serves_its_ca_and_takes_up_a_changed_config_map(
    tmp_path: Path, world: World
) -> None:
    injector = loaded(
        sidecar__broker={"url": world.url},
        sidecar__collector=None,
        sidecar__trust=None,
        sidecar__targets={
            "plain": target("http://127.0.0.1:9"),
            "bound": target("http://127.0.0.1:10"),
        },
        sidecar__python="python3",
    )
    made = mutate(pod(), Place("agents"), injector)
    assert isinstance(made, Injected)
    evil = {"broker": {"url": "https://evil.example"}, "admin": {"bind": "127.0.0.1:1"}}
    files = {names.ROUTES_DIR: {"proxy.yaml": {"routes": [whole("plain")], **evil}}}
    node = Node(tmp_path / "node", made.pod, world.token_file, files)
    node.program.start()
    try:
        # What the startup probe, or the hook of a plain sidecar, waits for.
        await node.program.ready(node.readyz)
        assert await asyncio.to_thread(wait.main, ["ready", node.readyz, "0"]) == 0
        trust = node.path(names.TRUST_DIR)
        assert {each.name for each in trust.iterdir()} == {"ca.pem", "bundle.pem", "trust.p12"}
        key = node.path(f"{names.PRIVATE_DIR}/ca.key")
        assert key.stat().st_mode & 0o777 == 0o600
        variables = {
            each["name"]: each["value"] for each in made.pod["spec"]["containers"][0]["env"]
        }
        for name in ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"):
            assert node.path(variables[name]).is_file()
        proxy = node.here(variables["HTTP_PROXY"])
        async with aiohttp.ClientSession() as session:
            # Decided on: a host that is no target is refused by the forward listener.
            async with session.get("http://unknown.example/", proxy=proxy) as response:
                assert (await response.json())["code"] == "target.no_match"
            both = {"routes": [whole("plain"), whole("bound")]}
            node.exchange(names.ROUTES_DIR, {"proxy.yaml": both})
            assert (await node.program.event("reload_applied"))["count"] == 2
    finally:
        await node.program.stop()


async def test_the_namespace_s_owner_narrows_the_operator_s_file_and_no_more(
    tmp_path: Path, world: World
) -> None:
    injector = loaded(
        sidecar__broker={"url": world.url},
        sidecar__collector=None,
        sidecar__trust=None,
        sidecar__targets=None,
        sidecar__operator={},
        sidecar__python="python3",
    )
    made = mutate(pod(annotations={names.ROUTES_FROM: "ours"}), Place("agents"), injector)
    assert isinstance(made, Injected)
    operator = {"targets": {"plain": target("http://127.0.0.1:9")}, "routes": [whole("plain")]}
    narrow = {"within": "plain", "match": {"methods": ["GET"], "path": "/kept/{id}"}}
    files = {
        names.OPERATOR_DIR: {"operator.yaml": operator},
        names.ROUTES_DIR: {"routes.yaml": {"routes": [narrow]}},
    }
    node = Node(tmp_path / "node", made.pod, world.token_file, files)
    node.program.start()
    try:
        await node.program.ready(node.readyz)
        variables = {
            each["name"]: each["value"] for each in made.pod["spec"]["containers"][0]["env"]
        }
        proxy = node.here(variables["HTTP_PROXY"])
        async with aiohttp.ClientSession() as session:

            async def code(path: str) -> str:
                url = f"http://127.0.0.1:9{path}"
                async with session.get(url, proxy=proxy) as response:
                    return str((await response.json())["code"])

            async def gets(path: str, matched: bool) -> None:
                async def so() -> bool:
                    return (await code(path) != "route.no_match") is matched

                await until(so, f"{path}: {matched}")

            # The target is not there, and the broker has no grant: what matters is which route.
            assert await code("/kept/1") != "route.no_match"
            assert await code("/other") == "route.no_match"
            wider = {"routes": [narrow, {"within": "plain", "scopes": ["s:admin"]}]}
            node.exchange(names.ROUTES_DIR, {"routes.yaml": wider})
            line = await node.program.event("reload_rejected")
            assert (line["layer"], line["code"]) == ("owner", "settings.widens")
            assert await code("/other") == "route.no_match"
            node.exchange(names.ROUTES_DIR, {"routes.yaml": {"routes": [{"within": "plain"}]}})
            await gets("/other", matched=True)
            # What the operator takes away is gone, whatever the owner's file says.
            less = {**whole("plain"), "match": {"methods": ["GET"], "path": "/kept/{id}"}}
            node.exchange(names.OPERATOR_DIR, {"operator.yaml": {**operator, "routes": [less]}})
            await gets("/other", matched=False)
            assert await code("/kept/1") != "route.no_match"
    finally:
        await node.program.stop()


def test_the_hook_says_when_it_waited_in_vain(capsys: pytest.CaptureFixture[str]) -> None:
    assert wait.main(["ready", f"http://127.0.0.1:{free_port()}/readyz", "0"]) == 1
    assert wait.main(["stay", "0"]) == 0
    for wrong in ([], ["ready"], ["ready", "https://x/", "1"], ["stay", "-1"], ["sleep", "1"]):
        assert wait.main(wrong) == 2
        assert "usage" in capsys.readouterr().err


def test_the_hook_needs_nothing_that_is_not_in_the_image() -> None:
    """It starts in each pod, beside the sidecar: no library is loaded for it."""
    code = "import sys, valetkey.injector.wait; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert not {"aiohttp", "msgspec", "yaml", "cryptography"} & set(done.stdout.split())


def test_the_redirect_s_command_is_one_that_the_script_takes(tmp_path: Path) -> None:
    injector = loaded(redirect__dns="10.96.0.10", redirect__loopback="9000,9100-9199")
    document = pod(
        {"name": "app", "image": "a", "securityContext": {"runAsUser": 10_001}},
        {"name": "other", "image": "b", "securityContext": {"runAsUser": 10_002}},
        annotations={names.MODE: "transparent"},
    )
    made = mutate(document, Place("agents"), injector)
    assert isinstance(made, Injected)
    command = made.pod["spec"]["initContainers"][0]["command"]
    assert command[3] == injector.redirect.script
    command[3] = str(ROOT / "config/redirect/redirect.sh")
    # A dry run uses none of it, but wants it to be there.
    (tmp_path / "nft").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "nft").chmod(0o755)
    done = subprocess.run(
        [*command, "--backend", "nft", "--dry-run"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    for user in (10_001, 10_002):
        assert f"meta skuid {user} jump workload_filter" in done.stdout
    for rule in ("redirect to :7073", "10.96.0.10", "9100-9199"):
        assert done.stdout.count(rule) >= 2, rule
