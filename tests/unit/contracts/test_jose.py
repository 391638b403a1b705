"""Tokens: the ones that verify, and a named table of ones that must not, each with its reason."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from valetkey.contracts import jose
from valetkey.contracts.jose import KeySet, TokenInvalid, UnknownKey, b64url

NOW = 1_800_000_000.0
ISSUER = "https://idp.test.example"
AUDIENCE = "https://broker.test.example"
ES256 = frozenset({"ES256"})
KEY = ec.generate_private_key(ec.SECP256R1())
STRANGER = ec.generate_private_key(ec.SECP256R1())
CLAIMS = {"iss": ISSUER, "sub": "bot", "aud": AUDIENCE, "iat": NOW, "exp": NOW + 60}
CHECKS = {"iss": jose.equals(ISSUER), "aud": jose.audience_is(AUDIENCE, allow_list=False)}


def public_jwk(key: Any, **members: Any) -> dict[str, Any]:
    algorithm = {
        ec.EllipticCurvePrivateKey: jwt.algorithms.ECAlgorithm,
        rsa.RSAPrivateKey: jwt.algorithms.RSAAlgorithm,
        ed25519.Ed25519PrivateKey: jwt.algorithms.OKPAlgorithm,
    }
    kind = next(kind for known, kind in algorithm.items() if isinstance(key, known))
    return {**json.loads(kind.to_jwk(key.public_key())), **members}


def key_set(*jwks: dict[str, Any], algorithms: frozenset[str] = ES256) -> KeySet:
    return KeySet.from_jwks(json.dumps({"keys": jwks}), algorithms=algorithms)


KEYS = key_set(public_jwk(KEY, kid="k1"))


def sign(
    claims: dict[str, Any] | None = None,
    header: dict[str, Any] | None = None,
    key: Any = KEY,
    algorithm: str = "ES256",
) -> str:
    payload = {
        name: value for name, value in {**CLAIMS, **(claims or {})}.items() if value is not None
    }
    return jwt.encode(payload, key, algorithm=algorithm, headers={"kid": "k1", **(header or {})})


def verify(
    compact: str,
    *,
    keys: KeySet = KEYS,
    algorithms: frozenset[str] = ES256,
    checks: dict[str, jose.ClaimCheck] | None = None,
    now: float = NOW,
) -> jose.VerifiedClaims:
    table = CHECKS if checks is None else checks
    return jose.verify(jose.parse(compact), keys, algorithms=algorithms, checks=table, now=now)


def segments(header: Any, payload: Any, signature: bytes = b"x" * 64) -> str:
    parts = (json.dumps(header).encode(), json.dumps(payload).encode(), signature)
    return ".".join(b64url(part) for part in parts)


def public_pem() -> bytes:
    return KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def hmac_with_the_public_key() -> str:
    """The classic key confusion: the verifier's public key as the HMAC secret."""
    header = b64url(b'{"alg":"HS256","kid":"k1"}')
    signing_input = f"{header}.{b64url(json.dumps(CLAIMS).encode())}"
    tag = hmac.new(public_pem(), signing_input.encode(), hashlib.sha256).digest()
    return f"{signing_input}.{b64url(tag)}"


def json_serialised() -> str:
    protected, payload, signature = sign().split(".")
    return json.dumps({"protected": protected, "payload": payload, "signature": signature})


def respelt(position: int) -> str:
    """The same bytes in a second base64url spelling (other unused bits at a segment's end)."""
    parts = sign().split(".")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    segment = parts[position]
    assert len(segment) % 4 in {2, 3}
    parts[position] = segment[:-1] + alphabet[alphabet.index(segment[-1]) + 1]
    return ".".join(parts)


def test_a_good_token_gives_verified_claims() -> None:
    verified = verify(sign({"scope": "a b"}))
    assert (verified.issuer, verified.subject) == (ISSUER, "bot")
    assert verified.claims["scope"] == "a b"
    assert verified.header["kid"] == "k1"
    assert "bot" not in repr(jose.parse(sign()))


