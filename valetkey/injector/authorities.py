"""Certificates of the injector's own: P-256, made in the process. It all blocks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from valetkey.injector.core.rotation import Authority, Leaf

# Clocks of API servers that are behind this one.
_SKEW: Final = 300.0


def new_authority(now: float, lifetime: float) -> Authority:
    """A CA that signs leaves and nothing else."""
    key = ec.generate_private_key(ec.SECP256R1())
    # Each has a name of its own: of two with one name, some verifiers try the first alone.
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, f"valetkey injector CA {round(now * 1000)}")]
    )
    certificate = (
        _builder(name, name, key.public_key(), now, lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(_pem(certificate), _key_pem(key), now, now + lifetime)


def new_leaf(authority: Authority, names: Sequence[str], now: float, lifetime: float) -> Leaf:
    """A server certificate for these DNS names, of a key of its own. It does not outlive its CA."""
    issuer = x509.load_pem_x509_certificate(authority.certificate.encode())
    signing = load_pem_private_key(authority.key.encode(), password=None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    lifetime = min(lifetime, authority.expires - now)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "valetkey injector")])
    certificate = (
        _builder(subject, issuer.subject, key.public_key(), now, lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()),
            critical=False,
        )
        .sign(signing, hashes.SHA256())
    )
    return Leaf(_pem(certificate), _key_pem(key), tuple(names), now, now + lifetime)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: float,
    lifetime: float,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(now - _SKEW, UTC))
        .not_valid_after(datetime.fromtimestamp(now + lifetime, UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
