"""DPoP proofs: the RFC's own vectors, ours, and a named table of ones that do not hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from valetkey.contracts import dpop, jose
from valetkey.contracts.dpop import NonceRequired, ProofKey, VerifiedProof
from valetkey.contracts.jose import TokenInvalid

NOW = 1_800_000_000
URL = "https://server.test.example/token"
TOKEN = "an-access-token"

# RFC 9449 §4.1 (token request) and §7.1 (protected resource), one key.
RFC_KEY_THUMBPRINT = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
RFC_TOKEN_PROOF = (
    "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUk"
    "lDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUw"
    "Q2R2R1JEQSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6I"
    "mh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2VuIiwiaWF0IjoxNTYyMjYyNjE2fQ.2-GxA6T8lP4vfrg8v-FdWP0A"
    "0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg"
)
RFC_RESOURCE_PROOF = (
    "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUk"
    "lDUkRZOXpDa0RscEJoRjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUw"
    "Q2R2R1JEQSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiJlMWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1IjoiaH"
    "R0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90ZWN0ZWRyZXNvdXJjZSIsImlhdCI6MTU2MjI2MjYxOCwiYXRoIjoiZ"
    "lVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9.2oW9RP35yRqzhrtNP86L-Ey71EOptxRimPP"
    "ToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA"
)
RFC_ACCESS_TOKEN = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"


def test_the_token_request_proof_of_rfc_9449() -> None:
    proof = dpop.verify_proof(
        RFC_TOKEN_PROOF, method="POST", url="https://server.example.com/token", now=1_562_262_616
    )
    assert proof == VerifiedProof(RFC_KEY_THUMBPRINT, "-BwC3ESc6acc2lTc", 1_562_262_616)


def test_the_resource_proof_of_rfc_9449() -> None:
    proof = dpop.verify_proof(
        RFC_RESOURCE_PROOF,
        method="GET",
        url="https://resource.example.org/protectedresource",
        now=1_562_262_618,
        access_token=RFC_ACCESS_TOKEN,
    )
    assert proof.thumbprint == RFC_KEY_THUMBPRINT
    assert dpop.token_hash(RFC_ACCESS_TOKEN) == "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo"


KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)


def jwk_of(key: Any = KEY, **members: Any) -> dict[str, Any]:
    kind = jwt.algorithms.RSAAlgorithm if key is RSA_KEY else jwt.algorithms.ECAlgorithm
    return {**json.loads(kind.to_jwk(key.public_key())), **members}


def make(
    claims: dict[str, Any] | None = None,
    header: dict[str, Any] | None = None,
    key: Any = KEY,
    algorithm: str = "ES256",
) -> str:
    payload = {
        "jti": "j1",
        "htm": "POST",
        "htu": URL,
        "iat": NOW,
        "ath": dpop.token_hash(TOKEN),
        "nonce": "n1",
        **(claims or {}),
    }
    headers = {"typ": "dpop+jwt", "jwk": jwk_of(key), **(header or {})}
    headers = {name: value for name, value in headers.items() if value is not None}
    payload = {name: value for name, value in payload.items() if value is not None}
    encoded = json.dumps(payload).encode()
    return jwt.api_jws.encode(encoded, key, algorithm=algorithm, headers=headers)


def verify(proof: str, *, now: float = NOW, nonces: bool = True) -> VerifiedProof:
    ours = (lambda nonce: nonce == "n1") if nonces else None
    return dpop.verify_proof(
        proof, method="POST", url=URL, now=now, access_token=TOKEN, nonce_is_ours=ours
    )


def test_a_good_proof_gives_its_key_and_id() -> None:
    proof = verify(make())
    assert proof == VerifiedProof(jose.thumbprint(jwk_of()), "j1", NOW, "n1")


BAD: dict[str, tuple[Callable[[], str], str]] = {
    "empty": (lambda: "", "proof is not a compact JWS"),
    "two parts": (lambda: "a.b", "proof is not a compact JWS"),
    "too long": (lambda: "a" * (jose.MAX_TOKEN_LENGTH + 1), "proof longer than any we accept"),
    "not base64url": (lambda: "!.e30.AAAA", "not base64url"),
    "not JSON": (lambda: "AAAA.e30.AAAA", "proof is not made of JSON objects"),
    "claims are a list": (lambda: "e30.W10.AAAA", "proof is not made of JSON objects"),
    "typ JWT": (lambda: make(header={"typ": "JWT"}), "typ is not dpop+jwt"),
    "no typ": (lambda: make(header={"typ": None}), "typ is not dpop+jwt"),
    "typ in capitals": (lambda: make(header={"typ": "DPOP+JWT"}), "typ is not dpop+jwt"),
    "RS256": (lambda: make(key=RSA_KEY, algorithm="RS256"), "alg is not ES256"),
    "no jwk": (lambda: make(header={"jwk": None}), "jwk is not a P-256 key"),
    "jwk is a text": (lambda: make(header={"jwk": "k"}), "jwk is not a P-256 key"),
    "jwk on another curve": (lambda: make(header={"jwk": jwk_of(crv="P-384")}), "jwk is not a P-256 key"),
    "jwk with the private key": (
        lambda: make(header={"jwk": jwk_of(d="AAAA")}),
        "jwk holds a private key",
    ),
    "jwk that is no point": (lambda: make(header={"jwk": jwk_of(x="AQ")}), "jwk is not a P-256 key"),
    "jwk of another key": (
        lambda: make(header={"jwk": jwk_of(ec.generate_private_key(ec.SECP256R1()))}),
        "bad ES256 signature",
    ),
    "another method": (lambda: make({"htm": "GET"}), "proof is for another method or URL"),
    "method in lower case": (lambda: make({"htm": "post"}), "proof is for another method or URL"),
    "no method": (lambda: make({"htm": None}), "proof is for another method or URL"),
    "another URL": (lambda: make({"htu": URL + "/"}), "proof is for another method or URL"),
    "URL with query": (lambda: make({"htu": URL + "?a=b"}), "proof is for another method or URL"),
    "no jti": (lambda: make({"jti": None}), "jti is missing or too long"),
    "empty jti": (lambda: make({"jti": ""}), "jti is missing or too long"),
    "jti too long": (lambda: make({"jti": "j" * 257}), "jti is missing or too long"),
    "jti is a number": (lambda: make({"jti": 7}), "jti is missing or too long"),
    "no iat": (lambda: make({"iat": None}), "iat is missing"),
    "iat is true": (lambda: make({"iat": True}), "iat is missing"),
    "iat is a text": (lambda: make({"iat": str(NOW)}), "iat is missing"),
    "too old": (lambda: make({"iat": NOW - 61}), "iat is too far from now"),
    "from the future": (lambda: make({"iat": NOW + 61}), "iat is too far from now"),
    "no ath": (lambda: make({"ath": None}), "ath is not the hash of the access token"),
    "ath of another token": (
        lambda: make({"ath": dpop.token_hash("another")}),
        "ath is not the hash of the access token",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("proof", "reason"), BAD.values(), ids=BAD)
def test_proofs_that_do_not_hold(proof: Callable[[], str], reason: str) -> None:
    with pytest.raises(TokenInvalid) as caught:
        verify(proof())
    assert str(caught.value) == reason


@pytest.mark.parametrize("nonce", [None, "", "n0", 7, ["n1"]])
def test_a_nonce_that_is_not_ours_asks_for_a_fresh_one(nonce: Any) -> None:
    with pytest.raises(NonceRequired):
        verify(make({"nonce": nonce}))


def test_a_nonce_does_not_matter_where_none_is_demanded() -> None:
    assert verify(make({"nonce": None}), nonces=False)


@pytest.mark.parametrize("token", ["", "t1"])
@pytest.mark.parametrize("nonce", ["", "n1"])
def test_our_own_proofs_hold_for_us_and_for_another_library(token: str, nonce: str) -> None:
    key = ProofKey()
    ath = dpop.token_hash(token) if token else ""
    proof = key.proof(method="GET", url=URL, jti="x", now=NOW, ath=ath, nonce=nonce)
    verified = dpop.verify_proof(
        proof,
        method="GET",
        url=URL,
        now=NOW,
        access_token=token,
        nonce_is_ours=lambda given: given == nonce,
    )
    assert verified == VerifiedProof(key.thumbprint, "x", NOW, nonce)
    claims = jwt.decode(
        proof, jwt.PyJWK(key.jwk).key, algorithms=["ES256"], options={"verify_iat": False}
    )
    expected = {"jti": "x", "htm": "GET", "htu": URL, "iat": NOW}
    expected |= {"ath": ath} if ath else {}
    assert claims == expected | ({"nonce": nonce} if nonce else {})


def test_each_key_is_its_own() -> None:
    assert ProofKey().thumbprint != ProofKey().thumbprint
    assert "d" not in ProofKey().jwk


GOOD = make()


@given(position=st.integers(0, len(GOOD) - 1), char=st.sampled_from("ABCXYZabcxyz0189-_.=+/ \n\0é"))
def test_no_proof_with_one_character_changed_holds(position: int, char: str) -> None:
    changed = GOOD[:position] + char + GOOD[position + 1 :]
    if changed == GOOD:
        return
    with pytest.raises(TokenInvalid):
        verify(changed)


@given(st.text(max_size=200))
def test_any_text_is_refused_without_another_error(text: str) -> None:
    with pytest.raises(TokenInvalid):
        verify(text)


@pytest.mark.parametrize(
    ("name", "proof", "nonce"),
    [
        ("a good one", make(), "n1"),
        ("no nonce", ProofKey().proof(method="GET", url=URL, jti="x", now=NOW), ""),
        ("no text", "a." + jose.b64url(b'{"nonce": 1}') + ".c", ""),
        ("no JSON", "a." + jose.b64url(b"nonce") + ".c", ""),
        ("no base64url", "a.!.c", ""),
        ("no JWS", "abc", ""),
        ("too long", "a." + jose.b64url(b'{"nonce": "n1"}') + "." + "c" * 100_000, ""),
    ],
)
def test_the_nonce_of_a_proof_that_nobody_checked(name: str, proof: str, nonce: str) -> None:
    assert dpop.unverified_nonce(proof) == nonce, name
