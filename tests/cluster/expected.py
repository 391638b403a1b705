"""What docs/how-to/inject-the-sidecar.md promises of a pod, in other words than the injector's.

A pod is held beside its twin: the same manifest in a namespace where nothing is injected, so that both
have what the API server itself makes of it. All that differs is accounted for here.
"""

from __future__ import annotations

import copy
import json
import re
from typing import Any, Final

from valetkey.contracts import settings
from valetkey.proxy.settings import ProxySettings

Json = dict[str, Any]

IMAGE: Final = f"registry.example.com/valetkey@sha256:{'0' * 64}"
BROKER: Final = "https://valetkey-broker.valetkey.svc:7080"
COLLECTOR: Final = "https://valetkey-collector.valetkey.svc:7090"
TARGETS: Final = {"tickets", "payments"}
_OURS: Final = ("valetkey-token", "valetkey-routes", "valetkey-spool", "valetkey-anchors")
_CA: Final = ("valetkey-private", "valetkey-trust")
_TRUST: Final = {"name": "valetkey-trust", "mountPath": "/run/valetkey", "readOnly": True}
_PROXY: Final = "http://127.0.0.1:7072"
_JAVA: Final = (
    "-Djavax.net.ssl.trustStore=/run/valetkey/trust.p12 -Djavax.net.ssl.trustStorePassword=changeit"
    " -Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort=7072"
    " -Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort=7072"
)
# One line per meaning: all spellings, and the value.
_FORWARD: Final = {
    ("http_proxy", "HTTP_PROXY"): _PROXY,
    ("https_proxy", "HTTPS_PROXY"): _PROXY,
    ("no_proxy", "NO_PROXY"): "localhost,127.0.0.1,::1",
    ("wss_proxy",): _PROXY,
    ("NODE_USE_ENV_PROXY",): "1",
    ("SSL_CERT_FILE",): "/run/valetkey/bundle.pem",
    ("REQUESTS_CA_BUNDLE",): "/run/valetkey/bundle.pem",
    ("PIP_CERT",): "/run/valetkey/bundle.pem",
    ("CURL_CA_BUNDLE",): "/run/valetkey/bundle.pem",
    ("GIT_SSL_CAINFO",): "/run/valetkey/bundle.pem",
    ("AWS_CA_BUNDLE",): "/run/valetkey/bundle.pem",
    ("NODE_EXTRA_CA_CERTS",): "/run/valetkey/ca.pem",
    ("JAVA_TOOL_OPTIONS",): _JAVA,
}


def check_untouched(pod: Json, twin: Json) -> None:
    assert _plain(pod) == _plain(twin)
    assert _annotations(pod) == _annotations(twin)


def check(pod: Json, twin: Json, *, limited: bool = False) -> None:
    """That the pod is its twin with a sidecar. ``limited``: a LimitRange adds to resources."""
    asked = _annotations(twin)
    mode = asked.get("valetkey/mode", "forward")
    actual, expected = _plain(pod)["spec"], _plain(twin)["spec"]
    _check_volumes(actual, expected, asked, mode)
    sidecar, *others = actual.pop("initContainers")
    # The plugin of the API server that mounts the API's token looks again after webhooks.
    with_token = expected.get("automountServiceAccountToken") is True
    _check_sidecar(sidecar, asked, mode, limited=limited, with_token=with_token)
    kept: list[str] = []
    own = [*expected.pop("initContainers", ()), *expected.pop("containers")]
    workload = [*others, *actual.pop("containers")]
    assert [each["name"] for each in workload] == [each["name"] for each in own]
    withdrawn = _is_withdrawn(expected)
    for container, of_twin in zip(workload, own, strict=True):
        kept += _check_container(container, of_twin, mode, withdrawn=withdrawn)
    if withdrawn:
        expected["automountServiceAccountToken"] = False
    _check_amounts(actual.pop("resources", {}), expected.pop("resources", {}), own)
    assert actual == expected
    noted = {"valetkey/injected": "native"}
    if kept:
        noted["valetkey/kept"] = ",".join(sorted(kept))
    assert _annotations(pod) == {**asked, **noted}


