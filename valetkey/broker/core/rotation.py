"""When signing keys are made, sign, stop, and leave the JWK Set.

    created ── publish_before ──▶ signs ── rotate_every ──▶ stops ── longest ttl + overlap ──▶ gone
    └────────────────────────── in the JWK Set ─────────────────────────────────────────────┘

Invariants:

- Exactly one key signs at any time once the first exists.
- A key is in the JWK Set for ``publish_before`` before it signs, so that a verifier with a cached
  set has it in time; only the very first key, before which no set existed, signs at once.
- A key leaves only when the last token under it has expired, plus ``overlap``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeyTimes:
    """One key's life. ``longest_ttl`` is that of the longest-lived token that it may have signed.

    All times in seconds since the epoch.
    """

    kid: str
    signs_from: float
    longest_ttl: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """Settings of the rotation, in seconds."""

    rotate_every: float
    publish_before: float
    overlap: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What is right at one moment. ``create_for`` is when a new key would begin to sign."""

    signing: str | None
    published: tuple[str, ...]
    gone: tuple[str, ...]
    create_for: float | None


def plan(keys: Sequence[KeyTimes], schedule: Schedule, *, now: float) -> Plan:
    """The plan for ``keys`` at ``now``."""
    ordered = sorted(keys, key=lambda key: (key.signs_from, key.kid))
    if not ordered:
        return Plan(None, (), (), create_for=now)
    begun = [key for key in ordered if key.signs_from <= now]
    # A clock that was set back must not leave nobody to sign: the oldest key takes over.
    signing = begun[-1] if begun else ordered[0]
    gone: list[str] = []
    published: list[str] = []
    for key, successor in zip(ordered, [*ordered[1:], None], strict=True):
        stopped = successor.signs_from if successor and key is not signing else None
        if stopped is not None and now >= stopped + key.longest_ttl + schedule.overlap:
            gone.append(key.kid)
        else:
            published.append(key.kid)
    newest = ordered[-1]
    due = newest.signs_from + schedule.rotate_every
    create_for = (
        # After a long stop the new key still waits its publication time.
        max(due, now + schedule.publish_before) if now >= due - schedule.publish_before else None
    )
    return Plan(signing.kid, tuple(published), tuple(gone), create_for)
