"""Pods where they stand in manifests: by themselves, and as templates of what makes them."""

from __future__ import annotations

import copy
from typing import Any, Final

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.injector.core.mutation import Injected, Place, Refusal, Untouched, mutate
from valetkey.injector.settings import InjectorSettings

# Kind and API group: where the pod's metadata and spec stand.
_TEMPLATES: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("Pod", "v1"): (),
    ("ReplicationController", "v1"): ("spec", "template"),
    ("Deployment", "apps/v1"): ("spec", "template"),
    ("ReplicaSet", "apps/v1"): ("spec", "template"),
    ("StatefulSet", "apps/v1"): ("spec", "template"),
    ("DaemonSet", "apps/v1"): ("spec", "template"),
    ("Job", "batch/v1"): ("spec", "template"),
    ("CronJob", "batch/v1"): ("spec", "jobTemplate", "spec", "template"),
}
_KINDS: Final = {kind for kind, _ in _TEMPLATES}


def inject(document: Any, place: Place, loaded: InjectorSettings) -> Injected | Untouched | Refusal:
    """`mutate` for a manifest of any kind; one that makes no pods is `Untouched`.

    A namespace that the manifest names stands for the place's.
    """
    if not isinstance(document, dict):
        return Refusal(codes.INJECT_NOT_A_POD, "a manifest is an object")
    kind, version = document.get("kind"), document.get("apiVersion")
    if (kind, version) == ("List", "v1"):
        return _of_list(document, place, loaded)
    path = _TEMPLATES.get((str(kind), str(version)))
    if path is None:
        if kind in _KINDS:
            # An API version that no cluster has any more would go through without a sidecar.
            return Refusal(codes.INJECT_NOT_A_POD, f"{kind} of {version} is not known")
        if not isinstance(kind, str) or not isinstance(version, str):
            return Refusal(codes.INJECT_NOT_A_POD, "kind and apiVersion are missing")
        return Untouched(f"{kind} makes no pods")
    after = copy.deepcopy(document)
    try:
        pod = _at(after, path)
        here = Place(_namespace(document) or place.namespace, place.version)
    except CallerError as error:
        return Refusal(error.code, error.reason)
    result = mutate(pod, here, loaded)
    if isinstance(result, Injected):
        if not path:
            return result
        pod.clear()
        pod.update(result.pod)
        return Injected(after, result.warnings)
    return result


def _of_list(
    document: dict[str, Any], place: Place, loaded: InjectorSettings
) -> Injected | Refusal:
    """Each item by itself; the first that is refused refuses all."""
    items: list[Any] = []
    warnings: list[str] = []
    given = document.get("items")
    for item in given if isinstance(given, list) else ():
        result = inject(item, place, loaded)
        if isinstance(result, Refusal):
            return result
        items.append(result.pod if isinstance(result, Injected) else item)
        warnings += result.warnings if isinstance(result, Injected) else ()
    return Injected({**document, "items": items}, tuple(warnings))


def _at(document: Any, path: tuple[str, ...]) -> dict[str, Any]:
    found = document
    for number, key in enumerate(path):
        found = found.get(key) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            raise CallerError(codes.INJECT_NOT_A_POD, f"{'.'.join(path[: number + 1])} is missing")
    return found  # type: ignore[no-any-return]


def _namespace(document: dict[str, Any]) -> str:
    metadata = document.get("metadata")
    name = metadata.get("namespace") if isinstance(metadata, dict) else None
    if name is not None and not isinstance(name, str):
        raise CallerError(codes.INJECT_NOT_A_POD, "metadata.namespace is no text")
    return name or ""
