"""Settings of incidents."""

from __future__ import annotations

from valetkey.contracts.settings import Duration, Settings, duration

# What reads clocks that far apart can tell nothing from what came before.
_MAX_SKEW = 30.0


class IncidentSettings(Settings, frozen=True, kw_only=True):
    """What counts as fresh attestation after an incident.

    ``skew`` is by how much the clocks of issuers may be ahead of the broker's: an identity token
    counts as issued after the incident if its ``iat`` is later than that by more than ``skew``.
    """

    skew: Duration = duration(1)

    def __post_init__(self) -> None:
        if not 0 <= self.skew <= _MAX_SKEW:
            raise ValueError("skew is at most 30s")
