"""An identity provider for tests: a P-256 key, a JWKS file, tokens that hold and that do not."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.canaries import CANARIES


class Idp:
    """One issuer. Its JWKS lie in ``directory``; every token it mints is a canary."""

    def __init__(
        self, directory: Path, *, issuer: str = "https://idp.test.example", kid: str = "idp-1"
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.issuer = issuer
        self.kid = kid
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.jwks_file = directory / f"{_file_name(issuer)}-jwks.json"
        self._write_jwks()

    def jwks(self) -> dict[str, Any]:
        """The JWK Set with the current key alone."""
        return {"keys": [self.public_jwk()]}

    def public_jwk(self) -> dict[str, Any]:
        public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key()))
        return {**public, "kid": self.kid, "use": "sig", "alg": "ES256"}

    def rotate(self, kid: str) -> None:
        """A new key under a new id; the JWKS file holds it alone from now on."""
        self.kid = kid
        self.key = ec.generate_private_key(ec.SECP256R1())
        self._write_jwks()

    def mint(
        self,
        sub: str,
        aud: str | list[str],
        ttl: float = 3600,
        *,
        now: float | None = None,
        headers: dict[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """A token. ``claims`` add to or replace the standard ones; one that is ``None`` is left out."""
        issued = time.time() if now is None else now
        payload = {
            "iss": self.issuer,
            "sub": sub,
            "aud": aud,
            "iat": int(issued),
            "exp": int(issued + ttl),
            **claims,
        }
        payload = {name: value for name, value in payload.items() if value is not None}
        token = jwt.encode(
            payload, self.key, algorithm="ES256", headers={"kid": self.kid, **(headers or {})}
        )
        CANARIES.add(token, name=f"token of {sub} by {self.issuer}")
        return token

    def token_file(
        self, path: Path, sub: str, aud: str | list[str], ttl: float = 3600, **claims: Any
    ) -> str:
        """Mint into ``path``, atomically as Kubernetes does; gives the token too."""
        token = self.mint(sub, aud, ttl, **claims)
        path.parent.mkdir(parents=True, exist_ok=True)
        CANARIES.allow(path)
        fresh = path.with_name(f".{path.name}.new")
        CANARIES.allow(fresh)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(token)
        fresh.replace(path)
        return token

    def trust(self, audience: str, use: str = "workload", **settings: Any) -> dict[str, Any]:
        """The entry of a program's ``issuers`` setting that trusts this issuer."""
        return {
            "issuer": self.issuer,
            "audience": audience,
            "use": use,
            "jwks_file": str(self.jwks_file),
            **settings,
        }

    def _write_jwks(self) -> None:
        fresh = self.jwks_file.with_suffix(".new")
        fresh.write_text(json.dumps(self.jwks()))
        fresh.replace(self.jwks_file)


def _file_name(issuer: str) -> str:
    return "".join(char if char.isalnum() else "-" for char in issuer.partition("://")[2] or issuer)
