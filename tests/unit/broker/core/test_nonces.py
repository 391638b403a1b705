"""Nonces of this process, for this minute and the one before."""

from __future__ import annotations

import pytest

from valetkey.broker.core.nonces import WINDOW, Nonces

NOW = 1_800_000_000 // WINDOW * WINDOW


@pytest.mark.parametrize(
    ("name", "later", "expected"),
    [
        ("at once", 0, True),
        ("same window", WINDOW - 1, True),
        ("next window", WINDOW, True),
        ("end of the next window", 2 * WINDOW - 1, True),
        ("the window after", 2 * WINDOW, False),
        ("clock set back", -1, False),
    ],
)
def test_how_long(name: str, later: float, expected: bool) -> None:
    nonces = Nonces(b"k" * 32)
    assert nonces.is_ours(nonces.current(NOW), NOW + later) is expected, name


@pytest.mark.parametrize("nonce", ["", "A" * 22, "é"])
def test_others_are_not_ours(nonce: str) -> None:
    assert not Nonces(b"k" * 32).is_ours(nonce, NOW)


def test_a_new_key_makes_old_nonces_useless() -> None:
    assert not Nonces(b"b" * 32).is_ours(Nonces(b"a" * 32).current(NOW), NOW)


def test_nonces_have_128_bits_and_change() -> None:
    nonces = Nonces(b"k" * 32)
    assert len(nonces.current(NOW)) == 22
    assert nonces.current(NOW) != nonces.current(NOW + WINDOW)


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="short"):
        Nonces(b"k" * 31)
