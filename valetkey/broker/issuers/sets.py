"""Security events as SETs: signed once for each audience, whoever many receive them.

What is signed is kept as long as its key signs: a SET that is sent again later is then signed
anew, under a key that receivers still find in the JWK Set.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

from valetkey.broker.core.feed import Published
from valetkey.broker.issuers.keyring import KeyRing
from valetkey.broker.issuers.signer import Signer
from valetkey.contracts.sets import TYP
from valetkey.contracts.signals import event_claims

_KEPT: Final = 4096


class SetIssuer:
    """``issuer`` is the broker's identifier."""

    def __init__(self, ring: KeyRing, *, issuer: str) -> None:
        self._signer = Signer(ring, TYP)
        self._issuer = issuer
        self._signed: OrderedDict[tuple[str, str], tuple[str, str]] = OrderedDict()

    def issue(self, published: Published, *, audience: str, with_reason: bool) -> str:
        """The SET of an event for an audience."""
        key = (published.jti, audience)
        known = self._signed.get(key)
        kid = self._signer.kid
        if known is not None and known[0] == kid:
            return known[1]
        claims: dict[str, Any] = {
            "iss": self._issuer,
            "aud": audience,
            "iat": int(published.published_at),
            "jti": published.jti,
            **event_claims(published.event, issuer=self._issuer, with_reason=with_reason),
        }
        compact = self._signer.sign(claims)
        self._signed[key] = (kid, compact)
        if len(self._signed) > _KEPT:
            self._signed.popitem(last=False)
        return compact
