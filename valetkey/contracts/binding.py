"""Tokens that are bound to a client certificate (RFC 8705 §3) or a key (RFC 9449 §6): the check."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any, Final

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.contracts.jose import b64url

CONFIRMATION: Final = "x5t#S256"
KEY_CONFIRMATION: Final = "jkt"  # RFC 9449 §6.1


def thumbprint(der: bytes) -> str:
    """``x5t#S256`` of a certificate in DER (RFC 8705 §3.1)."""
    return b64url(hashlib.sha256(der).digest())


def check_binding(claims: Mapping[str, Any], certificate: str, *, proof: str = "") -> None:
    """Whether a token may be used by who proved to own ``certificate`` and the key of ``proof``.

    ``claims`` are the token's own or those of its introspection, ``certificate`` is a
    `thumbprint`, ``proof`` the thumbprint of the key that signed a DPoP proof (RFC 7638); empty:
    there is none. A token that is bound is no bearer token (RFC 9449 §7.2, RFC 8705 §3), and what
    it is bound to in a way that is not known here can't be checked (RFC 7800 §3.1). Raises
    `CallerError` with ``mtls.mismatch``.
    """
    confirmation = claims.get("cnf")
    if confirmation is None:
        return
    if not isinstance(confirmation, dict) or not confirmation:
        raise CallerError(codes.MTLS_MISMATCH, "cnf is no confirmation")
    shown = {CONFIRMATION: certificate, KEY_CONFIRMATION: proof}
    for method, bound in confirmation.items():
        if method not in shown:
            raise CallerError(codes.MTLS_MISMATCH, "the token is bound to something else")
        what = "certificate" if method == CONFIRMATION else "key"
        if not isinstance(bound, str) or not shown[method]:
            raise CallerError(codes.MTLS_MISMATCH, f"the token is bound to a {what}")
        if not hmac.compare_digest(bound.encode(), shown[method].encode()):
            raise CallerError(codes.MTLS_MISMATCH, f"the token is bound to another {what}")
