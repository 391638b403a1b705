"""The state of a grant or window, as people are shown it."""

from __future__ import annotations

from typing import Literal

from valetkey.broker.core.grants.form import GrantSettings

# Of a deployment grant, `active` says that a window of it can be opened.
State = Literal["pending", "active", "used_up", "expired", "revoked"]
WindowState = Literal["open", "closed"]


def state_of(written: GrantSettings, *, uses: int, revoked: bool, now: float) -> State:
    """``now`` is in seconds since the epoch."""
    if revoked:
        return "revoked"
    if written.not_after is not None and written.not_after.timestamp() <= now:
        return "expired"
    if written.max_uses is not None and uses >= written.max_uses:
        return "used_up"
    if written.not_before is not None and written.not_before.timestamp() > now:
        return "pending"
    return "active"
