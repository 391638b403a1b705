"""Whether what is in a pod is what was put there, whatever the API server made of it since.

Only what is known to be filled in by the API server and its own admission plugins is let pass:

- a quantity written in another way; limits and requests that a LimitRange adds,
- ``imagePullPolicy: Always`` (AlwaysPullImages), ``procMount: Default``, a ``resizePolicy`` that
  restarts nothing,
- the mount of the API's token, read only, at its place (ServiceAccount).
"""

from __future__ import annotations

from typing import Any, Final

from valetkey.injector.core import names
from valetkey.injector.core.quantity import same_amount

_AMOUNTS: Final = ("limits", "requests")


def difference(actual: Any, wanted: Any, path: str = "") -> str:
    """The path of the first thing that differs; empty if nothing does."""
    if isinstance(wanted, dict):
        return _of_objects(actual, wanted, path) if isinstance(actual, dict) else path
    if isinstance(wanted, list):
        return _of_lists(actual, wanted, path) if isinstance(actual, list) else path
    parent, _, key = path.rpartition(".")
    if key == "sizeLimit" or parent.rpartition(".")[2] in _AMOUNTS:
        return "" if same_amount(actual, wanted) else path
    if key == "imagePullPolicy" and actual == "Always":
        return ""
    # JSON has no integers that are booleans, Python does.
    return "" if type(actual) is type(wanted) and actual == wanted else path


def _of_objects(actual: dict[str, Any], wanted: dict[str, Any], path: str) -> str:
    for key, value in wanted.items():
        below = f"{path}.{key}" if path else key
        if key not in actual:
            return below
        if found := difference(actual[key], value, below):
            return found
    for key in actual.keys() - wanted.keys():
        if not _is_filled_in(path.rpartition(".")[2], key, actual[key]):
            return f"{path}.{key}" if path else key
    return ""


def _is_filled_in(parent: str, key: str, value: Any) -> bool:
    if parent in _AMOUNTS or (parent == "resources" and key in _AMOUNTS):
        return True
    if key == "resizePolicy":
        return isinstance(value, list) and all(
            isinstance(each, dict) and each.get("restartPolicy") == "NotRequired" for each in value
        )
    return (parent, key, value) == ("securityContext", "procMount", "Default") or value is None


def _of_lists(actual: list[Any], wanted: list[Any], path: str) -> str:
    if path.rpartition(".")[2] == "volumeMounts":
        actual = [each for each in actual if not _is_api_token(each)]
    if len(actual) != len(wanted):
        return path
    pairs = enumerate(zip(actual, wanted, strict=True))
    return next(
        (
            found
            for number, (one, other) in pairs
            if (found := difference(one, other, f"{path}[{number}]"))
        ),
        "",
    )


def _is_api_token(mount: Any) -> bool:
    return (
        isinstance(mount, dict)
        and str(mount.get("name", "")).startswith(names.API_TOKEN_VOLUME)
        and mount.get("mountPath") == names.API_TOKEN_DIR
        and mount.get("readOnly") is True
    )
