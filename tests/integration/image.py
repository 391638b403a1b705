"""The image in containers: as nobody, on a root that can't be written on, with calls in flight.

`make image-test` builds it and runs this (tests/support/container.py): minutes the first time, and it
takes root, so this is no part of `make test`; what can be told without an image is in tests/unit/image.
Broker, collector and target of the sidecar are outside, as in all other tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
import trustme
import yaml
from aiohttp import web

from tests.support import container
from tests.support.canaries import CANARIES
from tests.support.container import UID, Container, described, run
from tests.support.fleet import Fleet
from tests.support.kube_api import KubeApi
from tests.support.pods import loaded, pod
from tests.support.ports import free_port
from tests.support.waiting import until
from valetkey import __version__
from valetkey.contracts import events
from valetkey.injector.core.mutation import Injected, Place, mutate

pytestmark = pytest.mark.skipif(bool(container.unbuilt()), reason=container.unbuilt())

ROOT: Final = Path(__file__).parents[2]
SBOM: Final = "usr/share/valetkey/sbom.cdx.json"
CALLS: Final = 40
# What the broker, the collector, the command line and the Workload API bring along.
FOREIGN: Final = {
    "sqlalchemy", "alembic", "aiosqlite", "asyncpg", "greenlet", "cedarpy", "scim2_models", "pydantic",
    "click", "rich", "grpc", "spiffe", "google", "unittest", "sqlite3",
}  # fmt: skip


# --- what is in it --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    """The image's files."""
    mounted = [*container.podman(), "image", "mount", container.IMAGE]
    done = subprocess.run(mounted, check=True, stdout=subprocess.PIPE, text=True)
    yield Path(done.stdout.strip())
    unmount = [*container.podman(), "image", "unmount", container.IMAGE]
    subprocess.run(unmount, check=True, stdout=subprocess.DEVNULL)


def files(tree: Path) -> Iterator[tuple[str, os.stat_result]]:
    for directory, names, here in os.walk(tree):
        for name in (*names, *here):
            path = Path(directory) / name
            yield str(path.relative_to(tree)), path.lstat()


def test_nothing_in_it_runs_but_python(tree: Path) -> None:
    runs = {
        path
        for path, status in files(tree)
        if stat.S_ISREG(status.st_mode)
        and status.st_mode & 0o111
        and not re.search(r"\.so[.\d]*$", path)
    }
    assert {Path(path).name for path in runs} == {"python3.11", "valetkey"}
    for shell in ("sh", "bash", "/bin/sh", "apt-get", "pip"):
        assert run(shell).returncode == 127, shell
    assert run("python3", "-m", "pip").returncode == 1
    assert run("python3", "-m", "ensurepip").returncode == 1


def test_nobody_owns_or_may_change_what_is_in_it(tree: Path) -> None:
    for path, status in files(tree):
        assert not status.st_mode & (stat.S_ISUID | stat.S_ISGID), path
        owner = UID if path == "var/lib/valetkey" else 0
        assert (status.st_uid, status.st_gid) == (owner, owner), path
        if path != "tmp" and not stat.S_ISLNK(status.st_mode):
            assert not status.st_mode & 0o022, path


def test_all_bytecode_is_there(tree: Path) -> None:
    """It could not be written later; and what is there is not looked at for changes."""
    sources = [Path(path) for path, _ in files(tree) if path.endswith(".py")]
    assert len(sources) > 1000
    for source in sources:
        cached = tree / source.parent / "__pycache__" / f"{source.stem}.cpython-311.pyc"
        assert int.from_bytes(cached.read_bytes()[4:8], "little") == 1, source  # PEP 552


