"""Token buckets: how many requests each caller may make.

A caller without a bucket has a full one, so what is forgotten are the buckets that have filled up
again; when even then there is no room, the caller is refused rather than another one let go free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable


class RateLimit:
    """``rate`` requests a second for each of at most ``callers`` callers, ``burst`` at once.

    ``timer`` gives seconds of a clock that nobody sets: one that is set back would keep callers
    waiting for as long, and one that is set forward would let them go.
    """

    def __init__(
        self, *, rate: float, burst: int, callers: int, timer: Callable[[], float]
    ) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._callers = callers
        self._timer = timer
        # caller: (tokens, when that was); in the order of last use
        self._buckets: dict[Hashable, tuple[float, float]] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, caller: Hashable) -> float:
        """Seconds to wait until the request is allowed; 0.0 if it is, which uses it up."""
        now = self._timer()
        tokens, since = self._buckets.pop(caller, (self._burst, now))
        tokens = min(self._burst, tokens + max(0.0, now - since) * self._rate)
        if tokens < 1.0:
            self._buckets[caller] = (tokens, now)
            return (1.0 - tokens) / self._rate
        if len(self._buckets) >= self._callers and not self._forget(now):
            return self._burst / self._rate
        self._buckets[caller] = (tokens - 1.0, now)
        return 0.0

    def _forget(self, now: float) -> bool:
        """Drop the least recently used bucket, if it is full again."""
        caller, (tokens, since) = next(iter(self._buckets.items()))
        if tokens + (now - since) * self._rate < self._burst:
            return False
        del self._buckets[caller]
        return True


def whole_seconds(wait: float) -> int:
    """For ``Retry-After`` (RFC 9110 §10.2.3): at least 1."""
    return max(1, math.ceil(wait))
