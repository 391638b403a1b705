"""What a sidecar says about its own record: ranges given up, and how the boot before ended.

Both are events like any other and are kept whatever they hold; a statement that can't be read is
no statement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from valetkey.collector.core.coverage import MAX_SEQUENCE, Range
from valetkey.contracts.events import BOOT, GENESIS

_MAX_REASON: Final = 200


@dataclass(frozen=True, slots=True)
class Declaration:
    """``lost`` events of ``boot`` will never come.

    ``range`` is ``None`` where they never got numbers: the spool was full and the route's
    settings let calls go on.
    """

    boot: str
    range: Range | None
    lost: int
    reason: str


@dataclass(frozen=True, slots=True)
class PreviousBoot:
    """The boot before ended at ``seq``, and that event's bytes have this hash."""

    boot: str
    seq: int
    hash: str


def declaration(data: dict[str, Any]) -> Declaration | None:
    """The statement of a `TYPE_GAP` event."""
    stated = data.get("unmapped")
    if not isinstance(stated, dict):
        return None
    boot, reason, lost = stated.get("boot"), stated.get("reason", ""), stated.get("lost", 0)
    if not isinstance(boot, str) or not BOOT.fullmatch(boot):
        return None
    if not _is_count(lost) or not isinstance(reason, str):
        return None
    first, last = stated.get("first"), stated.get("last")
    if _is_count(first) and _is_count(last) and 1 <= first <= last:
        return Declaration(boot, Range(first, last), lost, reason[:_MAX_REASON])
    return Declaration(boot, None, lost, reason[:_MAX_REASON]) if lost else None


def previous_boot(data: dict[str, Any]) -> PreviousBoot | None:
    """The statement of a `TYPE_BOOT` event; ``None`` where it is a sidecar's first boot."""
    stated = data.get("unmapped")
    if not isinstance(stated, dict):
        return None
    boot, seq, hash_ = (stated.get(f"previous_{name}") for name in ("boot", "seq", "hash"))
    if not isinstance(boot, str) or not BOOT.fullmatch(boot) or not isinstance(hash_, str):
        return None
    if not _is_count(seq):
        return None
    return PreviousBoot(boot, seq, hash_ or GENESIS)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= MAX_SEQUENCE
