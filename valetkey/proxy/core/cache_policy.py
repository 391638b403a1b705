"""When a credential may be used, for whom, and when a new one should be fetched.

The key holds everything that could make two credentials different. Lifetimes are on a monotonic
clock: a change of the wall clock neither prolongs nor cuts anything.
"""

from __future__ import annotations

from typing import Final, NamedTuple

# standards.md §8: at most 30 s between two clocks. A short-lived credential can't spare that
# much, so skew is also bounded to a tenth of the lifetime.
MAX_SKEW: Final = 5.0
REFRESH_AT: Final = 0.8


class CacheKey(NamedTuple):
    """What a credential is for. Equal keys mean: the same credential serves both calls."""

    tenant: str  # the issuer of the workload's identity
    subject: str  # the workload's subject, or the digest of the user's token
    actors: tuple[str, ...]  # the full actor chain, outermost first
    audience: str
    resource: str
    details: str  # canonical authorization details
    scopes: str
    endpoint: str  # the exchange endpoint
    thumbprint: str  # of the proof key; empty for unbound credentials
    policy_digest: str
    epoch: int


class Lifetime(NamedTuple):
    """Until when a credential is used, and from when on it is refreshed in the background."""

    expires_at: float
    refresh_at: float


def lifetime(
    *, now: float, expires_in: float, actor_expires_in: float, subject_expires_in: float
) -> Lifetime:
    """The use of a credential that was asked for at ``now`` (monotonic seconds).

    Never longer than the identity it was made from. A lifetime that is over when it comes is none:
    the credential serves the calls that wait for it and no later one.
    """
    span = max(0.0, min(expires_in, actor_expires_in, subject_expires_in))
    span -= min(MAX_SKEW, span / 10)
    return Lifetime(now + span, now + span * REFRESH_AT)
