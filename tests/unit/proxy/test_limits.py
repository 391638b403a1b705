"""How many connections fit, which descriptors are the reserve, and what the log tells of limits."""

from __future__ import annotations

import os

import pytest

from valetkey.proxy import limits
from valetkey.proxy.limits import CONNECTIONS, DESCRIPTORS, Capacity, LimitHits

# Descriptors, in use at the start, limits.connections: connections that fit, first of the reserve.
FITS = [
    (1024, 24, 10_000, 436, 896),
    (1024, 24, 100, 100, 896),
    (65_536, 36, 10_000, 10_000, 65_408),
    (1 << 20, 16, 1_000_000, 524_216, (1 << 20) - 128),
    (256, 12, 10_000, 90, 192),
    (8, 8, 10, 1, 6),
]


@pytest.mark.parametrize(("descriptors", "in_use", "connections", "most", "ceiling"), FITS)
def test_how_many_fit(
    descriptors: int, in_use: int, connections: int, most: int, ceiling: int
) -> None:
    capacity = Capacity(LimitHits(), descriptors=descriptors, in_use=in_use)
    capacity.use(connections)
    assert (capacity.most, capacity.ceiling) == (most, ceiling)


# limits.connections, open, descriptor: the limit that one more meets.
REFUSALS = [
    (10, 9, 30, ""),
    (10, 10, 30, CONNECTIONS),
    (10, 11, 30, CONNECTIONS),
    (1000, 9, 191, ""),
    (1000, 9, 192, DESCRIPTORS),
    (1000, 89, 100, ""),
    (1000, 90, 100, DESCRIPTORS),
    (90, 90, 192, CONNECTIONS),
]


@pytest.mark.parametrize(("connections", "taken", "descriptor", "limit"), REFUSALS)
def test_what_one_more_meets(connections: int, taken: int, descriptor: int, limit: str) -> None:
    capacity = Capacity(LimitHits(), descriptors=256, in_use=12)
    capacity.use(connections)
    capacity.open = taken
    assert capacity.refusal(descriptor) == limit


def test_a_reload_changes_what_is_taken() -> None:
    capacity = Capacity(LimitHits(), descriptors=1024, in_use=24)
    capacity.use(10)
    capacity.open = 10
    assert capacity.refusal(50) == CONNECTIONS
    capacity.use(11)
    assert capacity.refusal(50) == ""


def test_room_is_made_by_who_can() -> None:
    capacity = Capacity(LimitHits(), descriptors=1024, in_use=24)
    assert not capacity.make_room()
    capacity.give_up_with(lambda: True)
    assert capacity.make_room()


def test_the_kernel_gives_the_lowest_free_number() -> None:
    """What `Capacity.refusal` rests on."""
    first, second = (os.open(os.devnull, os.O_RDONLY) for _ in range(2))
    os.close(first)
    again = os.open(os.devnull, os.O_RDONLY)
    os.close(again)
    os.close(second)
    assert again <= first < second


def test_hits_are_counted_and_told_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    monkeypatch.setattr(limits, "_monotonic", lambda: now)
    hits = LimitHits()
    for _ in range(5):
        hits.hit(CONNECTIONS)
    hits.hit(DESCRIPTORS)
    now += limits._LOG_EVERY
    hits.hit(CONNECTIONS)
    assert hits.counts == {CONNECTIONS: 6, DESCRIPTORS: 1}
    told = [(line.fields["key"], line.fields["count"]) for line in caplog.records]
    assert told == [(CONNECTIONS, 1), (DESCRIPTORS, 1), (CONNECTIONS, 5)]
