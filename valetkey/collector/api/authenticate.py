"""Who calls: the bearer token of a trusted issuer, verified once and remembered until it expires.

Tokens are remembered by SHA-256, never as such. A refused token is never remembered, and a
remembered one is forgotten at its ``exp`` at the latest, without leeway.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from cachetools import TLRUCache

from valetkey.collector.settings import CollectorSettings
from valetkey.contracts import codes, jose
from valetkey.contracts.binding import check_binding
from valetkey.contracts.errors import CallerError, PolicyError
from valetkey.contracts.issuer import PINNED, IssuerKinds, TrustedIssuers
from valetkey.contracts.jose import TokenInvalid
from valetkey.contracts.spiffe import SpiffeIssuer

_SCHEME: Final = "bearer"
# Sidecars show what they have: tokens of pinned issuers, JWT-SVIDs.
_KINDS: Final[IssuerKinds] = {**PINNED, "spiffe": SpiffeIssuer}


@dataclass(frozen=True, slots=True)
class Caller:
    """A verified caller. ``workload``: its issuer is trusted for workload tokens."""

    issuer: str
    subject: str
    workload: bool
    expires: float


class Authenticator:
    """Verifies callers and knows what each may do."""

    def __init__(
        self, settings: CollectorSettings, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._issuers = TrustedIssuers(settings.issuers, kinds=_KINDS)
        self._readers = frozenset((reader.issuer, reader.subject) for reader in settings.readers)
        self._clock = clock
        self._verified: TLRUCache[bytes, Caller] = TLRUCache(
            settings.verified_tokens, ttu=lambda _key, caller, _now: caller.expires, timer=clock
        )

    async def sidecar(self, request: web.Request) -> Caller:
        """The workload that delivers events. Raises `CallerError`, `PolicyError`."""
        caller = await self._caller(request)
        if not caller.workload:
            raise PolicyError(
                codes.SERVICE_FORBIDDEN, f"{caller.issuer} is not trusted for workload tokens"
            )
        return caller

    async def reader(self, request: web.Request) -> Caller:
        """The caller, if the settings name it as a reader. Raises `CallerError`, `PolicyError`."""
        caller = await self._caller(request)
        if (caller.issuer, caller.subject) not in self._readers:
            raise PolicyError(codes.SERVICE_FORBIDDEN, f"{caller.subject} is not a reader")
        return caller

    async def _caller(self, request: web.Request) -> Caller:
        token = _bearer(request)
        key = hashlib.sha256(token.encode()).digest()
        known = self._verified.get(key)
        if known is not None:
            return known
        try:
            unverified = jose.parse(token)
            issuer = self._issuers.find(unverified)
            claims = await issuer.verify(unverified, now=self._clock())
            check_binding(claims.claims, "")  # no proof of possession is asked for here
        except TokenInvalid as error:
            raise CallerError(codes.SERVICE_UNAUTHENTICATED, str(error)) from error
        caller = Caller(
            claims.issuer,
            claims.subject,
            issuer.settings.use == "workload",
            float(claims.claims["exp"]),
        )
        self._verified[key] = caller
        return caller


def _bearer(request: web.Request) -> str:
    """RFC 6750 §2.1: the one token of the one Authorization field."""
    fields = request.headers.getall("Authorization", [])
    if len(fields) != 1:
        raise CallerError(codes.SERVICE_UNAUTHENTICATED, "not exactly one Authorization field")
    scheme, _, token = fields[0].partition(" ")
    token = token.strip(" ")
    if scheme.lower() != _SCHEME or not token.isascii() or not token:
        raise CallerError(codes.SERVICE_UNAUTHENTICATED, "not a bearer token")
    return token
