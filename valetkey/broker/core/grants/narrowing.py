"""A grant that is written anew in the file, or no more: whether what it gave is still given.

Invariants:

- What can't be shown to be given still has ended: rather a token ends that need not have, than one
  goes on that should not.
- Reason, ticket and owner decide nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from valetkey.broker.core.grants.compiled import Grant, PolicyInvalid, compile_grant
from valetkey.broker.core.grants.form import GrantSettings

GONE: Final = "taken out of the grants file"
NARROWED: Final = "narrowed in the grants file"
REUSED: Final = "another grant had this id"


@dataclass(frozen=True, slots=True)
class End:
    """The end of what a grant gave up to ``at`` (seconds since the epoch), and why it ended.

    ``closes`` says that its windows end with it: the grant is gone, or others may open them.
    """

    reason: str
    at: float
    closes: bool


def what_decides(written: GrantSettings) -> GrantSettings:
    """The grant without what is only for people."""
    return msgspec.structs.replace(written, reason="", ticket="", owner="")


def end_of(before: GrantSettings, after: GrantSettings | None, *, at: float) -> End | None:
    """What ends when ``after`` takes the place of ``before`` at the time ``at``; ``None``: nothing.

    Without an ``after`` the grant is gone.
    """
    if after is None:
        return End(GONE, at, closes=True)
    if before == after or what_decides(before) == what_decides(after):
        return None
    whose = (before.workload, before.issuer, before.target, before.window)
    same = whose == (after.workload, after.issuer, after.target, after.window)
    try:
        kept = same and _gives_all(compile_grant(after), compile_grant(before))
    except PolicyInvalid:
        kept = False
    return None if kept else End(NARROWED, at, closes=not same)


def ends_between(
    before: Mapping[str, GrantSettings], after: Mapping[str, GrantSettings], *, at: float
) -> dict[str, End]:
    """What ends, by the grant's id, when one file takes the place of another."""
    ends = {name: end_of(written, after.get(name), at=at) for name, written in before.items()}
    return {name: end for name, end in ends.items() if end is not None}


def _gives_all(after: Grant, before: Grant) -> bool:
    """Whether whoever had ``before`` has all of it by ``after``: the calls, and for as long."""
    calls = (
        after.conditions is None
        if before.conditions is None
        else all(map(after.covers, before.conditions))
    )
    return (
        calls
        and before.scopes <= after.scopes
        and (after.for_users or not before.for_users)
        and after.approval in (None, before.approval)
        and after.not_before <= before.not_before
        and after.not_after >= before.not_after
        and _reaches(after.ttl, before.ttl)
        and _reaches(after.max_uses, before.max_uses)
    )


def _reaches(after: float | None, before: float | None) -> bool:
    """Of two bounds, ``None`` for none, whether the first is not the narrower one."""
    return after is None or (before is not None and after >= before)