# name → (token, reason)
NOT_PARSED: dict[str, tuple[Callable[[], str], str]] = {
    "empty": (lambda: "", "not a compact JWS"),
    "two parts": (lambda: "a.b", "not a compact JWS"),
    "five parts, a JWE": (lambda: "a.b.c.d.e", "not a compact JWS"),
    "no signature": (lambda: sign().rpartition(".")[0] + ".", "not a compact JWS"),
    "JSON serialisation": (json_serialised, "not a compact JWS"),
    "longer than the cap": (
        lambda: sign({"x": "y" * jose.MAX_TOKEN_LENGTH}),
        "longer than any token we accept",
    ),
    "alg none": (lambda: segments({"alg": "none"}, CLAIMS), "algorithm not on the allow-list"),
    "alg None": (lambda: segments({"alg": "None"}, CLAIMS), "algorithm not on the allow-list"),
    "alg nOnE": (lambda: segments({"alg": "nOnE"}, CLAIMS), "algorithm not on the allow-list"),
    "alg empty": (lambda: segments({"alg": ""}, CLAIMS), "algorithm not on the allow-list"),
    "alg missing": (lambda: segments({}, CLAIMS), "algorithm not on the allow-list"),
    "alg null": (lambda: segments({"alg": None}, CLAIMS), "algorithm not on the allow-list"),
    "alg in lower case": (lambda: segments({"alg": "es256"}, CLAIMS), "algorithm not on the allow-list"),
    "HS256 under the public key": (hmac_with_the_public_key, "algorithm not on the allow-list"),
    "PBES2": (
        lambda: segments({"alg": "PBES2-HS256+A128KW", "p2c": 2**31}, CLAIMS),
        "algorithm not on the allow-list",
    ),
    "jku": (lambda: sign(header={"jku": "https://evil.example"}), "header 'jku' is not accepted"),
    "x5u": (lambda: sign(header={"x5u": "https://evil.example"}), "header 'x5u' is not accepted"),
    "x5c": (lambda: sign(header={"x5c": ["MIIB"]}), "header 'x5c' is not accepted"),
    "jwk": (
        lambda: sign(header={"jwk": public_jwk(STRANGER)}, key=STRANGER),
        "header 'jwk' is not accepted",
    ),
    "crit": (lambda: sign(header={"crit": ["exp"], "exp": 1}), "header 'crit' is not accepted"),
    "zip": (lambda: sign(header={"zip": "DEF"}), "header 'zip' is not accepted"),
    "header is a list": (lambda: segments(["ES256"], CLAIMS), "header is not a JSON object"),
    "payload is a text": (lambda: segments({"alg": "ES256"}, "x"), "payload is not a JSON object"),
    "payload is nested too deeply": (
        lambda: ".".join((b64url(b'{"alg":"ES256"}'), b64url(b"[" * 6000), "AAAA")),
        "payload is not a JSON object",
    ),
    "padded base64": (lambda: "e30=.e30.AAAA", "not canonical base64url"),
    "standard base64 alphabet": (lambda: "e3+/.e30.AAAA", "not canonical base64url"),
    "space in a segment": (lambda: " " + sign(), "not base64url"),
    "newline at the end of the header": (lambda: sign().replace(".", "\n.", 1), "not base64url"),
    "second spelling of the header": (lambda: respelt(0), "not canonical base64url"),
    "not ASCII": (lambda: "é" + sign()[1:], "not base64url"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "reason"), NOT_PARSED.values(), ids=NOT_PARSED)
def test_tokens_that_are_not_even_read(make: Callable[[], str], reason: str) -> None:
    with pytest.raises(TokenInvalid) as caught:
        jose.parse(make())
    assert str(caught.value) == reason


