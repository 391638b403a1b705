"""Who may have a token while incidents are open, and what counts as fresh attestation.

An incident about a subject raises the subject's epoch and says from when on it must have attested
itself anew. Invariants:

- Nothing that existed before the incident attests anything: not an identity token that was issued
  before it, and not a key that was seen before it, however genuine both are. Whoever holds what
  leaked holds nothing but these.
- An attestation that says nothing of its time, or claims to come from the future, is not fresh.
- Containment has no end of its own, and closing an incident does not end it: what it demands, each
  later exchange of the subject has to show. It can only be raised.
- A token counts only if it was minted under the epoch that its subject and its client have now.
"""

from __future__ import annotations

from dataclasses import dataclass

from valetkey.broker.core.risk import UNRATED, Risk
from valetkey.contracts import codes
from valetkey.contracts.codes import Code


@dataclass(frozen=True, slots=True)
class Epoch:
    """A subject's revocation counter. Without any incident it is 0.

    ``attest_after`` is the time (seconds since the epoch) after which the subject must have
    attested itself; 0 where nothing demands that. ``held`` while a change is being written, of
    which nobody can say yet whether it will be in force.
    """

    number: int = 0
    attest_after: float = 0.0
    held: bool = False


@dataclass(frozen=True, slots=True)
class Attestation:
    """What a party shows for being who it says.

    ``issued_at`` is when its identity token was issued (``None``: the token does not say).
    ``key_since`` is when the oldest of the keys that it proved to hold was first seen (``None``:
    there is none, as with a user's token). Both in seconds since the epoch.
    """

    issued_at: float | None
    key_since: float | None


@dataclass(frozen=True, slots=True)
class Standing:
    """What the broker holds against one party of an exchange, beside what the party shows."""

    epoch: Epoch
    attestation: Attestation
    ended: bool
    """The subject was revoked and can't attest itself."""
    key_ended: bool
    """The key that it proves possession of was revoked."""
    risk: Risk = UNRATED
    """What others say of it, and ``high`` while an incident about it is open: for policies."""


@dataclass(frozen=True, slots=True)
class IncidentFacts:
    """What incidents say of one exchange. ``user`` is ``None`` where there is none.

    ``skew`` is by how many seconds the clocks of issuers may be ahead of ours.
    """

    client: Standing
    user: Standing | None
    target_ended: bool
    ended_grants: frozenset[str]
    skew: float


def is_fresh(epoch: Epoch, attestation: Attestation, *, now: float, skew: float) -> bool:
    """Whether a party attested itself after the last incident about it."""
    if not epoch.attest_after:
        return True
    after = epoch.attest_after + skew
    issued_at, key_since = attestation.issued_at, attestation.key_since
    return (
        issued_at is not None
        and after < issued_at <= now + skew
        and (key_since is None or after < key_since)
    )


def refusal(standing: Standing, *, now: float, skew: float) -> tuple[Code, str] | None:
    """Why this party gets no token, or ``None``. The reason is for the record."""
    if standing.ended:
        return codes.SUBJECT_REVOKED, "the subject was revoked"
    if standing.key_ended:
        return codes.ACTOR_KEY_REVOKED, "the proof key was revoked"
    if standing.epoch.held:
        return codes.SUBJECT_CONTAINED, "an incident about it is being written"
    if not is_fresh(standing.epoch, standing.attestation, now=now, skew=skew):
        return codes.SUBJECT_CONTAINED, _stale(standing, skew=skew)
    return None


def counts(minted: int, now: Epoch) -> bool:
    """Whether a token that was minted under the epoch ``minted`` still does."""
    return not now.held and minted == now.number


def _stale(standing: Standing, *, skew: float) -> str:
    after = standing.epoch.attest_after + skew
    issued_at, key_since = standing.attestation.issued_at, standing.attestation.key_since
    if issued_at is None:
        return "its identity token has no iat"
    if issued_at <= after:
        return "its identity token is from before the incident"
    if key_since is not None and key_since <= after:
        return "its proof key is from before the incident"
    return "its identity token is from the future"
