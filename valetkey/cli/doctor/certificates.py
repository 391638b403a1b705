"""Certificates in files: the interception CA's own, and which of them a trust store holds."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import re
import warnings
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs12
from cryptography.utils import CryptographyDeprecationWarning

_PEM: Final = re.compile(
    rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----(.+?)-----END (?:TRUSTED |X509 )?CERTIFICATE",
    re.DOTALL,
)
# The first bytes of a Java key store in its old format; the new one is PKCS #12.
_JKS: Final = bytes.fromhex("feedfeed")


@dataclass(frozen=True, slots=True)
class Authority:
    """The interception CA's certificate."""

    der: bytes
    subject: str
    begins: dt.datetime
    ends: dt.datetime

    @property
    def fingerprint(self) -> str:
        """SHA-256, as ``openssl x509 -fingerprint`` writes it."""
        return ":".join(f"{octet:02X}" for octet in hashlib.sha256(self.der).digest())

    def holds_at(self, now: dt.datetime) -> bool:
        return self.begins <= now <= self.ends


class NoAuthority(ValueError):  # noqa: N818 - what the file is, not a fault
    """The file does not hold a CA certificate; the message says what it holds."""


def authority_in(pem: bytes) -> Authority:
    """The first certificate of a PEM file, which must be a CA's. Raises `NoAuthority`."""
    ders = certificates_in(pem)
    if not ders:
        raise NoAuthority("no certificate in PEM")
    try:
        certificate = x509.load_der_x509_certificate(ders[0])
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except ValueError as error:
        raise NoAuthority("not a certificate") from error
    except x509.ExtensionNotFound as error:
        raise NoAuthority("not a CA's certificate") from error
    if not constraints.value.ca:
        raise NoAuthority("not a CA's certificate")
    return Authority(
        ders[0],
        certificate.subject.rfc4514_string(),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
    )


def certificates_in(pem: bytes) -> list[bytes]:
    """Every certificate of a PEM file as DER; blocks that are no base64 are passed over.

    Certificates are not parsed: bundles hold some that no strict parser takes, and clients that
    trust them do not care.
    """
    found = []
    for block in _PEM.findall(pem):
        try:
            found.append(base64.b64decode(b"".join(block.split()), validate=True))
        except binascii.Error:
            continue
    return found


def java_store(store: bytes, password: str | None) -> list[bytes] | None:
    """The certificates of a PKCS #12 trust store, opened as Java does; ``None`` if it stays shut.

    Without a password, Java sees in a store only what is not encrypted. Stores in the old format
    are another thing: `is_old_java_store`.
    """
    try:
        with warnings.catch_warnings():
            # Some roots in use have serial numbers that RFC 5280 does not allow.
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            opened = pkcs12.load_pkcs12(store, password.encode() if password else None)
    except ValueError:
        return None
    return [each.certificate.public_bytes(Encoding.DER) for each in opened.additional_certs]


def is_old_java_store(store: bytes) -> bool:
    """Whether it is a JKS file: certificates lie in it as they are, only their digest is keyed."""
    return store.startswith(_JKS)
