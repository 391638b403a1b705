"""What is put into a pod: volumes, the sidecar's container, the redirect's, the workload's mount.

Every value that the API server would otherwise fill in is written out, so that what comes back
from it can be compared with what was sent. What is added is fit for Pod Security ``restricted``,
but for the redirect's container, which needs root and NET_ADMIN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from valetkey.contracts import settings
from valetkey.injector.core import environment, names
from valetkey.injector.core.environment import loopback
from valetkey.injector.settings import (
    InjectedSidecarSettings,
    InjectorSettings,
    Mode,
    ResourceSettings,
)

TOKEN_SECONDS: Final = 3600
_DEFAULT_MODE: Final = 0o644
_DIRS: Final = {names.OPERATOR: names.OPERATOR_DIR, names.ROUTES: names.ROUTES_DIR}
# A CA, a bundle with the system's roots and a trust store are half a megabyte.
_TRUST_SIZE: Final = "8Mi"
_PRIVATE_SIZE: Final = "1Mi"
# After the app's last call of a plain sidecar, which is told to stop at the same moment.
_LINGER: Final = 5
# redirect.sh takes one user at a time.
_FOR_EACH: Final = 'for uid in {users}; do "$0" up --uid "$uid" "$@" || exit 1; done'

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """What one pod gets. ``uids``: the workload's users, where they are to be redirected.

    ``routes`` is the ConfigMap of the namespace's owner; ``None``: there is none.
    """

    mode: Mode
    native: bool
    routes: str | None
    targets: tuple[str, ...] | None
    resources: ResourceSettings
    uids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Parts:
    """All that is added. ``variables``: names of one meaning, and the value."""

    volumes: tuple[Json, ...]
    sidecar: Json
    redirect: Json | None
    mount: Json | None
    variables: tuple[tuple[tuple[str, ...], str], ...]

    def volume(self, name: str) -> Json | None:
        return next((volume for volume in self.volumes if volume["name"] == name), None)


def parts(choice: Choice, loaded: InjectorSettings) -> Parts:
    """Everything that a pod with this choice must have."""
    families = loaded.pods.ip_families
    intercepts = choice.mode != "reverse"
    return Parts(
        tuple(_volumes(choice, loaded, intercepts=intercepts)),
        _sidecar(choice, loaded, intercepts=intercepts),
        _redirect(choice, loaded) if choice.mode == "transparent" else None,
        _mount(names.TRUST, names.TRUST_DIR) if intercepts else None,
        environment.of_workload(loaded.sidecar, choice.mode, families),
    )


def _volumes(choice: Choice, loaded: InjectorSettings, *, intercepts: bool) -> list[Json]:
    sidecar = loaded.sidecar
    tokens = [("token", sidecar.token_audience)]
    if (audience := sidecar.collector_token_audience) is not None:
        tokens.append(("collector-token", audience))
    found: list[Json] = [
        {
            "name": names.TOKEN,
            "projected": {
                "defaultMode": _DEFAULT_MODE,
                "sources": [
                    {
                        "serviceAccountToken": {
                            "audience": audience,
                            "expirationSeconds": TOKEN_SECONDS,
                            "path": path,
                        }
                    }
                    for path, audience in tokens
                ],
            },
        },
        *_files(choice, sidecar),
        {"name": names.SPOOL, "emptyDir": {"sizeLimit": _bytes(2 * sidecar.spool)}},
    ]
    if sidecar.trust is not None:
        found.append(_config_map(names.ANCHORS, sidecar.trust.config_map))
    if intercepts:
        found += [
            {"name": name, "emptyDir": {"medium": "Memory", "sizeLimit": size}}
            for name, size in ((names.PRIVATE, _PRIVATE_SIZE), (names.TRUST, _TRUST_SIZE))
        ]
    return found


def _files(choice: Choice, sidecar: InjectedSidecarSettings) -> list[Json]:
    """Volumes with settings. None is optional: without its file, a sidecar lets nothing out."""
    found = []
    if sidecar.operator is not None:
        found.append(_config_map(names.OPERATOR, sidecar.operator.config_map))
    if choice.routes is not None:
        found.append(_config_map(names.ROUTES, choice.routes))
    return found


def _sidecar(choice: Choice, loaded: InjectorSettings, *, intercepts: bool) -> Json:
    sidecar = loaded.sidecar
    mounts = [
        _mount(names.TOKEN, names.TOKEN_DIR),
        *(_mount(each["name"], _DIRS[each["name"]]) for each in _files(choice, sidecar)),
        {"name": names.SPOOL, "mountPath": names.SPOOL_DIR},
    ]
    if sidecar.trust is not None:
        mounts.append(_mount(names.ANCHORS, names.ANCHORS_DIR))
    if intercepts:
        mounts += [
            {"name": names.PRIVATE, "mountPath": names.PRIVATE_DIR},
            {"name": names.TRUST, "mountPath": names.TRUST_DIR},
        ]
    config = f"{names.ROUTES_DIR}/{sidecar.routes.key}"
    if sidecar.operator is not None:
        config = f"{names.OPERATOR_DIR}/{sidecar.operator.key}"
    container: Json = {
        "name": names.CONTAINER,
        **_image(sidecar.image, sidecar.pull_policy),
        "command": [sidecar.python, "-m", "valetkey.proxy", "--config", config],
        "env": environment.of_sidecar(
            sidecar,
            choice.mode,
            loaded.pods.ip_families,
            choice.targets,
            narrowed=choice.routes is not None,
        ),
        "ports": [{"name": "valetkey-admin", "containerPort": names.ADMIN_PORT, "protocol": "TCP"}],
        "resources": _resources(choice.resources),
        "volumeMounts": mounts,
        "startupProbe": _probe("/readyz", period=1, timeout=2, failures=round(sidecar.startup)),
        # It answers while it is full, so an answer that is missing thrice is missing for a reason.
        "livenessProbe": _probe("/healthz", period=10, timeout=5, failures=3),
        "securityContext": {
            "runAsUser": sidecar.uid,
            "runAsGroup": sidecar.uid,
            "runAsNonRoot": True,
            **_confined(),
        },
    }
    if choice.native:
        container["restartPolicy"] = "Always"
    else:
        container["lifecycle"] = _lifecycle(loaded)
    return container


def _lifecycle(loaded: InjectorSettings) -> Json:
    """What a native sidecar needs none of: the workload starts after it and ends before it."""
    sidecar = loaded.sidecar
    wait = [sidecar.python, "-m", "valetkey.injector.wait"]
    ready = f"http://{loopback(loaded.pods.ip_families)[0]}:{names.ADMIN_PORT}/readyz"
    return {
        "postStart": {"exec": {"command": [*wait, "ready", ready, f"{round(sidecar.startup)}"]}},
        "preStop": {"exec": {"command": [*wait, "stay", f"{_LINGER}"]}},
    }


def _redirect(choice: Choice, loaded: InjectorSettings) -> Json:
    redirect = loaded.redirect
    assert redirect is not None, "who asks for transparent mode was refused without it"
    options = ["--port", str(names.TRANSPARENT_PORT), "--ports", redirect.ports]
    options += ["--dns", redirect.dns]
    options += ["--loopback", redirect.loopback] if redirect.loopback else []
    script = _FOR_EACH.format(users=" ".join(map(str, choice.uids)))
    return {
        "name": names.REDIRECT,
        **_image(redirect.image, loaded.sidecar.pull_policy),
        "command": ["/bin/sh", "-c", script, redirect.script, *options],
        "resources": _resources(loaded.sidecar.resources),
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": False,
            **_confined(add=["NET_ADMIN"]),
        },
    }


def is_for_users(script: str) -> bool:
    """Whether this is the redirect's script, for whatever users."""
    begin, end = _FOR_EACH.split("{users}")
    users = script.removeprefix(begin).removesuffix(end)
    return f"{begin}{users}{end}" == script and all(map(str.isdigit, users.split(" ")))


