"""Approvals: what is approved, by whom, how often and until when; every transition, and no other.

    pending → approved → used | ended | revoked
    pending → denied | expired

Invariants:

- An approval is for one request, named by a digest over everything that makes the token what it is
  (`Request.digest`), and over nothing else.
- Nobody who asks approves: not the workload, not the user it acts for, not an actor in the chain.
- A quorum counts people, each by issuer and subject, once.
- Time passes in one direction: what has expired, ended, been used up, denied or revoked never
  counts again. ``used``, ``ended`` and ``expired`` follow from the numbers; nobody sets them.
- Where approvers differ, the strictest terms count.

Times are seconds since the epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple

import msgspec

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.contracts.jose import b64url
from valetkey.contracts.settings import Duration, Settings

State = Literal["pending", "approved", "denied", "expired", "used", "ended", "revoked"]
STATES: Final[tuple[State, ...]] = (
    "pending", "approved", "denied", "expired", "used", "ended", "revoked",
)  # fmt: skip
Decision = Literal["pending", "approved", "denied", "revoked"]
"""What people have decided; `Approval.state` adds what time and use have made of it."""

MAX_QUORUM: Final = 10
MAX_USES: Final = 10_000
# A person may be away for a weekend, but an approval that outlives it is a grant.
MAX_VALID: Final = 7 * 86_400.0
_VERSION: Final = "valetkey-approval-1"
# Members of details whose order says nothing (RFC 9396 §2.2; ours: `mcp`).
_SETS: Final = frozenset({"actions", "locations", "methods", "tools"})


class Identity(NamedTuple):
    """Subjects are unique within their issuer only. An empty issuer stands for any."""

    issuer: str
    subject: str

    def may_be(self, other: Identity) -> bool:
        """Whether the two are, or for all that is known could be, the same."""
        return self.subject == other.subject and (
            self.issuer == other.issuer or not self.issuer or not other.issuer
        )


class ApprovalRuleSettings(Settings, frozen=True, kw_only=True, omit_defaults=True):
    """What a grant asks for before it gives anything: people who say yes.

    ``quorum`` people have to, each with one of ``roles`` or in one of ``groups`` (by their own
    token or the directory; both left out: whoever has the role ``approver``). A request waits for
    ``expires``. An approver chooses how often and until when it may be used: at most ``uses`` times
    (left out: as they choose), and not for longer than ``valid``. Where ``expires`` and ``valid``
    are left out, those of the settings' ``approvals`` count.
    """

    quorum: int = 1
    roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    expires: Duration | None = None
    uses: int | None = None
    valid: Duration | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.quorum <= MAX_QUORUM:
            raise ValueError(f"quorum is between 1 and {MAX_QUORUM}")
        if not all(self.roles) or not all(self.groups):
            raise ValueError("roles and groups are names")
        if self.uses is not None and not 1 <= self.uses <= MAX_USES:
            raise ValueError(f"uses is between 1 and {MAX_USES}")
        for time in (self.expires, self.valid):
            if time is not None and not 1 <= time <= MAX_VALID:
                raise ValueError("expires and valid are between 1s and 7d")

    def compiled(self, reason: str) -> Requirement:
        """``reason`` names what asks for it."""
        return replace(
            Requirement.of(self.quorum, self.roles, self.groups, reason=reason),
            expires=None if self.expires is None else float(self.expires),
            uses=self.uses,
            valid=None if self.valid is None else float(self.valid),
        )


class Holders(NamedTuple):
    """People with one of these roles, or in one of these groups."""

    roles: tuple[str, ...]
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Requirement:
    """What policy asks for. An approver belongs to *each* of ``holders``; ``reasons`` say who asks.

    ``expires`` and ``valid`` are in seconds, ``None`` where the settings decide; ``uses`` is the
    most that an approver may give, ``None`` for as many as they choose.
    """

    quorum: int = 1
    holders: tuple[Holders, ...] = ()
    expires: float | None = None
    uses: int | None = None
    valid: float | None = None
    reasons: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, quorum: int, roles: Iterable[str], groups: Iterable[str], *, reason: str
    ) -> Requirement:
        """So many people, each with one of the roles or in one of the groups (neither: anybody)."""
        among = Holders(tuple(sorted(set(roles))), tuple(sorted(set(groups))))
        return cls(quorum=quorum, holders=(among,) if any(among) else (), reasons=(reason,))

    @classmethod
    def strictest(cls, of: Iterable[Requirement]) -> Requirement | None:
        """One that meets all of them, or ``None`` where there are none."""
        several = list(of)
        if not several:
            return None

        def least(values: Iterable[float | None]) -> float | None:
            return min((value for value in values if value is not None), default=None)

        return cls(
            quorum=max(each.quorum for each in several),
            holders=tuple(sorted({holders for each in several for holders in each.holders})),
            expires=least(each.expires for each in several),
            uses=min((each.uses for each in several if each.uses is not None), default=None),
            valid=least(each.valid for each in several),
            reasons=tuple(dict.fromkeys(reason for each in several for reason in each.reasons)),
        )

    def canonical(self) -> dict[str, Any]:
        """The parts that decide whether a yes is enough; not the reasons, which are for reading."""
        return {
            "quorum": self.quorum,
            "holders": [[list(each.roles), list(each.groups)] for each in self.holders],
            "uses": self.uses,
            "valid": self.valid,
        }


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asks a person to approve. All of it was derived or verified by the broker.

    ``actors`` is the chain of delegation, outermost first; empty where the workload acts for
    itself. ``details`` and ``scopes`` are what would be issued. ``thumbprint`` is the proof key's,
    ``epochs`` are the subject's and the client's.
    ``also_asking`` are further identities of the asking side. ``target``, ``grants`` and these are
    no part of the digest: they follow from what is.
    """

    client: Identity
    subject: Identity
    actors: tuple[Identity, ...]
    audience: str
    resource: str
    scopes: tuple[str, ...]
    details: tuple[dict[str, Any], ...]
    thumbprint: str
    policy_digest: str
    epochs: tuple[int, int]
    requirement: Requirement
    target: str = ""
    grants: tuple[str, ...] = ()
    also_asking: tuple[Identity, ...] = ()

    @property
    def requesters(self) -> tuple[Identity, ...]:
        """Everybody on the asking side."""
        return tuple(dict.fromkeys((self.client, self.subject, *self.actors, *self.also_asking)))

    def digest(self) -> str:
        """base64url SHA-256 over the canonical request.

        In it, and why:

        - ``subject``, ``client``, ``actors``: who the token speaks for, and through whom.
        - ``audience``, ``resource``, ``scopes``, ``details``: what it opens.
        - ``thumbprint``: the one key that may use it, so that nobody else with the workload's token
          can.
        - ``policy``: people were asked under this one; under another they are asked again.
        - ``epochs``: after an incident about subject or client, what was approved before is void.
        - ``requirement``: grants that were made by API are not in the policy's digest, and a yes
          under a laxer rule must not meet a stricter one.

        Not in it: times, ids, the tokens themselves, the purpose, the order of anything.
        """
        canonical = {
            "version": _VERSION,
            "client": list(self.client),
            "subject": list(self.subject),
            "actors": [list(actor) for actor in self.actors],
            "audience": self.audience,
            "resource": self.resource,
            "scopes": sorted(set(self.scopes)),
            "details": sorted({_canonical(detail) for detail in self.details}),
            "thumbprint": self.thumbprint,
            "policy": self.policy_digest,
            "epochs": list(self.epochs),
            "requirement": self.requirement.canonical(),
        }
        encoded = msgspec.json.encode(canonical, order="deterministic")
        return b64url(hashlib.sha256(encoded).digest())


