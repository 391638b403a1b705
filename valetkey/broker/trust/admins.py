"""Administrators: people and programs that manage the broker, by the token of an OIDC issuer.

Their issuers are a list of their own in settings (``admin.issuers``): a workload's or a user's
token never administers anything, whatever it says.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from valetkey.broker.core.roles import Role, RoleRule, roles_of
from valetkey.broker.trust.mtls import Certificates
from valetkey.broker.trust.tokens import Clock, TokenVerifier
from valetkey.contracts import codes
from valetkey.contracts.binding import check_binding
from valetkey.contracts.errors import CallerError
from valetkey.contracts.jose import TokenInvalid

# RFC 6750 §2.1
_BEARER: Final = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/-]+=*)")


@dataclass(frozen=True, slots=True)
class Admin:
    """Who did something, with the roles that settings give. ``claims`` are the verified token's."""

    issuer: str
    subject: str
    roles: frozenset[Role]
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


def bearer(request: web.Request) -> str:
    """The token of the one ``Authorization: Bearer`` header (RFC 6750 §2.1).

    Raises `CallerError`.
    """
    headers = request.headers.getall("Authorization", ())
    if len(headers) != 1:
        raise CallerError(codes.SERVICE_UNAUTHENTICATED, "no Authorization header, or several")
    match = _BEARER.fullmatch(headers[0])
    if match is None:
        raise CallerError(codes.SERVICE_UNAUTHENTICATED, "Authorization is no bearer token")
    return match[1]


class Admins:
    """``tokens`` verifies tokens of the administrators' issuers; ``None``: there are none."""

    def __init__(
        self,
        tokens: TokenVerifier | None,
        rules: Iterable[RoleRule],
        certificates: Certificates | None = None,
        *,
        clock: Clock = time.time,
    ) -> None:
        self._tokens = tokens
        self._certificates = certificates
        self._clock = clock
        self._rules = tuple(rules)

    async def authenticate(self, request: web.Request) -> Admin:
        """Who sends the request. Raises `CallerError`."""
        compact = bearer(request)
        if self._tokens is None:
            raise CallerError(codes.SERVICE_UNAUTHENTICATED, "settings name no admin issuers")
        try:
            token = await self._tokens.verify(compact, use="admin")
        except TokenInvalid as error:
            raise CallerError(codes.SERVICE_UNAUTHENTICATED, str(error)) from error
        claims = token.claims
        await self._check_binding(claims.claims, request)
        roles = roles_of(self._rules, claims.issuer, claims.subject, claims.claims)
        return Admin(claims.issuer, claims.subject, roles, claims.claims)

    async def _check_binding(self, claims: Mapping[str, Any], request: web.Request) -> None:
        brought = ""
        if self._certificates is not None and "cnf" in claims:
            brought = await self._certificates.brought(request, now=self._clock())
        check_binding(claims, brought)