def kept(pod: Json) -> int:
    """How many variables the pod's maker is warned of."""
    noted = _annotations(pod).get("valetkey/kept")
    return len(noted.split(",")) if noted else 0


def plain_spec(pod: Json) -> Json:
    """The pod's spec without the lot in a name."""
    spec: Json = _plain(pod)["spec"]
    return spec


def _annotations(pod: Json) -> Json:
    """A LimitRange says itself what it added."""
    noted = pod["metadata"].get("annotations") or {}
    return {name: text for name, text in noted.items() if name != "kubernetes.io/limit-ranger"}


def _plain(pod: Json) -> Json:
    """Without what differs between any two pods: the lot in the name of the API token's volume."""
    text = re.sub(r'"kube-api-access-[a-z0-9]{5}"', '"kube-api-access-"', json.dumps(pod["spec"]))
    metadata = pod["metadata"]
    kept = {key: metadata.get(key) for key in ("labels", "ownerReferences", "generateName")}
    return {"spec": json.loads(text), **kept}


def _is_withdrawn(spec: Json) -> bool:
    """Pods that do not ask for the API's token lose it."""
    return "automountServiceAccountToken" not in spec


def _check_volumes(actual: Json, expected: Json, asked: Json, mode: str) -> None:
    volumes = {volume["name"]: volume for volume in actual.pop("volumes")}
    own = {volume["name"]: volume for volume in expected.pop("volumes", ())}
    if _is_withdrawn(expected):
        own.pop("kube-api-access-", None)
    names = [*_OURS, *(_CA if mode != "reverse" else ())]
    assert list(volumes) == [*own, *names]
    assert {name: volumes[name] for name in own} == own
    assert volumes["valetkey-token"]["projected"] == {
        "defaultMode": 0o644,
        "sources": [
            {"serviceAccountToken": {"audience": who, "expirationSeconds": 3600, "path": path}}
            for who, path in ((BROKER, "token"), (COLLECTOR, "collector-token"))
        ],
    }
    routes = asked.get("valetkey/routes", "valetkey-routes")
    assert volumes["valetkey-routes"]["configMap"] == {"name": routes, "defaultMode": 0o644}
    anchors = {"name": "valetkey-ca", "defaultMode": 0o644}
    assert volumes["valetkey-anchors"]["configMap"] == anchors
    assert volumes["valetkey-spool"]["emptyDir"] == {"sizeLimit": "512Mi"}
    for name in names[4:]:
        assert volumes[name]["emptyDir"]["medium"] == "Memory"  # a key never reaches a disk


def _check_amounts(actual: Json, expected: Json, containers: list[Json]) -> None:
    """A pod that has resources as a whole asks for no less than without a sidecar."""
    asked = {name for each in containers for name in each.get("resources", {}).get("requests", ())}
    assert actual.get("limits") == expected.get("limits")
    for name, amount in expected.get("requests", {}).items():
        if name == "memory" and name in asked:
            # The API server's sum of what containers ask for, ours among them.
            assert actual["requests"][name] != amount
        else:
            assert actual["requests"][name] == amount
    assert actual.keys() == expected.keys()