NOT_VERIFIED: dict[str, tuple[Callable[[], str], str]] = {
    "signed by a stranger": (lambda: sign(key=STRANGER), "bad ES256 signature"),
    "signature cut": (lambda: cut(sign()), "bad ES256 signature"),
    "signature in DER": (
        lambda: sign().rpartition(".")[0] + "." + b64url(KEY.sign(b"x", ec.ECDSA(jwt.algorithms.hashes.SHA256()))),
        "bad ES256 signature",
    ),
    "signature of zeros": (
        lambda: sign().rpartition(".")[0] + "." + b64url(bytes(64)),
        "bad ES256 signature",
    ),
    "second spelling of the signature": (lambda: respelt(2), "not canonical base64url"),
    "another algorithm of the allow-list": (
        lambda: segments({"alg": "RS256", "kid": "k1"}, CLAIMS),
        "algorithm not allowed for this issuer",
    ),
    "unknown kid": (
        lambda: sign(header={"kid": "k2"}),
        "signed with a key that the issuer's set does not hold",
    ),
    "expired": (lambda: sign({"exp": NOW - 31}), "expired"),
    "expired by exactly the leeway": (lambda: sign({"exp": NOW - 30}), "expired"),
    "no exp": (lambda: sign({"exp": None}), "exp is missing"),
    "exp is true": (lambda: segments_signed({"exp": True}), "exp is missing"),
    "exp is a text": (lambda: segments_signed({"exp": "9999999999"}), "exp is missing"),
    "not yet valid": (lambda: sign({"nbf": NOW + 31}), "nbf is in the future"),
    "issued in the future": (lambda: sign({"iat": NOW + 31}), "iat is in the future"),
    "iat is a text": (lambda: segments_signed({"iat": "now"}), "iat is not a time"),
    "another issuer": (lambda: sign({"iss": "https://evil.example"}), f"a claim is not {ISSUER!r}"),
    "no issuer": (lambda: sign({"iss": None}), f"a claim is not {ISSUER!r}"),
    "another audience": (lambda: sign({"aud": "https://other.example"}), "aud is not this audience alone"),
    "a list of one": (lambda: sign({"aud": [AUDIENCE]}), "aud is not this audience alone"),
    "a list of two": (lambda: sign({"aud": [AUDIENCE, "x"]}), "aud is not this audience alone"),
    "no audience": (lambda: sign({"aud": None}), "aud is not this audience alone"),
    "no subject": (lambda: sign({"sub": None}), "iss or sub is missing"),
    "empty subject": (lambda: sign({"sub": ""}), "iss or sub is missing"),
    "subject is a number": (lambda: segments_signed({"sub": 7}), "iss or sub is missing"),
}  # fmt: skip


def cut(token: str) -> str:
    """The token with the last byte of its signature missing."""
    rest, _, signature = token.rpartition(".")
    return f"{rest}.{b64url(jose.b64url_decode(signature)[:-1])}"


def segments_signed(claims: dict[str, Any]) -> str:
    """`sign` for claims that a JWT library refuses to write."""
    payload = json.dumps({**CLAIMS, **claims}).encode()
    return jwt.api_jws.encode(payload, KEY, algorithm="ES256", headers={"kid": "k1"})


@pytest.mark.parametrize(("make", "reason"), NOT_VERIFIED.values(), ids=NOT_VERIFIED)
def test_tokens_that_do_not_verify(make: Callable[[], str], reason: str) -> None:
    with pytest.raises(TokenInvalid) as caught:
        verify(make())
    assert str(caught.value) == reason


def test_an_unknown_key_is_told_apart() -> None:
    with pytest.raises(UnknownKey):
        verify(sign(header={"kid": "k2"}))


def test_an_empty_table_of_checks_accepts_nothing() -> None:
    with pytest.raises(TokenInvalid, match="no claim checks"):
        verify(sign(), checks={})


@pytest.mark.parametrize("late", [0, 29.9])
def test_the_leeway_covers_two_clocks(late: float) -> None:
    assert verify(sign({"exp": NOW - late + 0.05}))
    assert verify(sign({"nbf": NOW + late, "iat": NOW + late}))


def test_a_list_of_one_audience_is_accepted_where_allowed() -> None:
    checks = {"aud": jose.audience_is(AUDIENCE, allow_list=True)}
    assert verify(sign({"aud": [AUDIENCE]}), checks=checks)
    with pytest.raises(TokenInvalid, match="aud is not"):
        verify(sign({"aud": [AUDIENCE, "https://other.example"]}), checks=checks)


