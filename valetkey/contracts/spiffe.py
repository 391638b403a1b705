"""JWT-SVIDs by the bundle of their trust domain (JWT-SVID, SPIFFE Trust Domain and Bundle).

A bundle is a JWK Set whose keys say by ``use`` what they are for: ``jwt-svid`` keys verify tokens,
``x509-svid`` ones are roots of certificates and verify no token. A trust domain's keys speak for
its own IDs alone: a token whose ``sub`` lies elsewhere is refused, whoever signed it.
"""

from __future__ import annotations

from typing import Any, Final

from valetkey.contracts import jose
from valetkey.contracts.issuer import IssuerSettings, TrustedIssuer
from valetkey.contracts.jose import KeySet, TokenInvalid, VerifiedClaims
from valetkey.contracts.spiffe_id import SpiffeId, SpiffeIdInvalid

USE_JWT: Final = "jwt-svid"  # JWT-SVID §6.1
# JWT-SVID §2: these headers, and no others
_HEADERS: Final = frozenset({"alg", "kid", "typ"})
_TYPES: Final = frozenset({"JWT", "JOSE"})


class SpiffeIssuer(TrustedIssuer):
    """A trust domain whose bundle is pinned in settings (file, or an ``https_web`` endpoint)."""

    def __init__(self, settings: IssuerSettings) -> None:
        super().__init__(settings)
        # JWT-SVID §3 knows no `iss`; some servers write one, which then says nothing of the domain.
        del self._checks["iss"]
        self._checks["sub"] = workload_of(settings.issuer)

    def _verify_with(self, keys: KeySet, token: jose.UnverifiedToken, now: float) -> VerifiedClaims:
        header = token.unverified_header
        if not header.keys() <= _HEADERS or header.get("typ", "JWT") not in _TYPES:
            raise TokenInvalid("not the header of a JWT-SVID")
        return jose.verify(
            token,
            keys,
            algorithms=self._algorithms,
            checks=self._checks,
            now=now,
            issuer=self.settings.issuer,
        )

    def _parse(self, document: bytes) -> KeySet:
        return KeySet.from_jwks(document, algorithms=self._algorithms, use=USE_JWT)


def workload_of(trust_domain: str) -> jose.ClaimCheck:
    """The claim is the SPIFFE ID of a workload in this trust domain."""

    def check(value: Any, _now: float) -> None:
        if not isinstance(value, str):
            raise TokenInvalid("sub is missing")
        try:
            identity = SpiffeId.parse(value)
        except SpiffeIdInvalid as error:
            raise TokenInvalid(f"sub: {error}") from error
        if identity.trust_domain != trust_domain:
            raise TokenInvalid("sub is of another trust domain")
        if not identity.path:  # SPIFFE-ID §3.1: an ID without a path is a signing authority's
            raise TokenInvalid("sub names a trust domain, not a workload")

    return check
