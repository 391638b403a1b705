"""What lifts containment: an attestation from after the incident, and nothing else."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.broker.core.containment import (
    Attestation,
    Epoch,
    Standing,
    counts,
    is_fresh,
    refusal,
)

INCIDENT = 1_000.0
NOW = 2_000.0
SKEW = 2.0

TIMES = st.floats(min_value=0, max_value=4_000, allow_nan=False)
MAYBE = st.none() | TIMES


@pytest.mark.parametrize(
    ("name", "issued_at", "key_since", "fresh"),
    [
        ("both from after it", 1_500.0, 1_500.0, True),
        ("no key is asked for", 1_500.0, None, True),
        ("the token from before it", 999.0, 1_500.0, False),
        ("the token of the same second", 1_000.0, 1_500.0, False),
        ("the token within the skew", 1_002.0, 1_500.0, False),
        ("the token just behind the skew", 1_003.0, 1_500.0, True),
        ("the key from before it", 1_500.0, 999.0, False),
        ("the key within the skew", 1_500.0, 1_001.5, False),
        ("a token without iat", None, 1_500.0, False),
        ("a token from the future", 2_003.0, 1_500.0, False),
        ("a token from as far in the future as clocks differ", 2_002.0, 1_500.0, True),
        ("neither", 999.0, 999.0, False),
    ],
)
def test_fresh(name: str, issued_at: float | None, key_since: float | None, fresh: bool) -> None:
    epoch = Epoch(1, INCIDENT)
    attestation = Attestation(issued_at, key_since)
    assert is_fresh(epoch, attestation, now=NOW, skew=SKEW) is fresh


def test_without_an_incident_nothing_is_asked_for() -> None:
    assert is_fresh(Epoch(), Attestation(None, None), now=NOW, skew=SKEW)
    assert is_fresh(Epoch(3, 0.0), Attestation(1.0, 1.0), now=NOW, skew=SKEW)


def standing(**changes: object) -> Standing:
    good = Standing(Epoch(1, INCIDENT), Attestation(1_500.0, 1_500.0), ended=False, key_ended=False)
    return dataclasses.replace(good, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({"ended": True}, "subject.revoked", "revoked"),
        ({"key_ended": True}, "actor.key_revoked", "proof key"),
        ({"epoch": Epoch(1, 0.0, held=True)}, "subject.contained", "being written"),
        ({"attestation": Attestation(None, None)}, "subject.contained", "no iat"),
        ({"attestation": Attestation(900.0, 1_500.0)}, "subject.contained", "token is from before"),
        ({"attestation": Attestation(1_500.0, 900.0)}, "subject.contained", "key is from before"),
        ({"attestation": Attestation(9_000.0, None)}, "subject.contained", "future"),
    ],
)
def test_refusals_say_why(changes: dict[str, object], code: str, reason: str) -> None:
    refused = refusal(standing(**changes), now=NOW, skew=SKEW)
    assert refused is not None
    assert refused[0].name == code
    assert reason in refused[1]


def test_a_good_standing_is_not_refused() -> None:
    assert refusal(standing(), now=NOW, skew=SKEW) is None


@pytest.mark.parametrize(
    ("minted", "epoch", "good"),
    [
        (0, Epoch(), True),
        (1, Epoch(1, INCIDENT), True),
        (0, Epoch(1, INCIDENT), False),
        (2, Epoch(1, INCIDENT), False),  # nobody minted that: it is not waited for either
        (-1, Epoch(), False),
        (1, Epoch(1, INCIDENT, held=True), False),
    ],
)
def test_tokens_count_under_their_own_epoch(minted: int, epoch: Epoch, good: bool) -> None:
    assert counts(minted, epoch) is good


@given(
    incident=st.floats(1, 3_000), issued_at=MAYBE, key_since=MAYBE, now=TIMES, skew=st.floats(0, 30)
)
def test_nothing_from_before_the_incident_attests(
    incident: float, issued_at: float | None, key_since: float | None, now: float, skew: float
) -> None:
    fresh = is_fresh(Epoch(1, incident), Attestation(issued_at, key_since), now=now, skew=skew)
    if (
        issued_at is None
        or issued_at <= incident
        or (key_since is not None and key_since <= incident)
    ):
        assert not fresh


@given(
    first=st.floats(1, 3_000),
    second=st.floats(1, 3_000),
    issued_at=MAYBE,
    key_since=MAYBE,
    now=TIMES,
)
def test_a_later_incident_never_lets_more_through(
    first: float, second: float, issued_at: float | None, key_since: float | None, now: float
) -> None:
    """Raised twice, in whatever order, containment is at least as strict as each alone."""
    attestation = Attestation(issued_at, key_since)
    both = is_fresh(Epoch(2, max(first, second)), attestation, now=now, skew=SKEW)
    for alone in (first, second):
        if both:
            assert is_fresh(Epoch(1, alone), attestation, now=now, skew=SKEW)
