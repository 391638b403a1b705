"""What a receiver of events refuses (RFC 8417, SSF 1.0 §4.1), each with the code it tells."""

from __future__ import annotations

import json
from typing import Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from valetkey.contracts.jose import TokenInvalid, b64url
from valetkey.contracts.sets import SetRefused, UnknownSetKey, read_keys, verify_set

ISSUER, AUDIENCE, NOW = "https://broker.example", "https://broker.example/ssf", 1_793_500_000
KEY, OTHER = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
RSA = rsa.generate_private_key(65537, 2048)


def jwk(key, **more: Any) -> dict[str, Any]:
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    return {**public, "kid": "k1", "use": "sig", "alg": "ES256", **more}


KEYS = read_keys(json.dumps({"keys": [jwk(KEY), jwk(OTHER, kid="k2")]}).encode())


def claims(**changes: Any) -> dict[str, Any]:
    whole = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "iat": NOW,
        "jti": "event-1",
        "sub_id": {"format": "opaque", "id": "x"},
        "events": {"https://example.com/event": {}},
        **changes,
    }
    return {name: value for name, value in whole.items() if value is not None}


def signed(payload: dict[str, Any], key=KEY, alg: str = "ES256", **header: Any) -> str:
    named = {"typ": "secevent+jwt", "kid": "k1", **header}
    headers = {name: value for name, value in named.items() if value is not None}
    return jwt.encode(payload, key, algorithm=alg, headers=headers)


def verify(compact: str) -> Any:
    return verify_set(compact, KEYS, issuer=ISSUER, audience=AUDIENCE, now=NOW)


def test_a_set_that_holds() -> None:
    assert verify(signed(claims())) == claims()
    assert verify(signed(claims(iat=NOW + 29)))["iat"] == NOW + 29
    assert verify(signed(claims(iat=NOW - 90_000)))  # events do not expire


def unsigned() -> str:
    head, body, _ = signed(claims()).split(".")
    none = b64url(msgspec.json.encode({"typ": "secevent+jwt", "alg": "none", "kid": "k1"}))
    return f"{none}.{body}.{head}"


REFUSED = {
    "no token": ("x", "invalid_request"),
    "an access token": (signed(claims(), typ="at+jwt"), "invalid_request"),
    "a JWT of no type": (signed(claims(), typ="JWT"), "invalid_request"),
    "a type in capitals": (signed(claims(), typ="SECEVENT+JWT"), "invalid_request"),
    "no signature": (unsigned(), "invalid_request"),
    "a symmetric signature": (
        jwt.encode(claims(), "x" * 32, "HS256", {"typ": "secevent+jwt", "kid": "k1"}),
        "invalid_request",
    ),
    "a key in the header": (signed(claims(), jwk=jwk(KEY)), "invalid_request"),
    "a place to find keys": (signed(claims(), jku="https://a.example"), "invalid_request"),
    "another algorithm": (signed(claims(), RSA, "RS256"), "invalid_key"),
    "another key": (signed(claims(), OTHER), "invalid_key"),
    "another key of the issuer": (signed(claims(), KEY, kid="k2"), "invalid_key"),
    "an unknown key": (signed(claims(), kid="k9"), "invalid_key"),
    "no kid": (signed(claims(), kid=None), "invalid_key"),
    "another issuer": (signed(claims(iss="https://other.example")), "invalid_issuer"),
    "no issuer": (signed(claims(iss=None)), "invalid_issuer"),
    "another audience": (signed(claims(aud="https://other.example")), "invalid_audience"),
    "an audience among others": (signed(claims(aud=[AUDIENCE, "x"])), "invalid_audience"),
    "no audience": (signed(claims(aud=None)), "invalid_audience"),
    "exp": (signed(claims(exp=NOW + 60)), "invalid_request"),
    "exp that is over": (signed(claims(exp=NOW - 60)), "invalid_request"),
    "sub": (signed(claims(sub="alice")), "invalid_request"),
    "no jti": (signed(claims(jti=None)), "invalid_request"),
    "an empty jti": (signed(claims() | {"jti": ""}), "invalid_request"),
    "a jti without end": (signed(claims(jti="x" * 300)), "invalid_request"),
    "no iat": (signed(claims(iat=None)), "invalid_request"),
    "iat in the future": (signed(claims(iat=NOW + 31)), "invalid_request"),
}


@pytest.mark.parametrize(("compact", "err"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(compact: str, err: str) -> None:
    with pytest.raises(SetRefused) as caught:
        verify(compact)
    assert caught.value.err == err
    assert "event-1" not in str(caught.value)


def test_an_unknown_key_is_told_apart_so_that_keys_are_fetched_again() -> None:
    with pytest.raises(UnknownSetKey):
        verify(signed(claims(), kid="k9"))


@given(st.integers(0, 2), st.integers(0, 10_000), st.integers(1, 255))
def test_one_changed_byte_is_enough(part: int, index: int, flip: int) -> None:
    import base64

    parts = signed(claims()).split(".")
    raw = bytearray(base64.urlsafe_b64decode(parts[part] + "=" * (-len(parts[part]) % 4)))
    raw[index % len(raw)] ^= flip
    parts[part] = b64url(bytes(raw))
    with pytest.raises(SetRefused):
        verify(".".join(parts))


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b"{}", b'{"keys": 1}', b'{"keys": [1]}', b'{"keys": []}', b"\xff",
     json.dumps({"keys": [jwk(KEY, crv="P-384")]}).encode(),
     json.dumps({"keys": [jwk(KEY, x="AQ")]}).encode()],
)  # fmt: skip
def test_what_is_no_set_of_keys(document: bytes) -> None:
    with pytest.raises(TokenInvalid):
        read_keys(document)


def test_other_keys_in_the_set_are_passed_over() -> None:
    rsa_jwk = {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(RSA.public_key())), "kid": "r1"}
    keys = read_keys(json.dumps({"keys": [rsa_jwk, jwk(KEY)]}).encode())
    assert list(keys) == ["k1"]
