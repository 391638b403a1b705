"""``validate``: what others made of the pod meanwhile, or later, still has the unmodified sidecar.

Mutating webhooks run in an order that nobody guarantees; validating ones see what is left in the
end. A pod is compared with what would be put into it now, so it is `validate` for pods that are
made. Of pods that run, made by settings of another day, `unchanged` says whether somebody exchanged
what they have.
"""

from __future__ import annotations

from typing import Any

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.injector.core import checks, names, reading
from valetkey.injector.core.comparison import difference
from valetkey.injector.core.mutation import (
    Place,
    Refusal,
    ours,
    place_of,
    stays_out,
    what_it_must_have,
)
from valetkey.injector.core.parts import Json, Parts
from valetkey.injector.core.wanted import read_annotations
from valetkey.injector.settings import InjectorSettings


def validate(pod: Any, place: Place, loaded: InjectorSettings) -> Refusal | None:
    """``None``: the pod has its sidecar, unmodified, or is to have none."""
    try:
        view = reading.read(pod)
        wanted = read_annotations(view.annotations, loaded.sidecar.resources)
        if stays_out(wanted, place, loaded):
            return None
        made = what_it_must_have(view, wanted, place, loaded)
        checks.may_have(view, made, loaded.sidecar)
        _is_whole(pod, made)
    except CallerError as error:
        return Refusal(error.code, error.reason)
    return None


def unchanged(before: Any, after: Any, loaded: InjectorSettings) -> Refusal | None:
    """``None``: the pod's sidecar is the one it was, and nothing new has its tokens.

    For updates of pods that run, and for ephemeral containers that come to them.
    """
    try:
        reading.read(before)
        view = reading.read(after)
        if names.CONTAINER in ours(before)[1]:
            _is_as_before(before, after)
            intercepts = any(each.name == names.TRUST for each in view.spec.volumes or ())
            checks.exposes_nothing(view, loaded.sidecar, intercepts=intercepts)
    except CallerError as error:
        return Refusal(error.code, error.reason)
    return None


def _is_as_before(before: Json, after: Json) -> None:
    """Raises `CallerError`."""
    _, old = ours(before)
    _, new = ours(after)
    for name, (where, container) in old.items():
        found = difference(new[name][1], container) if name in new else "missing"
        if found:
            raise CallerError(codes.INJECT_SIDECAR_CHANGED, f"{where}: {name}: {found}")
    if added := sorted(set(new) - set(old)):
        raise CallerError(codes.INJECT_NAME_TAKEN, added[0])


def _is_whole(pod: Json, made: Parts) -> None:
    """Raises `CallerError`."""
    volumes, containers = ours(pod)
    for volume in made.volumes:
        name = volume["name"]
        if name not in volumes:
            raise CallerError(codes.INJECT_SIDECAR_MISSING, f"volume {name}")
        if found := difference(volumes[name], volume):
            raise CallerError(codes.INJECT_SIDECAR_CHANGED, f"volume {name}: {found}")
    wanted = [each for each in (made.redirect, made.sidecar) if each is not None]
    for container in wanted:
        name, where = container["name"], place_of(container)
        if name not in containers:
            raise CallerError(codes.INJECT_SIDECAR_MISSING, f"{where}: {name}")
        actual_place, actual = containers[name]
        found = difference(actual, container) if actual_place == where else f"in {actual_place}"
        if found:
            raise CallerError(codes.INJECT_SIDECAR_CHANGED, f"{where}: {name}: {found}")
    known = {each["name"] for each in (*made.volumes, *wanted)}
    if more := sorted((volumes.keys() | containers.keys()) - known):
        raise CallerError(codes.INJECT_NAME_TAKEN, more[0])
    # What runs before the redirect is not led anywhere.
    if made.redirect is not None and pod["spec"]["initContainers"][0]["name"] != names.REDIRECT:
        raise CallerError(codes.INJECT_SIDECAR_CHANGED, f"{names.REDIRECT} is not the first")
