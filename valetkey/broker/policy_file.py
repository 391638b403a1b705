"""The grants file: compiled into a `Policy`, watched, swapped whole (`watched`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from valetkey.broker.core.grants import GrantsFile, Policy, PolicyInvalid, Target
from valetkey.broker.metrics import Metrics
from valetkey.broker.watched import Watched
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.settings import parse


class PolicyFile(Watched[Policy]):
    """``issuers`` are the issuers that settings trust for workloads."""

    def __init__(
        self,
        path: Path,
        targets: Sequence[Target],
        *,
        issuers: frozenset[str],
        metrics: Metrics,
    ) -> None:
        super().__init__(
            "grants",
            path,
            reloads=metrics.grants_reloads,
            failing=metrics.grants_failing,
            count=metrics.grants,
        )
        self._file = path
        self._targets = tuple(targets)
        self._issuers = issuers

    def _files(self) -> tuple[Path, ...]:
        return (self._file,)

    def _size(self, snapshot: Policy) -> int:
        return snapshot.count

    def _read(self) -> Policy:
        try:
            text = self._file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self._file}: can't be read: {error}") from error
        file = parse(GrantsFile, text, name=str(self._file), program="broker")
        try:
            return Policy.compile(file, self._targets, issuers=self._issuers)
        except PolicyInvalid as error:
            raise ConfigError(f"{self._file}: {error}") from error
