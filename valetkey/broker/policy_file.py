"""The grants file: compiled into a `Policy`, watched, swapped whole (`watched`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from valetkey.broker.core.grants import GrantsFile, LiveGrants, Policy, PolicyInvalid, Target
from valetkey.broker.metrics import Metrics
from valetkey.broker.watched import Watched
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.settings import parse


class PolicyFile(Watched[Policy]):
    """``issuers`` are the issuers that settings trust for workloads, ``deployers`` for deployments.

    ``live`` is what changes beside the file: it goes on from each policy to the next.
    """

    def __init__(
        self,
        path: Path,
        targets: Sequence[Target],
        *,
        issuers: frozenset[str],
        metrics: Metrics,
        deployers: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(
            "grants",
            path,
            reloads=metrics.grants_reloads,
            failing=metrics.grants_failing,
            count=metrics.grants,
        )
        self.live = LiveGrants()
        self._file = path
        self._targets = tuple(targets)
        self._issuers = issuers
        self._deployers = deployers
        self._on_swapped: Callable[[Policy, Policy], Awaitable[None]] | None = None

    def _files(self) -> tuple[Path, ...]:
        return (self._file,)

    def _size(self, snapshot: Policy) -> int:
        return snapshot.count

    def on_swapped(self, handler: Callable[[Policy, Policy], Awaitable[None]]) -> None:
        """Have ``handler`` called with what was in force and what is, after each good reload."""
        self._on_swapped = handler

    async def _swapped(self, before: Policy, after: Policy) -> None:
        if self._on_swapped is not None:
            await self._on_swapped(before, after)

    def _read(self) -> Policy:
        return read_grants(
            self._file,
            self._targets,
            issuers=self._issuers,
            deployers=self._deployers,
            live=self.live,
        )


def read_grants(
    path: Path,
    targets: Sequence[Target],
    *,
    issuers: frozenset[str],
    deployers: frozenset[str],
    live: LiveGrants,
) -> Policy:
    """The file, compiled; the parameters are those of `PolicyFile`. Raises `ConfigError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read: {error}") from error
    file = parse(GrantsFile, text, name=str(path), program="broker")
    try:
        return Policy.compile(file, targets, issuers=issuers, deployers=deployers, live=live)
    except PolicyInvalid as error:
        raise ConfigError(f"{path}: {error}") from error