def chain_of(act: Mapping[str, Any] | None) -> tuple[Identity, ...]:
    """The identities of an ``act`` claim, outermost first (RFC 8693 §4.1)."""
    found: list[Identity] = []
    while act is not None:
        found.append(Identity(act.get("iss", ""), act["sub"]))
        act = act.get("act")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Voter:
    """An approver, with the roles and groups that their own token or the directory names."""

    identity: Identity
    roles: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()

    @classmethod
    def of(cls, issuer: str, subject: str, claims: Mapping[str, Any]) -> Voter:
        """From verified claims (RFC 9068 §2.2.3.1: ``roles``, ``groups``)."""
        return cls(
            Identity(issuer, subject), _names(claims.get("roles")), _names(claims.get("groups"))
        )

    def belongs_to(self, holders: Holders) -> bool:
        return not self.roles.isdisjoint(holders.roles) or not self.groups.isdisjoint(
            holders.groups
        )


class Terms(NamedTuple):
    """What a yes is good for: so many uses (``None``: any number), until that time."""

    uses: int | None
    until: float


@dataclass(frozen=True, slots=True)
class Vote:
    """One person's word. ``terms`` are those of a yes."""

    voter: Identity
    approves: bool
    reason: str
    at: float
    terms: Terms

    def counts(self, now: float) -> bool:
        return self.approves and self.terms.until > now


