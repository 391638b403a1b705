"""ES256: what one side signs the other accepts, and nothing else."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from valetkey.contracts import es256
from valetkey.contracts.jose import TokenInvalid, b64url, b64url_decode

KEY = ec.generate_private_key(ec.SECP256R1())
NUMBERS = KEY.public_key().public_numbers()
X, Y = b64url(NUMBERS.x.to_bytes(32)), b64url(NUMBERS.y.to_bytes(32))


def test_a_signature_holds_under_the_key_read_from_its_jwk() -> None:
    signing_input, _, signature = es256.sign(KEY, b"aGVhZA.Ym9keQ").rpartition(".")
    es256.check(es256.read_key(X, Y), signing_input.encode(), b64url_decode(signature))


def test_a_signature_has_the_lower_s_and_a_twin_that_holds_too() -> None:
    for number in range(32):  # half of all that are made have the higher one
        compact = es256.sign(KEY, b"aGVhZA." + b64url(bytes([number])).encode())
        assert es256.is_ours(compact)
        other = es256.twin(compact)
        signing_input, _, signature = other.rpartition(".")
        es256.check(KEY.public_key(), signing_input.encode(), b64url_decode(signature))
        assert other != compact
        assert not es256.is_ours(other)
        assert es256.twin(other) == compact


@pytest.mark.parametrize("raw", [b"", bytes(63), bytes(64), b"\xff" * 64, bytes(65)])
def test_what_is_no_signature_has_no_twin(raw: bytes) -> None:
    for read in (es256.twin, es256.is_ours):
        with pytest.raises(TokenInvalid, match="bad ES256 signature"):
            read(f"aGVhZA.Ym9keQ.{b64url(raw)}")


def flipped(raw: bytes) -> bytes:
    return bytes([raw[0] ^ 1]) + raw[1:]


@pytest.mark.parametrize(
    "spoil",
    [lambda s: s[:-1], lambda s: s + b"\0", lambda s: b"", lambda s: bytes(64), flipped],
    ids=["short", "long", "empty", "zero", "flipped"],
)
def test_another_signature_does_not_hold(spoil) -> None:
    signing_input, _, signature = es256.sign(KEY, b"aGVhZA.Ym9keQ").rpartition(".")
    with pytest.raises(TokenInvalid, match="bad ES256 signature"):
        es256.check(KEY.public_key(), signing_input.encode(), spoil(b64url_decode(signature)))


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        (None, Y, "not a P-256 key"),
        (X, 7, "not a P-256 key"),
        ("AQ", Y, "not a P-256 key"),
        (b64url(bytes(33)), Y, "not a P-256 key"),
        ("!", Y, "not base64url"),
        (X, X, "not a point"),
        (b64url(b"\xff" * 32), Y, "not a point"),
    ],
    ids=["no x", "a number", "short", "long", "no base64url", "off the curve", "too large"],
)
def test_coordinates_that_are_no_key(x: object, y: object, reason: str) -> None:
    with pytest.raises(TokenInvalid, match=reason):
        es256.read_key(x, y)
