"""An identity provider in files, as the broker and the collector trust it: key, JWKS, token."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

ISSUER: Final = "https://idp.bench.example"
WORKLOAD: Final = "spiffe://bench.example/ns/bench/sa/load"
_LIFETIME: Final = 24 * 3600  # longer than any run


class Identity:
    """One ES256 issuer; ``jwks_file`` is what the services read."""

    def __init__(self, directory: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        jwk = ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        self.jwks_file = directory / "jwks.json"
        self.jwks_file.write_text(
            json.dumps({"keys": [{**jwk, "kid": "bench", "use": "sig", "alg": "ES256"}]})
        )

    def workload_token(self, audience: str) -> str:
        """What a projected service-account token is to the sidecar."""
        return self._sign({"sub": WORKLOAD, "aud": audience}, typ="JWT")

    def static_token(self) -> str:
        """The credential of the rows that know only a static one.

        It has the claims of a token that the broker mints, hence its size: what a proxy has to
        copy per call is alike in all rows.
        """
        details = {
            "type": "valetkey_http_call",
            "locations": ["http://tickets.example"],
            "actions": ["GET"],
            "identifier": "tickets-read",
            "path": "/api/tickets/{id}",
        }
        claims = {
            "sub": WORKLOAD,
            "aud": "http://tickets.example",
            "client_id": WORKLOAD,
            "client_iss": ISSUER,
            "scope": "tickets:read",
            "txn": "0" * 22,
            "policy_digest": "0" * 43,
            "authorization_details": [details],
        }
        return self._sign(claims, typ="at+jwt", kid="0" * 43)

    def _sign(self, claims: dict[str, Any], *, typ: str, kid: str = "bench") -> str:
        now = int(time.time())
        times = {"iss": ISSUER, "iat": now, "exp": now + _LIFETIME, "jti": "0" * 22}
        return jwt.encode(
            {**times, **claims}, self._key, algorithm="ES256", headers={"kid": kid, "typ": typ}
        )
