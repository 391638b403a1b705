"""``valetkey inject``: each kind of manifest, several documents, standard input, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from tests.support.pods import EXAMPLE, pod
from valetkey.cli.main import main

POD = pod()
TEMPLATE = {"metadata": {"labels": {"app": "agent"}}, "spec": POD["spec"]}


def manifest(kind: str, version: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": "agent"}, "spec": spec}


KINDS = {
    "Pod": POD,
    "Deployment": manifest("Deployment", "apps/v1", {"replicas": 2, "template": TEMPLATE}),
    "StatefulSet": manifest("StatefulSet", "apps/v1", {"template": TEMPLATE}),
    "DaemonSet": manifest("DaemonSet", "apps/v1", {"template": TEMPLATE}),
    "ReplicaSet": manifest("ReplicaSet", "apps/v1", {"template": TEMPLATE}),
    "Job": manifest("Job", "batch/v1", {"template": TEMPLATE}),
    "CronJob": manifest("CronJob", "batch/v1", {"jobTemplate": {"spec": {"template": TEMPLATE}}}),
    "List": {"apiVersion": "v1", "kind": "List", "items": [POD]},
}
OTHER = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1"}}


def run(text: str, *options: str) -> Result:
    arguments = ["inject", "-f", "-", "--config", str(EXAMPLE), *options]
    return CliRunner().invoke(main, arguments, input=text)


def spec_of(document: dict[str, Any]) -> dict[str, Any]:
    if document["kind"] == "List":
        return spec_of(document["items"][0])
    spec: dict[str, Any] = document["spec"]
    while "containers" not in spec:
        spec = spec.get("jobTemplate", spec.get("template", {}))["spec"]
    return spec


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_gets_a_sidecar_and_keeps_all_else(kind: str) -> None:
    done = run(yaml.safe_dump(KINDS[kind]))
    assert done.exit_code == 0, done.output
    made = yaml.safe_load(done.stdout)
    assert [each["name"] for each in spec_of(made)["initContainers"]] == ["valetkey"]
    for key, value in KINDS[kind].items():
        if key not in {"spec", "metadata", "items"}:
            assert made[key] == value
    again = run(done.stdout)
    assert again.stdout == done.stdout


def test_documents_that_make_no_pods_are_written_as_they_are() -> None:
    text = f"# first\n---\n{yaml.safe_dump(OTHER)}---\n{yaml.safe_dump(POD)}---\n# nothing\n"
    done = run(text)
    assert done.exit_code == 0, done.output
    other, made = yaml.safe_load_all(done.stdout)
    assert other == OTHER
    assert made["spec"]["initContainers"]


def test_files_and_their_order(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(OTHER))
    (tmp_path / "b.json").write_text('{"apiVersion": "v1", "kind": "Secret"}')
    files = ["-f", str(tmp_path / "a.yaml"), "-f", str(tmp_path / "b.json")]
    done = CliRunner().invoke(main, ["inject", *files, "--config", str(EXAMPLE)])
    assert [each["kind"] for each in yaml.safe_load_all(done.stdout)] == ["ConfigMap", "Secret"]


def test_the_cluster_s_version_and_the_namespace_count() -> None:
    old = run(yaml.safe_dump(POD), "--kubernetes", "1.28")
    containers = yaml.safe_load(old.stdout)["spec"]["containers"]
    assert [each["name"] for each in containers] == ["valetkey", "app"]
    for text, options in (
        (yaml.safe_dump(POD), ("--namespace", "kube-system")),
        (yaml.safe_dump({**POD, "metadata": {"namespace": "kube-system"}}), ()),
    ):
        assert "valetkey" not in run(text, *options).stdout


REFUSALS = {
    "hostNetwork": (pod(hostNetwork=True), "inject.host_network"),
    "in a Job of an old cluster": (
        manifest("Job", "batch/v1", {"template": {"spec": {**POD["spec"], "restartPolicy": "Never"}}}),
        "inject.never_ends",
    ),
    "in a List": ({"apiVersion": "v1", "kind": "List", "items": [OTHER, pod(hostPID=True)]}, "inject.shared_processes"),
    "no template": (manifest("Deployment", "apps/v1", {}), "inject.not_a_pod"),
    "an API version of the past": (manifest("Deployment", "extensions/v1beta1", {}), "inject.not_a_pod"),
    "no kind": ({"apiVersion": "v1"}, "inject.not_a_pod"),
    "text": ("hello", "inject.not_a_pod"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_one_line_and_nothing_is_written(name: str) -> None:
    document, code = REFUSALS[name]
    done = run(f"{yaml.safe_dump(OTHER)}---\n{yaml.safe_dump(document)}", "--kubernetes", "1.28")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"{code}: " in done.stderr
    assert done.stderr.startswith("valetkey: -:")


UNUSABLE = {
    "not YAML": ("a: [", (), "-:2: not YAML"),
    "a key twice": ("kind: Pod\n---\na: 1\na: 2\n", (), "-:4: duplicate key 'a'"),
    "no version": ("a: 1", ("--kubernetes", "new"), "is no version of Kubernetes"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_can_not_be_read(name: str) -> None:
    text, options, said = UNUSABLE[name]
    done = run(text, *options)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_what_was_kept_is_said() -> None:
    own = pod({"name": "app", "image": "a", "env": [{"name": "PIP_CERT", "value": "/x"}]})
    done = run(yaml.safe_dump(own))
    assert done.exit_code == 0
    assert "app/PIP_CERT is the pod's own" in done.stderr
