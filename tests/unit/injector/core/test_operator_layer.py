"""A pod whose routes are the operator's, narrowed by its namespace's owner: what it mounts and is told."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import yaml

from tests.support.pods import loaded, pod
from valetkey.contracts import settings
from valetkey.injector.core import names
from valetkey.injector.core.mutation import Injected, Place, mutate
from valetkey.injector.core.validation import validate
from valetkey.injector.settings import InjectorSettings
from valetkey.proxy.settings import ProxySettings

PLACE = Place("agents")


def operated(**operator: Any) -> InjectorSettings:
    return loaded(sidecar__targets=None, sidecar__operator=operator)


def injected(injector: InjectorSettings, **annotations: str) -> dict[str, Any]:
    noted = {f"valetkey/{name}": value for name, value in annotations.items()}
    made = mutate(pod(annotations=noted), PLACE, injector)
    assert isinstance(made, Injected), made
    assert validate(made.pod, PLACE, injector) is None
    return made.pod


def sidecar_of(document: dict[str, Any]) -> dict[str, Any]:
    [found] = [each for each in document["spec"]["initContainers"] if each["name"] == "valetkey"]
    return found


def owner_of(document: dict[str, Any]) -> Any:
    """The sidecar's ``owner`` section."""
    [value] = [
        each["value"] for each in sidecar_of(document)["env"] if each["name"].endswith("__OWNER")
    ]
    return json.loads(value)


OWNERS: dict[str, tuple[dict[str, Any], dict[str, str], str | None, Any]] = {
    "nobody": ({}, {}, None, None),
    "named by the pod": (
        {}, {"routes": "ours"}, "ours", {"file": "/etc/valetkey/routes/routes.yaml", "targets": None},
    ),
    "named by the operator": (
        {"owner": "all-of-them", "owner_key": "r.yaml"}, {}, "all-of-them",
        {"file": "/etc/valetkey/routes/r.yaml", "targets": None},
    ),
    "named by both": (
        {"owner": "all-of-them"}, {"routes": "ours"}, "ours",
        {"file": "/etc/valetkey/routes/routes.yaml", "targets": None},
    ),
    "some targets": ({}, {"targets": "tickets"}, None, {"file": None, "targets": ["tickets"]}),
    "both": (
        {}, {"targets": "b,a", "routes": "ours"}, "ours",
        {"file": "/etc/valetkey/routes/routes.yaml", "targets": ["a", "b"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("operator", "said", "volume", "section"), OWNERS.values(), ids=OWNERS)
def test_the_owner_s_file_is_another_layer_than_the_operator_s(
    operator: dict[str, Any], said: dict[str, str], volume: str | None, section: Any
) -> None:
    document = injected(operated(**operator), **said)
    volumes = {each["name"]: each for each in document["spec"]["volumes"]}
    assert volumes[names.OPERATOR]["configMap"] == {"name": "valetkey-operator", "defaultMode": 420}
    container = sidecar_of(document)
    assert container["command"][-1] == "/etc/valetkey/operator/operator.yaml"
    mounts = {each["name"]: each for each in container["volumeMounts"]}
    assert mounts[names.OPERATOR]["mountPath"] == "/etc/valetkey/operator"
    for mount in mounts.values():
        assert not mount.keys() & {"subPath", "subPathExpr"}, "it would never change again"
    assert (names.ROUTES in mounts) == (volume is not None)
    if volume is not None:
        # Not optional: without its file the pod waits.
        assert volumes[names.ROUTES]["configMap"] == {"name": volume, "defaultMode": 420}
    assert owner_of(document) == section


def test_what_the_file_may_have_is_targets_routes_and_passthrough() -> None:
    """Whatever else somebody got into it, the variables stand for."""
    document = injected(operated(), routes="ours")
    environ = {each["name"]: each["value"] for each in sidecar_of(document)["env"]}
    given = {name.removeprefix("VALETKEY_PROXY__").lower() for name in environ}
    fields = set(ProxySettings.__struct_fields__)
    assert fields - given == {"targets", "routes", "passthrough"}
    whole = {
        "targets": {
            "t": {"url": "https://t.example", "audience": "t", "credential": {"kind": "bearer"}}
        },
        "routes": [
            {"id": "r", "target": "t", "match": {"methods": ["GET"], "path": "/"}, "scopes": ["s"]}
        ],
    }
    evil = {"owner": None, "broker": {"url": "https://evil.example"}}
    read = settings.parse(
        ProxySettings, yaml.safe_dump(whole | evil), name="x", program="proxy", environ=environ
    )
    assert read.broker.url == "https://broker.valetkey.svc:7080"
    assert read.owner is not None


def test_without_an_operator_s_file_the_namespace_s_can_name_no_owner() -> None:
    document = injected(loaded())
    assert owner_of(document) is None


def test_the_two_layers_can_not_be_exchanged_in_a_pod() -> None:
    injector = operated()
    document = injected(injector, routes="ours")
    for one, other in itertools.permutations((names.OPERATOR, names.ROUTES), 2):
        changed = json.loads(json.dumps(document))
        for mount in sidecar_of(changed)["volumeMounts"]:
            if mount["name"] == one:
                mount["name"] = other
        refusal = validate(changed, PLACE, injector)
        assert refusal is not None
        assert refusal.code.name == "inject.sidecar_changed"
