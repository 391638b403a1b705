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

from tests.support.pods import loaded, pod
from tests.support.ports import free_port
from tests.support.procs import Program
from tests.support.sidecar import World, target, whole
from valetkey.injector import wait
from valetkey.injector.core import names
from valetkey.injector.core.mutation import Injected, Place, mutate

ROOT = Path(__file__).parents[2]
DIRECTORIES = (
    names.PRIVATE_DIR, names.TRUST_DIR, names.TOKEN_DIR, names.SPOOL_DIR, names.ROUTES_DIR,
    names.ANCHORS_DIR,
)  # fmt: skip


class Node:
    """What a kubelet does with the pod's sidecar: its volumes, its file, its process."""

    def __init__(self, directory: Path, document: dict[str, Any], token: Path, file: Any) -> None:
        self.ports = {port: free_port() for port in names.PORTS}
        self._directory = directory
        [self.container] = [
            each for each in document["spec"]["initContainers"] if each["name"] == names.CONTAINER
        ]
        for mount in self.container["volumeMounts"]:
            self.path(mount["mountPath"]).mkdir(parents=True)
        self.path(f"{names.TOKEN_DIR}/token").symlink_to(token)
        # As the kubelet mounts a ConfigMap: a link to a directory, which is exchanged as a whole.
        routes = self.path(names.ROUTES_DIR)
        (routes / "..1").mkdir()
        (routes / "..1/proxy.yaml").write_text(json.dumps(file))
        (routes / "..data").symlink_to("..1")
        (routes / "proxy.yaml").symlink_to("..data/proxy.yaml")
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

    def exchange(self, file: Any) -> None:
        routes = self.path(names.ROUTES_DIR)
        (routes / "..2").mkdir()
        (routes / "..2/proxy.yaml").write_text(json.dumps(file))
        (routes / "..data_tmp").symlink_to("..2")
        (routes / "..data_tmp").replace(routes / "..data")

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
    node = Node(tmp_path / "node", made.pod, world.token_file, {"routes": [whole("plain")], **evil})
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
            node.exchange({"routes": [whole("plain"), whole("bound")]})
            assert (await node.program.event("reload_applied"))["count"] == 2
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
