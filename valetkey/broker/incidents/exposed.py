"""What a token is that somebody found where it should not be.

Whoever issues a kind of credential recognises its own: `Recognises`. The broker knows its own
tokens by their signature, and identity tokens of the issuers that it trusts. Neither asks a table
of what was issued, and a token is never stored or logged.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from valetkey.broker.core.containment import Epoch
from valetkey.broker.core.incidents import Exposure, Party
from valetkey.broker.issuers.jwt import JwtIssuer, OwnToken
from valetkey.broker.trust.tokens import TokenVerifier
from valetkey.contracts import jose
from valetkey.contracts.jose import TokenInvalid


@dataclass(frozen=True, slots=True)
class Found:
    """A credential that was recognised. Times are in seconds since the epoch.

    ``expires`` is when it ends by itself, ``issued_at`` when it was issued (``None``: it does not
    say).
    """

    exposure: Exposure
    issued_at: float | None
    expires: float

    def is_known(self, epoch: Epoch) -> bool:
        """Whether an earlier incident has already made it worthless."""
        return (
            bool(epoch.attest_after)
            and self.issued_at is not None
            and self.issued_at <= epoch.attest_after
        )


class Recognises(Protocol):
    """An issuer that knows its own credentials when it sees them."""

    async def recognise(self, credential: str) -> Found | None:
        """What this is, if it is one of its own and was genuine. Raises nothing."""


def exposure_of(token: OwnToken) -> Exposure:
    """One of our own tokens as what an incident is about.

    It leaked from who had it: the client. Its user has shown it to nobody.
    """
    party = Party(token.client_issuer, token.client_id)
    return Exposure("token", token.jti, party=party, txn=token.txn, expires=token.expires)


class OwnTokens:
    """Access tokens of ours, also those that have expired."""

    def __init__(self, issuer: JwtIssuer) -> None:
        self._issuer = issuer

    async def recognise(self, credential: str) -> Found | None:
        own = self._issuer.recognise(credential, expired=True)
        if own is None:
            return None
        return Found(exposure_of(own), own.issued, own.expires)


class IdentityTokens:
    """Tokens that workloads and users authenticate with, while they hold."""

    def __init__(self, tokens: TokenVerifier) -> None:
        self._tokens = tokens

    async def recognise(self, credential: str) -> Found | None:
        try:
            token = await self._tokens.verify(credential, use=None)
        except TokenInvalid:
            return None
        claims = token.claims
        party = Party(claims.issuer, claims.subject)
        exposure = Exposure("subject", claims.subject, issuer=claims.issuer, party=party)
        issued_at = claims.claims.get("iat")
        issued = float(issued_at) if jose.is_time(issued_at) else None
        return Found(exposure, issued, token.expires)


async def recognise(credential: str, by: Iterable[Recognises]) -> Found | None:
    """What the first of ``by`` says that this is, or ``None``."""
    for issuer in by:
        found = await issuer.recognise(credential)
        if found is not None:
            return found
    return None