def test_the_bill_of_materials_is_of_what_is_in_it(tree: Path) -> None:
    bill = json.loads((tree / SBOM).read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    listed = {
        kind: {
            each["name"].lower().replace("_", "-"): each["version"]
            for each in bill["components"]
            if each["purl"].startswith(f"pkg:{kind}/")
        }
        for kind in ("pypi", "deb")
    }
    pinned = dict(
        re.findall(
            r"^([\w.-]+)==(\S+)", (ROOT / "requirements/runtime.txt").read_text(), re.MULTILINE
        )
    )
    # Pins of other platforms are not installed.
    installed = {
        found[1].lower().replace("_", "-"): found[2]
        for path in tree.glob("opt/valetkey/lib/python3*/site-packages/*.dist-info")
        if (found := re.fullmatch(r"(.+)-([^-]+)\.dist-info", path.name))
    }
    assert listed["pypi"] == installed
    assert installed.items() - {("valetkey", __version__)} <= {
        (name.lower().replace("_", "-"), version) for name, version in pinned.items()
    }
    packages = {path.name for path in (tree / "var/lib/dpkg/status.d").iterdir()}
    assert set(listed["deb"]) == packages
    assert {"libc6", "libssl3", "libsqlite3-0", "ca-certificates"} <= packages
    for name in packages:
        assert (tree / f"usr/share/doc/{name}/copyright").exists(), name
    refs = {each["bom-ref"] for each in bill["components"]}
    [whole] = [each for each in bill["dependencies"] if each["ref"] == "image"]
    assert set(whole["dependsOn"]) == refs


def test_what_it_says_of_itself(tree: Path, record_property: Any) -> None:
    image = described()
    config = image["Config"]
    assert config["User"] == f"{UID}:{UID}"
    assert image["HealthCheck" if "HealthCheck" in image else "Healthcheck"]["Test"] == [
        "CMD", "python3", "-m", "valetkey.cli.health",
    ]  # fmt: skip
    labels = {
        key.removeprefix("org.opencontainers.image."): value
        for key, value in config["Labels"].items()
        if key.startswith("org.opencontainers.image.")
    }
    assert labels["version"] == __version__
    assert labels["licenses"] == "Apache-2.0"
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", labels["revision"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", labels["created"])
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", labels["base.digest"])
    assert {"title", "description", "source", "base.name"} <= set(labels)
    size = sum(status.st_size for _, status in files(tree) if stat.S_ISREG(status.st_mode))
    packed = subprocess.run(
        f"tar -C {tree} -c . | gzip -6 | wc -c",
        shell=True,
        check=True,
        capture_output=True,
        text=True,
    )
    report = f"{size / 1e6:.0f} MB, {int(packed.stdout) / 1e6:.0f} MB packed"
    record_property("size", report)
    print(f"\nimage: {report}")
    assert size < 250e6  # a base with a shell and a package manager is 120 MB without any program


