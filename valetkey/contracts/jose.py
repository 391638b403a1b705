"""Compact JWTs, strictly: what is unverified and what is verified are different types.

Rules, each for every token that comes in, whoever sent it:

- Compact serialisation only, under a length cap, before anything is parsed (RFC 8725bis: no
  JSON-serialised JWS, no decompression or PBES2 work for strangers).
- The algorithm comes from an allow-list of asymmetric algorithms; ``none`` in any spelling and
  HMAC are not on it. The key decides the algorithm family, never the header alone.
- Key hints in headers (``jku``, ``x5u``, ``x5c``, ``jwk``) and ``crit`` are refused; a DPoP proof,
  which must carry ``jwk``, has its own reader in `contracts.dpop`.
- Claims are checked by a table from claim to check. An empty table is an error, as is a token
  that verifies under no key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeGuard

import msgspec

if TYPE_CHECKING:
    import jwt

# Kubernetes projected tokens are about 1 KiB; tokens with large group claims reach 6 KiB.
MAX_TOKEN_LENGTH: Final = 16_384

# RFC 8725 §3.1/3.2: asymmetric, no RSASSA-PKCS1 below 2048 bits (checked by the key loader).
ALGORITHMS: Final = frozenset({"ES256", "ES384", "RS256", "PS256", "EdDSA"})

# standards.md §8: at most 30 s of leeway between two clocks.
LEEWAY: Final = 30

# The last second that calendars with four digits can write.
MAX_TIME: Final = 253_402_300_799

_FORBIDDEN_HEADERS: Final = ("jku", "x5u", "x5c", "jwk", "crit", "zip")


class TokenInvalid(Exception):  # noqa: N818 - reads as what it is: the token is invalid
    """The token can't be accepted. The message is for the record; it never holds the token."""


@dataclass(frozen=True, slots=True)
class UnverifiedToken:
    """A token whose form was read and whose signature was not. Nothing in it may be believed."""

    compact: str = field(repr=False)
    unverified_header: Mapping[str, Any]
    unverified_claims: Mapping[str, Any] = field(repr=False)

    @property
    def unverified_issuer(self) -> str:
        issuer = self.unverified_claims.get("iss")
        return issuer if isinstance(issuer, str) else ""


@dataclass(frozen=True, slots=True)
class VerifiedClaims:
    """Claims of a token whose signature and claims table held: `verify` makes them.

    What another proof stands for (a client certificate, a TokenReview) takes the same form, made
    by the reader of that proof. ``attributes`` are what an issuer of a kind of its own says of the
    subject, by names that do not depend on how it says it.
    """

    issuer: str
    subject: str
    claims: Mapping[str, Any] = field(repr=False)
    header: Mapping[str, Any] = field(repr=False)
    attributes: Mapping[str, str] = field(default_factory=dict, repr=False)


# A check gets the claim's value (or None) and the time; it raises TokenInvalid.
ClaimCheck = Callable[[Any, float], None]


class KeySet:
    """Public keys of one issuer by ``kid`` (RFC 7517), only of kinds on the allow-list."""

    __slots__ = ("_keys",)

    def __init__(self, keys: Mapping[str, jwt.PyJWK]) -> None:
        self._keys = dict(keys)

    @classmethod
    def from_jwks(
        cls, document: bytes | str, *, algorithms: frozenset[str], use: str = "sig"
    ) -> KeySet:
        """Read a JWK Set; keys for other uses or algorithms are passed over, private ones refused.

        A key without ``use`` counts as one for ``sig``, and for nothing else; one without ``kid``
        gets its RFC 7638 thumbprint as one. Raises `TokenInvalid` when the document is no JWK Set
        or holds no usable key.
        """
        try:
            parsed = msgspec.json.decode(document)
            entries = parsed["keys"]
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise TokenInvalid("not a JWK Set") from error
        if not isinstance(entries, list):
            raise TokenInvalid("not a JWK Set")
        import jwt  # the sidecar reads no keys, and is smaller without it

        keys: dict[str, jwt.PyJWK] = {}
        for entry in entries:
            if not isinstance(entry, dict) or entry.get("use", "sig") != use:
                continue
            if "d" in entry or entry.get("kty") == "oct":
                raise TokenInvalid("the JWK Set holds a private or symmetric key")
            if _algorithm_of(entry) not in algorithms:
                continue
            try:
                key = jwt.PyJWK(entry, algorithm=_algorithm_of(entry))
            except (jwt.PyJWTError, ValueError) as error:
                raise TokenInvalid("the JWK Set holds an unusable key") from error
            if entry["kty"] == "RSA" and key.key.key_size < 2048:  # RFC 7518 §3.3
                raise TokenInvalid("the JWK Set holds an RSA key shorter than 2048 bits")
            kid = entry.get("kid") or thumbprint(entry)
            if kid in keys:
                raise TokenInvalid("the JWK Set holds a kid twice")
            keys[kid] = key
        if not keys:
            raise TokenInvalid("the JWK Set holds no usable key")
        return cls(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, kid: str | None) -> jwt.PyJWK | None:
        """The key of that id; without an id, the only key there is."""
        if kid is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(kid)


