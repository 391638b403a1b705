"""Pods of many shapes, all fit for Pod Security ``restricted``: the same ones each time.

Each pod has one feature in turn, and some others by a lot that is drawn by its number.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

Json = dict[str, Any]
Feature = Callable[[Json, random.Random], None]

_OTHERS: Final = 0.12


@dataclass(frozen=True, slots=True)
class Shape:
    """``features`` by name; ``pod`` has no namespace."""

    number: int
    features: frozenset[str]
    pod: Json


def shapes(count: int) -> list[Shape]:
    return [_shape(number) for number in range(count)]


def _shape(number: int) -> Shape:
    lot = random.Random(number)
    first = list(FEATURES)[number % len(FEATURES)]
    chosen = [name for name in FEATURES if name == first or lot.random() < _OTHERS]
    pod: Json = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"pod-{number}", "labels": {"app": "agent"}, "annotations": {}},
        "spec": {
            "securityContext": {
                "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [_container("app", lot)],
        },
    }  # fmt: skip
    for name in chosen:
        FEATURES[name](pod, lot)
    return Shape(number, frozenset(chosen), pod)


def _container(name: str, lot: random.Random, **more: Any) -> Json:
    return {
        "name": name,
        "image": f"registry.example.com/{name}:{lot.randrange(100)}",
        "securityContext": {
            "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
        },
        **more,
    }  # fmt: skip


def _any(pod: Json, lot: random.Random) -> Json:
    """One of the containers, init containers too."""
    return lot.choice([*pod["spec"]["containers"], *pod["spec"].get("initContainers", ())])


def _set(pod: Json, lot: random.Random, *variables: Json) -> None:
    container = _any(pod, lot)
    there = {variable["name"] for variable in container.get("env", ())}
    container["env"] = [
        *container.get("env", ()),
        *(variable for variable in variables if variable["name"] not in there),
    ]


# --- what a pod can be ----------------------------------------------------------------------------


def bare(_pod: Json, _lot: random.Random) -> None:
    """Nothing that it need not have."""


def several_containers(pod: Json, lot: random.Random) -> None:
    for number in range(lot.randrange(1, 7)):
        pod["spec"]["containers"].append(_container(f"more-{number}", lot))


def init_containers(pod: Json, lot: random.Random) -> None:
    made = [_container(f"init-{number}", lot) for number in range(lot.randrange(1, 4))]
    pod["spec"]["initContainers"] = [*made, *pod["spec"].get("initContainers", ())]


def own_native_sidecar(pod: Json, lot: random.Random) -> None:
    probe = {"exec": {"command": ["true"]}, "failureThreshold": 3}
    made = _container("mesh", lot, restartPolicy="Always", startupProbe=probe)
    pod["spec"]["initContainers"] = [*pod["spec"].get("initContainers", ()), made]


def own_proxy(pod: Json, lot: random.Random) -> None:
    name = lot.choice(["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "no_proxy", "wss_proxy"])
    _set(pod, lot, {"name": name, "value": "http://proxy.example.com:3128"})


def own_proxy_in_both_spellings(pod: Json, lot: random.Random) -> None:
    _set(
        pod,
        lot,
        {"name": "http_proxy", "value": "http://proxy.example.com:3128"},
        {"name": "HTTP_PROXY", "value": "http://proxy.example.com:3128"},
    )


def own_bundle(pod: Json, lot: random.Random) -> None:
    name = lot.choice(["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "JAVA_TOOL_OPTIONS", "PIP_CERT"])
    _set(pod, lot, {"name": name, "value": "/etc/own"})


def proxy_of_a_config_map(pod: Json, lot: random.Random) -> None:
    source = {"configMapKeyRef": {"name": "network", "key": "proxy", "optional": True}}
    _set(pod, lot, {"name": "HTTPS_PROXY", "valueFrom": source})


def empty_proxy(pod: Json, lot: random.Random) -> None:
    """The API server leaves the empty value out."""
    _set(pod, lot, {"name": "HTTP_PROXY", "value": ""})


def the_injector_s_own_value(pod: Json, lot: random.Random) -> None:
    _set(pod, lot, {"name": "HTTPS_PROXY", "value": "http://127.0.0.1:7072"})


def other_variables(pod: Json, lot: random.Random) -> None:
    _set(
        pod,
        lot,
        {"name": "LEVEL", "value": "debug"},
        {"name": "GREETING", "value": "$(LEVEL) $$(LEVEL) ünïcödé 👋"},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "key", "key": "key"}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
    )


def variables_from_elsewhere(pod: Json, lot: random.Random) -> None:
    sources = [{"configMapRef": {"name": "settings"}}, {"secretRef": {"name": "s"}, "prefix": "S_"}]
    _any(pod, lot)["envFrom"] = sources


def volumes(pod: Json, lot: random.Random) -> None:
    token = {"path": "token", "audience": "https://elsewhere.example.com"}
    claim = {
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    }
    every: list[Json] = [
        {"name": "empty", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        {"name": "config", "configMap": {"name": "config", "optional": True}},
        {"name": "secret", "secret": {"secretName": "secret"}},
        {"name": "claim", "persistentVolumeClaim": {"claimName": "claim"}},
        {"name": "generic", "ephemeral": {"volumeClaimTemplate": claim}},
        {"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}},
        {
            "name": "labels",
            "downwardAPI": {
                "items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]
            },
        },
    ]
    chosen = lot.sample(every, lot.randrange(1, len(every)))
    pod["spec"]["volumes"] = chosen
    for container in pod["spec"]["containers"]:
        container["volumeMounts"] = [
            {"name": each["name"], "mountPath": f"/mnt/{each['name']}"} for each in chosen
        ]
    pod["spec"]["containers"][0]["volumeMounts"][0] |= {"subPath": "a", "readOnly": True}


def with_api_token(pod: Json, _lot: random.Random) -> None:
    pod["spec"]["automountServiceAccountToken"] = True


def without_api_token(pod: Json, _lot: random.Random) -> None:
    pod["spec"].setdefault("automountServiceAccountToken", False)


def another_account(pod: Json, _lot: random.Random) -> None:
    pod["spec"] |= {"serviceAccountName": "bot", "imagePullSecrets": [{"name": "registry"}]}


def probes(pod: Json, lot: random.Random) -> None:
    lot.choice(pod["spec"]["containers"]).update(
        livenessProbe={"httpGet": {"path": "/live", "port": 8080}},
        readinessProbe={"tcpSocket": {"port": "http"}},
        startupProbe={"grpc": {"port": 9000}},
        ports=[{"name": "http", "containerPort": 8080}, {"containerPort": 9000, "protocol": "UDP"}],
    )


def hooks(pod: Json, lot: random.Random) -> None:
    lot.choice(pod["spec"]["containers"])["lifecycle"] = {
        "postStart": {"exec": {"command": ["true"]}},
        "preStop": {"httpGet": {"path": "/stop", "port": 8080}},
    }


def amounts(pod: Json, lot: random.Random) -> None:
    _any(pod, lot)["resources"] = {
        "requests": {"cpu": "0.1", "memory": "128Mi"},
        "limits": {"cpu": "1500m", "memory": "1G", "ephemeral-storage": "2Gi"},
    }


def resized_in_place(pod: Json, _lot: random.Random) -> None:
    pod["spec"]["containers"][0]["resizePolicy"] = [
        {"resourceName": "cpu", "restartPolicy": "NotRequired"},
        {"resourceName": "memory", "restartPolicy": "NotRequired"},
    ]


def amounts_of_the_pod(pod: Json, _lot: random.Random) -> None:
    pod["spec"]["resources"] = {"requests": {"cpu": "8"}, "limits": {"cpu": "16", "memory": "16Gi"}}


def reverse(pod: Json, _lot: random.Random) -> None:
    pod["metadata"]["annotations"].setdefault("valetkey/mode", "reverse")


def forward(pod: Json, _lot: random.Random) -> None:
    pod["metadata"]["annotations"].setdefault("valetkey/mode", "forward")


def some_targets(pod: Json, lot: random.Random) -> None:
    chosen = lot.choice(["tickets", "payments", "payments,tickets"])
    pod["metadata"]["annotations"]["valetkey/targets"] = chosen


def other_routes(pod: Json, _lot: random.Random) -> None:
    pod["metadata"]["annotations"]["valetkey/routes"] = "routes.of-this-one"


def other_resources(pod: Json, _lot: random.Random) -> None:
    said = {"requests": {"cpu": "0.25"}, "limits": {"cpu": 1, "memory": "0.5Gi"}}
    said["limits"]["cpu"] = "1"
    pod["metadata"]["annotations"]["valetkey/resources"] = json.dumps(said)


def asked_for(pod: Json, _lot: random.Random) -> None:
    pod["metadata"]["annotations"].setdefault("valetkey/inject", "true")


def opted_out(pod: Json, _lot: random.Random) -> None:
    pod["metadata"]["annotations"]["valetkey/inject"] = "false"


def of_a_replica_set(pod: Json, _lot: random.Random) -> None:
    """As its controller makes them: no name yet, and an owner."""
    metadata = pod["metadata"]
    metadata["generateName"] = f"{metadata.pop('name')}-6f9d7c5b4-"
    metadata["labels"]["pod-template-hash"] = "6f9d7c5b4"
    metadata["ownerReferences"] = [
        {
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "agent-6f9d7c5b4",
            "uid": "5f0d5f4e-1c57-4f2e-9a61-0c9a3f6f2b11", "controller": True,
            "blockOwnerDeletion": True,
        }
    ]  # fmt: skip


def names_of_its_own(pod: Json, _lot: random.Random) -> None:
    pod["spec"] |= {
        "hostAliases": [{"ip": "192.0.2.7", "hostnames": ["tickets.example.com"]}],
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["192.0.2.53"], "options": [{"name": "ndots", "value": "2"}]},
        "hostname": "agent",
        "subdomain": "agents",
    }


def scheduled(pod: Json, _lot: random.Random) -> None:
    terms = [
        {"matchExpressions": [{"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]}]}
    ]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    pod["spec"] |= {
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"nodeAffinity": required},
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "zone",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"app": "agent"}},
            }
        ],
        "schedulingGates": [{"name": "example.com/wait"}],
        "schedulerName": "other",
        "priorityClassName": "system-cluster-critical",
    }


def that_ends(pod: Json, lot: random.Random) -> None:
    """A Job's."""
    policy = lot.choice(["Never", "OnFailure"])
    pod["spec"] |= {"restartPolicy": policy, "activeDeadlineSeconds": 600}


