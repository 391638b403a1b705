"""``Authorization: DPoP`` with a fresh proof per request (RFC 9449 §7.1).

The key is the sidecar process's own and never leaves it; the token is bound to it, so that a
token that leaks is worth nothing without this process. The target's last nonce goes into the next
proof (§9); what it says about nonces never reaches the workload.
"""

from __future__ import annotations

import secrets
import time

from valetkey.contracts import oauth
from valetkey.contracts.dpop import ProofKey, token_hash
from valetkey.contracts.secret import Secret
from valetkey.proxy.core.credential import Credential
from valetkey.proxy.core.decision import Permit


class DpopInjector:
    """Proofs for one target: its nonce, and the hash of each token made once."""

    token_type = "DPoP"  # noqa: S105 - the type's name
    requested = oauth.TOKEN_TYPE_ACCESS

    def __init__(self, key: ProofKey) -> None:
        self._key = key
        self.nonce = ""

    def line(self, token: Secret) -> bytes:
        return b"authorization: DPoP %b\r\n" % token.reveal().encode()

    def lines(self, credential: Credential, permit: Permit, method: str) -> bytes:
        proof = self._key.proof(
            method=method,
            url=permit.target.url + permit.path,
            jti=secrets.token_urlsafe(16),
            now=int(time.time()),
            ath=token_hash(credential.token.reveal()),
            nonce=self.nonce,
        )
        return b"%bdpop: %b\r\n" % (credential.line, proof.encode())
