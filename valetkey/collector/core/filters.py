"""What of the record is asked for, by what is kept beside the bytes (`columns`)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from valetkey.collector.core.columns import NAMES, Columns, milliseconds
from valetkey.contracts.times import from_rfc3339

EQUAL: Final = ("type", "workload", "route", "target", "decision", "code")
"""Members that an event must have as they are."""
OF_CALL: Final = NAMES
"""Members that the call must have: its decision or its outcome names it (`columns.names`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What events must be; an empty member asks for nothing.

    ``jti``, ``txn`` and ``approval`` mean both events of each call that has anything to do with
    it: an outcome does not repeat what its decision names, and may name another credential than
    that, which the call went on with. ``since`` (included) and ``until`` (excluded) are RFC 3339,
    and about the time that the sidecar wrote.

    Raises `ValueError` for a time that is none.
    """

    type: str = ""
    workload: str = ""
    route: str = ""
    target: str = ""
    decision: str = ""
    code: str = ""
    source: str = ""
    boot: str = ""
    jti: str = ""
    txn: str = ""
    approval: str = ""
    since: str = ""
    until: str = ""

    def __post_init__(self) -> None:
        for moment in (self.since, self.until):
            if moment:
                from_rfc3339(moment)

    @classmethod
    def names(cls) -> frozenset[str]:
        return frozenset(field.name for field in fields(cls))

    @property
    def span(self) -> tuple[int | None, int | None]:
        """From when (included) until when (excluded), in ms since the epoch; ``None``: no end."""
        return (
            milliseconds(self.since) if self.since else None,
            milliseconds(self.until) if self.until else None,
        )

    def admit(self, found: Columns, *, source: str, boot: str) -> bool:
        """Whether an event is asked for, as far as it alone can say: `OF_CALL` is left out."""
        since, until = self.span
        return (
            all(getattr(self, name) in {"", getattr(found, name)} for name in EQUAL)
            and self.source in {"", source}
            and self.boot in {"", boot}
            and (since is None or found.time >= since)
            and (until is None or found.time < until)
        )
