"""All grants with their targets: what of a request they give."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from valetkey.broker.core.approvals import Requirement
from valetkey.broker.core.grants.calls import Call
from valetkey.broker.core.grants.compiled import Grant, PolicyInvalid, Target, compile_grant
from valetkey.broker.core.grants.digest import policy_digest
from valetkey.broker.core.grants.form import GrantSettings, GrantsFile
from valetkey.broker.core.grants.index import GrantIndex
from valetkey.broker.core.grants.live import WINDOW_PREFIX, Hold, LiveGrants
from valetkey.contracts import codes
from valetkey.contracts.codes import Code

# Of several reasons why no grant is in force, the one that may pass by itself is told first.
_REASONS = (codes.GRANT_OUTSIDE_WINDOW, codes.GRANT_USED_UP, codes.GRANT_ENDED)


@dataclass(frozen=True, slots=True)
class Granted:
    """What the grants give of what was asked. ``ttl`` is the shortest that a used grant names.

    ``until`` is the first time at which a used grant or window ends (``inf``: none does). Of each
    grant in ``limited``, by its id, one of so many uses has to be claimed before a token is minted.
    ``approvals`` are what the grants that cover it ask for before they give anything.
    """

    scopes: tuple[str, ...]
    grant_ids: tuple[str, ...]
    ttl: float | None
    until: float = math.inf
    windows: tuple[str, ...] = ()
    limited: tuple[tuple[str, int], ...] = ()
    approvals: tuple[Requirement, ...] = ()


@dataclass(frozen=True, slots=True)
class GrantRules:
    """What grants may name: targets by name, issuers of workloads, issuers of deployments."""

    targets: Mapping[str, Target]
    issuers: frozenset[str]
    deployers: frozenset[str]

    def compile(self, written: GrantSettings) -> Grant:
        """Raises `PolicyInvalid`."""
        if written.target not in self.targets:
            raise PolicyInvalid(f"grant {written.id}: no target {written.target!r} in settings")
        if written.issuer not in self.issuers:
            raise PolicyInvalid(
                f"grant {written.id}: {written.issuer!r} is no issuer that settings trust for "
                "workloads"
            )
        for opener in written.window.opened_by if written.window is not None else ():
            if opener.issuer not in self.deployers:
                raise PolicyInvalid(
                    f"grant {written.id}: {opener.issuer!r} is no issuer that settings trust for "
                    "deployments"
                )
        return compile_grant(written)


@dataclass(frozen=True, slots=True)
class Policy:
    """The grants of one file and the targets by audience: one immutable snapshot.

    ``live`` is what changes beside it, and goes on from one snapshot to the next.
    """

    targets: Mapping[str, Target]
    digest: str
    count: int
    index: GrantIndex = field(repr=False)
    written: Mapping[str, GrantSettings] = field(repr=False)
    rules: GrantRules = field(repr=False)
    live: LiveGrants = field(repr=False)

    @classmethod
    def compile(
        cls,
        file: GrantsFile,
        targets: Iterable[Target],
        *,
        issuers: frozenset[str],
        deployers: frozenset[str] = frozenset(),
        live: LiveGrants | None = None,
    ) -> Policy:
        """``issuers`` are the issuers trusted for workloads, ``deployers`` those for deployments.

        Raises `PolicyInvalid`.
        """
        rules = GrantRules({target.name: target for target in targets}, issuers, deployers)
        if not file.grants:
            raise PolicyInvalid("grants is empty: nobody could ever get a token")
        written: dict[str, GrantSettings] = {}
        for grant in file.grants:
            if grant.id in written:
                raise PolicyInvalid(f"grant {grant.id}: the id is used twice")
            written[grant.id] = grant
        live = LiveGrants() if live is None else live
        for taken in live.made:
            if taken.id in written and not taken.ended:
                raise PolicyInvalid(f"grant {taken.id}: a grant made by API has this id")
        return cls(
            targets={target.audience: target for target in rules.targets.values()},
            digest=policy_digest(file, rules.targets),
            count=len(written),
            index=GrantIndex(map(rules.compile, file.grants)),
            written=written,
            rules=rules,
            live=live,
        )

    def find(self, grant_id: str) -> Grant | None:
        """The grant of that id, of the file or made by API."""
        return self.index.get(grant_id) or self.live.made.get(grant_id)

    def stands(self, ids: Iterable[str], now: float) -> bool:
        """Whether each of these grants and windows, as a token names them, has not ended."""
        for each in ids:
            if each.startswith(WINDOW_PREFIX):
                if not self.live.is_open(each, now):
                    return False
                continue
            grant = self.find(each)
            if grant is None or grant.ended or now >= grant.not_after:
                return False
        return True

    def grant(
        self,
        target: Target,
        *,
        issuer: str,
        workload: str,
        for_user: bool,
        scopes: Sequence[str],
        calls: Sequence[Call],
        now: float,
    ) -> Granted | Code:
        """What of ``scopes`` the workload gets on ``target`` for ``calls``, or why nothing.

        ``now`` is in seconds since the epoch.
        """
        of_workload = [
            *self.index.of(target.name, issuer, workload),
            *self.live.made.of(target.name, issuer, workload),
        ]
        usable = [grant for grant in of_workload if grant.for_users or not for_user]
        if not usable:
            return codes.GRANT_MISSING
        of_scopes = [grant for grant in usable if not grant.scopes.isdisjoint(scopes)]
        if not of_scopes:
            return codes.GRANT_SCOPE
        held, reasons = self._in_force(of_scopes, now)
        if not held:
            return next(reason for reason in _REASONS if reason in reasons)
        given: list[str] = []
        used: dict[str, Hold] = {}
        asking: dict[str, Requirement] = {}
        for scope in dict.fromkeys(scopes):
            covering = _covering([hold for hold in held if scope in hold.grant.scopes], calls)
            if covering:
                given.append(scope)
            for of_call in covering:
                used.update({hold.grant.id: hold for hold in _lasting(of_call)})
                # Who covers a call without being used is asked for its approval all the same.
                asking |= {
                    hold.grant.id: hold.grant.approval
                    for hold in of_call
                    if hold.grant.approval is not None
                }
        if not given:
            return codes.GRANT_CONDITION
        return _granted(given, used, asking)

    def _in_force(self, grants: Sequence[Grant], now: float) -> tuple[list[Hold], set[Code]]:
        """Those that are in force at ``now``, and why the others are not."""
        held: list[Hold] = []
        reasons: set[Code] = set()
        for grant in grants:
            hold = self.live.hold(grant, now)
            if isinstance(hold, Hold):
                held.append(hold)
            else:
                reasons.add(hold)
        return held, reasons


def _granted(
    given: Sequence[str], used: Mapping[str, Hold], asking: Mapping[str, Requirement]
) -> Granted:
    holds = used.values()
    ttls = [hold.grant.ttl for hold in holds if hold.grant.ttl is not None]
    return Granted(
        scopes=tuple(given),
        grant_ids=tuple(used),
        ttl=min(ttls, default=None),
        approvals=tuple(asking.values()),
        until=min(hold.until for hold in holds),
        windows=tuple(hold.window for hold in holds if hold.window),
        # In one order for everybody: two that claim the same uses never wait for each other.
        limited=tuple(
            sorted(
                (hold.grant.id, hold.grant.max_uses)
                for hold in holds
                if hold.grant.max_uses is not None
            )
        ),
    )


def _covering(holders: Sequence[Hold], calls: Sequence[Call]) -> list[list[Hold]]:
    """For each call the grants that cover it; nothing at all if one is left uncovered.

    No calls are one: any call on the target.
    """
    if not calls:
        anything = [hold for hold in holders if hold.grant.conditions is None]
        return [anything] if anything else []
    covering = [[hold for hold in holders if hold.grant.covers(call)] for call in calls]
    return covering if all(covering) else []


def _lasting(covering: list[Hold]) -> list[Hold]:
    """Of grants that cover the same call, those that a token should rest on.

    What is bounded is used only where nothing unbounded covers the call: no use is spent, and no
    token ends with a grant, that it did not need. Of bounded ones one is enough.
    """
    endless = [hold for hold in covering if hold.grant.max_uses is None and math.isinf(hold.until)]
    if endless:
        return endless
    uncounted = [hold for hold in covering if hold.grant.max_uses is None] or covering
    return [max(uncounted, key=lambda hold: (hold.until, hold.grant.id))]
