"""Security Event Tokens (RFC 8417) as the broker signs and receivers check them.

Rules, each of which a receiver refuses to do without (SSF 1.0 §4.1, RFC 8935 §2.4):

- ``typ`` is ``secevent+jwt``, so that no other token passes for an event, nor an event for one.
- Neither ``exp`` nor ``sub`` is there: an event has no end, and its subject is ``sub_id``.
- ``iss`` and ``aud`` are exactly the ones that were configured; the key is one of that issuer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from valetkey.contracts import es256, jose
from valetkey.contracts.jose import TokenInvalid, b64url_decode

TYP: Final = "secevent+jwt"  # RFC 8417 §2.3
MEDIA_TYPE: Final = "application/secevent+jwt"
_MAX_JTI: Final = 256

Err = Literal[
    "invalid_request", "invalid_key", "invalid_issuer", "invalid_audience",
    "authentication_failed", "access_denied",
]  # fmt: skip


class SetRefused(Exception):  # noqa: N818 - reads as what it is
    """The SET can't be believed. ``err`` is the code that the transmitter is told (RFC 8935 §2.4).

    The description never repeats what is in the SET.
    """

    def __init__(self, err: Err, description: str) -> None:
        super().__init__(description)
        self.err: Err = err
        self.description = description


class UnknownSetKey(SetRefused):
    """No key of that ``kid``; the set may be out of date."""

    def __init__(self) -> None:
        super().__init__("invalid_key", "signed with a key that the issuer does not publish")


SetKeys = Mapping[str, ec.EllipticCurvePublicKey]


def read_keys(document: bytes) -> SetKeys:
    """The P-256 keys of a JWK Set by ``kid``. Raises `TokenInvalid` if there is none.

    What the broker publishes is of this kind; anything else in a set is passed over.
    """
    try:
        entries = msgspec.json.decode(document)["keys"]
        keys = {
            entry["kid"]: es256.read_key(entry.get("x"), entry.get("y"))
            for entry in entries
            if entry.get("kty") == "EC" and entry.get("crv") == "P-256" and entry.get("kid")
        }
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise TokenInvalid("not a JWK Set") from error
    if not keys:
        raise TokenInvalid("the JWK Set holds no usable key")
    return keys


def verify_set(
    compact: str, keys: SetKeys, *, issuer: str, audience: str, now: float
) -> Mapping[str, Any]:
    """The claims of a SET that holds. ``now`` is in seconds since the epoch.

    Raises `SetRefused`, `UnknownSetKey` for a ``kid`` that is not among the keys (so that the
    caller may fetch them again).
    """
    try:
        token = jose.parse(compact)
    except TokenInvalid as error:
        raise SetRefused("invalid_request", str(error)) from error
    header, claims = token.unverified_header, token.unverified_claims
    if header.get("typ") != TYP:
        raise SetRefused("invalid_request", "typ is not secevent+jwt")
    if header["alg"] != "ES256":
        raise SetRefused("invalid_key", "alg is not ES256")
    kid = header.get("kid")
    key = keys.get(kid) if isinstance(kid, str) else None
    if key is None:
        raise UnknownSetKey
    signing_input, _, signature = compact.rpartition(".")
    try:
        es256.check(key, signing_input.encode(), b64url_decode(signature))
    except TokenInvalid as error:
        raise SetRefused("invalid_key", str(error)) from error
    if claims.get("iss") != issuer:
        raise SetRefused("invalid_issuer", "iss is not the transmitter")
    if claims.get("aud") != audience:
        raise SetRefused("invalid_audience", "aud is not this receiver alone")
    check_form(claims, now)
    return claims


def check_form(claims: Mapping[str, Any], now: float) -> None:
    """What every SET has and what none may have. Raises `SetRefused`."""
    for name in ("exp", "sub"):  # SSF 1.0 §4.1.1, §4.1.5
        if name in claims:
            raise SetRefused("invalid_request", f"{name} must not be in a SET")
    jti, issued_at = claims.get("jti"), claims.get("iat")
    if not isinstance(jti, str) or not 1 <= len(jti) <= _MAX_JTI:
        raise SetRefused("invalid_request", "jti is missing or too long")
    if not jose.is_time(issued_at):
        raise SetRefused("invalid_request", "iat is missing")
    if now < issued_at - jose.LEEWAY:
        raise SetRefused("invalid_request", "iat is in the future")
