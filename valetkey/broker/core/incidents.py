"""Incidents: what each kind ends, whom it contains, and when one may be closed.

An incident is about one thing that leaked or went wrong. `measures` says what has to end because of
it; `broker.incidents.response` does that, in one transaction. Invariants:

- An incident about a subject, or about a token and so about whoever had it, contains that subject:
  its epoch is raised, and from then on it has to attest itself anew (`core.containment`).
- To close an incident changes nothing for the subject but that its risk is no longer high for
  that (`core.containment`). What closing does end is the suspension of a grant or target, and
  tokens from before it stay refused.
- One is closed only after its subject was seen to attest itself anew, or by force, by whoever may,
  with a reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

IncidentKind = Literal["subject", "token", "token_hash", "grant", "key", "target"]
# As in `store.revocations`.
EndingKind = Literal["jti", "txn", "hash", "grant", "target", "key"]


@dataclass(frozen=True, slots=True)
class Party:
    """A subject, within its issuer."""

    issuer: str
    subject: str


@dataclass(frozen=True, slots=True)
class Exposure:
    """What an incident is about.

    ``value`` is the ``sub`` of a subject (of ``issuer``), the ``jti`` of a token of ours, a token's
    SHA-256 (base64url), a grant's id, a key's RFC 7638 thumbprint, a target's audience.

    ``party`` is the subject that is contained, if there is one. ``txn`` and ``expires`` are those
    of a token (seconds since the epoch).
    """

    kind: IncidentKind
    value: str
    issuer: str = ""
    party: Party | None = None
    txn: str = ""
    expires: float = 0.0


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing that ends, and until when (seconds since the epoch) that has to be remembered."""

    kind: EndingKind
    value: str
    until: float


def measures(
    exposure: Exposure, *, now: float, longest_life: float, forever: float
) -> tuple[Measure, ...]:
    """What ends at once. ``longest_life`` is that of any token, in seconds."""
    last = now + longest_life
    match exposure.kind:
        case "subject":
            return ()  # its epoch ends everything of it
        case "token":
            token = Measure("jti", exposure.value, max(exposure.expires, now))
            # RFC 7009 §2.1: with the token, all that descends from it.
            return (token, Measure("txn", exposure.txn, last)) if exposure.txn else (token,)
        case "token_hash":
            return (Measure("hash", exposure.value, last),)
        case "grant" | "target":
            return (Measure(exposure.kind, exposure.value, forever),)
        case "key":
            return (Measure("key", exposure.value, forever),)


LIFTED_WHEN_CLOSED: Final = frozenset({"grant", "target"})
"""Incidents that suspend something which is sound again once they are over. A key never is."""


@dataclass(frozen=True, slots=True)
class Incident:
    """One incident as it is stored. Times are in seconds since the epoch, ``None`` for not yet.

    ``epoch`` is the subject's since it was last contained by this incident. ``contained_at`` is
    when the last sidecar had acknowledged. ``source`` is what opened it, ``opened_by`` who.
    """

    id: str
    kind: IncidentKind
    value: str
    issuer: str
    subject_issuer: str
    subject: str
    epoch: int
    source: str
    reason: str
    evidence: str
    opened_at: float
    opened_by: str
    renewed_at: float
    contained_at: float | None
    attested_at: float | None
    closed_at: float | None
    closed_by: str
    close_reason: str
    forced: bool

    @property
    def party(self) -> Party | None:
        return Party(self.subject_issuer, self.subject) if self.subject else None

    @property
    def awaits_attestation(self) -> bool:
        return self.closed_at is None and self.party is not None and self.attested_at is None


def may_close(incident: Incident, *, force: bool) -> str:
    """Why it can't be closed yet, or nothing. With ``force`` no attestation is waited for."""
    if incident.closed_at is not None:
        return "it is closed"
    if incident.awaits_attestation and not force:
        return "its subject has not attested itself since"
    return ""


def lacks(incident: Incident, exposure: Exposure) -> bool:
    """Whether a report says whose it was where the open incident knows that of nobody.

    So it is where a token was named by its id alone at first (``jwt_id``), and is shown later: only
    then is there somebody to contain, and a transaction to end.
    """
    return incident.party is None and exposure.party is not None


def is_again(incident: Incident, *, at: float) -> bool:
    """Whether what was seen ``at`` that time is new, so that the subject is contained once more.

    What is reported twice before the subject attested itself is one thing, and a token that was
    ended can't do harm once more.
    """
    return (
        incident.kind == "subject"
        and incident.attested_at is not None
        and at > incident.attested_at
    )