def _algorithm_of(jwk: Mapping[str, Any]) -> str:
    stated = jwk.get("alg")
    match jwk.get("kty"), jwk.get("crv"):
        case "EC", "P-256":
            implied: tuple[str, ...] = ("ES256",)
        case "EC", "P-384":
            implied = ("ES384",)
        case "OKP", "Ed25519":
            implied = ("EdDSA",)
        case "RSA", None:
            implied = ("RS256", "PS256")
        case _:
            return ""
    if stated is None:
        return implied[0]
    return stated if stated in implied else ""


def parse(compact: str) -> UnverifiedToken:
    """Read a compact JWS without verifying it. Raises `TokenInvalid`."""
    if len(compact) > MAX_TOKEN_LENGTH:
        raise TokenInvalid("longer than any token we accept")
    parts = compact.split(".")
    if len(parts) != 3 or not all(parts):
        raise TokenInvalid("not a compact JWS")
    header = _json_object(parts[0], "header")
    if header.get("alg") not in ALGORITHMS:
        raise TokenInvalid("algorithm not on the allow-list")
    for name in _FORBIDDEN_HEADERS:
        if name in header:
            raise TokenInvalid(f"header {name!r} is not accepted")
    return UnverifiedToken(compact, header, _json_object(parts[1], "payload"))


def verify(
    token: UnverifiedToken,
    keys: KeySet,
    *,
    algorithms: frozenset[str],
    checks: Mapping[str, ClaimCheck],
    now: float,
    issuer: str = "",
) -> VerifiedClaims:
    """Verify signature, then ``exp``/``nbf``/``iat``, then every check of the table.

    ``issuer`` names whose keys these are where a token need not say so (JWT-SVIDs); otherwise its
    ``iss`` does, which the table checks. ``now`` is in seconds since the epoch. Raises
    `TokenInvalid`, `UnknownKey` for a ``kid`` that the set lacks (so that the caller may refetch
    once).
    """
    if not checks:
        raise TokenInvalid("no claim checks: refusing to accept everything")
    check_signed(token, keys, algorithms=algorithms)
    claims = token.unverified_claims
    check_claims(claims, checks, now=now)
    named, subject = issuer or claims.get("iss"), claims.get("sub")
    if not isinstance(named, str) or not isinstance(subject, str) or not subject:
        raise TokenInvalid("iss or sub is missing")
    return VerifiedClaims(named, subject, claims, token.unverified_header)


def check_signed(token: UnverifiedToken, keys: KeySet, *, algorithms: frozenset[str]) -> None:
    """Whether one of these keys signed it, by an algorithm that is allowed; says nothing of claims.

    Raises `TokenInvalid`, `UnknownKey` for a ``kid`` that the set lacks.
    """
    algorithm = token.unverified_header["alg"]
    if algorithm not in algorithms:
        raise TokenInvalid("algorithm not allowed for this issuer")
    kid = token.unverified_header.get("kid")
    key = keys.get(kid if isinstance(kid, str) else None)
    if key is None:
        raise UnknownKey("signed with a key that the issuer's set does not hold")
    if key.algorithm_name != algorithm:
        raise TokenInvalid("algorithm does not fit the key")
    _check_signature(token.compact, key, algorithm)


