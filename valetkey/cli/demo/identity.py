"""Who is who in the demo: two issuers with their keys, and what a stranger's theft looks like."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from valetkey.contracts import oauth
from valetkey.contracts.dpop import ProofKey

WORKLOADS: Final = "https://idp.demo.example"
PEOPLE: Final = "https://login.demo.example"
OPERATIONS: Final = "https://operations.demo.example"
AGENT: Final = "spiffe://demo.example/ns/agents/sa/bot"
CONSOLE: Final = "spiffe://demo.example/ns/support/sa/console"
AUDITOR: Final = "spiffe://demo.example/ns/security/sa/auditor"
USER: Final = "user-7"
APPROVER: Final = "olga"
CI: Final = "https://ci.demo.example"
JOB: Final = "repo:acme/tickets:environment:production"
JOB_CLAIMS: Final = {"repository": "acme/tickets", "ref": "refs/heads/main"}
OPERATOR: Final = "oskar"
_LIFETIME: Final = 12 * 3600  # as long as somebody may keep the demo running


class Issuer:
    """An identity provider: a key of its own, and a JWKS file for those who trust it."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.jwks_file = directory / f"{urllib.parse.urlsplit(name).hostname}-jwks.json"
        self._key = ec.generate_private_key(ec.SECP256R1())
        public = jwt.algorithms.ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        entry = {**public, "kid": "demo", "use": "sig", "alg": "ES256"}
        self.jwks_file.write_text(json.dumps({"keys": [entry]}), encoding="utf-8")

    def token(self, subject: str, audience: str, more: Mapping[str, str] | None = None) -> str:
        now = int(time.time())
        claims = {"iss": self.name, "sub": subject, "aud": audience, "iat": now}
        return jwt.encode(
            {**(more or {}), **claims, "exp": now + _LIFETIME, "jti": secrets.token_urlsafe(8)},
            self._key,
            algorithm="ES256",
            headers={"kid": "demo"},
        )

    def trust(self, audience: str, use: str) -> dict[str, Any]:
        """The entry of a program's ``issuers`` setting."""
        entry: dict[str, Any] = {
            "issuer": self.name,
            "audience": audience,
            "use": use,
            "jwks_file": str(self.jwks_file),
        }
        return {**entry, "reusable": True} if use == "workload" else entry


def write_private(path: Path, content: str | bytes) -> None:
    """A file that nobody else may read."""
    raw = content.encode() if isinstance(content, str) else content
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(raw)


def exchange(port: int, token: str, audience: str, scope: str) -> str:
    """A token of the broker for the workload that ``token`` is of, without any sidecar."""
    form = {
        "grant_type": oauth.GRANT_TOKEN_EXCHANGE,
        "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
        "client_assertion": token,
        "subject_token": token,
        "subject_token_type": oauth.TOKEN_TYPE_JWT,
        "audience": audience,
        "scope": scope,
    }
    key, nonce = ProofKey(), ""
    for _ in range(2):  # RFC 9449 §8: the first proof learns the nonce
        proof = key.proof(
            method="POST",
            url=f"http://127.0.0.1:{port}/token",
            jti=secrets.token_urlsafe(16),
            now=int(time.time()),
            nonce=nonce,
        )
        headers = {"Content-Type": "application/x-www-form-urlencoded", "DPoP": proof}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/token", urllib.parse.urlencode(form), headers)
        response = connection.getresponse()
        nonce = response.getheader("DPoP-Nonce", "")
        answer: dict[str, Any] = json.loads(response.read())
        connection.close()
        if "access_token" in answer:
            return str(answer["access_token"])
    raise RuntimeError(f"no token for {audience}: {answer.get('error')} {answer.get('code')}")
