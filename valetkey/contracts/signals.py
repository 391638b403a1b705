"""Signals: what has ended, as broker and sidecars (and others) tell it to each other.

A `Signal` says that something no longer counts. On the wire it is a Security Event Token (RFC
8417) of the Shared Signals Framework 1.0 with a CAEP or RISC event; `event_claims` writes it,
`read_event` reads it back strictly. Which event and which subject (RFC 9493) stand for which kind:

    token    jwt_id                       credential-change, revoke, access_token
    hash     opaque                       credential-change, revoke, access_token
    txn      complex, session: opaque     session-revoked
    grant    uri urn:valetkey:grant:ID    credential-change, revoke, grant
    subject  iss_sub                      session-revoked, with the new ``epoch`` (ours)
    key      uri (RFC 9278 thumbprint)    credential-compromise (RISC)
    target   complex, application: opaque credential-change, revoke, target

``session-revoked`` ends all that rests on a session: for a subject, everything under an older
epoch; for a transaction, every token that descends from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args
from urllib.parse import quote, unquote

import msgspec

from valetkey.contracts.jose import is_time

Kind = Literal["token", "hash", "txn", "grant", "subject", "key", "target"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

SESSION_REVOKED: Final = "https://schemas.openid.net/secevent/caep/event-type/session-revoked"
CREDENTIAL_CHANGE: Final = "https://schemas.openid.net/secevent/caep/event-type/credential-change"
CREDENTIAL_COMPROMISE: Final = (
    "https://schemas.openid.net/secevent/risc/event-type/credential-compromise"
)
VERIFICATION: Final = "https://schemas.openid.net/secevent/ssf/event-type/verification"
STREAM_UPDATED: Final = "https://schemas.openid.net/secevent/ssf/event-type/stream-updated"
EVENTS: Final = (SESSION_REVOKED, CREDENTIAL_CHANGE, CREDENTIAL_COMPROMISE)
"""What a receiver can ask for; the two of SSF itself come to everybody (SSF 1.0 §8.1.4)."""

EVENT_OF: Final[Mapping[Kind, str]] = {
    "token": CREDENTIAL_CHANGE,
    "hash": CREDENTIAL_CHANGE,
    "txn": SESSION_REVOKED,
    "grant": CREDENTIAL_CHANGE,
    "subject": SESSION_REVOKED,
    "key": CREDENTIAL_COMPROMISE,
    "target": CREDENTIAL_CHANGE,
}

# CAEP 1.0 §3.3.1 and RISC 1.0 §2.7: credential_type may be a value that both sides agreed on.
_CREDENTIAL_TYPES: Final[Mapping[Kind, str]] = {
    "token": "access_token",
    "hash": "access_token",
    "grant": "grant",
    "key": "proof_key",
    "target": "target",
}
_GRANT: Final = "urn:valetkey:grant:"
_THUMBPRINT: Final = "urn:ietf:params:oauth:jwk-thumbprint:sha-256:"  # RFC 9278 §3
_MAX_ID: Final = 2048


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """Something that no longer counts.

    ``value`` is the ``jti`` of a token, its hash (SHA-256, base64url), a transaction (``txn``
    claim), a grant's id, a subject (``sub``), a proof key's thumbprint (RFC 7638) or a target's
    audience. ``issuer`` says whose subject it is (of a token: who issued it, empty for the broker).
    ``txn`` is what caused it, an incident's id, say. ``at`` is when it happened, in seconds since
    the epoch. ``epoch`` is a subject's new revocation counter: what was made under an older one
    does not count.
    """

    kind: Kind
    value: str
    at: float
    issuer: str = ""
    txn: str = ""
    reason: str = ""
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Verification:
    """The stream works (SSF 1.0 §8.1.4.1). ``state`` is what the receiver sent to recognise it."""

    stream: str
    state: str


@dataclass(frozen=True, slots=True)
class StreamUpdated:
    """The transmitter changed a stream's status (SSF 1.0 §8.1.5)."""

    stream: str
    status: str
    reason: str


