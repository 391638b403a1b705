"""All grants, found by target and workload: one immutable snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from valetkey.broker.core.approvals import Requirement
from valetkey.broker.core.grants.calls import Call
from valetkey.broker.core.grants.compiled import Grant, PolicyInvalid, Target, compile_grant
from valetkey.broker.core.grants.digest import policy_digest
from valetkey.broker.core.grants.form import GrantsFile
from valetkey.broker.core.grants.index import GrantIndex
from valetkey.contracts import codes
from valetkey.contracts.codes import Code


@dataclass(frozen=True, slots=True)
class Granted:
    """What the grants give of what was asked. ``ttl`` is the shortest that a used grant names.

    ``approvals`` are what the used grants ask for before they give anything.
    """

    scopes: tuple[str, ...]
    grant_ids: tuple[str, ...]
    ttl: float | None
    approvals: tuple[Requirement, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """All grants, with the targets by audience. One immutable snapshot."""

    targets: Mapping[str, Target]
    digest: str
    count: int
    index: GrantIndex = field(repr=False)

    @classmethod
    def compile(
        cls, file: GrantsFile, targets: Iterable[Target], *, issuers: frozenset[str]
    ) -> Policy:
        """``issuers`` are the issuers trusted for workloads. Raises `PolicyInvalid`."""
        by_name = {target.name: target for target in targets}
        if not file.grants:
            raise PolicyInvalid("grants is empty: nobody could ever get a token")
        seen: set[str] = set()
        grants: list[Grant] = []
        for written in file.grants:
            if written.id in seen:
                raise PolicyInvalid(f"grant {written.id}: the id is used twice")
            seen.add(written.id)
            if written.target not in by_name:
                raise PolicyInvalid(f"grant {written.id}: no target {written.target!r} in settings")
            if written.issuer not in issuers:
                raise PolicyInvalid(
                    f"grant {written.id}: {written.issuer!r} is no issuer that settings trust for "
                    "workloads"
                )
            grants.append(compile_grant(written))
        return cls(
            targets={target.audience: target for target in by_name.values()},
            digest=policy_digest(file, by_name),
            count=len(file.grants),
            index=GrantIndex(grants),
        )

    def grant(
        self,
        target: Target,
        *,
        issuer: str,
        workload: str,
        for_user: bool,
        scopes: Sequence[str],
        calls: Sequence[Call],
    ) -> Granted | Code:
        """What of ``scopes`` the workload gets on ``target`` for ``calls``, or why nothing."""
        of_workload = self.index.of(target.name, issuer, workload)
        usable = [grant for grant in of_workload if grant.for_users or not for_user]
        if not usable:
            return codes.GRANT_MISSING
        held = [grant for grant in usable if not grant.scopes.isdisjoint(scopes)]
        if not held:
            return codes.GRANT_SCOPE
        given: list[str] = []
        used: dict[str, Grant] = {}
        for scope in dict.fromkeys(scopes):
            holders = [grant for grant in held if scope in grant.scopes]
            needed = _covering(holders, calls)
            if needed:
                given.append(scope)
                used.update({grant.id: grant for grant in needed})
        if not given:
            return codes.GRANT_CONDITION
        ttls = [grant.ttl for grant in used.values() if grant.ttl is not None]
        approvals = [grant.approval for grant in used.values() if grant.approval is not None]
        return Granted(tuple(given), tuple(used), min(ttls, default=None), tuple(approvals))


def _covering(holders: Sequence[Grant], calls: Sequence[Call]) -> list[Grant]:
    """The grants that together cover every call; empty if one is left uncovered."""
    if not calls:
        return [grant for grant in holders if grant.conditions is None]
    covering: list[Grant] = []
    for call in calls:
        of_call = [grant for grant in holders if grant.covers(call)]
        if not of_call:
            return []
        covering += of_call
    return covering
