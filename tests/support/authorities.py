"""CAs as others make them, good and bad, for a sidecar that is given one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.canaries import CANARIES

DAY = 86_400.0
ANY_DEPTH = x509.BasicConstraints(ca=True, path_length=None)


def key_usage(**used: bool) -> x509.KeyUsage:
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
        "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**(dict.fromkeys(names, False) | used))


@dataclass(frozen=True, slots=True)
class Ca:
    """A certificate and its key; ``above`` are its issuers, the nearest first."""

    certificate: x509.Certificate
    key: Any
    above: tuple[x509.Certificate, ...] = ()

    def pem(self) -> bytes:
        return b"".join(
            item.public_bytes(serialization.Encoding.PEM)
            for item in (self.certificate, *self.above)
        )

    def key_pem(self, password: bytes | None = None) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password)
            if password
            else serialization.NoEncryption(),
        )

    def write(self, directory: Path) -> tuple[Path, Path]:
        """``(certificate, key)`` files; the key's is closed to others."""
        certificate, key = directory / "given.pem", directory / "given.key"
        certificate.write_bytes(self.pem())
        key.touch(mode=0o600)
        key.write_bytes(self.key_pem())
        CANARIES.allow(key)
        canary(self.key, allow=key)
        return certificate, key


def canary(key: Any, *, allow: Path | None = None) -> None:
    """Have every output searched for a private key, in the forms in which it could show."""
    encoded = key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    CANARIES.add(encoded, name="the CA's key", allow=[allow] if allow else [])
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    CANARIES.add(text.decode().splitlines()[1], name="the CA's key, PEM")


def make(
    name: str = "Example CA",
    *,
    issuer: Ca | None = None,
    key: Any = None,
    basic: x509.BasicConstraints | None = ANY_DEPTH,
    critical: bool = True,
    usage: x509.KeyUsage | None = None,
    identified: bool = True,
    more: tuple[x509.ExtensionType, ...] = (),
    begins: float = -DAY,
    ends: float = 365 * DAY,
) -> Ca:
    """A CA; ``begins`` and ``ends`` are seconds from now, ``None`` leaves an extension out."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = issuer or Ca(None, key)  # type: ignore[arg-type]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_moment(begins))
        .not_valid_after(_moment(ends))
    )
    if basic is not None:
        builder = builder.add_extension(basic, critical=critical)
    builder = builder.add_extension(
        key_usage(key_cert_sign=True) if usage is None else usage, critical=True
    )
    if identified:
        builder = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        )
    if issuer is not None:
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()),
            critical=False,
        )
    for extension in more:
        builder = builder.add_extension(
            extension, critical=isinstance(extension, x509.NameConstraints)
        )
    wide = isinstance(signer.key, ec.EllipticCurvePrivateKey) and signer.key.key_size > 256
    certificate = builder.sign(signer.key, hashes.SHA384() if wide else hashes.SHA256())
    above = (issuer.certificate, *issuer.above) if issuer else ()
    return Ca(certificate, key, above)


def _moment(offset: float) -> datetime:
    return datetime.fromtimestamp(int(time.time() + offset), UTC)
