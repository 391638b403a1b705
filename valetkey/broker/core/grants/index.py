"""Grants found by target, issuer and workload, whatever other workloads have.

A subject can be meant exactly, or by a pattern with one ``*`` for one of its segments. There are
only as many such patterns as the subject has segments, so each is looked up by its own text: the
cost depends on the subject and on its own grants, not on how many there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from valetkey.broker.core.grants.compiled import Grant
from valetkey.broker.core.patterns import patterns_of


class GrantIndex:
    """Grants by id and by whom they are for. Adding and removing costs one grant."""

    def __init__(self, grants: Iterable[Grant] = ()) -> None:
        self._by_id: dict[str, Grant] = {}
        self._by_workload: dict[tuple[str, str, str], dict[str, Grant]] = {}
        for grant in grants:
            self.put(grant)

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Grant]:
        return iter(self._by_id.values())

    def get(self, grant_id: str) -> Grant | None:
        return self._by_id.get(grant_id)

    def put(self, grant: Grant) -> None:
        """Add a grant, in place of one with the same id."""
        self.discard(grant.id)
        self._by_id[grant.id] = grant
        self._by_workload.setdefault(_key(grant), {})[grant.id] = grant

    def discard(self, grant_id: str) -> None:
        grant = self._by_id.pop(grant_id, None)
        if grant is None:
            return
        of_workload = self._by_workload[_key(grant)]
        del of_workload[grant_id]
        if not of_workload:
            del self._by_workload[_key(grant)]

    def of(self, target: str, issuer: str, workload: str) -> list[Grant]:
        """The grants of one workload on one target: the exact ones first."""
        found: list[Grant] = []
        if not self._by_id:
            return found
        for pattern in patterns_of(workload):
            found += self._by_workload.get((target, issuer, pattern), {}).values()
        return found


def _key(grant: Grant) -> tuple[str, str, str]:
    return grant.target, grant.issuer, grant.workload.text
