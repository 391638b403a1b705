"""Who sees what, how far a stream has come, and what an incident may call acknowledged."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.broker.core.feed import (
    Audience,
    Cursor,
    Published,
    Stream,
    canonical_subject,
    progress,
)
from valetkey.contracts import signals
from valetkey.contracts.signals import Signal, Verification

IDP = "https://idp.example"
USERS = "https://users.example"
BOT, OTHER = "spiffe://a/bot", "spiffe://a/other"
SIEM = ("https://idp.example", "siem")
AUDIENCE = Audience(
    issuer="https://broker.example",
    workload_issuers=frozenset({IDP}),
    receivers=frozenset({SIEM}),
)


def stream(owner: str = BOT, **more) -> Stream:
    return Stream("s-1", IDP, owner, "", **{"start": 0, "position": 0, **more})


def published(signal, seq: int = 1, to: str = "") -> Published:
    return Published(seq, f"jti-{seq}", signal, 0.0, to)


def subject(value: str, issuer: str = IDP, **more) -> Signal:
    return Signal(kind="subject", value=value, issuer=issuer, at=0, **more)


@pytest.mark.parametrize(
    ("event", "seen"),
    [
        (Signal(kind="token", value="j", at=0), True),
        (Signal(kind="txn", value="t", at=0), True),
        (Signal(kind="grant", value="g", at=0), True),
        (Signal(kind="key", value="k", at=0), True),
        (Signal(kind="target", value="a", at=0), True),
        (subject(BOT), True),
        (subject("alice", USERS), True),
        (subject(BOT, "https://elsewhere.example"), True),
        (subject(OTHER), False),
    ],
    ids=lambda value: f"{value.kind}-{value.value}" if isinstance(value, Signal) else "",
)
def test_a_sidecar_sees_what_may_concern_it(event: Signal, seen: bool) -> None:
    assert AUDIENCE.concerns(published(event), stream()) is seen


def test_where_tokens_are_chained_any_workload_can_be_a_subject() -> None:
    chained = dataclasses.replace(AUDIENCE, chained=True)
    assert chained.concerns(published(subject(OTHER)), stream())


def test_a_receiver_sees_what_it_asked_for_less_what_it_excluded() -> None:
    asked = stream("siem", events_requested=(signals.SESSION_REVOKED,))
    assert AUDIENCE.concerns(published(subject(OTHER)), asked)
    assert not AUDIENCE.concerns(published(Signal(kind="token", value="j", at=0)), asked)
    unwanted = canonical_subject({"sub": OTHER, "iss": IDP, "format": "iss_sub"})
    without = dataclasses.replace(asked, excluded=frozenset({unwanted}))
    assert not AUDIENCE.concerns(published(subject(OTHER)), without)
    assert AUDIENCE.concerns(published(subject(BOT)), without)


def test_what_is_for_one_stream_goes_to_no_other() -> None:
    event = Verification("s-1", "x")
    assert AUDIENCE.concerns(published(event, to="s-1"), stream())
    assert not AUDIENCE.concerns(published(event, to="s-2"), stream())


def test_progress_counts_who_was_told_and_has_acknowledged_all() -> None:
    told = [
        published(Signal(kind="txn", value="t", at=0), 5),
        published(subject(BOT), 6),
        published(subject(OTHER), 7),
    ]
    streams = [
        stream(),
        dataclasses.replace(stream(OTHER), id="s-2"),
        dataclasses.replace(stream(), id="s-3", start=7),
        dataclasses.replace(stream(), id="s-4", start=5),
    ]
    acks = {(5, "s-1"): 10.0, (6, "s-1"): 11.0, (5, "s-2"): 12.0, (6, "s-4"): 9.0}
    found = {one.stream: one.acknowledged_at for one in progress(told, streams, acks, AUDIENCE)}
    # s-2 lacks 7; s-3 began when all was over; s-4 began behind 5, and 7 is not its business
    assert found == {"s-1": 11.0, "s-2": None, "s-4": 9.0}


def test_a_cursor_waits_for_the_gap() -> None:
    cursor = Cursor(10)
    cursor.settle([13])
    assert not cursor.advance([11, 13], head=13)
    assert cursor.position == 10
    cursor.settle([11])
    assert cursor.advance([11, 13], head=14)  # 12 and 14 were not for this stream
    assert cursor.position == 14
    assert not cursor.beyond


def test_a_cursor_stops_before_the_first_that_is_open() -> None:
    cursor = Cursor(0)
    assert cursor.advance([4, 5], head=9)
    assert cursor.position == 3
    cursor.settle([4, 2])  # 2 is behind
    assert cursor.advance([4, 5], head=9)
    assert cursor.position == 4


@given(st.sets(st.integers(1, 30)), st.lists(st.integers(1, 30)))
def test_a_cursor_never_passes_what_is_not_settled(wanted: set[int], acks: list[int]) -> None:
    cursor, settled = Cursor(0), set()
    for ack in acks:
        cursor.settle([ack])
        settled.add(ack)
        before = cursor.position
        cursor.advance(sorted(s for s in wanted if s > before), head=30)
        assert cursor.position >= before
        assert not {s for s in wanted if s <= cursor.position} - settled