Event = Signal | Verification | StreamUpdated


class EventInvalid(ValueError):  # noqa: N818 - reads as what it is
    """The claims are no event of ours. The message never repeats a value."""


SIGNAL_HEADER: Final = "Valetkey-Signal"
"""With an exchange: the ``jti`` of the last signal that the sidecar has put into force.

An id of its own choice where it begins afresh: a broker that has not heard of an id catches up.
"""

STANDBY_NONCE: Final = "Valetkey-Standby-Nonce"
"""With an answer of the feed: a DPoP nonce for the request after a connection failed.

Any replica takes it, so that none of a lost one's sidecars has to be refused for its nonce first.
"""
MAX_SIGNAL: Final = 64
"""Characters of such an id; a longer one is taken no notice of."""


def fleet_audience(issuer: str) -> str:
    """The ``aud`` of what a broker tells its sidecars: derived, so that both sides know it."""
    return issuer + "/ssf"


# --- writing ------------------------------------------------------------------------------------


def event_claims(event: Event, *, issuer: str, with_reason: bool) -> dict[str, Any]:
    """``sub_id``, ``events`` and (where there is one) ``txn`` of a SET.

    ``issuer`` is the broker's identifier. ``with_reason`` writes ``reason_admin``, which is for
    administrators and not for every receiver (CAEP 1.0 §2).
    """
    if isinstance(event, Verification):
        body: dict[str, Any] = {"state": event.state} if event.state else {}
        return {"sub_id": _opaque(event.stream), "events": {VERIFICATION: body}}
    if isinstance(event, StreamUpdated):
        body = {"status": event.status}
        if event.reason:
            body["reason"] = event.reason
        return {"sub_id": _opaque(event.stream), "events": {STREAM_UPDATED: body}}
    body = {"event_timestamp": event.at}
    kind = event.kind
    if kind in _CREDENTIAL_TYPES:
        body["credential_type"] = _CREDENTIAL_TYPES[kind]
    if EVENT_OF[kind] == CREDENTIAL_CHANGE:
        body["change_type"] = "revoke"
    if EVENT_OF[kind] != CREDENTIAL_COMPROMISE:
        body["initiating_entity"] = "policy"
    if kind == "subject":
        body["epoch"] = event.epoch
    if with_reason and event.reason:
        body["reason_admin"] = {"en": event.reason}
    claims: dict[str, Any] = {
        "sub_id": _subject_id(event, issuer),
        "events": {EVENT_OF[kind]: body},
    }
    if event.txn:
        claims["txn"] = event.txn  # RFC 8417 §2.2
    return claims


def _opaque(value: str) -> dict[str, str]:
    return {"format": "opaque", "id": value}


def _subject_id(signal: Signal, issuer: str) -> dict[str, Any]:
    match signal.kind:
        case "token":
            return {"format": "jwt_id", "iss": signal.issuer or issuer, "jti": signal.value}
        case "hash":
            return _opaque(signal.value)
        case "txn":
            return {"format": "complex", "session": _opaque(signal.value)}
        case "grant":
            return {"format": "uri", "uri": _GRANT + quote(signal.value, safe="")}
        case "subject":
            return {"format": "iss_sub", "iss": signal.issuer, "sub": signal.value}
        case "key":
            return {"format": "uri", "uri": _THUMBPRINT + signal.value}
        case "target":
            return {"format": "complex", "application": _opaque(signal.value)}


# --- reading ------------------------------------------------------------------------------------


class _IssuedSubject(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="format",
                     tag="iss_sub"):  # fmt: skip
    iss: str
    sub: str


class _Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="format",
             tag="jwt_id"):  # fmt: skip
    iss: str
    jti: str


class _Uri(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="format",
           tag="uri"):  # fmt: skip
    uri: str


