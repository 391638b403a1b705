"""The chart, rendered by real Helm (tests/support/helm.py): what Kubernetes and the programs take.

`make chart` runs this. Helm and the others take five minutes of processor time to build, so this is no
part of `make test`; what can be told without them is in tests/unit/cli/test_chart.py.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import ssl
import tarfile
import textwrap
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
import yaml

from tests.support import helm
from tests.support.procs import Program
from valetkey.broker.core.cedar import Policies
from valetkey.broker.core.grants import GrantsFile
from valetkey.broker.settings import BrokerSettings
from valetkey.cli import chart
from valetkey.collector.settings import CollectorSettings
from valetkey.contracts import settings
from valetkey.injector.settings import InjectorSettings
from valetkey.proxy.core.operator_file import compile_operator_file
from valetkey.proxy.settings import OperatorFileSettings

pytestmark = pytest.mark.skipif(bool(helm.missing()), reason=helm.missing())

ROOT = Path(__file__).parents[2]
EXAMPLES = ("minimal", "fleet")
KINDS: dict[str, Any] = {
    "broker": BrokerSettings,
    "collector": CollectorSettings,
    "injector": InjectorSettings,
}
# Of which example each program's pods are looked at: the least has no injector.
PODS = [
    (example, program)
    for example in EXAMPLES
    for program in sorted(KINDS)
    if (example, program) != ("minimal", "injector")
]
EACH_POD = pytest.mark.parametrize(("example", "program"), PODS)
URL = "postgresql+asyncpg://valetkey:x@db.example/valetkey"


def minimal() -> Any:
    return yaml.safe_load((helm.CHART / "ci/minimal-values.yaml").read_text())


def loaded(objects: dict[tuple[str, str], Any], program: str) -> Any:
    """The settings that a program would read, with the variables of its container."""
    text = objects["ConfigMap", f"valetkey-{program}"]["data"][f"{program}.yaml"]
    container = pod(objects, program)["containers"][0]
    environ = {variable["name"]: URL for variable in container.get("env", ())}
    return settings.parse(KINDS[program], text, name=program, program=program, environ=environ)


def pod(objects: dict[tuple[str, str], Any], program: str) -> Any:
    return objects["Deployment", f"valetkey-{program}"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("program", ["helm3", "helm4"])
@pytest.mark.parametrize("example", EXAMPLES)
def test_helm_finds_nothing_wrong(program: str, example: str) -> None:
    values = helm.CHART / f"ci/{example}-values.yaml"
    version = ["--kube-version", helm.KUBERNETES]
    done = helm.run(program, "lint", "--strict", *version, "--values", values, helm.CHART)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("example", EXAMPLES)
def test_helm_3_and_4_render_the_same(example: str) -> None:
    rendered = helm.objects(helm.render(example))
    assert rendered == helm.objects(helm.render(example, program="helm4"))
    assert len(rendered) > 10


def test_the_suites_hold() -> None:
    done = helm.run("helm-unittest", "--strict", helm.CHART)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((helm.CHART / "tests/__snapshot__").iterdir()), "no snapshot: nothing was compared"


@pytest.mark.parametrize("example", EXAMPLES)
def test_kubernetes_knows_every_field(example: str) -> None:
    done = helm.conforms(helm.render(example))
    assert done.returncode == 0, done.stdout
    assert "Invalid: 0, Errors: 0, Skipped: 0" in done.stdout


@pytest.mark.parametrize(
    ("field", "misspelt"),
    [
        ("revisionHistoryLimit: 3", "revisionHistory: 3"),
        ("fsGroup: 64707", "fsGroup: root"),
        ("relabelings:", "relabeling:"),
    ],
)
def test_what_kubernetes_does_not_know_is_found(field: str, misspelt: str) -> None:
    rendered = helm.render("fleet")
    assert field in rendered
    assert helm.conforms(rendered.replace(field, misspelt)).returncode == 1


@EACH_POD
def test_the_programs_take_their_settings(example: str, program: str) -> None:
    objects = helm.objects(helm.render(example))
    read = loaded(objects, program)
    mounted = [
        mount["mountPath"] for mount in pod(objects, program)["containers"][0]["volumeMounts"]
    ]
    files = [str(file) for file in files_of(settings.plain(read))]
    assert files
    for file in files:
        assert any(file.startswith(f"{path}/") or file == path for path in mounted), file


def files_of(node: Any) -> Any:
    """Whatever settings name in the container's file system."""
    if isinstance(node, dict):
        for held in node.values():
            yield from files_of(held)
    elif isinstance(node, list | tuple):
        for held in node:
            yield from files_of(held)
    elif isinstance(node, str) and node.startswith(("/etc/", "/var/")):
        yield node