@pytest.mark.parametrize(
    ("algorithm", "key"),
    [
        ("ES256", ec.generate_private_key(ec.SECP256R1())),
        ("ES384", ec.generate_private_key(ec.SECP384R1())),
        ("RS256", rsa.generate_private_key(65537, 2048)),
        ("PS256", rsa.generate_private_key(65537, 2048)),
        ("EdDSA", ed25519.Ed25519PrivateKey.generate()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_algorithm_of_the_list_verifies_and_only_with_its_key(
    algorithm: str, key: Any
) -> None:
    keys = key_set(public_jwk(key, kid="k1", alg=algorithm), algorithms=jose.ALGORITHMS)
    token = sign(key=key, algorithm=algorithm)
    assert verify(token, keys=keys, algorithms=jose.ALGORITHMS)
    for other in jose.ALGORITHMS - {algorithm}:
        with pytest.raises(TokenInvalid):
            verify(token, keys=keys, algorithms=frozenset({other}))


def test_the_key_decides_the_algorithm_not_the_header() -> None:
    key = rsa.generate_private_key(65537, 2048)
    keys = key_set(public_jwk(key, kid="k1", alg="PS256"), algorithms=jose.ALGORITHMS)
    with pytest.raises(TokenInvalid, match="algorithm does not fit the key"):
        verify(sign(key=key, algorithm="RS256"), keys=keys, algorithms=jose.ALGORITHMS)


SMALL_RSA = {"kty": "RSA", "n": b64url(b"\xff" * 128), "e": "AQAB", "kid": "small"}
KEY_SETS: dict[str, tuple[bytes, str]] = {
    "not JSON": (b"keys", "not a JWK Set"),
    "a list": (b"[]", "not a JWK Set"),
    "no keys": (b"{}", "not a JWK Set"),
    "keys is an object": (b'{"keys":{}}', "not a JWK Set"),
    "empty": (b'{"keys":[]}', "the JWK Set holds no usable key"),
    "only encryption keys": (
        json.dumps({"keys": [public_jwk(KEY, use="enc")]}).encode(),
        "the JWK Set holds no usable key",
    ),
    "only keys of other algorithms": (
        json.dumps({"keys": [public_jwk(ed25519.Ed25519PrivateKey.generate())]}).encode(),
        "the JWK Set holds no usable key",
    ),
    "an algorithm that does not fit the key": (
        json.dumps({"keys": [public_jwk(KEY, alg="RS256")]}).encode(),
        "the JWK Set holds no usable key",
    ),
    "a private key": (
        json.dumps({"keys": [public_jwk(KEY, d="AAAA")]}).encode(),
        "the JWK Set holds a private or symmetric key",
    ),
    "a symmetric key": (
        b'{"keys":[{"kty":"oct","k":"AAAA"}]}',
        "the JWK Set holds a private or symmetric key",
    ),
    "a short RSA key": (
        json.dumps({"keys": [{**SMALL_RSA, "alg": "RS256"}]}).encode(),
        "the JWK Set holds an RSA key shorter than 2048 bits",
    ),
    "a point that is not on the curve": (
        json.dumps({"keys": [public_jwk(KEY, x=b64url(b"\x01" * 32))]}).encode(),
        "the JWK Set holds an unusable key",
    ),
    "a kid twice": (
        json.dumps({"keys": [public_jwk(KEY, kid="a"), public_jwk(STRANGER, kid="a")]}).encode(),
        "the JWK Set holds a kid twice",
    ),
}


@pytest.mark.parametrize(("document", "reason"), KEY_SETS.values(), ids=KEY_SETS)
def test_key_sets_that_are_refused(document: bytes, reason: str) -> None:
    with pytest.raises(TokenInvalid) as caught:
        KeySet.from_jwks(document, algorithms=frozenset({"ES256", "RS256"}))
    assert str(caught.value) == reason


def test_keys_of_other_uses_are_passed_over() -> None:
    keys = key_set(public_jwk(STRANGER, kid="enc", use="enc"), public_jwk(KEY, kid="k1"))
    assert len(keys) == 1
    assert keys.get("enc") is None


def test_without_a_kid_the_only_key_is_taken() -> None:
    assert verify(jwt.encode(CLAIMS, KEY, algorithm="ES256"))
    two = key_set(public_jwk(KEY, kid="k1"), public_jwk(STRANGER, kid="k2"))
    with pytest.raises(UnknownKey):
        verify(jwt.encode(CLAIMS, KEY, algorithm="ES256"), keys=two)


def test_a_key_without_kid_is_found_by_its_thumbprint() -> None:
    public = public_jwk(KEY)
    assert key_set(public).get(jose.thumbprint(public)) is not None


# RFC 7638 §3.1
RFC7638_KEY = {
    "kty": "RSA",
    "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJ"
    "ECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2Qvzq"
    "Y368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM"
    "4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
    "e": "AQAB",
    "alg": "RS256",
    "kid": "2011-04-29",
}


def test_the_thumbprint_of_rfc_7638() -> None:
    assert jose.thumbprint(RFC7638_KEY) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


@pytest.mark.parametrize("jwk", [{}, {"kty": "oct", "k": "AAAA"}, {"kty": "EC", "crv": "P-256"}])
def test_no_thumbprint_of_what_is_not_a_public_key(jwk: dict[str, Any]) -> None:
    with pytest.raises(TokenInvalid, match="not a public JWK"):
        jose.thumbprint(jwk)


# RFC 7515 appendix A.3: an ES256 token from another implementation.
RFC7515_A3 = (
    "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvb"
    "S9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKT"
    "UJqPP3-Kg6NU1Q"
)
RFC7515_A3_KEY = {
    "kty": "EC",
    "crv": "P-256",
    "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
}


def test_the_token_of_rfc_7515_verifies_up_to_its_claims() -> None:
    token = jose.parse(RFC7515_A3)
    with pytest.raises(TokenInvalid, match="expired"):
        jose.verify(token, key_set(RFC7515_A3_KEY), algorithms=ES256, checks=CHECKS, now=NOW)
    checks = {"iss": jose.equals("joe")}
    with pytest.raises(TokenInvalid, match="iss or sub is missing"):
        jose.verify(
            token, key_set(RFC7515_A3_KEY), algorithms=ES256, checks=checks, now=1_300_819_380
        )


GOOD = sign()


@given(
    position=st.integers(0, len(GOOD) - 1),
    char=st.sampled_from("ABCXYZabcxyz0189-_.=+/ \n\0é"),
)
def test_no_token_with_one_character_changed_verifies(position: int, char: str) -> None:
    changed = GOOD[:position] + char + GOOD[position + 1 :]
    if changed == GOOD:
        return
    with pytest.raises(TokenInvalid):
        verify(changed)


@given(st.integers(0, len(GOOD)), st.integers(0, len(GOOD)), st.text(max_size=5))
def test_no_token_with_a_piece_replaced_verifies(start: int, end: int, piece: str) -> None:
    changed = GOOD[:start] + piece + GOOD[max(start, end) :]
    if changed == GOOD:
        return
    with pytest.raises(TokenInvalid):
        verify(changed)


@given(
    st.dictionaries(
        st.sampled_from(["iss", "sub", "aud", "exp", "iat", "scope"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.text(max_size=4)
        | st.lists(st.text(max_size=3)),
        min_size=1,
    )
)
def test_no_claims_under_another_token_s_signature_verify(claims: dict[str, Any]) -> None:
    header, _, signature = GOOD.split(".")
    forged = b64url(msgspec.json.encode({**CLAIMS, **claims}))
    if forged == GOOD.split(".")[1]:
        return
    with pytest.raises(TokenInvalid):
        verify(f"{header}.{forged}.{signature}")


@given(st.text(max_size=300))
def test_any_text_is_refused_without_another_error(text: str) -> None:
    with pytest.raises(TokenInvalid):
        verify(text)


@given(st.binary(max_size=100))
def test_base64url_has_one_spelling(raw: bytes) -> None:
    text = b64url(raw)
    assert jose.b64url_decode(text) == raw
    assert text == base64.urlsafe_b64encode(raw).decode().rstrip("=")


def test_the_tables_stand_on_a_token_that_verifies() -> None:
    """The tables above change one thing of a token that is good: it is."""
    assert verify(GOOD)
    assert verify(segments_signed({}))
