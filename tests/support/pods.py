"""Pods of many shapes, the injector's example settings, and a strict reader of JSON Patches."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Final

import yaml

from valetkey.contracts import settings
from valetkey.injector.settings import InjectorSettings

EXAMPLE: Final = Path(__file__).parents[2] / "config/injector.yaml"
Json = dict[str, Any]


def loaded(**changes: Any) -> InjectorSettings:
    """The example's settings; ``sidecar__mode="reverse"`` changes a key of a section."""
    tree = yaml.safe_load(EXAMPLE.read_text())
    for path, value in changes.items():
        *sections, key = path.split("__")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[key] = value
    text = yaml.safe_dump(tree)
    return settings.parse(InjectorSettings, text, name="injector.yaml", program="injector")


def pod(*containers: Json, annotations: dict[str, str] | None = None, **spec: Any) -> Json:
    """A pod of these containers, or of one."""
    made: Json = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "agent", "labels": {"app": "agent"}},
        "spec": {
            "containers": list(containers) or [{"name": "app", "image": "app:1"}],
            **copy.deepcopy(spec),
        },
    }
    if annotations is not None:
        made["metadata"]["annotations"] = dict(annotations)
    return made


def api_token(pod: Json, name: str = "kube-api-access-x7k2p") -> Json:
    """What the ServiceAccount admission plugin makes of a pod before webhooks see it."""
    made = copy.deepcopy(pod)
    spec = made["spec"]
    source = {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}
    spec["volumes"] = [
        *spec.get("volumes", ()),
        {"name": name, "projected": {"defaultMode": 420, "sources": [source]}},
    ]
    mount = {
        "name": name,
        "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
        "readOnly": True,
    }
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        container["volumeMounts"] = [*container.get("volumeMounts", ()), dict(mount)]
    return made


def applied(patch: list[Json], document: Any) -> Any:
    """RFC 6902, for add, remove and replace, without any leniency."""
    whole = copy.deepcopy(document)
    for operation in patch:
        members = {"op", "path"} | ({"value"} if operation["op"] != "remove" else set())
        assert set(operation) == members
        if operation["path"] == "":
            assert operation["op"] == "replace"
            whole = copy.deepcopy(operation["value"])
            continue
        assert operation["path"].startswith("/")
        keys = [
            part.replace("~1", "/").replace("~0", "~") for part in operation["path"][1:].split("/")
        ]
        node = whole
        for key in keys[:-1]:
            node = node[key] if isinstance(node, dict) else node[_index(key)]
        _apply(operation, node, keys[-1])
    return whole


def _apply(operation: Json, node: Any, key: str) -> None:
    value = copy.deepcopy(operation.get("value"))
    if isinstance(node, dict):
        assert operation["op"] == "add" or key in node, operation
        if operation["op"] == "remove":
            del node[key]
        else:
            node[key] = value
        return
    assert isinstance(node, list)
    if operation["op"] == "add":
        index = len(node) if key == "-" else _index(key)
        assert index <= len(node), operation
        node.insert(index, value)
    elif operation["op"] == "remove":
        del node[_index(key)]
    else:
        node[_index(key)] = value


def _index(key: str) -> int:
    """RFC 6901 §4: no leading zeros, no sign."""
    assert key.isdigit(), key
    assert key == "0" or not key.startswith("0"), key
    return int(key)
