"""What security events of other transmitters (CAEP, RISC) say that happened, and to whom.

Invariants:

- A transmitter speaks only of subjects of the issuers that settings name for it: nobody else's
  word contains a subject.
- An event that is not understood, or of whom nobody here knows the subject, opens nothing and is
  no error: transmitters send more than any receiver acts on (SSF 1.0 §4.1.4).
- What it says in free text is kept as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeGuard

from valetkey.broker.core.incidents import Party
from valetkey.broker.core.risk import Risk
from valetkey.contracts.jose import is_time

EventName = Literal[
    "session-revoked",
    "credential-change",
    "risk-level-change",
    "credential-compromise",
    "account-disabled",
    "account-purged",
    "account-credential-change-required",
    "sessions-revoked",
]
_CAEP: Final = "https://schemas.openid.net/secevent/caep/event-type/"
_RISC: Final = "https://schemas.openid.net/secevent/risc/event-type/"
_SSF: Final = "https://schemas.openid.net/secevent/ssf/event-type/"
_NAMES: Final[Mapping[str, EventName]] = {
    _CAEP + "session-revoked": "session-revoked",
    _CAEP + "credential-change": "credential-change",
    _CAEP + "risk-level-change": "risk-level-change",
    _RISC + "credential-compromise": "credential-compromise",
    _RISC + "account-disabled": "account-disabled",
    _RISC + "account-purged": "account-purged",
    _RISC + "account-credential-change-required": "account-credential-change-required",
    _RISC + "sessions-revoked": "sessions-revoked",
}
VERIFICATION: Final = _SSF + "verification"
STREAM_UPDATED: Final = _SSF + "stream-updated"

# RFC 9493 §3.2, by the member that holds the identifier.
_MEMBERS: Final[Mapping[str, str]] = {
    "opaque": "id",
    "email": "email",
    "account": "uri",
    "phone_number": "phone_number",
    "did": "url",
    "uri": "uri",
}
_LEVELS: Final[Mapping[str, Risk]] = {"LOW": "low", "MEDIUM": "medium", "HIGH": "high"}
PRINCIPALS: Final = ("USER", "DEVICE", "SESSION")
# One for all others, so that what is kept of a subject is bounded.
_OTHER: Final = "OTHER"
_MAX_ALIASES: Final = 16
_MAX_IDENTIFIER: Final = 1024
_MAX_TEXT: Final = 200


@dataclass(frozen=True, slots=True)
class Mouth:
    """What a transmitter may speak of: see `incident_settings.TransmitterSettings`."""

    subjects: frozenset[str]
    identifiers: Mapping[str, str]
    opens: frozenset[EventName]
    own_issuer: str
    rates: bool = False
    """What it says of a subject's risk is kept."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """One thing that happened, to a subject or to one of our tokens (its ``jti``).

    ``seen_at`` is in seconds since the epoch.
    """

    event: EventName
    party: Party | None
    jti: str
    seen_at: float
    reason: str


@dataclass(frozen=True, slots=True)
class Rating:
    """How risky a subject has become, as what is meant of it (`PRINCIPALS`).

    ``seen_at`` is in seconds since the epoch.
    """

    party: Party
    level: Risk
    principal: str
    seen_at: float


@dataclass(frozen=True, slots=True)
class Reading:
    """What a SET says. ``passed_over`` says why the rest of it does nothing."""

    sightings: tuple[Sighting, ...]
    ratings: tuple[Rating, ...]
    passed_over: tuple[str, ...]
    verified: bool
    """It was sent to see whether the stream works (SSF 1.0 §8.1.4)."""


class EventInvalid(ValueError):  # noqa: N818 - reads as what it is
    """The claims are no security event (RFC 8417 §2.2). The message repeats nothing of them."""


def read(claims: Mapping[str, Any], mouth: Mouth) -> Reading:
    """Of verified claims. Raises `EventInvalid`."""
    events = claims.get("events")
    if not isinstance(events, dict) or not events:
        raise EventInvalid("events is no object, or empty")
    sightings: list[Sighting] = []
    ratings: list[Rating] = []
    passed_over: list[str] = []
    for uri, body in events.items():
        if not isinstance(body, dict):
            raise EventInvalid("an event is no object")
        if uri in {VERIFICATION, STREAM_UPDATED}:
            continue
        name = _NAMES.get(uri)
        # SSF 1.0 §3.1: events of before had their subject inside.
        subjects = list(_subjects(claims.get("sub_id", body.get("subject")), mouth))
        rated: list[Rating] = []
        if mouth.rates and name == "risk-level-change":
            rated = list(_ratings(claims, body, [party for party, _ in subjects if party]))
            ratings += rated
        if name is None or name not in mouth.opens or not _is_serious(name, body):
            if not rated:
                passed_over.append(f"{name or 'an unknown event'}: nothing that ends access")
            continue
        if not subjects:
            passed_over.append(f"{name}: of nobody that this transmitter may speak of")
        for party, jti in subjects:
            sightings.append(
                Sighting(name, party, jti, _seen_at(claims, body), _reason(name, body))
            )
    return Reading(tuple(sightings), tuple(ratings), tuple(passed_over), VERIFICATION in events)


def _ratings(
    claims: Mapping[str, Any], body: Mapping[str, Any], parties: Iterable[Party]
) -> Iterable[Rating]:
    """CAEP 1.0 §3.8.1. A device or session of a user is rated beside the user."""
    level = _LEVELS.get(str(body.get("current_level")))
    principal = str(body.get("principal", PRINCIPALS[0]))
    if principal not in PRINCIPALS:
        principal = _OTHER
    if level is not None:
        for party in parties:
            yield Rating(party, level, principal, _seen_at(claims, body))


def _is_serious(name: EventName, body: Mapping[str, Any]) -> bool:
    """Whether the event takes access away, as far as its name alone does not say so."""
    if name == "credential-change":  # CAEP 1.0 §3.3.1
        return body.get("change_type") in ("revoke", "delete")
    if name == "risk-level-change":  # CAEP 1.0 §3.8.1
        return body.get("current_level") == "HIGH"
    return True


def _subjects(subject: Any, mouth: Mouth) -> Iterable[tuple[Party | None, str]]:
    """Whom a subject identifier (RFC 9493) means here: parties, or the id of a token of ours."""
    if not isinstance(subject, dict):
        return
    match subject.get("format"):
        case "complex":
            # SSF 1.0 §3.3: what happened to a session or device of a user happened to the user.
            yield from _subjects(_simple(subject.get("user")), mouth)
        case "aliases":
            identifiers = subject.get("identifiers")
            if isinstance(identifiers, list):
                for identifier in identifiers[:_MAX_ALIASES]:
                    yield from _subjects(_simple(identifier), mouth)
        case "iss_sub":
            issuer, sub = subject.get("iss"), subject.get("sub")
            if not _is_text(issuer) or not _is_text(sub):
                return
            if issuer in mouth.subjects and issuer != mouth.own_issuer:
                yield Party(issuer, sub), ""
        case "jwt_id":
            issuer, jti = subject.get("iss"), subject.get("jti")
            if issuer == mouth.own_issuer and mouth.own_issuer in mouth.subjects and _is_text(jti):
                yield None, jti
        case str(form) if form in mouth.identifiers:
            value = subject.get(_MEMBERS[form])
            if _is_text(value):
                yield Party(mouth.identifiers[form], value), ""


def _simple(subject: Any) -> Any:
    """RFC 9493 §3.2.8, SSF 1.0 §3.3: nothing that holds others lies within another."""
    if isinstance(subject, dict) and subject.get("format") not in {"complex", "aliases"}:
        return subject
    return None


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= _MAX_IDENTIFIER and "\0" not in value


def _seen_at(claims: Mapping[str, Any], body: Mapping[str, Any]) -> float:
    """When it happened: as the event says, else as the SET does (RFC 8417 §2.2)."""
    for value in (body.get("event_timestamp"), claims.get("toe"), claims.get("iat")):
        if is_time(value):
            return float(value)
    raise EventInvalid("it does not say when")


def _reason(name: EventName, body: Mapping[str, Any]) -> str:
    texts = body.get("reason_admin")
    if isinstance(texts, dict) and texts:
        text = texts.get("en", next(iter(texts.values())))
        if isinstance(text, str):
            return f"{name}: {text[:_MAX_TEXT]}".replace("\0", "")
    return name
