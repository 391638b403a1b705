"""Deployments: CI jobs that open and close windows, each by the OIDC token of its own run.

Their issuers are a list of their own in settings (``deployments.issuers``), so that what a token is
trusted for never depends on where it is presented.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from valetkey.broker.trust.admins import bearer
from valetkey.broker.trust.tokens import TokenVerifier
from valetkey.contracts import codes
from valetkey.contracts.binding import check_binding
from valetkey.contracts.errors import CallerError
from valetkey.contracts.jose import TokenInvalid


@dataclass(frozen=True, slots=True)
class Deployment:
    """Who announces itself. ``token`` is a digest that tells its token from every other one."""

    issuer: str
    subject: str
    claims: Mapping[str, Any] = field(repr=False)
    token: bytes

    def announcement(self, grant_id: str) -> bytes:
        """What can be announced once with this token: a window of that grant."""
        return hashlib.sha256(self.token + grant_id.encode()).digest()


class Deployments:
    """``tokens`` verifies tokens of the deployments' issuers; ``None``: there are none."""

    def __init__(self, tokens: TokenVerifier | None) -> None:
        self._tokens = tokens

    async def authenticate(self, request: web.Request) -> Deployment:
        """Who sends the request. Raises `CallerError`."""
        compact = bearer(request)
        if self._tokens is None:
            raise CallerError(codes.SERVICE_UNAUTHENTICATED, "settings name no deployment issuers")
        try:
            token = await self._tokens.verify(compact, use="deployment")
        except TokenInvalid as error:
            raise CallerError(codes.SERVICE_UNAUTHENTICATED, str(error)) from error
        claims = token.claims
        check_binding(claims.claims, "")  # no proof of possession is asked for here
        return Deployment(
            claims.issuer,
            claims.subject,
            claims.claims,
            _digest(claims.issuer, claims.claims.get("jti"), compact),
        )


def _digest(issuer: str, jti: Any, compact: str) -> bytes:
    """RFC 7519 §4.1.7: a `jti` is unique within its issuer. Without one, what was signed counts.

    Not the signature: whoever has an ECDSA signature can make a second one that holds.
    """
    signed = compact.rpartition(".")[0]
    text = f"{len(issuer)}:{issuer}{jti}" if isinstance(jti, str) and jti else f"token:{signed}"
    return hashlib.sha256(text.encode()).digest()