def little_time_to_end(pod: Json, lot: random.Random) -> None:
    pod["spec"]["terminationGracePeriodSeconds"] = lot.choice([0, 1, 5])


def much_time_to_end(pod: Json, _lot: random.Random) -> None:
    pod["spec"].setdefault("terminationGracePeriodSeconds", 600)


def users(pod: Json, lot: random.Random) -> None:
    pod["spec"]["securityContext"] |= {
        "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000, "supplementalGroups": [3000],
        "fsGroupChangePolicy": "OnRootMismatch",
        "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}],
    }  # fmt: skip
    _any(pod, lot)["securityContext"] |= {"runAsUser": 1001, "readOnlyRootFilesystem": True}


def user_namespace(pod: Json, _lot: random.Random) -> None:
    pod["spec"]["hostUsers"] = False


def said_though_usual(pod: Json, _lot: random.Random) -> None:
    pod["spec"] |= {
        "os": {"name": "linux"}, "enableServiceLinks": False, "hostNetwork": False, "hostPID": False,
        "hostIPC": False, "shareProcessNamespace": False, "restartPolicy": "Always",
        "readinessGates": [{"conditionType": "example.com/ready"}],
    }  # fmt: skip


def all_of_a_container(pod: Json, lot: random.Random) -> None:
    _any(pod, lot).update(
        command=["/bin/app", "$(LEVEL)"], args=["--all"], workingDir="/work", tty=True, stdin=True,
        stdinOnce=True, imagePullPolicy="Never", terminationMessagePath="/tmp/end",
        terminationMessagePolicy="FallbackToLogsOnError",
    )  # fmt: skip