@dataclass(frozen=True, slots=True)
class Approval:
    """A request with what became of it. ``uses_left`` and ``until`` count once it is approved.

    ``valid`` is the longest time, in seconds, that an approver may give.
    """

    id: str
    request: Request = field(repr=False)
    opened_at: float
    expires_at: float
    valid: float
    decision: Decision = "pending"
    uses_left: int | None = None
    until: float = 0.0
    decided_at: float = 0.0
    votes: tuple[Vote, ...] = ()

    def state(self, now: float) -> State:
        """Where it stands at ``now``."""
        if self.decision == "pending":
            return "expired" if now >= self.expires_at else "pending"
        if self.decision == "approved":
            if self.uses_left == 0:
                return "used"
            return "ended" if now >= self.until else "approved"
        return self.decision

    def approve(
        self, voter: Voter, *, now: float, reason: str, uses: int | None, until: float | None
    ) -> Approval:
        """With this yes; approved if it makes the quorum. Raises `CallerError`.

        ``uses`` and ``until`` are as the approver chose: neither for one use, ``until`` alone for
        any number until then.
        """
        self._must_be("pending", now)
        requirement = self.request.requirement
        if any(voter.identity.may_be(asking) for asking in self.request.requesters):
            raise CallerError(codes.APPROVAL_SELF, "the approver is among those who ask")
        if not all(voter.belongs_to(holders) for holders in requirement.holders):
            raise CallerError(codes.APPROVAL_NOT_ELIGIBLE, "without the role or group asked for")
        if any(vote.voter == voter.identity and vote.counts(now) for vote in self.votes):
            raise CallerError(codes.APPROVAL_VOTED, "said yes before")
        terms = self._terms(now, uses, until)
        vote = Vote(voter.identity, approves=True, reason=reason, at=now, terms=terms)
        votes = self._with(vote)
        counting = [each for each in votes if each.counts(now)]
        if len(counting) < requirement.quorum:
            return replace(self, votes=votes)
        limited = [each.terms.uses for each in counting if each.terms.uses is not None]
        return replace(
            self,
            votes=votes,
            decision="approved",
            decided_at=now,
            uses_left=min(limited, default=None),
            until=min(each.terms.until for each in counting),
        )

    def deny(self, voter: Voter, *, now: float, reason: str) -> Approval:
        """Denied, whoever else said yes. Raises `CallerError`.

        Who asks may take it back, too: a no gives nobody anything.
        """
        self._must_be("pending", now)
        vote = Vote(voter.identity, approves=False, reason=reason, at=now, terms=Terms(0, now))
        return replace(self, votes=self._with(vote), decision="denied", decided_at=now)

    def revoke(self, *, now: float) -> Approval:
        """Without the uses that are left. Raises `CallerError`."""
        self._must_be("approved", now)
        return replace(self, decision="revoked", decided_at=now)

    def use(self, *, now: float) -> Approval:
        """After one use. Raises `CallerError`.

        The store does the same in one conditional UPDATE.
        """
        self._must_be("approved", now)
        left = self.uses_left
        return replace(self, uses_left=None if left is None else left - 1)

    def _must_be(self, state: State, now: float) -> None:
        found = self.state(now)
        if found != state:
            raise CallerError(codes.APPROVAL_CLOSED, f"it is {found}, not {state}")

    def _with(self, vote: Vote) -> tuple[Vote, ...]:
        """One vote per person: a later one takes the place of theirs."""
        return (*(each for each in self.votes if each.voter != vote.voter), vote)

    def _terms(self, now: float, uses: int | None, until: float | None) -> Terms:
        requirement = self.request.requirement
        if uses is None and until is None:
            uses = 1
        if uses is not None and not 1 <= uses <= MAX_USES:
            raise CallerError(codes.APPROVAL_TERMS, f"uses is between 1 and {MAX_USES}")
        if requirement.uses is not None and (uses is None or uses > requirement.uses):
            raise CallerError(codes.APPROVAL_TERMS, f"policy allows {requirement.uses} uses")
        if until is None:
            until = now + self.valid
        if not now < until <= now + self.valid:
            raise CallerError(
                codes.APPROVAL_TERMS, f"until is not within the next {self.valid:.0f} s"
            )
        return Terms(uses, until)


def _names(claim: Any) -> frozenset[str]:
    """A claim's names: a text is one; anything but a text or a list of texts names nothing."""
    values = [claim] if isinstance(claim, str) else claim
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        return frozenset()
    return frozenset(values)


def _canonical(value: Any) -> str:
    return msgspec.json.encode(_sorted(value), order="deterministic").decode()


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            name: sorted(set(member)) if name in _SETS else _sorted(member)
            for name, member in value.items()
        }
    return value
