"""The settings that the how-to pages show: each block, put into the examples, is taken by its program.

A page shows a part: the rest is `config/*.yaml`. Files that settings name need not be here.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from click.testing import CliRunner

from valetkey.broker.core.cedar import Policies
from valetkey.broker.core.grants import GrantsFile
from valetkey.broker.settings import BrokerSettings
from valetkey.cli.check import check_file
from valetkey.cli.main import main
from valetkey.cli.reference import PROGRAMS
from valetkey.contracts import settings
from valetkey.injector.core import names
from valetkey.injector.core.environment import of_workload
from valetkey.injector.core.mutation import Injected, Place, Refusal, mutate
from valetkey.injector.core.validation import validate
from valetkey.injector.settings import InjectorSettings

ROOT = Path(__file__).parents[3]
PAGES = sorted((ROOT / "docs/how-to").glob("*.md"))
KEYS = {name: set(kind.__struct_fields__) for name, _, kind in PROGRAMS}
# What a block goes into, where that is not the top of a program's settings.
NESTED: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    "review": ("broker", lambda review: {"issuers": [kubernetes(review)]}),
    "poll": ("broker", lambda poll: {"incidents": {"transmitters": {"idp": transmitter(poll)}}}),
}
# Blocks that are other things: a token, cases of `valetkey policy test`, a question of AuthZEN, steps
# of a CI job, a part of Prometheus's configuration (config/test_alerts.py). Each has a test below, or
# is nothing to load.
OTHERS = (
    {"status"},
    {"settings", "policies", "cases"},
    {"subject", "action", "resource"},
    {"metric_relabel_configs"},
)


class Block(NamedTuple):
    page: str
    program: str
    shown: Any


def kubernetes(review: Any) -> dict[str, Any]:
    return {
        "issuer": "https://kubernetes.default.svc.cluster.local",
        "kind": "kubernetes",
        "audience": "https://broker.valetkey.svc:7080",
        "use": "workload",
        "review": review,
    }


def transmitter(poll: Any) -> dict[str, Any]:
    return {
        "issuer": "https://events.idp.example",
        "audience": "https://broker.example",
        "jwks_url": "https://events.idp.example/jwks",
        "subjects": ["https://idp.example"],
        "poll": poll,
    }


def texts(page: Path) -> Iterator[str]:
    """Blocks of YAML, fenced or indented, divided where a comment names another file."""
    text = page.read_text(encoding="utf-8")
    fenced = re.compile(r"^ *```(\w*)\n(.*?)^ *```\n", re.MULTILINE | re.DOTALL)
    yamls = [textwrap.dedent(body) for kind, body in fenced.findall(text) if kind == "yaml"]
    indented = re.findall(r"^\n((?: {4,}\S.*\n|\n(?= {4}))+)", fenced.sub("", text), re.MULTILINE)
    # A command before settings makes one block with them: each of its parts by itself.
    parts: list[str] = []
    for block in (*yamls, *map(textwrap.dedent, indented)):
        parts += block.split("\n\n")[1:] if block.startswith("curl ") else [block]
    for block in parts:
        yield from re.split(r"^(?=# (?:config/)?\w+\.yaml)", block, flags=re.MULTILINE)


def blocks() -> Iterator[Block]:
    for page in PAGES:
        for text in texts(page):
            try:
                shown = yaml.safe_load(text)
            except yaml.YAMLError:
                continue  # a command
            if isinstance(shown, list) and all("id" in entry for entry in shown):
                shown = {"routes" if "match" in shown[0] else "grants": shown}
            # A manifest is Kubernetes'; what `valetkey inject` makes of pods is tested below.
            if isinstance(shown, dict) and "apiVersion" in shown:
                continue
            if text.startswith("# values.yaml"):
                continue  # of the chart: tests/unit/cli/test_chart.py
            if isinstance(shown, dict) and set(shown) not in OTHERS:
                yield Block(page.name, program_of(page.name, text, shown), shown)


def program_of(page: str, text: str, shown: dict[str, Any]) -> str:
    said = re.match(r"# (?:config/)?(\w+)\.yaml", text)
    if said:
        return said[1]
    if set(shown) == {"grants"} or {"workload", "issuer", "target"} <= set(shown):
        return "grants"
    if len(shown) == 1 and (key := next(iter(shown))) in NESTED:
        return NESTED[key][0]
    fits = [name for name, keys in KEYS.items() if set(shown) <= keys]
    if set(shown) == {"targets"}:
        has_url = any("url" in target for target in shown["targets"].values())
        return "proxy" if has_url else "broker"
    assert fits, f"{page}: {list(shown)} are keys of no program"
    return fits[0]


def merged(base: Any, shown: Any, key: str = "") -> Any:
    """Both, what is shown first; issuers by their name, everything else of a list replaced."""
    if isinstance(base, dict) and isinstance(shown, dict) and key != "identity":
        both = {name: merged(base.get(name), value, name) for name, value in shown.items()}
        return {**base, **both}
    if key == "issuers" and isinstance(base, list):
        names = {issuer["issuer"] for issuer in shown}
        return [*shown, *(issuer for issuer in base if issuer["issuer"] not in names)]
    return shown


def whole(program: str, shown: dict[str, Any]) -> dict[str, Any]:
    base = yaml.safe_load((ROOT / f"config/{program}.yaml").read_text())
    key = next(iter(shown))
    made: dict[str, Any] = merged(base, NESTED[key][1](shown[key]) if key in NESTED else shown)
    if program == "injector" and "operator" in shown.get("sidecar", ()):
        del made["sidecar"]["targets"]
    if program == "injector" and "tls" in shown.get("webhook", ()):
        del made["webhook"]["own"]
    if program == "proxy":
        # Routes of targets that the page does not show, and examples whose targets it replaced.
        for route in made["routes"]:
            name = route["target"]
            url = f"https://{name}.example.com"
            made["targets"].setdefault(
                name,
                {
                    "url": url,
                    "audience": url,
                    "prefix": f"/{name}",
                    "credential": {"kind": "bearer"},
                },
            )
    return made


BLOCKS = list(blocks())


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page} {'+'.join(block.shown)}")
def test_each_block_of_settings_is_taken(block: Block, tmp_path: Path) -> None:
    file = tmp_path / f"{block.program}.yaml"
    if block.program == "grants":
        grants = block.shown if "grants" in block.shown else {"grants": [block.shown]}
        loaded = settings.parse(GrantsFile, yaml.safe_dump(grants), name="page", program="broker")
        assert loaded.grants
        return
    if any("within" in route for route in block.shown.get("routes", ())):
        file.write_text(yaml.safe_dump(block.shown))
        check_file("operator", ROOT / "config/operator.yaml", environ={}, owner=file)
        return
    file.write_text(yaml.safe_dump(whole(block.program, block.shown)))
    check_file(block.program, file, environ={})


def test_no_page_s_blocks_are_overlooked() -> None:
    """So many are there at least: a block that is not found here is a block that nobody loads."""
    shown = {page.name: sum(block.page == page.name for block in BLOCKS) for page in PAGES}
    least = {
        "ask-a-person-first.md": 3,
        "give-access-for-one-deployment.md": 2,
        "inject-the-sidecar.md": 3,
        "keep-streams-open.md": 2,
        "let-others-report.md": 3,
        "mcp.md": 3,
        "narrow-routes.md": 2,
        "provision-users.md": 1,
        "run-beside-a-mesh.md": 2,
        "status-lists.md": 1,
        "transaction-tokens.md": 3,
        "transparent.md": 1,
        "trust-issuers.md": 9,
        "trust-the-sidecar.md": 3,
        "tune-limits.md": 1,
        "use-as-a-forward-proxy.md": 2,
        "use-ldap.md": 1,
        "write-a-policy.md": 3,
        "write-routes.md": 2,
    }
    assert {name: shown[name] for name in least if shown[name] < least[name]} == {}


def test_the_pod_of_the_page_on_injection_gets_its_sidecar() -> None:
    page = (ROOT / "docs/how-to/inject-the-sidecar.md").read_text()
    [shown] = [text for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "Pod" in text]
    arguments = ["inject", "-f", "-", "--config", str(ROOT / "config/injector.yaml")]
    done = CliRunner().invoke(main, arguments, input=shown)
    assert done.exit_code == 0, done.output
    [sidecar] = yaml.safe_load(done.stdout)["spec"]["initContainers"]
    assert sidecar["resources"]["limits"] == {"memory": "512Mi"}


def test_the_page_on_injection_names_each_annotation_and_variable() -> None:
    page = (ROOT / "docs/how-to/inject-the-sidecar.md").read_text()
    known = {value for name, value in vars(names).items() if str(value).startswith(names.PREFIX)}
    said = set(re.findall(r"`(valetkey/[a-z]+)`", page))
    assert said == known - {names.PREFIX}
    loaded = settings.load(
        InjectorSettings, ROOT / "config/injector.yaml", program="injector", environ={}
    )
    for spellings, _ in of_workload(loaded.sidecar, "forward", ("IPv4",)):
        assert f"`{spellings[-1]}`" in page


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The examples, and what the page on policies shows beside them."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    for text in texts(ROOT / "docs/how-to/write-a-policy.md"):
        if text.startswith("settings:"):
            (tmp_path / "config/policies/page-tests.yaml").write_text(text)
        elif text.startswith("subject:"):
            (tmp_path / "config/question.yaml").write_text(text)
    return tmp_path / "config"


def test_the_cases_of_the_page_on_policies_are_as_expected(written: Path) -> None:
    done = CliRunner().invoke(main, ["policy", "test", str(written / "policies/page-tests.yaml")])
    assert (done.exit_code, done.output) == (0, "ok: 1 as expected\n")


def test_the_question_of_the_page_on_policies_is_answered(written: Path) -> None:
    files = ("--config", "broker.yaml", "--grants", "grants.yaml", "--policies", "policies")
    paths = [name if name.startswith("--") else str(written / name) for name in files]
    done = CliRunner().invoke(main, ["policy", "explain", str(written / "question.yaml"), *paths])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("permit"), done.output


def test_the_policies_of_the_page_name_what_its_settings_have(tmp_path: Path) -> None:
    """Together, as somebody writes them who follows the page."""
    page = ROOT / "docs/how-to/write-a-policy.md"
    made = whole("broker", {"targets": {"issues": {"audience": "i", "credential": "bearer"}}})
    for block in BLOCKS:
        if block.page == page.name:
            made = merged(made, block.shown)
    (tmp_path / "broker.yaml").write_text(yaml.safe_dump(made))
    loaded = settings.load(BrokerSettings, tmp_path / "broker.yaml", program="broker", environ={})
    cedar = re.findall(r"```cedar\n(.*?)```", page.read_text(), re.DOTALL)
    policies = Policies.compile(
        {f"block {number}": text for number, text in enumerate(cedar)}, loaded.compiled_places()
    )
    assert len(policies.written) >= 6


# As meshes leave a pod: what sets up their rules, and their proxy, native or not.
MESHES = {
    "istio": ("istio-init", "istio-proxy", {"runAsUser": 0, "runAsNonRoot": False}, 1337),
    "linkerd": ("linkerd-init", "linkerd-proxy", {"runAsUser": 65534}, 2102),
}


def meshed(pod: dict[str, Any], mesh: str, *, native: bool) -> dict[str, Any]:
    init, proxy, setup, uid = MESHES[mesh]
    image = "registry.example.com/mesh:1"
    rules = {"name": init, "image": image, "securityContext": setup}
    beside: dict[str, Any] = {"name": proxy, "image": image, "securityContext": {"runAsUser": uid}}
    spec = pod["spec"]
    first = [rules, {**beside, "restartPolicy": "Always"}] if native else [rules]
    return {
        **pod,
        "spec": {
            **spec,
            "initContainers": [*first, *spec.get("initContainers", ())],
            "containers": [*spec["containers"], *(() if native else [beside])],
        },
    }


def of_mesh() -> tuple[dict[str, Any], InjectorSettings]:
    """The pod of the page on meshes, and the settings that it shows, put into the example."""
    page = ROOT / "docs/how-to/run-beside-a-mesh.md"
    [pod] = [yaml.safe_load(text) for text in texts(page) if "kind: Pod" in text]
    [shown] = [
        block.shown for block in BLOCKS if (block.page, block.program) == (page.name, "injector")
    ]
    config = yaml.safe_dump(whole("injector", shown))
    return pod, settings.parse(
        InjectorSettings, config, name="page", program="injector", environ={}
    )


@pytest.mark.parametrize("native", [True, False], ids=["native", "plain"])
@pytest.mark.parametrize("mesh", sorted(MESHES))
def test_beside_a_mesh_the_sidecar_is_first_and_whole(mesh: str, native: bool) -> None:
    pod, loaded = of_mesh()
    place = Place("agents")
    once = mutate(pod, place, loaded)
    assert isinstance(once, Injected)
    # The mesh's webhook comes after it, and it is asked again.
    again = mutate(meshed(once.pod, mesh, native=native), place, loaded)
    assert isinstance(again, Injected)
    assert validate(again.pod, place, loaded) is None
    inits = again.pod["spec"]["initContainers"]
    assert [each["name"] for each in inits[:2]] == ["valetkey", MESHES[mesh][0]]
    assert inits[0]["restartPolicy"] == "Always"
    others = [*inits[1:], *again.pod["spec"]["containers"]]
    assert len(others) == 3
    for container in others:
        given = {each["name"]: each["value"] for each in container["env"]}
        assert {".svc", ".cluster.local"} <= set(given["NO_PROXY"].split(","))
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert mounts == {names.TRUST}
    annotations = again.pod["metadata"]["annotations"]
    ports = {"7080", "7090"}
    for name in (
        "traffic.sidecar.istio.io/excludeOutboundPorts",
        "config.linkerd.io/skip-outbound-ports",
    ):
        assert set(annotations[name].split(",")) == ports
    urls = (loaded.sidecar.broker.url, loaded.sidecar.collector and loaded.sidecar.collector.url)
    assert {str(url).rpartition(":")[2] for url in urls} == ports


def test_beside_istio_s_setup_as_root_there_is_no_transparent_mode() -> None:
    pod, loaded = of_mesh()
    pod["metadata"]["annotations"][names.MODE] = "transparent"
    pod["spec"]["containers"][0]["securityContext"] = {"runAsUser": 1000}
    assert isinstance(mutate(pod, Place("agents"), loaded), Injected)
    refused = mutate(meshed(pod, "istio", native=True), Place("agents"), loaded)
    assert isinstance(refused, Refusal)
    assert refused.code.name == "inject.redirect_user"
