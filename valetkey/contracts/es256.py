"""ES256 (RFC 7518 §3.4) over P-256 keys as JWKs, with nothing but `cryptography`.

What this project signs itself is signed so: tokens, security events, proofs. The sidecar checks
events and makes proofs with it, and is smaller without a JOSE library.
"""

from __future__ import annotations

from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from valetkey.contracts.jose import TokenInvalid, b64url, b64url_decode

_ECDSA: Final = ec.ECDSA(hashes.SHA256())
# The order n of P-256 (FIPS 186-5, SP 800-186 §3.2.1.3). Where (r, s) is a signature, (r, n - s) is
# one of the same key over the same text, which anybody can make: ours have the lower s alone.
_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def sign(key: ec.EllipticCurvePrivateKey, signing_input: bytes) -> str:
    """The compact JWS of ``header.payload``: both segments, and the signature behind them."""
    r, s = decode_dss_signature(key.sign(signing_input, _ECDSA))
    s = min(s, _ORDER - s)
    return f"{signing_input.decode()}.{b64url(r.to_bytes(32) + s.to_bytes(32))}"


def is_ours(compact: str) -> bool:
    """Whether a JWS that was verified is signed in the one way of two in which `sign` does it.

    Raises `TokenInvalid` where the last segment is no ES256 signature.
    """
    _, s = _signature(compact)
    return s <= _ORDER - s


def twin(compact: str) -> str:
    """The same JWS with the other signature that holds for it. Raises `TokenInvalid`."""
    r, s = _signature(compact)
    other = b64url(r + (_ORDER - s).to_bytes(32))
    return f"{compact.rpartition('.')[0]}.{other}"


def _signature(compact: str) -> tuple[bytes, int]:
    raw = b64url_decode(compact.rpartition(".")[2])
    s = int.from_bytes(raw[32:])
    if len(raw) != 64 or not 0 < s < _ORDER:
        raise TokenInvalid("bad ES256 signature")
    return raw[:32], s


def read_key(x: Any, y: Any) -> ec.EllipticCurvePublicKey:
    """A public key from its JWK coordinates. Raises `TokenInvalid`.

    RFC 7518 §6.2.1: both coordinates in full length; the point must be on the curve.
    """
    if not isinstance(x, str) or not isinstance(y, str):
        raise TokenInvalid("jwk is not a P-256 key")
    octets = b64url_decode(x), b64url_decode(y)
    if any(len(coordinate) != 32 for coordinate in octets):
        raise TokenInvalid("jwk is not a P-256 key")
    numbers = ec.EllipticCurvePublicNumbers(
        int.from_bytes(octets[0]), int.from_bytes(octets[1]), ec.SECP256R1()
    )
    try:
        return numbers.public_key()
    except ValueError as error:
        raise TokenInvalid("jwk is not a point on P-256") from error


def check(key: ec.EllipticCurvePublicKey, signing_input: bytes, signature: bytes) -> None:
    """Raises `TokenInvalid` unless the signature is the key's."""
    if len(signature) != 64:  # RFC 7518 §3.4: R and S, 32 octets each
        raise TokenInvalid("bad ES256 signature")
    encoded = encode_dss_signature(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))
    try:
        key.verify(encoded, signing_input, _ECDSA)
    except InvalidSignature as error:
        raise TokenInvalid("bad ES256 signature") from error
