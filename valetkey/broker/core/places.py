"""What policies can know of a target: facts of the settings, and calls by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from valetkey.broker.core.grants import Call
from valetkey.broker.core.risk import UNRATED, Risk


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """What policies can know of a target. ``routes`` are named calls on it."""

    name: str
    environment: str = ""
    risk: Risk = UNRATED
    routes: Mapping[str, Call] = field(default_factory=dict)
