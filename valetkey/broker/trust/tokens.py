"""Tokens that come in, verified once and remembered for a short while.

A sidecar presents the same projected token with every exchange, so what was verified is
remembered by the SHA-256 of the token: never longer than its issuer's kind allows, so that a key
withdrawn by the issuer stops counting soon, and never past the token's own expiry. Tokens of
issuers without ``reusable`` come once and are not remembered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from cachetools import TLRUCache

from valetkey.contracts import jose
from valetkey.contracts.issuer import REMEMBERED, IssuerSettings, TrustedIssuers, Use
from valetkey.contracts.jose import TokenInvalid, VerifiedClaims

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """A token that held, with what the settings say of its issuer."""

    claims: VerifiedClaims
    issuer: IssuerSettings
    remember: float = REMEMBERED

    @property
    def expires(self) -> float:
        return float(self.claims.claims["exp"])

    def is_same_party(self, other: VerifiedToken) -> bool:
        """Subjects are only unique within their issuer."""
        return (self.claims.issuer, self.claims.subject) == (
            other.claims.issuer,
            other.claims.subject,
        )


class TokenVerifier:
    """Verifies tokens of the trusted issuers. ``clock`` gives seconds since the epoch."""

    def __init__(self, issuers: TrustedIssuers, *, clock: Clock, capacity: int) -> None:
        self._issuers = issuers
        self._clock = clock
        self._verified: TLRUCache[bytes, VerifiedToken] = TLRUCache(
            maxsize=capacity,
            ttu=lambda _key, token, now: min(now + token.remember, token.expires),
            timer=clock,
        )

    async def verify(self, compact: str, *, use: Use | None) -> VerifiedToken:
        """Verify a token; without ``use``, by the rules for what its issuer is trusted for.

        Raises `TokenInvalid`, or `CallerError` when whoever must be asked can't be.
        """
        if len(compact) > jose.MAX_TOKEN_LENGTH:
            raise TokenInvalid("longer than any token we accept")
        digest = hashlib.sha256(compact.encode()).digest()
        token = self._verified.get(digest)
        if token is None:
            token = await self._verify(compact, use)
            if token.issuer.reusable or token.issuer.use != "workload":
                self._verified[digest] = token
        elif use is not None and token.issuer.use != use:
            raise TokenInvalid(f"issuer is not trusted for {use} tokens")
        return token

    async def _verify(self, compact: str, use: Use | None) -> VerifiedToken:
        parsed = jose.parse(compact)
        # The issuer that the token claims only chooses the rules to verify it by.
        issuer = self._issuers.find(parsed)
        if use is not None and issuer.settings.use != use:
            raise TokenInvalid(f"issuer is not trusted for {use} tokens")
        claims = await issuer.verify(parsed, now=self._clock())
        return VerifiedToken(claims, issuer.settings, issuer.remember)
