"""DPoP (RFC 9449): making proofs quickly, and reading them strictly.

The sidecar makes one proof per request to a DPoP target and per exchange; the broker and the
demo's resource server read them. A `ProofKey` is one ephemeral P-256 key per process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from cachetools import LRUCache
from cryptography.hazmat.primitives.asymmetric import ec

from valetkey.contracts import es256
from valetkey.contracts.jose import (
    MAX_TOKEN_LENGTH,
    TokenInvalid,
    b64url,
    b64url_decode,
    is_time,
    thumbprint,
)

# RFC 9449 §11.1: acceptable only for a relatively brief period.
PROOF_LIFETIME: Final = 60
_PRIVATE_MEMBERS: Final = ("d", "p", "q", "dp", "dq", "qi", "oth", "k")


class ProofKey:
    """An ephemeral P-256 key that signs DPoP proofs (ES256)."""

    __slots__ = ("_header", "_key", "jwk", "thumbprint")

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        numbers = self._key.public_key().public_numbers()
        self.jwk = {
            "kty": "EC",
            "crv": "P-256",
            "x": b64url(numbers.x.to_bytes(32)),
            "y": b64url(numbers.y.to_bytes(32)),
        }
        self.thumbprint = thumbprint(self.jwk)
        header = {"typ": "dpop+jwt", "alg": "ES256", "jwk": self.jwk}
        self._header = b64url(msgspec.json.encode(header)).encode() + b"."

    def proof(
        self, *, method: str, url: str, jti: str, now: int, ath: str = "", nonce: str = ""
    ) -> str:
        """A fresh proof. ``url`` is without query and fragment (RFC 9449 §4.2 ``htu``).

        ``ath`` is `token_hash` of the access token sent with it, ``nonce`` the server's last one.
        """
        claims: dict[str, Any] = {"jti": jti, "htm": method, "htu": url, "iat": now}
        if ath:
            claims["ath"] = ath
        if nonce:
            claims["nonce"] = nonce
        signing_input = self._header + b64url(msgspec.json.encode(claims)).encode()
        return es256.sign(self._key, signing_input)


def token_hash(access_token: str) -> str:
    """``ath``: base64url SHA-256 of the ASCII token (RFC 9449 §4.2)."""
    return b64url(hashlib.sha256(access_token.encode()).digest())


class NonceRequired(TokenInvalid):
    """The proof lacks a nonce that this server gave (RFC 9449 §8, §9)."""


class _Nonce(msgspec.Struct, frozen=True):
    nonce: str = ""


@dataclass(frozen=True, slots=True)
class VerifiedProof:
    """A proof that held. ``jti`` still has to be checked against replay by the caller."""

    thumbprint: str
    jti: str
    issued_at: float
    nonce: str = ""


def verify_proof(
    proof: str,
    *,
    method: str,
    url: str,
    now: float,
    access_token: str = "",
    nonce_is_ours: Callable[[str], bool] | None = None,
    known: KnownKeys | None = None,
) -> VerifiedProof:
    """All checks of RFC 9449 §4.3 but replay. Raises `TokenInvalid` or `NonceRequired`.

    ``url`` is this server's own URL of the endpoint, without query. ``nonce_is_ours`` decides on
    a nonce (also on the empty one) where the server demands them. ``known`` saves the reading of
    a header that was read before.
    """
    if len(proof) > MAX_TOKEN_LENGTH:
        raise TokenInvalid("proof longer than any we accept")
    parts = proof.split(".")
    if len(parts) != 3 or not all(parts):
        raise TokenInvalid("proof is not a compact JWS")
    try:
        claims = msgspec.json.decode(b64url_decode(parts[1]), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TokenInvalid("proof is not made of JSON objects") from error
    key, jkt = _read_header(parts[0]) if known is None else known.of(parts[0])
    if claims.get("htm") != method or claims.get("htu") != url:
        raise TokenInvalid("proof is for another method or URL")
    jti, issued_at = claims.get("jti"), claims.get("iat")
    if not isinstance(jti, str) or not 1 <= len(jti) <= 256:
        raise TokenInvalid("jti is missing or too long")
    if not is_time(issued_at):
        raise TokenInvalid("iat is missing")
    if abs(now - issued_at) > PROOF_LIFETIME:
        raise TokenInvalid("iat is too far from now")
    if access_token and claims.get("ath") != token_hash(access_token):
        raise TokenInvalid("ath is not the hash of the access token")
    given = claims.get("nonce", "")
    nonce = given if isinstance(given, str) else ""
    if nonce_is_ours is not None and not nonce_is_ours(nonce):
        raise NonceRequired("a fresh nonce of this server is needed")
    # Last, for it is what costs: a fleet that comes from another replica knows no nonce of ours.
    es256.check(key, f"{parts[0]}.{parts[1]}".encode(), b64url_decode(parts[2]))
    return VerifiedProof(jkt, jti, issued_at, nonce)


def unverified_nonce(proof: str) -> str:
    """The nonce that a proof carries, or nothing; it was not looked at otherwise."""
    parts = proof.split(".")
    if len(proof) > MAX_TOKEN_LENGTH or len(parts) != 3:
        return ""
    try:
        claims = msgspec.json.decode(b64url_decode(parts[1]), type=_Nonce)
    except (TokenInvalid, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return claims.nonce


class KnownKeys:
    """Keys of proofs by the exact text of their header, which names nothing but the key.

    A client makes all its proofs with one header. Bounded, about 2 KiB each, least recently used
    out first: more than the sidecars of one broker, each of which has a key for its exchanges and
    one for its feed.
    """

    __slots__ = ("_keys",)

    def __init__(self, capacity: int = 4096) -> None:
        self._keys: LRUCache[str, tuple[ec.EllipticCurvePublicKey, str]] = LRUCache(capacity)

    def of(self, header: str) -> tuple[ec.EllipticCurvePublicKey, str]:
        """The public key and its thumbprint. Raises `TokenInvalid`."""
        known: tuple[ec.EllipticCurvePublicKey, str] | None = self._keys.get(header)
        if known is None:
            known = self._keys[header] = _read_header(header)
        return known


def _read_header(segment: str) -> tuple[ec.EllipticCurvePublicKey, str]:
    """All checks that depend on the header alone; gives the key and its thumbprint."""
    try:
        header = msgspec.json.decode(b64url_decode(segment), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TokenInvalid("proof is not made of JSON objects") from error
    if header.get("typ") != "dpop+jwt":
        raise TokenInvalid("typ is not dpop+jwt")
    if header.get("alg") != "ES256":  # the one asymmetric algorithm that we advertise
        raise TokenInvalid("alg is not ES256")
    if "crit" in header:  # RFC 7515 §4.1.11: no extension is understood here
        raise TokenInvalid("header 'crit' is not accepted")
    jwk = header.get("jwk")
    if not isinstance(jwk, dict) or jwk.get("kty") != "EC" or jwk.get("crv") != "P-256":
        raise TokenInvalid("jwk is not a P-256 key")
    if any(member in jwk for member in _PRIVATE_MEMBERS):
        raise TokenInvalid("jwk holds a private key")
    return es256.read_key(jwk.get("x"), jwk.get("y")), thumbprint(jwk)
