"""What changes without the grants file: grants made by API, open windows, uses.

Invariants:

- A grant is in force by the broker's clock alone: from ``not_before`` on, before ``not_after``,
  and a deployment grant only before the deadline of a window that is open.
- A window that was closed, and a use that was counted, are never forgotten while they matter.
- All of it is changed between decisions, never during one: a decision does not wait for anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from valetkey.broker.core.grants.compiled import Grant
from valetkey.broker.core.grants.index import GrantIndex
from valetkey.contracts import codes
from valetkey.contracts.codes import Code

# Tokens live whole seconds (RFC 7519 NumericDate as we write it): with less left, there is none.
_SHORTEST: Final = 1.0
# What no grant's id begins with: tokens name the windows that they were minted by among the grants.
WINDOW_PREFIX: Final = "win:"


@dataclass(frozen=True, slots=True)
class OpenWindow:
    """A window of a deployment grant, closed at ``deadline`` (seconds since the epoch)."""

    id: str
    grant_id: str
    deadline: float


@dataclass(frozen=True, slots=True)
class Hold:
    """A grant that is in force: until when (``inf``: no end), and by which window."""

    grant: Grant
    until: float
    window: str = ""


class LiveGrants:
    """The state of one replica, as the stores keep it up to date."""

    def __init__(self) -> None:
        self.made = GrantIndex()
        """Grants made by API."""
        self._windows: dict[str, dict[str, OpenWindow]] = {}
        self._by_id: dict[str, OpenWindow] = {}
        self._uses: dict[str, int] = {}

    # --- asked by decisions ---------------------------------------------------------------------

    def refusal(self, grant: Grant, now: float) -> Code | None:
        """Why a grant can give nothing at ``now``, whether or not a window of it is open."""
        if grant.ended or now > grant.not_after - _SHORTEST:
            return codes.GRANT_ENDED
        if now < grant.not_before:
            return codes.GRANT_OUTSIDE_WINDOW
        if grant.max_uses is not None and self.uses(grant.id) >= grant.max_uses:
            return codes.GRANT_USED_UP
        return None

    def hold(self, grant: Grant, now: float) -> Hold | Code:
        """The grant as it is in force at ``now``, or why it is not."""
        refusal = self.refusal(grant, now)
        if refusal is not None:
            return refusal
        if grant.opening is None:
            return Hold(grant, grant.not_after)
        window = self.open_window(grant.id, now)
        if window is None:
            return codes.GRANT_OUTSIDE_WINDOW
        return Hold(grant, min(grant.not_after, window.deadline), window.id)

    def open_window(self, grant_id: str, now: float) -> OpenWindow | None:
        """The window of that grant that stays open for longest, and long enough for a token."""
        of_grant = self._windows.get(grant_id, {}).values()
        lasting = [window for window in of_grant if now <= window.deadline - _SHORTEST]
        return max(lasting, key=lambda window: (window.deadline, window.id), default=None)

    def is_open(self, window_id: str, now: float) -> bool:
        """Whether tokens that were minted by that window still count."""
        window = self._by_id.get(window_id)
        return window is not None and now < window.deadline

    @property
    def windows(self) -> int:
        """How many windows are known to be open, those included whose deadline has just passed."""
        return len(self._by_id)

    def uses(self, grant_id: str) -> int:
        """How often the grant was used, as far as is known here: never more than it was."""
        return self._uses.get(grant_id, 0)

    # --- changed by stores ----------------------------------------------------------------------

    def count(self, grant_id: str, uses: int) -> None:
        """Note how often a grant was used by now; what was known already is not undone."""
        self._uses[grant_id] = max(uses, self._uses.get(grant_id, 0))

    def forget(self, grant_id: str) -> None:
        """Drop a grant that nobody needs to be told of any more."""
        self.made.discard(grant_id)
        self._uses.pop(grant_id, None)
        for window_id in list(self._windows.get(grant_id, ())):
            self.close(window_id)

    def open(self, window: OpenWindow) -> None:
        self._by_id[window.id] = window
        self._windows.setdefault(window.grant_id, {})[window.id] = window

    def close(self, window_id: str) -> None:
        window = self._by_id.pop(window_id, None)
        if window is None:
            return
        of_grant = self._windows[window.grant_id]
        del of_grant[window_id]
        if not of_grant:
            del self._windows[window.grant_id]

    def sweep(self, now: float) -> None:
        """Forget windows whose deadline has passed."""
        past = [window.id for window in self._by_id.values() if window.deadline <= now]
        for window_id in past:
            self.close(window_id)
