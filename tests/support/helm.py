"""Helm 3 and 4, helm-unittest and kubeconform, built from their Go modules for the tests of the chart.

``make helm`` builds them once, into ``.helm/``. The schemas that kubeconform goes by are made of the
OpenAPI document in the module of Kubernetes, and of the resource definitions in that of the Prometheus
Operator.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import yaml

from tests.support import go_modules

# The API that manifests are judged by, and where the resources of Prometheus are defined.
KUBERNETES: Final = go_modules.pinned("k8s.io/kubernetes")
_OPERATOR: Final = "v0.85.0"
PROGRAMS: Final = {
    "helm3": "helm.sh/helm/v3/cmd/helm",
    "helm4": "helm.sh/helm/v4/cmd/helm",
    "helm-unittest": "github.com/helm-unittest/helm-unittest/cmd/helm-unittest",
    "kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform",
}
CHART: Final = Path(__file__).resolve().parents[2] / "helm/valetkey"
_BUILT: Final = go_modules.Built(".helm", _OPERATOR)


def missing() -> str:
    """Why the tools are not there, or empty."""
    return "" if _BUILT.there else "no Helm: `make helm` builds it (Go, minutes the first time)"


def build() -> None:
    """Build all of them (their checksums are verified by Go), unless they are there."""
    _BUILT.make(_fill)


def _fill(place: Path) -> None:
    for program, package in PROGRAMS.items():
        go_modules.build(package, place / "bin" / program)
    _write_schemas(place / "schemas")


# --- schemas of the Kubernetes API ----------------------------------------------------------------


def _write_schemas(directory: Path) -> None:
    directory.mkdir(parents=True)
    document = (
        go_modules.fetched(f"k8s.io/kubernetes@{KUBERNETES}") / "api/openapi-spec/swagger.json"
    )
    definitions = json.loads(document.read_text())["definitions"]
    for name, definition in definitions.items():
        for kind in definition.get("x-kubernetes-group-version-kind", ()):
            schema = _standalone(name, definitions, kind)
            (directory / _name(kind["kind"], kind["group"], kind["version"])).write_text(
                json.dumps(schema)
            )
    for definition in prometheus_definitions():
        spec = definition["spec"]
        for version in spec["versions"]:
            name = _name(spec["names"]["kind"], spec["group"], version["name"])
            schema = _strict(version["schema"]["openAPIV3Schema"], [])
            (directory / name).write_text(json.dumps(schema))


def prometheus_definitions() -> list[dict[str, Any]]:
    """What the Prometheus Operator adds to the API, as far as the chart has such resources."""
    operator = go_modules.fetched(f"github.com/prometheus-operator/prometheus-operator@{_OPERATOR}")
    return [
        yaml.load(
            (
                operator / f"example/prometheus-operator-crd/monitoring.coreos.com_{name}.yaml"
            ).read_text(),
            Loader=yaml.CSafeLoader,
        )
        for name in ("podmonitors", "prometheusrules", "servicemonitors")
    ]


def _name(kind: str, group: str, version: str) -> str:
    """As kubeconform looks for them: deployment-apps-v1, service-v1."""
    parts = [kind, *([group.partition(".")[0]] if group else []), version]
    return "-".join(parts).lower() + ".json"


def _standalone(name: str, definitions: dict[str, Any], kind: dict[str, str]) -> dict[str, Any]:
    """A definition with all that it refers to. Strict: what it does not name is refused."""
    needed: dict[str, Any] = {}
    waiting = [name]
    while waiting:
        each = waiting.pop()
        if each not in needed:
            needed[each] = _strict(definitions[each], waiting)
    api = f"{kind['group']}/{kind['version']}" if kind["group"] else kind["version"]
    main = needed[name]
    main["required"] = sorted({*main.get("required", ()), "apiVersion", "kind"})
    main["properties"] |= {"apiVersion": {"const": api}, "kind": {"const": kind["kind"]}}
    return {"$ref": f"#/definitions/{name}", "definitions": needed}


def _strict(node: Any, found: list[str]) -> Any:
    if isinstance(node, list):
        return [_strict(held, found) for held in node]
    if not isinstance(node, dict):
        return node
    if node.get("format") == "int-or-string":
        return {"type": ["integer", "string"]}
    made = {
        key: _strict(held, found)
        for key, held in node.items()
        if key not in {"description", "default", "format"} and not key.startswith("x-kubernetes")
    }
    if isinstance(node.get("properties"), dict):
        # Here the keys are names of properties, not of the schema's language.
        made["properties"] = {
            name: _strict(held, found) for name, held in node["properties"].items()
        }
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    if isinstance(reference := node.get("$ref"), str):
        found.append(reference.removeprefix("#/definitions/"))
        if reference.endswith(".api.resource.Quantity"):
            return {"type": ["string", "number"]}
    return made


# --- using them -----------------------------------------------------------------------------------


def run(program: str, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """A program to its end, with nothing of the user's own settings and caches."""
    with tempfile.TemporaryDirectory() as home:
        environment = {"PATH": os.environ["PATH"], "HOME": home}
        return subprocess.run(
            [_BUILT.program(program), *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            env=environment,
            timeout=120,
            **options,
        )


def template(
    file: Path, *, program: str = "helm3", namespace: str = "valetkey"
) -> subprocess.CompletedProcess[str]:
    """The chart with a file of values, whatever comes of it."""
    where = ["--namespace", namespace, "--kube-version", KUBERNETES, "--values", file]
    return run(program, "template", "valetkey", CHART, *where)


def render(
    values: str | dict[str, Any], *, program: str = "helm3", namespace: str = "valetkey"
) -> str:
    """The manifests of the chart with a file of ``ci/`` (its name) or with values at hand."""
    with tempfile.TemporaryDirectory() as directory:
        file = CHART / f"ci/{values}-values.yaml"
        if not isinstance(values, str):
            file = Path(directory) / "values.yaml"
            file.write_text(json.dumps(values))
        done = template(file, program=program, namespace=namespace)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(manifests: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Manifests by kind and name; each is there once."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for document in yaml.safe_load_all(manifests):
        if document is not None:
            key = document["kind"], document["metadata"]["name"]
            assert key not in found, key
            found[key] = document
    return found


def conforms(manifests: str) -> subprocess.CompletedProcess[str]:
    """kubeconform's word on manifests, in strict mode."""
    schemas = _BUILT.place / "schemas" / "{{ .ResourceKind }}{{ .KindSuffix }}.json"
    arguments = ["-strict", "-summary", "-schema-location", str(schemas)]
    return run("kubeconform", *arguments, input=manifests)


if __name__ == "__main__":
    if missing():
        build()
    sys.exit(missing() or 0)
