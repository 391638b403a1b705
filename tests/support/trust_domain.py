"""A SPIFFE trust domain for tests: its bundle, JWT-SVIDs and X.509-SVIDs that hold and do not."""

from __future__ import annotations

import base64
import datetime as dt
import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.support.canaries import CANARIES

_KEY_USAGE = {
    "digital_signature": False,
    "content_commitment": False,
    "key_encipherment": False,
    "data_encipherment": False,
    "key_agreement": False,
    "key_cert_sign": False,
    "crl_sign": False,
    "encipher_only": False,
    "decipher_only": False,
}
_PEM = serialization.Encoding.PEM
_DER = serialization.Encoding.DER


class Authority:
    """A CA with its key; ``issuer`` signs it, by default itself."""

    def __init__(self, uri: str, *, issuer: Authority | None = None) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        signer = issuer or self
        self.name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, f"CA of {uri}")])
        now = dt.datetime.now(dt.UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(signer.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(**{**_KEY_USAGE, "key_cert_sign": True, "crl_sign": True}),
                critical=True,
            )
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()),
                critical=False,
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False
            )
            .sign(signer.key, hashes.SHA256())
        )


class Svid:
    """A certificate with its key, as a client presents it."""

    def __init__(self, chain: list[x509.Certificate], key: ec.EllipticCurvePrivateKey) -> None:
        self.chain = chain
        self.key = key

    @property
    def leaf(self) -> x509.Certificate:
        return self.chain[0]

    @property
    def thumbprint(self) -> str:
        """RFC 8705 §3.1, by hand."""
        digest = self.leaf.fingerprint(hashes.SHA256())
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

    def write(self, path: Path) -> Path:
        """Chain and key as one PEM file."""
        key = self.key.private_bytes(
            _PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.touch(mode=0o600)
        path.write_bytes(key + b"".join(one.public_bytes(_PEM) for one in self.chain))
        return path


class TrustDomain:
    """One trust domain with a CA and a key for JWT-SVIDs."""

    def __init__(self, name: str = "acme.example", kid: str = "jwt-1") -> None:
        self.name = f"spiffe://{name}"
        self.kid = kid
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.authority = Authority(self.name)

    def workload(self, path: str = "/ns/agents/sa/bot") -> str:
        return self.name + path

    def bundle(self) -> dict[str, Any]:
        """SPIFFE Trust Domain and Bundle §4, as SPIRE's bundle endpoint gives it."""
        jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key()))
        root = json.loads(
            jwt.algorithms.ECAlgorithm.to_jwk(self.authority.certificate.public_key())
        )
        der = base64.b64encode(self.authority.certificate.public_bytes(_DER)).decode()
        return {
            "keys": [
                {**root, "use": "x509-svid", "x5c": [der]},
                {**jwk, "use": "jwt-svid", "kid": self.kid},
            ],
            "spiffe_sequence": 1,
            "spiffe_refresh_hint": 300,
        }

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(self.bundle()))
        return path

    def jwt_svid(
        self,
        audience: Any,
        *,
        path: str = "/ns/agents/sa/bot",
        ttl: float = 300,
        now: float | None = None,
        headers: dict[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """As SPIRE writes it: a list as ``aud``, no ``iss``, no ``jti``; ``None`` drops a claim."""
        issued = time.time() if now is None else now
        payload = {
            "sub": self.workload(path),
            "aud": audience,
            "iat": int(issued),
            "exp": int(issued + ttl),
            **claims,
        }
        payload = {name: value for name, value in payload.items() if value is not None}
        token = jwt.encode(
            payload,
            self.key,
            algorithm="ES256",
            headers={"kid": self.kid, "typ": "JWT", **(headers or {})},
        )
        CANARIES.add(token, name=f"JWT-SVID of {self.name}")
        return token

    def x509_svid(
        self,
        *uris: str,
        authority: Authority | None = None,
        intermediates: list[Authority] | None = None,
        ttl: float = 600,
        starts: float = -60,
        ca: bool = False,
        key_usage: tuple[str, ...] = ("digital_signature",),
        dns: tuple[str, ...] = (),
        others: tuple[x509.GeneralName, ...] = (),
    ) -> Svid:
        """By default for `workload`; else for these names (an empty URI stands for none)."""
        signer = authority or self.authority
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        chosen = uris or (() if dns or others else (self.workload(),))
        names = [
            *(x509.UniformResourceIdentifier(uri) for uri in chosen if uri),
            *(x509.DNSName(name) for name in dns),
            *others,
        ]
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "SPIRE")]))
            .issuer_name(signer.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + dt.timedelta(seconds=starts))
            .not_valid_after(now + dt.timedelta(seconds=ttl))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(**{**_KEY_USAGE, **dict.fromkeys(key_usage, True)}), critical=True
            )
            .add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
                ),
                critical=False,
            )
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()),
                critical=False,
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        leaf = builder.sign(signer.key, hashes.SHA256())
        return Svid([leaf, *(one.certificate for one in intermediates or ())], key)
