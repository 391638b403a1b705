"""How often routes were called, counted on the data path: an addition per call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from valetkey.proxy.core.snapshot import Route

_CLASSES: Final = 6  # of status: none, 1xx … 5xx


class RequestTally:
    """Calls by route, decision and class of the answer's status.

    By the route's id, so that a route that a reload made anew goes on with its counts.
    """

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, list[int]]] = {}

    def add(self, route: Route | None, decision: str, status: int) -> None:
        """Count a call. ``status`` is 0 where the caller got no answer."""
        by_decision = self._counts.get(route.id if route is not None else "")
        classes = by_decision.get(decision) if by_decision is not None else None
        if classes is None:
            classes = self._begin(route.id if route is not None else "", decision)
        classes[status // 100] += 1

    def _begin(self, route: str, decision: str) -> list[int]:
        classes = self._counts.setdefault(route, {})[decision] = [0] * _CLASSES
        return classes

    def counts(self) -> Iterator[tuple[str, str, int, int]]:
        """Route, decision, class of status (0: none) and count, where anything was counted."""
        for route, by_decision in self._counts.items():
            for decision, classes in by_decision.items():
                for status, count in enumerate(classes):
                    if count:
                        yield route, decision, status, count