def _confined(add: list[str] | None = None) -> Json:
    capabilities = {"drop": ["ALL"], **({"add": add} if add else {})}
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": capabilities,
        "readOnlyRootFilesystem": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _image(image: str, pull_policy: str) -> Json:
    return {
        "image": image,
        "imagePullPolicy": pull_policy,
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
    }


def _probe(path: str, *, period: int, timeout: int, failures: int) -> Json:
    return {
        "httpGet": {"path": path, "port": names.ADMIN_PORT, "scheme": "HTTP"},
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
        "successThreshold": 1,
    }


def _resources(resources: ResourceSettings) -> Json:
    """The API server takes what has a limit and no request for asked for."""
    limits = settings.plain(resources.limits)
    requests = {**limits, **settings.plain(resources.requests)}
    return {
        name: amounts for name, amounts in (("limits", limits), ("requests", requests)) if amounts
    }


def _config_map(volume: str, name: str) -> Json:
    """As a directory: a file in it (``subPath``) would never change again."""
    return {"name": volume, "configMap": {"name": name, "defaultMode": _DEFAULT_MODE}}


def _mount(volume: str, path: str) -> Json:
    return {"name": volume, "mountPath": path, "readOnly": True}


def _bytes(octets: int) -> str:
    return f"{octets >> 20}Mi"