def _check_sidecar(
    container: Json, asked: Json, mode: str, *, limited: bool, with_token: bool
) -> None:
    environ = {each["name"]: each["value"] for each in container.pop("env")}
    chosen = set(asked.get("valetkey/targets", ",".join(TARGETS)).split(","))
    # What the sidecar reads, over the file of a namespace that says more than it may.
    file = {
        "routes": [
            {
                "id": name,
                "target": name,
                "match": {"methods": ["GET"], "path": "/"},
                "scopes": ["a"],
            }
            for name in chosen
        ],
        "broker": {"url": "https://elsewhere.example.com"},
        "targets": {},
        "passthrough": [{"host": "elsewhere.example.com"}],
    }
    loaded = settings.parse(
        ProxySettings, json.dumps(file), name="proxy.yaml", program="proxy", environ=environ
    )
    assert (loaded.broker.url, loaded.collector.url) == (BROKER, COLLECTOR)
    assert str(loaded.workload.identity.file) == "/var/run/secrets/valetkey/token"
    assert (set(loaded.targets), loaded.passthrough) == (chosen, ())
    (listener,) = loaded.listeners
    port = 7070 if mode == "reverse" else 7072
    assert (listener.mode, listener.bind) == (mode, f"127.0.0.1:{port}")
    resources = container.pop("resources")
    wanted = {"limits": {"memory": "256Mi"}, "requests": {"cpu": "50m", "memory": "96Mi"}}
    if "valetkey/resources" in asked:
        wanted = {
            "limits": {"cpu": "1", "memory": "512Mi"},
            "requests": {"cpu": "250m", "memory": "512Mi"},
        }
        resources = json.loads(
            json.dumps(resources).replace("0.5Gi", "512Mi").replace('"0.25"', '"250m"')
        )
    if limited:
        resources = {key: {name: resources[key][name] for name in wanted[key]} for key in wanted}
    assert resources == wanted
    mounts = container.pop("volumeMounts")
    at = {
        "valetkey-token": "/var/run/secrets/valetkey", "valetkey-routes": "/etc/valetkey/routes",
        "valetkey-spool": "/var/lib/valetkey", "valetkey-anchors": "/etc/valetkey/anchors",
        **({"valetkey-private": "/run/valetkey-private", "valetkey-trust": "/run/valetkey"} if mode != "reverse" else {}),
        **({"kube-api-access-": "/var/run/secrets/kubernetes.io/serviceaccount"} if with_token else {}),
    }  # fmt: skip
    assert {mount["name"]: mount["mountPath"] for mount in mounts} == at
    startup, liveness = container.pop("startupProbe"), container.pop("livenessProbe")
    assert startup["httpGet"] == {"path": "/readyz", "port": 7071, "scheme": "HTTP"}
    assert startup["periodSeconds"] * startup["failureThreshold"] == 120
    assert liveness["httpGet"]["path"] == "/healthz"
    assert container == {
        "name": "valetkey",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "restartPolicy": "Always",
        "command": ["python3", "-m", "valetkey.proxy", "--config", "/etc/valetkey/routes/proxy.yaml"],
        "ports": [{"name": "valetkey-admin", "containerPort": 7071, "protocol": "TCP"}],
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "securityContext": {
            "runAsUser": 64707, "runAsGroup": 64707, "runAsNonRoot": True,
            "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True, "seccompProfile": {"type": "RuntimeDefault"},
        },
    }  # fmt: skip


def _check_container(container: Json, of_twin: Json, mode: str, *, withdrawn: bool) -> list[str]:
    """A container of the workload; which of its variables were kept."""
    actual, expected = copy.deepcopy(container), copy.deepcopy(of_twin)
    own = expected.pop("env", [])
    env = actual.pop("env", [])
    assert env[: len(own)] == own, "what was there stays, in its order"
    before = {each["name"]: each for each in own}
    added: dict[str, str] = {}
    kept: list[str] = []
    for spellings, value in (_FORWARD if mode == "forward" else {}).items():
        other = [
            name
            for name in spellings
            if name in before and before[name] != {"name": name, "value": value}
        ]
        kept += [f"{actual['name']}/{name}" for name in other]
        if not other:
            added |= {name: value for name in spellings if name not in before}
    assert {each["name"]: each.get("value") for each in env[len(own) :]} == added
    mounts = [
        mount
        for mount in expected.pop("volumeMounts", [])
        if not (withdrawn and mount["name"] == "kube-api-access-")
    ]
    assert actual.pop("volumeMounts", []) == [*mounts, *([_TRUST] if mode != "reverse" else [])]
    assert actual == expected
    return kept
