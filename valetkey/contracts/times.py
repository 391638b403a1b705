"""Times for people and APIs: RFC 3339, always in UTC. Inside, they are seconds since the epoch."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(seconds: float) -> str:
    """``2026-11-24T10:15:00.250Z``, to the millisecond."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def from_rfc3339(text: str) -> float:
    """Seconds since the epoch. Raises `ValueError`, also for a time without an offset."""
    if not text.isascii() or "T" not in text.upper():
        raise ValueError("not a time as in 2026-11-24T10:15:00Z (RFC 3339)")
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("the time has no offset: end it with Z (RFC 3339)")
    return moment.timestamp()