def test_the_operator_s_file_is_one() -> None:
    objects = helm.objects(helm.render("fleet"))
    sidecar = loaded(objects, "injector").sidecar
    text = objects["ConfigMap", sidecar.operator.config_map]["data"][sidecar.operator.key]
    read = settings.parse(OperatorFileSettings, text, name="operator", program="proxy")
    assert [route.id for route in compile_operator_file(read).routes] == ["tickets-read"]


def test_the_database_of_a_fleet_comes_from_its_secret() -> None:
    rendered = helm.render("fleet")
    assert loaded(helm.objects(rendered), "broker").database == URL
    assert "postgresql+asyncpg" not in rendered


@pytest.mark.parametrize("program", sorted(KINDS))
def test_settings_arrive_as_they_were_said(program: str) -> None:
    """All of the example, except what the chart writes, is what the program reads."""
    example = yaml.safe_load((ROOT / f"config/{program}.yaml").read_text())
    for key in chart.WRITTEN[program]:
        example.pop(key, None)
    values = minimal()
    values[program] = {**values.get(program, {}), "enabled": True, "settings": example}
    if program == "broker":
        del values[program]["enabled"]
    arrived = settings.plain(loaded(helm.objects(helm.render(values)), program))
    said = settings.plain(
        settings.convert(
            KINDS[program],
            {**example, **{key: arrived[key] for key in chart.WRITTEN[program] if key in arrived}},
        )
    )
    assert arrived == said


def test_large_numbers_stay_numbers() -> None:
    limits = loaded(helm.objects(helm.render("fleet")), "broker").limits
    assert (limits.replay_proofs, limits.exchanges.burst) == (5_000_000, 1_000_000)


def test_grants_and_policies_are_taken() -> None:
    objects = helm.objects(helm.render("fleet"))
    config = loaded(objects, "broker")
    text = objects["ConfigMap", "valetkey-broker-grants"]["data"]["grants.yaml"]
    grants = settings.parse(GrantsFile, text, name="grants", program="broker")
    assert [grant.id for grant in grants.grants] == ["agent-reads-tickets"]
    assert grants.grants[0].not_before is not None
    policies = objects["ConfigMap", "valetkey-broker-policies"]["data"]
    assert Policies.compile(policies, config.compiled_places()).written


@EACH_POD
def test_pods_are_restricted(example: str, program: str) -> None:
    """Pod Security Standard "restricted", and no more than it allows."""
    spec = pod(helm.objects(helm.render(example)), program)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(spec)
    for volume in spec["volumes"]:
        kinds = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
        assert set(volume) - {"name"} <= kinds
    for container in spec["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        assert not any("hostPort" in port for port in container["ports"])


@EACH_POD
def test_no_service_becomes_a_setting(example: str, program: str) -> None:
    """VALETKEY_BROKER_SERVICE_HOST, which Kubernetes would set, looks like one."""
    objects = helm.objects(helm.render(example))
    assert ("Service", "valetkey-broker") in objects
    assert pod(objects, program)["enableServiceLinks"] is False


@EACH_POD
def test_all_that_is_mounted_is_there(example: str, program: str) -> None:
    objects = helm.objects(helm.render(example))
    spec = pod(objects, program)
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounts = [
        mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]
    ]
    assert sorted(mounts) == sorted(volumes)
    for volume in volumes.values():
        if name := volume.get("configMap", {}).get("name"):
            assert ("ConfigMap", name) in objects
        if claim := volume.get("persistentVolumeClaim"):
            assert ("PersistentVolumeClaim", claim["claimName"]) in objects
        for key in ("secret", "configMap"):
            assert volume.get(key, {}).get("defaultMode", 0) & 0o007 == 0


@pytest.mark.parametrize("example", EXAMPLES)
def test_what_selects_pods_selects_those_of_one_program(example: str) -> None:
    objects = helm.objects(helm.render(example))
    labels = {
        name: held["spec"]["template"]["metadata"]["labels"]
        for (kind, name), held in objects.items()
        if kind == "Deployment"
    }
    selectors = [
        (name, held["spec"].get("podSelector", held["spec"].get("selector")))
        for (kind, name), held in objects.items()
        if kind in {"Service", "NetworkPolicy", "PodDisruptionBudget", "Deployment"}
    ]
    assert len(selectors) >= 6
    for name, selector in selectors:
        wanted = selector.get("matchLabels", selector)
        chosen = [pods for pods, has in labels.items() if wanted.items() <= has.items()]
        assert chosen == [name]


