"""``mutate``: a pod in, the same pod with the sidecar out, or why not.

Invariants:

- ``mutate`` of what it made is the same again, also after others added containers in between: those
  get the variables too.
- Nothing of the pod is lost or changed but what is added, and the Kubernetes API's token where it
  is withdrawn. A variable that the workload sets itself is kept, and said.
- Nothing but the sidecar's container has its tokens, its key and its record; a pod in which
  something else would have them is refused.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Final

from valetkey.contracts import codes
from valetkey.contracts.codes import Code
from valetkey.contracts.errors import CallerError
from valetkey.injector.core import checks, names, pod_resources, reading
from valetkey.injector.core.comparison import difference
from valetkey.injector.core.parts import Choice, Json, Parts, is_for_users, parts
from valetkey.injector.core.reading import Pod
from valetkey.injector.core.wanted import Wanted, read_annotations
from valetkey.injector.settings import InjectorSettings

# Native sidecars: KEP-753, on by default since 1.29.
NATIVE_SINCE: Final = (1, 29)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the pod is to run: its namespace, and the cluster's version (major, minor)."""

    namespace: str
    version: tuple[int, int] = NATIVE_SINCE

    @property
    def native(self) -> bool:
        return self.version >= NATIVE_SINCE


@dataclass(frozen=True, slots=True)
class Injected:
    """The pod with its sidecar. ``warnings`` are for whoever made it."""

    pod: Json
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Untouched:
    """The pod is to have no sidecar, for this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """The pod may not be made. ``reason`` says what in it is meant."""

    code: Code
    reason: str

    def __str__(self) -> str:
        return f"{self.code.name}: {self.code.help}" + (f" ({self.reason})" if self.reason else "")


def mutate(pod: Any, place: Place, loaded: InjectorSettings) -> Injected | Untouched | Refusal:
    """The pod as it is to be. ``pod`` is JSON, and is not changed."""
    try:
        view = reading.read(pod)
        wanted = read_annotations(view.annotations, loaded.sidecar.resources)
        if reason := stays_out(wanted, place, loaded):
            return Untouched(reason)
        made = what_it_must_have(view, wanted, place, loaded)
        checks.may_have(view, made, loaded.sidecar)
        _check_ours(pod, made)
    except CallerError as error:
        return Refusal(error.code, error.reason)
    return _merged(pod, made, view, place, loaded)


def stays_out(wanted: Wanted, place: Place, loaded: InjectorSettings) -> str:
    """Why a pod is left alone; empty if it is not. Raises `CallerError` where it may not ask."""
    if place.namespace in loaded.pods.excluded:
        return f"namespace {place.namespace} is excluded"
    if wanted.inject is False:
        if not loaded.pods.opt_out:
            raise CallerError(codes.INJECT_OPT_OUT, names.INJECT)
        return f'{names.INJECT}: "false"'
    return ""


def what_it_must_have(view: Pod, wanted: Wanted, place: Place, loaded: InjectorSettings) -> Parts:
    """Raises `CallerError`."""
    sidecar = loaded.sidecar
    mode = wanted.mode or sidecar.mode
    if mode == "transparent" and loaded.redirect is None:
        raise CallerError(codes.INJECT_REDIRECT_OFF, f"{names.MODE}: {mode}")
    operator = sidecar.operator
    # The operator's file changes while pods run: a target that it has no more is nobody's then.
    if wanted.targets is not None and operator is None:
        unknown = set(wanted.targets) - set(sidecar.targets or ())
        if unknown:
            raise CallerError(codes.INJECT_TARGET_UNKNOWN, ", ".join(sorted(unknown)))
    return parts(
        Choice(
            mode,
            place.native,
            wanted.routes or (sidecar.routes.config_map if operator is None else operator.owner),
            wanted.targets,
            wanted.resources or sidecar.resources,
            checks.users(view, sidecar.uid) if mode == "transparent" else (),
        ),
        loaded,
    )


def ours(pod: Json) -> tuple[dict[str, Json], dict[str, tuple[str, Json]]]:
    """What is there under the injector's names: volumes, and containers with their list."""
    spec = pod["spec"]
    volumes = {
        volume["name"]: volume
        for volume in spec.get("volumes") or ()
        if volume["name"] in names.VOLUMES
    }
    containers = {
        container["name"]: (where, container)
        for where in ("initContainers", "containers", "ephemeralContainers")
        for container in spec.get(where) or ()
        if container["name"] in names.CONTAINERS
    }
    return volumes, containers


def _check_ours(pod: Json, made: Parts) -> None:
    """What stands under our names is ours, down to the last member, or the pod is refused."""
    volumes, containers = ours(pod)
    for name, volume in volumes.items():
        wanted = made.volume(name)
        if wanted is None or (found := difference(volume, wanted)):
            where = f"volume {name}" if wanted is None else f"volume {name}: {found}"
            raise CallerError(codes.INJECT_NAME_TAKEN, where)
    for name, (where, container) in containers.items():
        expected = made.sidecar if name == names.CONTAINER else made.redirect
        if expected is None or where != place_of(expected):
            raise CallerError(codes.INJECT_NAME_TAKEN, f"{where}: {name}")
        if found := difference(_for_same_users(container, expected), expected):
            raise CallerError(codes.INJECT_NAME_TAKEN, f"{where}: {name}: {found}")