def check_claims(
    claims: Mapping[str, Any], checks: Mapping[str, ClaimCheck], *, now: float
) -> None:
    """The times, then every check of the table; says nothing of a signature.

    Raises `TokenInvalid`.
    """
    if not checks:
        raise TokenInvalid("no claim checks: refusing to accept everything")
    _check_times(claims, now)
    for name, check in checks.items():
        check(claims.get(name), now)


class UnknownKey(TokenInvalid):
    """No key of that ``kid``; the set may be out of date."""


def equals(expected: str) -> ClaimCheck:
    """The claim is exactly this string."""

    def check(value: Any, _now: float) -> None:
        if value != expected:
            raise TokenInvalid(f"a claim is not {expected!r}")

    return check


def audience_is(expected: str, *, allow_list: bool) -> ClaimCheck:
    """``aud`` is this audience alone; as a one-element list only where ``allow_list``.

    RFC 7523bis wants one string. Kubernetes writes a list of one, hence the switch; a list with
    a second audience is never accepted, since that other party could replay the token here.
    """

    def check(value: Any, _now: float) -> None:
        if value != expected and not (allow_list and value == [expected]):
            raise TokenInvalid("aud is not this audience alone")

    return check


def present(value: Any, _now: float) -> None:
    """The claim is a non-empty string."""
    if not isinstance(value, str) or not value:
        raise TokenInvalid("a required claim is missing")


def is_time(value: Any) -> TypeGuard[int | float]:
    """Whether a claim is a NumericDate (RFC 7519 §2) that arithmetic can be done with."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        # JSON integers have no bound, floats have: a larger one is no date but an overflow.
        and abs(value) <= MAX_TIME
    )


def thumbprint(jwk: Mapping[str, Any]) -> str:
    """RFC 7638 SHA-256 thumbprint, base64url. Raises `TokenInvalid` for an unknown ``kty``."""
    members = {"EC": ("crv", "kty", "x", "y"), "RSA": ("e", "kty", "n"), "OKP": ("crv", "kty", "x")}
    try:
        required = {name: jwk[name] for name in members[jwk["kty"]]}
    except KeyError as error:
        raise TokenInvalid("not a public JWK") from error
    return b64url(hashlib.sha256(msgspec.json.encode(required, order="deterministic")).digest())


def b64url(raw: bytes) -> str:
    """Base64url without padding (RFC 7515 §2)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def b64url_decode(text: str) -> bytes:
    """Inverse of `b64url`; strict about alphabet and padding. Raises `TokenInvalid`."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise TokenInvalid("not base64url") from error
    if b64url(raw) != text:  # a second spelling of the same bytes is a second reading
        raise TokenInvalid("not canonical base64url")
    return raw


def _json_object(segment: str, what: str) -> dict[str, Any]:
    raw = b64url_decode(segment)
    try:
        value = msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TokenInvalid(f"{what} is not a JSON object") from error
    return value


def _check_signature(compact: str, key: jwt.PyJWK, algorithm: str) -> None:
    import jwt

    signing_input, _, signature = compact.rpartition(".")
    try:
        good = key.Algorithm.verify(signing_input.encode(), key.key, b64url_decode(signature))
    except (jwt.PyJWTError, ValueError) as error:
        raise TokenInvalid("the signature can't be checked") from error
    if not good:
        raise TokenInvalid(f"bad {algorithm} signature")


def _check_times(claims: Mapping[str, Any], now: float) -> None:
    expires = claims.get("exp")
    if not is_time(expires):
        raise TokenInvalid("exp is missing")
    if now >= expires + LEEWAY:
        raise TokenInvalid("expired")
    for name in ("nbf", "iat"):
        value = claims.get(name)
        if value is None:
            continue
        if not is_time(value):
            raise TokenInvalid(f"{name} is not a time")
        if now < value - LEEWAY:
            raise TokenInvalid(f"{name} is in the future")
