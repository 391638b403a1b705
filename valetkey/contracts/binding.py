"""Tokens that are bound to a client certificate (RFC 8705 §3): who checks them, and how."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any, Final

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.contracts.jose import b64url

CONFIRMATION: Final = "x5t#S256"


def thumbprint(der: bytes) -> str:
    """``x5t#S256`` of a certificate in DER (RFC 8705 §3.1)."""
    return b64url(hashlib.sha256(der).digest())


def check_binding(claims: Mapping[str, Any], certificate: str) -> None:
    """Whether a token may be used as a bearer token by who proved to own ``certificate``.

    ``claims`` are the token's own or those of its introspection, ``certificate`` is a
    `thumbprint`, or empty. A token that is bound to anything else (a DPoP key, something unknown)
    is no bearer token at all (RFC 9449 §7.2). Raises `CallerError` with ``mtls.mismatch``.
    """
    confirmation = claims.get("cnf")
    if confirmation is None:
        return
    if not isinstance(confirmation, dict) or confirmation.keys() != {CONFIRMATION}:
        raise CallerError(codes.MTLS_MISMATCH, "the token is bound to something else")
    bound = confirmation[CONFIRMATION]
    if not isinstance(bound, str) or not certificate:
        raise CallerError(codes.MTLS_MISMATCH, "the token is bound to a certificate")
    if not hmac.compare_digest(bound.encode(), certificate.encode()):
        raise CallerError(codes.MTLS_MISMATCH, "the token is bound to another certificate")
