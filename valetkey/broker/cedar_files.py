"""The Cedar policies: a file, or all ``*.cedar`` of a directory; watched, swapped whole.

Without a path the built-in policy is in force (`core.cedar_schema.BASE`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from valetkey.broker.core.cedar import Policies
from valetkey.broker.core.cedar_text import PoliciesInvalid
from valetkey.broker.core.places import TargetFacts
from valetkey.broker.metrics import Metrics
from valetkey.broker.watched import Watched
from valetkey.contracts.errors import ConfigError

# Policies are read by people. What is larger was not written by any.
MAX_SIZE: Final = 4 << 20
SUFFIX: Final = ".cedar"


class CedarFiles(Watched[Policies]):
    """``targets`` are those of the settings: policies may name no other."""

    def __init__(
        self, path: Path | None, targets: Sequence[TargetFacts], *, metrics: Metrics
    ) -> None:
        super().__init__(
            "policies",
            path,
            reloads=metrics.policies_reloads,
            failing=metrics.policies_failing,
            count=metrics.policies,
        )
        self._targets = tuple(targets)

    def _files(self) -> list[Path]:
        return [] if self._path is None else policy_files(self._path)

    def _size(self, snapshot: Policies) -> int:
        return len(snapshot.written)

    def _read(self) -> Policies:
        texts = None if self._path is None else read_policy_files([self._path])
        try:
            return Policies.compile(texts, self._targets)
        except PoliciesInvalid as error:
            raise ConfigError(str(error)) from error


def policy_files(path: Path) -> list[Path]:
    """The files that ``path`` stands for, in the order of their names. Raises `OSError`."""
    if not path.is_dir():
        return [path]
    return sorted(entry for entry in path.iterdir() if entry.suffix == SUFFIX)


def read_policy_files(paths: Sequence[Path]) -> dict[str, str]:
    """Name to text. Raises `ConfigError`."""
    texts: dict[str, str] = {}
    size = 0
    try:
        for path in paths:
            for file in policy_files(path):
                text = file.read_text(encoding="utf-8")
                size += len(text)
                if size > MAX_SIZE:
                    raise ConfigError(f"{file}: policies are larger than 4 MiB")
                texts[str(file)] = text
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{error.filename if isinstance(error, OSError) else path}: "
                          f"can't be read: {error}") from error  # fmt: skip
    if not texts:
        raise ConfigError(f"{paths[0]}: no {SUFFIX} files in it")
    return texts
