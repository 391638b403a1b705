"""Signals as claims of security events: each kind there and back, and everything else refused."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.contracts import signals
from valetkey.contracts.signals import (
    EventInvalid,
    Signal,
    StreamUpdated,
    Verification,
    event_claims,
    read_event,
)

BROKER = "https://broker.example"
THUMBPRINT = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"

KINDS = {
    "token": Signal(kind="token", value="tok-9", at=1793499990.25),
    "token of another issuer": Signal(
        kind="token", value="tok-9", issuer="https://i.example", at=1
    ),
    "hash": Signal(kind="hash", value="LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ", at=1793499990),
    "txn": Signal(kind="txn", value="t-1", at=1793499990),
    "grant": Signal(kind="grant", value="grant:ü/1", at=1793499990),
    "subject": Signal(
        kind="subject",
        value="spiffe://a/b",
        issuer="https://i.example",
        at=5,
        epoch=3,
        txn="inc-42",
    ),
    "key": Signal(kind="key", value=THUMBPRINT, at=1793499990, txn="inc-1"),
    "target": Signal(kind="target", value="https://api.example", at=1793499990),
}


def over_the_wire(claims: dict[str, Any]) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(claims))
    return decoded


@pytest.mark.parametrize("signal", KINDS.values(), ids=KINDS)
def test_each_kind_comes_back_as_it_was(signal: Signal) -> None:
    claims = over_the_wire(event_claims(signal, issuer=BROKER, with_reason=True))
    assert read_event(claims, issuer=BROKER) == signal


@given(
    st.builds(
        Signal,
        kind=st.sampled_from(signals.KINDS),
        value=st.text(min_size=1, max_size=200),
        issuer=st.just(""),
        at=st.floats(0, 2e9),
        txn=st.text(max_size=20),
        reason=st.text(max_size=50),
    )
)
def test_whatever_the_value_it_comes_back(signal: Signal) -> None:
    claims = over_the_wire(event_claims(signal, issuer=BROKER, with_reason=True))
    assert read_event(claims, issuer=BROKER) == signal


def test_the_reason_is_for_administrators() -> None:
    signal = Signal(kind="txn", value="t-1", at=1, reason="seen in a public repository")
    assert "public" in str(event_claims(signal, issuer=BROKER, with_reason=True))
    assert "public" not in str(event_claims(signal, issuer=BROKER, with_reason=False))


def test_the_shape_that_the_standards_give() -> None:
    claims = event_claims(KINDS["subject"], issuer=BROKER, with_reason=False)
    assert claims == {
        "txn": "inc-42",
        "sub_id": {"format": "iss_sub", "iss": "https://i.example", "sub": "spiffe://a/b"},
        "events": {
            signals.SESSION_REVOKED: {
                "event_timestamp": 5,
                "initiating_entity": "policy",
                "epoch": 3,
            }
        },
    }
    compromised = event_claims(KINDS["key"], issuer=BROKER, with_reason=False)
    assert compromised["events"] == {
        signals.CREDENTIAL_COMPROMISE: {
            "event_timestamp": 1793499990,
            "credential_type": "proof_key",
        }
    }
    assert compromised["sub_id"]["uri"].startswith("urn:ietf:params:oauth:jwk-thumbprint:sha-256:")


@pytest.mark.parametrize(
    "event",
    [
        Verification("s-1", "abc"),
        Verification("s-1", ""),
        StreamUpdated("s-1", "paused", "too slow"),
    ],
)
def test_events_of_the_stream_itself(event: Verification | StreamUpdated) -> None:
    claims = over_the_wire(event_claims(event, issuer=BROKER, with_reason=False))
    assert read_event(claims, issuer=BROKER) == event


def spoilt(kind: str, **changes: Any) -> dict[str, Any]:
    """Claims of a kind with changes: ``event__x`` in the event, ``sub__x`` in the subject."""
    claims = copy.deepcopy(event_claims(KINDS[kind], issuer=BROKER, with_reason=False))
    (body,) = claims["events"].values()
    for name, value in changes.items():
        where, _, inner = name.partition("__")
        holder = {"event": body, "sub": claims["sub_id"]}.get(where, claims)
        holder[inner or name] = value
    return claims


def renamed(kind: str, event: str) -> dict[str, Any]:
    claims = spoilt(kind)
    claims["events"] = {event: next(iter(claims["events"].values()))}
    return claims


BAD = {
    "no events": ({"sub_id": {"format": "opaque", "id": "x"}}, "not exactly one"),
    "two events": (spoilt("txn", events={"a": {}, "b": {}}), "not exactly one"),
    "events as a list": (spoilt("txn", events=[]), "not exactly one"),
    "an event that is no object": (spoilt("txn", events={signals.SESSION_REVOKED: 1}), "no JSON"),
    "no subject": ({"events": {signals.SESSION_REVOKED: {"event_timestamp": 1}}}, "sub_id"),
    "a subject of another format": (spoilt("txn", sub_id={"format": "email", "email": "a@b"}), "sub_"),
    "a subject with more in it": (spoilt("subject", sub__more=1), "sub_id"),
    "an empty value": (spoilt("subject", sub__sub=""), "empty"),
    "a value without end": (spoilt("subject", sub__sub="x" * 5000), "too long"),
    "two subjects at once": (
        spoilt("txn", sub__application={"format": "opaque", "id": "y"}), "no event of ours"),
    "another event": (renamed("txn", "https://example.com/event"), "no event of ours"),
    "an event of another subject": (renamed("subject", signals.CREDENTIAL_CHANGE), "no event of"),
    "a credential of another type": (spoilt("token", event__credential_type="grant"), "credential_"),
    "created, not revoked": (spoilt("token", event__change_type="create"), "no revocation"),
    "no time": (spoilt("txn", event__event_timestamp=None), "no time"),
    "a time in words": (spoilt("txn", event__event_timestamp="now"), "no time"),
    "an epoch in words": (spoilt("subject", event__epoch="3"), "no counter"),
    "an epoch that is true": (spoilt("subject", event__epoch=True), "no counter"),
    "an epoch below nothing": (spoilt("subject", event__epoch=-1), "no counter"),
    "a txn that is no text": (spoilt("subject", txn=1), "txn"),
    "another urn": (spoilt("key", sub__uri="urn:example:1"), "no event of ours"),
    "a verification of a person": (
        {"events": {signals.VERIFICATION: {}}, "sub_id": {"format": "iss_sub", "iss": "i", "sub": "s"}},
        "no event of a stream"),
    "a verification with a number": (
        {"events": {signals.VERIFICATION: {"state": 1}}, "sub_id": {"format": "opaque", "id": "s"}},
        "no event of a stream"),
}  # fmt: skip


@pytest.mark.parametrize(("claims", "reason"), BAD.values(), ids=BAD)
def test_what_is_no_event_of_ours(claims: dict[str, Any], reason: str) -> None:
    with pytest.raises(EventInvalid, match=reason):
        read_event(claims, issuer=BROKER)