@pytest.mark.parametrize("program", ["broker", "collector"])
async def test_the_programs_start_on_what_is_mounted(tmp_path: Path, program: str) -> None:
    """Volumes as the kubelet writes them, below a directory of ours in place of the root."""
    values = minimal()
    fleet = yaml.safe_load((helm.CHART / "ci/fleet-values.yaml").read_text())["broker"]
    values["broker"] |= {"policies": fleet["policies"], "grants": [GRANT]}
    objects = helm.objects(helm.render(values))
    authority = trustme.CA()
    certificate = authority.issue_cert(f"valetkey-{program}.valetkey.svc", "127.0.0.1")
    secrets = {
        f"valetkey-{program}-tls": {
            "tls.crt": b"".join(blob.bytes() for blob in certificate.cert_chain_pems),
            "tls.key": certificate.private_key_pem.bytes(),
        },
        "valetkey-master-key": {"master.key": os.urandom(32)},
    }
    spec = pod(objects, program)
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    (container,) = spec["containers"]
    for mount in container["volumeMounts"]:
        place = tmp_path / mount["mountPath"].removeprefix("/")
        volume = volumes[mount["name"]]
        if "configMap" in volume:
            files = objects["ConfigMap", volume["configMap"]["name"]]["data"]
            moved = {
                name: text.replace("/etc/", f"{tmp_path}/etc/") for name, text in files.items()
            }
            moved = {
                name: text.replace("/var/", f"{tmp_path}/var/") for name, text in moved.items()
            }
            project(place, {name: text.encode() for name, text in moved.items()}, 0o644)
        elif "secret" in volume:
            project(place, secrets[volume["secret"]["secretName"]], volume["secret"]["defaultMode"])
        else:
            place.mkdir(parents=True)
    python, *argv = container["command"]
    assert python == "python3"
    config = tmp_path / argv[-1].removeprefix("/")
    variables = {f"VALETKEY_{program.upper()}__BIND": "127.0.0.1:0"}
    async with Program(
        (*argv[:-1], str(config)), tmp_path / "run", name=program, env=variables
    ) as run:
        port = await run.listening()
        context = ssl.create_default_context()
        authority.configure_trust(context)
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(
            f"https://127.0.0.1:{port}", connector=connector
        ) as client:
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert container[probe]["httpGet"]["scheme"] == "HTTPS"
                async with client.get(container[probe]["httpGet"]["path"]) as answer:
                    assert answer.status == 200, await answer.text()
            async with client.get("/metrics") as answer:
                lines = (await answer.text()).splitlines()
    if program == "broker":
        assert {"valetkey_broker_grants 1.0", "valetkey_broker_policies 1.0"} <= set(lines)


GRANT = {
    "id": "bot-reads-tickets",
    "workload": "system:serviceaccount:agents:bot",
    "issuer": "https://kubernetes.default.svc.cluster.local",
    "target": "tickets",
    "scopes": ["tickets:read"],
}


def project(place: Path, files: dict[str, bytes], mode: int) -> None:
    """A volume of a ConfigMap or Secret: links to files in a directory that is exchanged whole."""
    held = place / "..2026_11_29"
    held.mkdir(parents=True)
    (place / "..data").symlink_to(held.name)
    for name, content in files.items():
        (held / name).write_bytes(content)
        (held / name).chmod(mode)
        (place / name).symlink_to(f"..data/{name}")


def test_no_secret_is_made() -> None:
    for example in EXAMPLES:
        assert not [key for key in helm.objects(helm.render(example)) if key[0] == "Secret"]


