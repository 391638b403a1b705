"""Access tokens as JWTs (RFC 9068), signed with ES256.

The header is the same for every token under one key, so its segment is made once per key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from valetkey.broker.core.exchange import Issue
from valetkey.broker.issuers.keyring import KeyRing, SigningKey
from valetkey.contracts import es256, jose
from valetkey.contracts.jose import TokenInvalid, b64url
from valetkey.contracts.secret import Secret

TYP: Final = "at+jwt"  # RFC 9068 §2.1
_ALGORITHMS: Final = frozenset({"ES256"})


@dataclass(frozen=True, slots=True)
class MintedToken:
    """A token with what the answer says about it."""

    compact: Secret
    jti: str
    txn: str


@dataclass(frozen=True, slots=True)
class OwnToken:
    """A token of ours whose signature, issuer, type and times held; revocation is not checked.

    ``client_issuer`` and ``client_id`` are the client that it was issued to.
    """

    client_issuer: str
    client_id: str
    jti: str
    txn: str
    expires: float
    claims: dict[str, Any] = field(repr=False)


class JwtIssuer:
    """Mints, and recognises its own. ``random_id`` gives at least 128 bits as URL-safe text."""

    def __init__(
        self,
        ring: KeyRing,
        *,
        issuer: str,
        clock: Callable[[], float],
        random_id: Callable[[], str],
    ) -> None:
        self._ring = ring
        self._issuer = issuer
        self._clock = clock
        self._random_id = random_id
        self._header: tuple[str, bytes] = ("", b"")
        self._checks = {"iss": jose.equals(issuer), "jti": jose.present, "txn": jose.present}

    def mint(self, issue: Issue) -> MintedToken:
        """The token of that decision."""
        now = int(self._clock())
        jti = self._random_id()
        txn = issue.txn or self._random_id()
        claims: dict[str, Any] = {
            "iss": self._issuer,
            "sub": issue.subject,
            "aud": issue.audience,
            "client_id": issue.client.subject,
            # Ours: a client is known by issuer and subject, and RFC 9068 has no claim for the first
            "client_iss": issue.client.issuer,
            "iat": now,
            "exp": now + issue.expires_in,
            "jti": jti,
            "txn": txn,
            "scope": " ".join(issue.scopes),
            "policy_digest": issue.policy_digest,
        }
        if issue.act is not None:
            claims["act"] = issue.act
        if issue.thumbprint:
            claims["cnf"] = {"jkt": issue.thumbprint}  # RFC 9449 §6.1
        if issue.details:
            claims["authorization_details"] = issue.details  # RFC 9396 §9.1
        return MintedToken(Secret(self._sign(claims)), jti, txn)

    def recognise(self, compact: str) -> OwnToken | None:
        """One of our own tokens that has not expired, or ``None``."""
        now = self._clock()
        try:
            verified = jose.verify(
                jose.parse(compact),
                self._ring.published().keys,
                algorithms=_ALGORITHMS,
                checks=self._checks,
                now=now,
            )
        except TokenInvalid:
            return None
        claims = dict(verified.claims)
        # Our own clock made `exp`: no leeway here.
        if verified.header.get("typ") != TYP or claims["exp"] <= now:
            return None
        return OwnToken(
            client_issuer=str(claims.get("client_iss", "")),
            client_id=str(claims.get("client_id", "")),
            jti=claims["jti"],
            txn=claims["txn"],
            expires=float(claims["exp"]),
            claims=claims,
        )

    def _sign(self, claims: dict[str, Any]) -> str:
        key = self._ring.signer()
        signing_input = self._header_of(key) + b64url(msgspec.json.encode(claims)).encode()
        return es256.sign(key.private, signing_input)

    def _header_of(self, key: SigningKey) -> bytes:
        kid, segment = self._header
        if kid != key.times.kid:
            header = {"typ": TYP, "alg": "ES256", "kid": key.times.kid}
            segment = b64url(msgspec.json.encode(header)).encode() + b"."
            self._header = (key.times.kid, segment)
        return segment