def long_names(pod: Json, lot: random.Random) -> None:
    pod["spec"]["containers"].append(_container("c" * 63, lot))
    pod["metadata"]["annotations"] |= {f"example.com/{'a' * 63}": "é" * 2000, "plain": ""}
    pod["metadata"]["labels"] |= {f"{'l' * 63}": "v" * 63}


def large(pod: Json, lot: random.Random) -> None:
    for number in range(25):
        env = [{"name": f"V_{each}", "value": "x" * 40} for each in range(30)]
        pod["spec"]["containers"].append(_container(f"large-{number}", lot, env=env))


FEATURES: Final[dict[str, Feature]] = {
    each.__name__: each
    for each in (
        # Containers first: what follows chooses among them.
        bare, several_containers, init_containers, own_native_sidecar, long_names, large,
        own_proxy, own_proxy_in_both_spellings, own_bundle, proxy_of_a_config_map, empty_proxy,
        the_injector_s_own_value, other_variables, variables_from_elsewhere, volumes,
        with_api_token, without_api_token, another_account, probes, hooks, amounts,
        resized_in_place, amounts_of_the_pod, reverse, forward, some_targets, other_routes,
        other_resources, asked_for, opted_out, of_a_replica_set, names_of_its_own, scheduled,
        that_ends, little_time_to_end, much_time_to_end, users, user_namespace,
        said_though_usual, all_of_a_container,
    )
}  # fmt: skip