class _Opaque(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="format",
              tag="opaque"):  # fmt: skip
    id: str


class _Complex(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="format",
               tag="complex"):  # fmt: skip
    session: _Opaque | None = None
    application: _Opaque | None = None


_SubjectId = _IssuedSubject | _Token | _Uri | _Opaque | _Complex


def read_event(claims: Mapping[str, Any], *, issuer: str) -> Event:
    """The event of verified SET claims, exactly as `event_claims` writes it.

    ``issuer`` is the broker's identifier. Raises `EventInvalid` for anything else: what can't be
    understood must not pass as if nothing had happened.
    """
    events = claims.get("events")
    if not isinstance(events, dict) or len(events) != 1:
        raise EventInvalid("not exactly one event")
    ((name, body),) = events.items()
    if not isinstance(body, dict):
        raise EventInvalid("the event is no JSON object")
    try:
        subject = msgspec.convert(claims.get("sub_id"), _SubjectId)
    except msgspec.ValidationError as error:
        raise EventInvalid("sub_id is of no format that we use") from error
    if name in {VERIFICATION, STREAM_UPDATED}:
        return _stream_event(name, body, subject)
    kind, value, whose = _identify(subject, name, body, issuer)
    if not 0 < len(value) <= _MAX_ID:
        raise EventInvalid("sub_id is empty or too long")
    at, epoch, txn = body.get("event_timestamp"), body.get("epoch", 0), claims.get("txn", "")
    if not is_time(at):
        raise EventInvalid("event_timestamp is no time")
    if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0:
        raise EventInvalid("epoch is no counter")
    if not isinstance(txn, str):
        raise EventInvalid("txn is no text")
    reason = body.get("reason_admin", {})
    text = reason.get("en", "") if isinstance(reason, dict) else ""
    return Signal(
        kind=kind,
        value=value,
        at=float(at),
        issuer=whose,
        txn=txn,
        reason=text if isinstance(text, str) else "",
        epoch=epoch,
    )


def _stream_event(name: str, body: Mapping[str, Any], subject: _SubjectId) -> Event:
    texts = {key: body.get(key, "") for key in ("state", "status", "reason")}
    if not isinstance(subject, _Opaque) or not all(isinstance(t, str) for t in texts.values()):
        raise EventInvalid("no event of a stream")
    if name == VERIFICATION:
        return Verification(subject.id, texts["state"])
    return StreamUpdated(subject.id, texts["status"], texts["reason"])


def _identify(
    subject: _SubjectId, name: str, body: Mapping[str, Any], issuer: str
) -> tuple[Kind, str, str]:
    """Kind, value and issuer; subject and event must fit each other."""
    kind: Kind | None = None
    value = whose = ""
    match subject:
        case _IssuedSubject(iss, sub):
            kind, value, whose = "subject", sub, iss
        case _Token(iss, jti):
            kind, value, whose = "token", jti, "" if iss == issuer else iss
        case _Opaque(id=value):
            kind = "hash"
        case _Uri(uri) if uri.startswith(_GRANT):
            kind, value = "grant", unquote(uri.removeprefix(_GRANT))
        case _Uri(uri) if uri.startswith(_THUMBPRINT):
            kind, value = "key", uri.removeprefix(_THUMBPRINT)
        case _Complex(session=_Opaque(id=value), application=None):
            kind = "txn"
        case _Complex(session=None, application=_Opaque(id=value)):
            kind = "target"
    if kind is None or EVENT_OF[kind] != name:
        raise EventInvalid("no event of ours, or not about such a subject")
    if kind in _CREDENTIAL_TYPES and body.get("credential_type") != _CREDENTIAL_TYPES[kind]:
        raise EventInvalid("credential_type does not fit the subject")
    if name == CREDENTIAL_CHANGE and body.get("change_type") != "revoke":
        raise EventInvalid("a change that is no revocation")
    return kind, value, whose