@pytest.mark.parametrize("blocks", [(0, 1, 3), (0, 2, 3)], ids=["targets", "operator's routes"])
@pytest.mark.parametrize("program", ["helm3", "helm4"])
def test_the_page_s_values_and_command_install(
    program: str, blocks: tuple[int, ...], tmp_path: Path
) -> None:
    """docs/how-to/install.md: its values one over the other, with the options of its command."""
    page = (ROOT / "docs/how-to/install.md").read_text()
    files = []
    for number, (_, block) in enumerate(
        re.findall(r"^( +)# values\.yaml[^\n]*\n((?:\1.*\n|\n)+)", page, re.MULTILINE)
    ):
        files.append(tmp_path / f"{number}.yaml")
        files[-1].write_text(textwrap.dedent(block))
    command = re.search(r"helm install valetkey helm/valetkey (.*\n.*)\n", page)
    assert len(files) == 4
    assert command is not None
    options = shlex.split(command[1].replace("\\\n", " "))
    at = options.index("values.yaml")
    options[at : at + 1] = " -f ".join(str(files[block]) for block in blocks).split()
    (tmp_path / "cluster-jwks.json").write_text('{"keys": []}')
    arguments = ["--kube-version", helm.KUBERNETES, *options]
    done = helm.run(program, "template", "valetkey", helm.CHART, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    objects = helm.objects(done.stdout)
    assert objects["ConfigMap", "valetkey-collector-files"]["data"] == {
        "cluster-jwks.json": '{"keys": []}'
    }
    for each in KINDS:
        assert loaded(objects, each)
    assert helm.conforms(done.stdout).returncode == 0


def test_what_is_packed_is_the_chart_alone(tmp_path: Path) -> None:
    done = helm.run("helm3", "package", helm.CHART, "--destination", tmp_path)
    assert done.returncode == 0, done.stderr
    (packed,) = tmp_path.glob("*.tgz")
    with tarfile.open(packed) as archive:
        names = {name.removeprefix("valetkey/").partition("/")[0] for name in archive.getnames()}
    assert names == {
        ".helmignore", "Chart.yaml", "README.md", "files", "templates", "values.schema.json", "values.yaml",
    }  # fmt: skip


def test_all_that_is_wrong_is_said_at_once() -> None:
    done = helm.template(helm.CHART / "values.yaml")
    assert done.returncode == 1
    for part in ("image.repository", "broker.settings.issuer", "broker.tls", "collector.tls"):
        assert part in done.stderr, json.dumps(done.stderr)


def test_the_job_of_the_page_on_recovery_has_what_the_broker_has() -> None:
    page = (ROOT / "docs/how-to/recover.md").read_text()
    [shown] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    done = helm.conforms(shown)
    assert "Invalid: 0, Errors: 0, Skipped: 0" in done.stdout, done.stdout
    job = yaml.safe_load(shown)["spec"]["template"]["spec"]
    # The namespace's policy, and the broker's own user: the volume's files are its.
    broker = pod(helm.objects(helm.render("minimal")), "broker")
    assert (
        job["securityContext"] | {"fsGroupChangePolicy": "OnRootMismatch"}
        == (broker["securityContext"])
    )
    [container], [own] = job["containers"], broker["containers"]
    assert container["securityContext"] == own["securityContext"]
    for name in ("volumes", "volumeMounts"):
        held = {each["name"]: each for each in (broker if name == "volumes" else own)[name]}
        for each in (job if name == "volumes" else container)[name]:
            assert each == held[each["name"]]
    [config] = [word for word in container["command"] if word.startswith("--config=")]
    assert config.removeprefix("--config=") in own["command"]


def test_the_chart_makes_of_the_tutorial_s_values_what_its_test_starts() -> None:
    """tests/integration/test_tutorial_cluster.py, which has no Helm, writes these settings itself."""
    page = (ROOT / "docs/tutorial-in-a-cluster.md").read_text()
    [block] = re.findall(r"^    # values\.yaml\n((?:    .*\n|\n)+)", page, re.MULTILINE)
    shown = yaml.safe_load(block)
    jwks = {"files": {"cluster-jwks.json": '{"keys": []}'}}
    made = helm.objects(
        helm.render(shown | {name: shown[name] | jwks for name in ("broker", "collector")})
    )
    tls = {"cert_file": "/etc/valetkey/tls/tls.crt", "key_file": "/etc/valetkey/tls/tls.key"}
    for program, port in (("broker", 7080), ("collector", 7090)):
        text = made["ConfigMap", f"valetkey-{program}"]["data"][f"{program}.yaml"]
        expected = shown[program]["settings"] | {
            "bind": f"0.0.0.0:{port}",
            "tls": tls,
            "database": f"sqlite+aiosqlite:////var/lib/valetkey/{program}.db",
        }
        if program == "broker":
            expected |= {
                "master_key_file": "/etc/valetkey/master/master.key",
                "grants_file": "/etc/valetkey/grants/grants.yaml",
            }
        assert yaml.safe_load(text) == expected
    assert loaded(made, "injector").sidecar.image == "valetkey:0.1.0"


def test_kubernetes_knows_every_field_of_the_tutorial_s_manifests() -> None:
    page = (ROOT / "docs/tutorial-in-a-cluster.md").read_text()
    shown = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(shown) == 2
    done = helm.conforms("---\n".join(shown))
    assert "Valid: 6, Invalid: 0, Errors: 0, Skipped: 0" in done.stdout, done.stdout
