"""Levels of risk, and which of several counts."""

from __future__ import annotations

from typing import Final, Literal

Risk = Literal["low", "medium", "high", "unrated"]
UNRATED: Final[Risk] = "unrated"
_ORDER: Final[tuple[Risk, ...]] = (UNRATED, "low", "medium", "high")


def rank(level: Risk) -> int:
    """Higher is worse; ``unrated`` is the lowest, since it says nothing."""
    return _ORDER.index(level)


def highest(*levels: Risk) -> Risk:
    """``unrated`` where there are none."""
    return max(levels, key=rank, default=UNRATED)