def _for_same_users(container: Json, expected: Json) -> Json:
    """A redirect that is there already, for users as they are by now: others may have come."""
    command = container.get("command")
    if container["name"] != names.REDIRECT or not isinstance(command, list):
        return container
    head, tail = expected["command"][:2], expected["command"][3:]
    if (
        len(command) < 3
        or not is_for_users(command[2])
        or (command[:2], command[3:]) != (head, tail)
    ):
        return container
    return {**container, "command": expected["command"]}


def place_of(container: Json) -> str:
    """The list that a container of ours belongs into."""
    plain = container["name"] == names.CONTAINER and "restartPolicy" not in container
    return "containers" if plain else "initContainers"


def _merged(pod: Json, made: Parts, view: Pod, place: Place, loaded: InjectorSettings) -> Injected:
    after: Json = copy.deepcopy(pod)
    spec = after["spec"]
    if loaded.pods.api_access == "withdraw" and view.spec.automount_service_account_token is None:
        _withdraw_api_token(spec)
    pod_resources.keep_what_it_asks_for(spec, view)
    volumes, containers = ours(after)
    others = [volume for volume in spec.get("volumes") or () if volume["name"] not in volumes]
    spec["volumes"] = [*others, *(volumes.get(each["name"], each) for each in made.volumes)]
    kept: list[str] = []
    for where in ("initContainers", "containers"):
        workload = [
            container
            for container in spec.get(where) or ()
            if container["name"] not in names.CONTAINERS
        ]
        # A plain sidecar runs after all init containers: they can't call through it.
        if where == "containers" or place.native:
            for container in workload:
                kept += _equip(container, made)
        # First in the list: each that follows has the sidecar when it starts.
        first = [
            _for_same_users(containers[each["name"]][1], each)
            if each["name"] in containers
            else each
            for each in (made.redirect, made.sidecar)
            if each is not None and place_of(each) == where
        ]
        if first or workload:
            spec[where] = [*copy.deepcopy(first), *workload]
    _note(after, place, kept)
    return Injected(after, tuple(_warnings(view, kept, place, loaded)))


def _equip(container: Json, made: Parts) -> list[str]:
    """Give a container of the workload its mount and variables; which ones it has already."""
    kept = []
    variables = list(container.get("env") or ())
    before = {variable["name"]: variable for variable in variables}
    for spellings, value in made.variables:
        own = [name for name in spellings if name in before and not _is(before[name], value)]
        kept += [f"{container['name']}/{name}" for name in own]
        if not own:
            variables += (
                {"name": name, "value": value} for name in spellings if name not in before
            )
    if variables:
        container["env"] = variables
    if made.mount is not None:
        mounts = container.get("volumeMounts") or []
        if not any(mount["name"] == names.TRUST for mount in mounts):
            container["volumeMounts"] = [*mounts, dict(made.mount)]
    return kept


def _is(variable: Json, value: str) -> bool:
    """An empty value is left out by the API server."""
    given: str = variable.get("value") or ""
    return given == value and variable.get("valueFrom") is None


def _withdraw_api_token(spec: Json) -> None:
    """Say that there is to be none, and take out what the ServiceAccount plugin put in for it."""
    spec["automountServiceAccountToken"] = False
    for container in (*(spec.get("initContainers") or ()), *spec["containers"]):
        mounts = container.get("volumeMounts") or []
        left = [mount for mount in mounts if not _is_api_token_mount(mount)]
        if len(left) < len(mounts):
            container["volumeMounts"] = left
            if not left:
                del container["volumeMounts"]
    used = {
        mount["name"]
        for where in ("initContainers", "containers", "ephemeralContainers")
        for container in spec.get(where) or ()
        for mount in container.get("volumeMounts") or ()
    }
    volumes = spec.get("volumes") or []
    left = [each for each in volumes if not _is_api_token_volume(each) or each["name"] in used]
    if len(left) < len(volumes):
        spec["volumes"] = left


def _is_api_token_mount(mount: Json) -> bool:
    name: str = mount["name"]
    return name.startswith(names.API_TOKEN_VOLUME) and mount["mountPath"] == names.API_TOKEN_DIR


def _is_api_token_volume(volume: Json) -> bool:
    name: str = volume["name"]
    return name.startswith(names.API_TOKEN_VOLUME) and "projected" in volume


def _note(pod: Json, place: Place, kept: list[str]) -> None:
    metadata = pod.get("metadata") or {}
    noted = {**(metadata.get("annotations") or {})}
    noted.pop(names.KEPT, None)
    noted[names.INJECTED] = "native" if place.native else "plain"
    if kept:
        noted[names.KEPT] = ",".join(sorted(kept))
    pod["metadata"] = {**metadata, "annotations": noted}


def _warnings(view: Pod, kept: list[str], place: Place, loaded: InjectorSettings) -> list[str]:
    """Short lines: the API server cuts off what is longer than 256 characters (admission/v1)."""
    found = [
        f"valetkey: {name} is the pod's own and was kept; its calls may not go through the sidecar"
        for name in sorted(kept)
    ]
    if not place.native and any(
        each.name not in names.CONTAINERS for each in view.spec.init_containers or ()
    ):
        found.append("valetkey: this cluster has no native sidecars: init containers run before it")
    grace = view.spec.termination_grace_period_seconds
    drain = loaded.sidecar.timeouts.drain
    if grace is not None and grace < drain:
        found.append(
            f"valetkey: terminationGracePeriodSeconds is {grace}, the sidecar drains for "
            f"{drain:g} s: calls in flight may be cut"
        )
    return found
