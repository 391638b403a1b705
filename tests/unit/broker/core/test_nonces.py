"""Nonces for this minute and the one before: of one replica, or of all that share a key."""

from __future__ import annotations

import pytest

from valetkey.broker.core.nonces import SPREAD, WINDOW, Nonces
from valetkey.contracts.jose import b64url, b64url_decode

NOW = 1_800_000_000 // WINDOW * WINDOW
KEY = b"k" * 32


def replica(name: bytes = b"a", key: bytes = KEY) -> Nonces:
    return Nonces(key, replica=name * 8, alone=False)


def own(nonces: Nonces, now: float = NOW) -> str:
    return nonces.next("", now, refused=False)


def shared(nonces: Nonces, now: float = NOW) -> str:
    return nonces.next("", now, refused=True)


@pytest.mark.parametrize(
    ("name", "later", "expected"),
    [
        ("at once", 0, True),
        ("same window", WINDOW - 1, True),
        ("next window", WINDOW, True),
        ("end of the next window", 2 * WINDOW - 1, True),
        ("the window after", 2 * WINDOW, False),
        ("a clock that is a little behind", -1, True),
        ("one that is far behind", -WINDOW - 1, False),
    ],
)
def test_how_long(name: str, later: float, expected: bool) -> None:
    one = replica()
    assert (one.kind(own(one), NOW + later) == "own") is expected, name
    assert (one.kind(shared(one), NOW + later) == "shared") is expected, name


def test_who_takes_them() -> None:
    one, other, stranger = replica(b"a"), replica(b"b"), replica(b"a", b"x" * 32)
    assert one.kind(own(one), NOW) == "own"
    assert other.kind(own(one), NOW) is None
    assert other.kind(shared(one), NOW) == "shared"
    assert stranger.kind(own(one), NOW) is None
    assert stranger.kind(shared(one), NOW) is None


def test_a_broker_alone_has_only_its_own() -> None:
    alone = Nonces(KEY, replica=b"a" * 8, alone=True)
    assert alone.kind(shared(replica(b"a")), NOW) is None
    for refused in (True, False):
        assert alone.kind(alone.next("", NOW, refused=refused), NOW) == "own"


def test_a_restart_makes_own_nonces_useless() -> None:
    assert replica(b"b").kind(own(replica(b"a")), NOW) is None


@pytest.mark.parametrize("nonce", ["", "A" * 22, "é", "A" * 39, "A" * 4000])
def test_what_is_none(nonce: str) -> None:
    assert replica().kind(nonce, NOW) is None


def standby(nonces: Nonces, now: float = NOW) -> str:
    return nonces.standby(now)


@pytest.mark.parametrize("make", [own, shared, standby])
def test_no_bit_can_be_changed(make: object) -> None:
    one = replica()
    raw = b64url_decode(make(one))  # type: ignore[operator]
    for at in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[at // 8] ^= 1 << at % 8
        assert one.kind(b64url(bytes(changed)), NOW) is None


def test_who_stays_gets_own_nonces() -> None:
    """The refusal, which could be answered anywhere, is the last that costs anything."""
    one = replica()
    nonce = shared(one)
    for _ in range(5):
        nonce = one.next(nonce, NOW, refused=False)
        assert one.kind(nonce, NOW) == "own"


def test_who_changes_replicas_gets_shared_ones_for_a_while() -> None:
    one, other = replica(b"a"), replica(b"b")
    now, nonce = NOW, shared(one)
    nonce = other.next(nonce, now, refused=False)
    for _ in range(SPREAD - 1):
        assert one.kind(nonce, now) == "shared"
        now += WINDOW
        nonce = other.next(nonce, now, refused=False)
    assert other.kind(nonce, now) == "shared"
    assert other.kind(other.next(nonce, now + WINDOW, refused=False), now + WINDOW) == "own"


def test_a_refusal_is_repeated_once_wherever_the_repetition_gets_to() -> None:
    one, other = replica(b"a"), replica(b"b")
    for first, second in ((one, other), (other, one), (one, one)):
        for shown in ("", own(one), own(other), own(replica(b"c"))):
            assert second.kind(first.next(shown, NOW, refused=True), NOW) == "shared"


def test_a_standby_one_is_taken_by_all_and_is_the_last_that_costs_anything() -> None:
    one, other = replica(b"a"), replica(b"b")
    nonce = one.standby(NOW)
    for taker in (one, other):
        assert taker.kind(nonce, NOW + WINDOW) == "standby"
        assert taker.is_shared(nonce)
        assert taker.kind(nonce, NOW + 2 * WINDOW) is None
        assert taker.kind(taker.next(nonce, NOW, refused=False), NOW) == "own"
        assert not taker.is_shared(taker.next(nonce, NOW, refused=False))


def test_where_no_other_is_none_stands_by() -> None:
    alone = Nonces(KEY, replica=b"a" * 8, alone=True)
    assert alone.standby(NOW) == ""
    assert alone.kind(replica(b"a").standby(NOW), NOW) is None


def test_nonces_change() -> None:
    one = replica()
    assert one.standby(NOW) != one.standby(NOW + WINDOW)
    assert own(one) != own(one, NOW + WINDOW)
    assert shared(one) != shared(one, NOW + WINDOW)


@pytest.mark.parametrize(("key", "name"), [(b"k" * 31, b"a" * 8), (KEY, b"a" * 7)])
def test_what_is_too_short_is_refused(key: bytes, name: bytes) -> None:
    with pytest.raises(ValueError, match=r"short|named"):
        Nonces(key, replica=name, alone=False)
