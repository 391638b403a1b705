"""What a pod says about its sidecar, by annotations under one prefix.

Invariant: an annotation that is not known, or not written exactly as it must be, refuses the pod. A
misspelt ``valetkey/mode`` would otherwise mean the default, which nobody chose.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from valetkey.contracts import codes, settings
from valetkey.contracts.errors import CallerError, ConfigError
from valetkey.injector.core import names
from valetkey.injector.settings import Mode, ResourceSettings

_KNOWN: Final = frozenset({
    names.INJECT, names.MODE, names.TARGETS, names.ROUTES_FROM, names.RESOURCES,
    names.INJECTED, names.KEPT,
})  # fmt: skip
_MODES: Final[dict[str, Mode]] = {
    "forward": "forward", "reverse": "reverse", "transparent": "transparent",
}  # fmt: skip
_TARGET: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_CONFIG_MAP: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_MOST: Final = 2048


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the annotations say; ``None`` where they say nothing."""

    inject: bool | None = None
    mode: Mode | None = None
    targets: tuple[str, ...] | None = None
    routes: str | None = None
    resources: ResourceSettings | None = None


def read_annotations(annotations: Mapping[str, str], usual: ResourceSettings) -> Wanted:
    """``usual`` are the resources of which a pod may say other ones, by section.

    Raises `CallerError` with a code per annotation.
    """
    unknown = sorted(
        name for name in annotations if name.startswith(names.PREFIX) and name not in _KNOWN
    )
    if unknown:
        raise CallerError(codes.INJECT_ANNOTATION_UNKNOWN, ", ".join(unknown))
    return Wanted(
        _inject(annotations.get(names.INJECT)),
        _mode(annotations.get(names.MODE)),
        _targets(annotations.get(names.TARGETS)),
        _routes(annotations.get(names.ROUTES_FROM)),
        _resources(annotations.get(names.RESOURCES), usual),
    )


def _inject(text: str | None) -> bool | None:
    if text not in {None, "true", "false"}:
        raise CallerError(codes.INJECT_INJECT_INVALID, f"{names.INJECT}: {text!r}")
    return None if text is None else text == "true"


def _mode(text: str | None) -> Mode | None:
    if text is not None and text not in _MODES:
        raise CallerError(codes.INJECT_MODE_INVALID, f"{names.MODE}: {text!r}")
    return None if text is None else _MODES[text]


def _targets(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    found = tuple(text.split(","))
    if not all(map(_TARGET.fullmatch, found)) or len(set(found)) != len(found):
        raise CallerError(codes.INJECT_TARGETS_INVALID, f"{names.TARGETS}: {text!r}")
    return tuple(sorted(found))


def _routes(text: str | None) -> str | None:
    if text is not None and not _CONFIG_MAP.fullmatch(text):
        raise CallerError(codes.INJECT_ROUTES_INVALID, f"{names.ROUTES_FROM}: {text!r}")
    return text


def _resources(text: str | None, usual: ResourceSettings) -> ResourceSettings | None:
    if text is None:
        return None
    where = names.RESOURCES
    if len(text) > _MOST:
        raise CallerError(codes.INJECT_RESOURCES_INVALID, f"{where}: too long")
    try:
        document = settings.parse_yaml(text, where)
        said = document if isinstance(document, dict) else {"": document}
        if not said:
            raise CallerError(codes.INJECT_RESOURCES_INVALID, f"{where}: nothing in it")
        return settings.convert(ResourceSettings, {**settings.plain(usual), **said})
    except (ConfigError, msgspec.ValidationError) as error:
        raise CallerError(codes.INJECT_RESOURCES_INVALID, f"{where}: {error}") from error