def test_every_module_finds_what_it_imports() -> None:
    """What was left out of the standard library and the base is needed by none."""
    code = """
import importlib, pkgutil, valetkey
names = [each.name for each in pkgutil.walk_packages(valetkey.__path__, "valetkey.")]
wanted = [name for name in names if "__main__" not in name and ".migrations." not in name
          and name not in ("valetkey.broker.directory.ldap",) and ".doctor.probes" not in name]
for name in wanted:
    importlib.import_module(name)
import alembic.command, grpc, spiffe, sqlalchemy.dialects.postgresql.asyncpg, zoneinfo, ctypes.util
print(len(wanted))
"""
    done = run("python3", "-c", code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 300


# --- what starts it -------------------------------------------------------------------------------


def commands() -> dict[str, list[str]]:
    """How chart and injector start programs."""
    values = yaml.safe_load((ROOT / "helm/valetkey/values.yaml").read_text())
    found = {}
    for program in ("broker", "collector", "injector"):
        text = (ROOT / f"helm/valetkey/templates/{program}/deployment.yaml").read_text()
        [command] = re.findall(
            r"^ +command: \[\{\{ \.Values\.image\.python .*?\}\}, (.*)\]$", text, re.MULTILINE
        )
        found[program] = [values["image"]["python"], *command.split(", ")]
    made = mutate(pod(), Place("agents", (1, 28)), loaded())
    assert isinstance(made, Injected)
    [sidecar] = [each for each in made.pod["spec"]["containers"] if each["name"] == "valetkey"]
    found["proxy"] = sidecar["command"]
    for hook, held in sidecar["lifecycle"].items():
        found[hook] = held["exec"]["command"]
    return found


COMMANDS: Final = commands()


@pytest.mark.parametrize("program", ["proxy", "broker", "collector", "injector"])
def test_the_commands_of_chart_and_injector_start_programs(program: str) -> None:
    done = run(*COMMANDS[program])
    assert done.returncode == 2
    assert done.stderr.startswith(f"valetkey {program}: {COMMANDS[program][-1]}: can't be read: ")


def test_the_hooks_of_plain_sidecars_run() -> None:
    *command, url, _seconds = COMMANDS["postStart"]
    assert run(*command, url.replace(":7071", f":{free_port()}"), "0").returncode == 1
    *command, _seconds = COMMANDS["preStop"]
    assert run(*command, "0").returncode == 0


def test_the_command_line_is_there() -> None:
    assert run("valetkey", "--version").stdout == f"valetkey, version {__version__}\n"
    assert run("python3", "-m", "valetkey.cli", "--help").returncode == 0


# --- the sidecar ----------------------------------------------------------------------------------


class Contained(Fleet):
    """The sidecar in a container, by the image's own command; all else outside of it."""

    def __init__(self, directory: Path, env: dict[str, str] | None = None) -> None:
        super().__init__(directory)
        for name in ("settings", "identity", "state"):
            (directory / name).mkdir()
            os.chown(directory / name, UID, UID)
        self.config = directory / "settings/proxy.yaml"
        self.token_file = directory / "identity/token"
        self.spool = directory / "state/spool"
        self.renew()
        os.chown(self.token_file, UID, UID)
        self.sidecar_changes = {
            "workload": {"identity": {"file": "/var/run/secrets/valetkey/token"}},
            "spool": {"dir": "/var/lib/valetkey/spool", "max_size": "64MiB"},
        }
        mounts = {
            "/etc/valetkey:ro": directory / "settings",
            "/var/run/secrets/valetkey:ro": directory / "identity",
            "/var/lib/valetkey": directory / "state",
        }
        self.sidecar: Container = Container(
            (), directory / "run", name="proxy", mounts=mounts, env=env
        )
        self.ready_at = 0.0

    async def up(self) -> None:
        await super().up()
        self.ready_at = time.clock_gettime(time.CLOCK_BOOTTIME)


@pytest.fixture
def fleet(tmp_path: Path) -> Contained:
    return Contained(tmp_path)


def of_process(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def is_confined(pid: int) -> None:
    """Nobody, without a capability, under a filter of system calls, with nothing to write on."""
    status = dict(line.split(":", 1) for line in of_process(pid, "status").splitlines())
    assert status["Uid"].split() == [str(UID)] * 4
    assert status["Gid"].split() == [str(UID)] * 4
    for kind in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2"
    mounts = [line.split() for line in of_process(pid, "mounts").splitlines()]
    [root] = [options.split(",") for _, place, _, options, *_ in mounts if place == "/"]
    assert "ro" in root
    assert not [place for _, place, *_ in mounts if place == "/tmp"]


async def test_it_serves_as_nobody_on_a_root_that_can_not_be_written_on(
    fleet: Contained, record_property: Any
) -> None:
    begun = time.clock_gettime(time.CLOCK_BOOTTIME)
    async with fleet.running(broker=False, collector=False):
        pid = fleet.sidecar.pid
        # proc(5): field 22, ticks since boot; the second field may have spaces in it.
        ticks = int(of_process(pid, "stat").rpartition(")")[2].split()[19])
        took = fleet.ready_at - ticks / os.sysconf("SC_CLK_TCK")
        report = (
            f"ready {took:.2f} s after its start ({fleet.ready_at - begun:.2f} s with podman's)"
        )
        record_property("start", report)
        print(f"\nsidecar: {report}")
        fleet.broker.start()
        fleet.collector.start()
        await fleet.broker.ready(f"{fleet.broker_url}/readyz")
        await fleet.followed()
        async with fleet.client.get(f"{fleet.admin}/healthz") as answer:
            assert answer.status == 200
        assert (await fleet.readyz())[0] == 200
        assert (await fleet.call())[0] == 200
        is_confined(pid)
        # The compiled data path is what runs.
        assert "__mypyc.cpython" in of_process(pid, "maps")
        await fleet.delivered()
        assert [each["type"] for each in fleet.events()].count(events.TYPE_DECISION) == 1


async def test_the_sidecar_loads_nothing_of_the_others(tmp_path: Path) -> None:
    fleet = Contained(tmp_path, env={"PYTHONPROFILEIMPORTTIME": "1"})
    async with fleet.running():
        assert (await fleet.call())[0] == 200
        assert (await fleet.call("/refused/1"))[0] == 403
        await fleet.delivered()
        text = fleet.sidecar.stderr_file.read_text()
    imported = set(re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)$", text, re.MULTILINE))
    assert {"valetkey.proxy.pep", "valetkey.proxy.audit.shipper", "uvloop", "aiohttp"} <= imported
    assert {name.partition(".")[0] for name in imported} & FOREIGN == set()
    own = {".".join(name.split(".")[:2]) for name in imported if name.startswith("valetkey.")}
    assert own == {"valetkey.proxy", "valetkey.contracts"}


async def test_told_to_stop_it_finishes_what_it_has_and_loses_none(fleet: Contained) -> None:
    release = asyncio.Event()

    async def held(_request: web.Request) -> web.StreamResponse:
        await release.wait()
        return web.json_response({"status": "open"})

    fleet.target = held
    async with fleet.running():
        calls = [asyncio.ensure_future(fleet.call(f"/api/n{number}")) for number in range(CALLS)]
        await until(lambda: len(fleet.received) == CALLS, "all calls at the target")
        assert (await asyncio.to_thread(fleet.sidecar.health))[0] == 0
        begun = time.monotonic()
        await asyncio.to_thread(fleet.sidecar.terminate)

        async def draining() -> bool:
            return (await fleet.readyz())[1].get("reason") == "draining"

        await fleet.until(draining, "the sidecar takes its leave")
        with pytest.raises(aiohttp.ClientConnectionError):
            await fleet.call("/api/late")
        status, said = await asyncio.to_thread(fleet.sidecar.health)
        assert (status, "503" in said) == (1, True), said
        assert not any(call.done() for call in calls)
        release.set()
        answers = await asyncio.gather(*calls)
        assert [status for status, _ in answers] == [200] * CALLS
        assert await fleet.sidecar.ended() == 0
        took = time.monotonic() - begun
        wanted = {f"/api/n{number}" for number in range(CALLS)}
        decided = {
            event["id"]: event["data"]["http_request"]["url"]["path"]
            for event in fleet.events(events.TYPE_DECISION)
        }
        assert sorted(decided.values()) == sorted(wanted)
        outcomes = [event["data"]["unmapped"] for event in fleet.events(events.TYPE_OUTCOME)]
        assert {each["decision"] for each in outcomes} == set(decided)
        assert {each["outcome"] for each in outcomes} == {"completed"}
        verified = await fleet.verify()
        assert verified.exit_code == 0, verified.output
    print(f"\nstop with {CALLS} calls in flight: {took:.2f} s")
    assert took < 30  # terminationGracePeriodSeconds of the chart


async def test_at_its_deadline_it_ends_whatever_waits(fleet: Contained) -> None:
    async def stuck(_request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(300)
        raise AssertionError("the sidecar waited for ever")

    fleet.target = stuck
    fleet.sidecar_changes["timeouts"] = {"drain": "2s"}
    async with fleet.running():
        call = asyncio.ensure_future(fleet.call("/api/stuck"))
        await until(lambda: len(fleet.received) == 1, "the call at the target")
        begun = time.monotonic()
        await asyncio.to_thread(fleet.sidecar.terminate)
        assert await fleet.sidecar.ended() == 0
        assert 2 <= time.monotonic() - begun < 30
        status, problem = await call
        assert (status, problem["code"]) == (503, "proxy.draining")
        [outcome] = fleet.events(events.TYPE_OUTCOME)
        assert outcome["data"]["unmapped"]["code"] == "proxy.draining"


async def test_the_health_check_follows_the_sidecar(fleet: Contained) -> None:
    async with fleet.running():
        assert (await asyncio.to_thread(fleet.sidecar.health))[0] == 0
        os.kill(fleet.sidecar.pid, signal.SIGSTOP)
        try:
            assert (await asyncio.to_thread(fleet.sidecar.health))[0] != 0
        finally:
            os.kill(fleet.sidecar.pid, signal.SIGCONT)
        assert (await asyncio.to_thread(fleet.sidecar.health))[0] == 0


# --- the others -----------------------------------------------------------------------------------


@pytest.fixture
async def kube(tmp_path: Path) -> AsyncIterator[KubeApi]:
    async with KubeApi(tmp_path / "kube") as kube:
        yield kube


def certificate(directory: Path) -> dict[str, str]:
    """A server's certificate and key below ``directory``, as settings name them in a container."""
    issued = trustme.CA().issue_cert("valetkey.example", "127.0.0.1")
    (directory / "tls.crt").write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
    (directory / "tls.key").write_bytes(issued.private_key_pem.bytes())
    return {"cert_file": "/etc/valetkey/tls.crt", "key_file": "/etc/valetkey/tls.key"}


def of_injector(api: dict[str, Any], directory: Path) -> dict[str, Any]:
    document = yaml.safe_load((ROOT / "config/injector.yaml").read_text())
    for name in ("token_file", "ca_file"):
        file = directory / name
        file.write_bytes(Path(api[name]).read_bytes())
        CANARIES.allow(file)
        api = api | {name: f"/etc/valetkey/{name}"}
    admin, webhook = (f"0.0.0.0:{free_port()}" for _ in range(2))
    tls = certificate(directory)
    document["webhook"] = {"bind": webhook, "admin": admin, "tls": tls, "api": api}
    return document


def of_service(program: str, fleet: Fleet, directory: Path) -> dict[str, Any]:
    """As in a cluster: on all addresses, with TLS, with the database on the volume."""
    document = json.loads((fleet.directory / f"{program}.yaml").read_text())
    for key, name in (("master_key_file", "master.key"), ("grants_file", "grants.yaml")):
        if key in document:
            (directory / name).write_bytes((fleet.directory / name).read_bytes())
            CANARIES.allow(directory / name)
            document[key] = f"/etc/valetkey/{name}"
    for issuer in document["issuers"]:
        name = f"{issuer['use']}.json"
        (directory / name).write_bytes(Path(issuer["jwks_file"]).read_bytes())
        issuer["jwks_file"] = f"/etc/valetkey/{name}"
    return document | {
        "bind": f"0.0.0.0:{free_port()}",
        "database": "sqlite+aiosqlite:////var/lib/valetkey/state.db",
        "tls": certificate(directory),
    }


@pytest.mark.parametrize("program", ["broker", "collector", "injector"])
async def test_the_others_run_like_that_too(tmp_path: Path, kube: KubeApi, program: str) -> None:
    given, state = tmp_path / "settings", tmp_path / "state"
    given.mkdir()
    state.mkdir()
    if program == "injector":
        document = of_injector(kube.settings, given)
    else:
        document = of_service(program, Fleet(tmp_path / "fleet"), given)
    (given / "settings.yaml").write_text(json.dumps(document))
    for path in (given, state, *given.iterdir()):
        os.chown(path, UID, UID)
        path.chmod(0o700 if path.is_dir() else 0o400)
    mounts = {"/etc/valetkey:ro": given, "/var/lib/valetkey": state}
    argv = (f"valetkey.{program}", "--config", "/etc/valetkey/settings.yaml")
    contained = Container(argv, tmp_path / "run", name=program, mounts=mounts)
    async with contained:
        is_confined(contained.pid)

        async def well() -> bool:
            return (await asyncio.to_thread(contained.health))[0] == 0

        await until(well, "the health check passes")
        os.kill(contained.pid, signal.SIGSTOP)
        try:
            # Of its own, or because podman's patience was at its end.
            assert (await asyncio.to_thread(contained.health))[0] != 0
        finally:
            os.kill(contained.pid, signal.SIGCONT)
        assert await contained.stop() == 0
