"""What CAEP and RISC events of others mean here, and of whom they may speak."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valetkey.broker.core.incidents import Party
from valetkey.broker.core.security_events import EventInvalid, Mouth, read

CAEP = "https://schemas.openid.net/secevent/caep/event-type/"
RISC = "https://schemas.openid.net/secevent/risc/event-type/"
SSF = "https://schemas.openid.net/secevent/ssf/event-type/"
OWN = "https://broker.example"
IDP = "https://idp.example"
MOUTH = Mouth(
    subjects=frozenset({IDP, OWN}),
    identifiers={"email": IDP, "opaque": "https://hr.example"},
    opens=frozenset({"session-revoked", "credential-change", "risk-level-change", "account-disabled"}),
    own_issuer=OWN,
)  # fmt: skip
ALICE = {"format": "iss_sub", "iss": IDP, "sub": "alice"}


def claims(
    event: str = CAEP + "session-revoked", subject: Any = ALICE, **body: Any
) -> dict[str, Any]:
    return {"iat": 1000, "sub_id": subject, "events": {event: body}}


@pytest.mark.parametrize(
    ("name", "subject", "parties", "jtis"),
    [
        ("iss_sub", ALICE, [Party(IDP, "alice")], []),
        ("iss_sub of another issuer", {**ALICE, "iss": "https://other"}, [], []),
        ("iss_sub of ours", {**ALICE, "iss": OWN}, [], []),
        ("iss_sub without sub", {"format": "iss_sub", "iss": IDP}, [], []),
        ("iss_sub with an empty sub", {**ALICE, "sub": ""}, [], []),
        ("email", {"format": "email", "email": "a@x"}, [Party(IDP, "a@x")], []),
        ("opaque", {"format": "opaque", "id": "7"}, [Party("https://hr.example", "7")], []),
        ("a format without an issuer", {"format": "account", "uri": "acct:a@x"}, [], []),
        ("an unknown format", {"format": "shoe_size", "id": "43"}, [], []),
        ("no format", {"iss": IDP, "sub": "alice"}, [], []),
        ("a token of ours", {"format": "jwt_id", "iss": OWN, "jti": "j"}, [], ["j"]),
        ("a token of another's", {"format": "jwt_id", "iss": IDP, "jti": "j"}, [], []),
        ("complex", {"format": "complex", "user": ALICE, "session": {"format": "opaque", "id": "s"}},
         [Party(IDP, "alice")], []),
        ("complex without a user", {"format": "complex", "session": {"format": "opaque", "id": "s"}},
         [], []),
        ("complex in complex", {"format": "complex", "user": {"format": "complex", "user": ALICE}},
         [], []),
        ("aliases", {"format": "aliases", "identifiers": [ALICE, {"format": "email", "email": "a@x"}]},
         [Party(IDP, "alice"), Party(IDP, "a@x")], []),
        ("aliases in aliases",
         {"format": "aliases", "identifiers": [{"format": "aliases", "identifiers": [ALICE]}]}, [], []),
        ("a list", [ALICE], [], []),
        ("none", None, [], []),
    ],
)  # fmt: skip
def test_subjects(name: str, subject: Any, parties: list[Party], jtis: list[str]) -> None:
    reading = read(claims(subject=subject), MOUTH)
    assert [one.party for one in reading.sightings if one.party] == parties
    assert [one.jti for one in reading.sightings if one.jti] == jtis
    assert bool(reading.passed_over) is not bool(reading.sightings)


@pytest.mark.parametrize(
    ("event", "body", "opens"),
    [
        (CAEP + "session-revoked", {}, True),
        (CAEP + "credential-change", {"change_type": "revoke"}, True),
        (CAEP + "credential-change", {"change_type": "delete"}, True),
        (CAEP + "credential-change", {"change_type": "create"}, False),
        (CAEP + "credential-change", {}, False),
        (CAEP + "risk-level-change", {"current_level": "HIGH"}, True),
        (CAEP + "risk-level-change", {"current_level": "MEDIUM"}, False),
        (RISC + "account-disabled", {"reason": "hijacking"}, True),
        (RISC + "account-purged", {}, False),  # not among those that settings let open
        (RISC + "account-enabled", {}, False),
        (CAEP + "token-claims-change", {"claims": {}}, False),
        ("https://vendor.example/event", {}, False),
        (RISC + "session-revoked", {}, False),
    ],
)
def test_events(event: str, body: dict[str, Any], opens: bool) -> None:
    assert bool(read(claims(event, **body), MOUTH).sightings) is opens


def test_several_events_in_one() -> None:
    both = claims()
    both["events"][RISC + "account-disabled"] = {}
    both["events"]["https://vendor.example/event"] = {}
    reading = read(both, MOUTH)
    assert [one.event for one in reading.sightings] == ["session-revoked", "account-disabled"]
    assert len(reading.passed_over) == 1


def test_the_subject_inside_the_event_as_it_used_to_be() -> None:
    old = claims(subject=ALICE)
    del old["sub_id"]
    old["events"][CAEP + "session-revoked"]["subject"] = ALICE
    assert [one.party for one in read(old, MOUTH).sightings] == [Party(IDP, "alice")]


@pytest.mark.parametrize(
    ("more", "body", "seen_at"),
    [({}, {}, 1000), ({"toe": 900}, {}, 900), ({"toe": 900}, {"event_timestamp": 800}, 800),
     ({}, {"event_timestamp": "soon"}, 1000)],
)  # fmt: skip
def test_when_it_happened(more: dict[str, Any], body: dict[str, Any], seen_at: float) -> None:
    reading = read({**claims(**body), **more}, MOUTH)
    assert [one.seen_at for one in reading.sightings] == [seen_at]


def test_why() -> None:
    (one,) = read(claims(reason_admin={"en": "left\0 the company", "de": "weg"}), MOUTH).sightings
    assert one.reason == "session-revoked: left the company"
    (one,) = read(claims(reason_admin={"en": "x" * 5000}), MOUTH).sightings
    assert len(one.reason) < 300
    (one,) = read(claims(reason_admin="text"), MOUTH).sightings
    assert one.reason == "session-revoked"


@pytest.mark.parametrize(("event", "verified"), [("verification", True), ("stream-updated", False)])
def test_events_of_the_stream_itself(event: str, verified: bool) -> None:
    reading = read(claims(SSF + event, {"format": "opaque", "id": "stream"}, state="s"), MOUTH)
    assert (reading.sightings, reading.passed_over, reading.verified) == ((), (), verified)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5)
    | st.sampled_from(["iss_sub", "complex", "aliases", "jwt_id", "email", IDP, OWN, "revoke", "HIGH"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["format", "iss", "sub", "jti", "user", "identifiers", "email", "id",
                         "change_type", "current_level", "event_timestamp", "reason_admin", "en"]),
        inner, max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip
URIS = st.sampled_from(
    [CAEP + "session-revoked", CAEP + "credential-change", CAEP + "risk-level-change",
     RISC + "account-disabled", SSF + "verification", "x"]
)  # fmt: skip


@settings(max_examples=400)
@given(sub_id=JSON, events=st.dictionaries(URIS, JSON, max_size=3), iat=JSON, toe=JSON)
def test_whatever_a_transmitter_sends_it_speaks_of_its_own_alone(
    sub_id: Any, events: Any, iat: Any, toe: Any
) -> None:
    try:
        reading = read({"sub_id": sub_id, "events": events, "iat": iat, "toe": toe}, MOUTH)
    except EventInvalid:
        return
    for one in reading.sightings:
        assert (one.party is None) is bool(one.jti)
        if one.party is not None:
            assert one.party.issuer in {IDP, "https://hr.example"}
            assert isinstance(one.party.subject, str)
        assert isinstance(one.seen_at, float)
        assert isinstance(one.reason, str)


@pytest.mark.parametrize("events", [None, [], {}, "x", {CAEP + "session-revoked": "x"}])
def test_what_is_no_event(events: Any) -> None:
    with pytest.raises(EventInvalid):
        read({"iat": 1000, "sub_id": ALICE, "events": events}, MOUTH)


RATES = replace(MOUTH, rates=True)
LEVEL_CHANGE = CAEP + "risk-level-change"


@pytest.mark.parametrize(
    ("mouth", "body", "ratings", "opens"),
    [
        (RATES, {"current_level": "LOW", "principal": "USER"}, [("low", "USER")], False),
        (RATES, {"current_level": "MEDIUM", "principal": "DEVICE"}, [("medium", "DEVICE")], False),
        (RATES, {"current_level": "HIGH", "principal": "SESSION"}, [("high", "SESSION")], True),
        (RATES, {"current_level": "MEDIUM", "principal": "ORG_UNIT"}, [("medium", "OTHER")], False),
        (RATES, {"current_level": "MEDIUM", "principal": ["USER"]}, [("medium", "OTHER")], False),
        (RATES, {"current_level": "MEDIUM"}, [("medium", "USER")], False),
        (replace(RATES, opens=frozenset({"session-revoked"})), {"current_level": "HIGH"}, [("high", "USER")], False),
        (RATES, {"current_level": "high"}, [], False),
        (RATES, {"current_level": ["HIGH"]}, [], False),
        (RATES, {"current_level": "CRITICAL"}, [], False),
        (RATES, {}, [], False),
        (MOUTH, {"current_level": "HIGH"}, [], True),
        (MOUTH, {"current_level": "MEDIUM"}, [], False),
    ],
)  # fmt: skip
def test_risk(
    mouth: Mouth, body: dict[str, Any], ratings: list[tuple[str, str]], opens: bool
) -> None:
    reading = read(claims(LEVEL_CHANGE, **body), mouth)
    assert [(one.level, one.principal) for one in reading.ratings] == ratings
    assert all((one.party, one.seen_at) == (Party(IDP, "alice"), 1000) for one in reading.ratings)
    assert bool(reading.sightings) is opens
    assert bool(reading.passed_over) is not (opens or bool(ratings))


def test_whose_risk() -> None:
    """Of nobody but whom the transmitter may speak of; a device's is its user's."""
    device = {"format": "complex", "user": ALICE, "device": {"format": "opaque", "id": "d"}}
    for subject, parties in (
        (device, [Party(IDP, "alice")]),
        ({**ALICE, "iss": "https://other"}, []),
        ({"format": "jwt_id", "iss": OWN, "jti": "j"}, []),
        ({"format": "complex", "tenant": ALICE}, []),
    ):
        reading = read(claims(LEVEL_CHANGE, subject, current_level="MEDIUM"), RATES)
        assert [one.party for one in reading.ratings] == parties, subject


def test_what_is_no_change_of_risk_rates_nobody() -> None:
    reading = read(claims(CAEP + "session-revoked", current_level="HIGH"), RATES)
    assert reading.ratings == ()
    reading = read(claims(RISC + "risk-level-change", current_level="HIGH"), RATES)
    assert reading.ratings == ()
