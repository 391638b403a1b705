"""The CA of TLS interception and the certificates that it signs (RFC 5280), without I/O.

Invariants:

- What is made here passes the strictest readers: OpenSSL's ``X509_STRICT`` (Python's default since
  3.13), Chromium, Java, Go. A given CA that they would refuse is refused at the start.
- A leaf names one host, is good for TLS servers alone, and never outlives its CA.
- A leaf that the CA's name constraints forbid is not made.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from valetkey.contracts import codes
from valetkey.contracts.errors import ConfigError, ValetkeyError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

# A made CA dies with the process or is renewed; trust stores that hold it live as long as clients.
CA_LIFETIME: Final = 365 * 86_400.0
# For clocks that are a little behind.
BACKDATED: Final = 300.0
_MAX_COMMON_NAME: Final = 64  # RFC 5280 appendix A.1, ub-common-name
_NOTHING: Final = dict.fromkeys(
    (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
        "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    ),
    False,
)  # fmt: skip
_SERVER_AUTH: Final = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
_SIGNATURES: Final = x509.KeyUsage(**(_NOTHING | {"digital_signature": True}))
_CA_USAGE: Final = x509.KeyUsage(**(_NOTHING | {"key_cert_sign": True, "crl_sign": True}))
_NOT_A_CA: Final = x509.BasicConstraints(ca=False, path_length=None)
_CA: Final = x509.BasicConstraints(ca=True, path_length=0)


class CannotIssue(ValetkeyError):  # noqa: N818 - reads as what it is
    """No certificate can be made for a host. The code is ``interception.no_certificate``."""

    def __init__(self, reason: str) -> None:
        super().__init__(codes.INTERCEPTION_NO_CERTIFICATE, reason)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate for one host, PEM with the intermediates behind it. ``expires``: Unix time."""

    pem: bytes
    expires: float


@dataclass(frozen=True, slots=True)
class Issuer:
    """A CA that signs leaves. ``chain`` begins with its certificate and ends at ``anchor``.

    ``anchor`` is what clients must trust, ``expires`` (Unix time) the first end in the chain.
    """

    chain: tuple[x509.Certificate, ...]
    expires: float
    begins: float
    key: SigningKey = field(repr=False)

    @property
    def certificate(self) -> x509.Certificate:
        return self.chain[0]

    @property
    def anchor(self) -> x509.Certificate:
        return self.chain[-1]

    def leaf(self, host: str, key: ec.EllipticCurvePublicKey, *, now: float, until: float) -> Leaf:
        """A certificate for a DNS name (A-labels, lower case) or an IP address.

        Times are Unix times. Raises `CannotIssue`.
        """
        if not self.begins <= now < self.expires:
            raise CannotIssue("the CA has expired or is not valid yet")
        address = ip_address(host)
        if not self._permits(host, address):
            raise CannotIssue("the CA's name constraints exclude this host")
        expires = min(until, self.expires)
        names = [x509.DNSName(host) if address is None else x509.IPAddress(address)]
        # A name in the subject would fall under constraints on directory names.
        named = address is None and len(host) <= _MAX_COMMON_NAME and not self._constrained_subject
        common_name = [x509.NameAttribute(NameOID.COMMON_NAME, host)] if named else []
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(common_name))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_date(max(now - BACKDATED, self.begins)))
            .not_valid_after(_date(expires))
            .add_extension(_NOT_A_CA, critical=True)
            .add_extension(_SIGNATURES, critical=True)
            .add_extension(_SERVER_AUTH, critical=False)
            # RFC 5280 §4.2.1.6: critical where the subject is empty.
            .add_extension(x509.SubjectAlternativeName(names), critical=not named)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(_authority_key(self.certificate), critical=False)
            .sign(self.key, _hash(self.key))
        )
        # A root is not sent: the client has it, or sending it changes nothing.
        sent = [certificate, *(ca for ca in self.chain if ca.subject != ca.issuer)]
        return Leaf(b"".join(pem(item) for item in sent), expires)

    @property
    def _constrained_subject(self) -> bool:
        return any(
            isinstance(name, x509.DirectoryName)
            for constraints in self._constraints()
            for name in (
                *(constraints.permitted_subtrees or ()),
                *(constraints.excluded_subtrees or ()),
            )
        )

    def _constraints(self) -> list[x509.NameConstraints]:
        found: list[x509.NameConstraints] = []
        for ca in self.chain:
            try:
                found.append(ca.extensions.get_extension_for_class(x509.NameConstraints).value)
            except x509.ExtensionNotFound:
                continue
        return found

    def _permits(self, host: str, address: Address | None) -> bool:
        """Whether the chain's name constraints let a leaf name this host (RFC 5280 §4.2.1.10)."""
        kind = x509.DNSName if address is None else x509.IPAddress
        for constraints in self._constraints():
            permitted = [n for n in constraints.permitted_subtrees or () if isinstance(n, kind)]
            # Names of a kind that no permitted subtree speaks of are not restricted.
            if permitted and not any(_below(host, address, name) for name in permitted):
                return False
            excluded = constraints.excluded_subtrees or ()
            if any(_below(host, address, name) for name in excluded if isinstance(name, kind)):
                return False
        return True


def new_key() -> ec.EllipticCurvePrivateKey:
    """A P-256 key: quick to sign with, and every TLS client verifies it."""
    return ec.generate_private_key(ec.SECP256R1())


def new_authority(instance: str, *, now: float) -> Issuer:
    """A self-signed CA with a key of its own, named after the sidecar's instance."""
    key = new_key()
    # The key's identifier in the name: two runs of one instance are not one issuer to anybody.
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()
    name = x509.Name([
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Valetkey interception CA"),
        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, identifier[:16]),
        x509.NameAttribute(NameOID.COMMON_NAME, instance),
    ])  # fmt: skip
    return _self_signed(name, key, now=now)


def renewed(issuer: Issuer, *, now: float) -> Issuer:
    """A made CA with a new certificate: name and key stay, so those who trust the old one go on."""
    return _self_signed(issuer.certificate.subject, issuer.key, now=now)


def _self_signed(name: x509.Name, key: SigningKey, *, now: float) -> Issuer:
    public = key.public_key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_date(now - BACKDATED))
        .not_valid_after(_date(now + CA_LIFETIME))
        .add_extension(_CA, critical=True)
        .add_extension(_CA_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, _hash(key))
    )
    return issuer_of([certificate], key, now=now)


def read_authority(certificates: bytes, key: bytes, *, now: float) -> Issuer:
    """A given CA from PEM. Raises `ConfigError` without a key path: the caller knows the file."""
    try:
        chain = x509.load_pem_x509_certificates(certificates)
    except ValueError as error:
        raise ConfigError("no PEM certificate, or one that can't be read") from error
    return issuer_of(chain, read_key(key), now=now)


def read_key(text: bytes) -> SigningKey:
    """A private key from PEM. Raises `ConfigError`; no message repeats what was read."""
    try:
        key = serialization.load_pem_private_key(text, password=None)
    except TypeError:
        raise ConfigError("the key is encrypted: give it without a passphrase") from None
    except Exception:  # noqa: BLE001 - UnsupportedAlgorithm, ValueError: their texts are not ours
        raise ConfigError("no PEM private key, or one that can't be read") from None
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in {"secp256r1", "secp384r1"}:
        return key
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 2048:
        return key
    raise ConfigError("the key is neither P-256, P-384 nor RSA of 2048 bits or more")


def issuer_of(chain: Sequence[x509.Certificate], key: SigningKey, *, now: float) -> Issuer:
    """Check a CA, its issuers and its key. Raises `ConfigError`."""
    if _spki(chain[0].public_key()) != _spki(key.public_key()):
        raise ConfigError("the key is not that of the first certificate")
    for depth, certificate in enumerate(chain):
        name = certificate.subject.rfc4514_string() or "a certificate without a subject"
        try:
            _check_ca(certificate, depth)
            # The last one is where trust begins: a root, or an intermediate that clients are given.
            above = chain[min(depth + 1, len(chain) - 1)]
            if above is not certificate or certificate.issuer == certificate.subject:
                certificate.verify_directly_issued_by(above)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
        except (ValueError, TypeError, InvalidSignature) as error:
            raise ConfigError(f"{name}: was not issued by the certificate behind it") from error
    begins = max(item.not_valid_before_utc.timestamp() for item in chain)
    expires = min(item.not_valid_after_utc.timestamp() for item in chain)
    if now < begins:
        raise ConfigError("the CA is not valid yet")
    if now >= expires:
        raise ConfigError("the CA has expired")
    return Issuer(tuple(chain), expires, begins, key)


def _check_ca(certificate: x509.Certificate, depth: int) -> None:
    """What RFC 5280 §4.2.1 wants of a CA, which strict clients enforce."""
    try:
        extensions = certificate.extensions
    except (ValueError, x509.DuplicateExtension) as error:
        raise ConfigError("extensions that can't be read") from error
    try:
        basic = extensions.get_extension_for_class(x509.BasicConstraints)
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound as error:
        raise ConfigError(
            "basicConstraints, keyUsage and subjectKeyIdentifier are needed, not all are there"
        ) from error
    if not basic.value.ca or not basic.critical:
        raise ConfigError("is no CA (basicConstraints CA:TRUE, critical)")
    if basic.value.path_length is not None and basic.value.path_length < depth:
        raise ConfigError("its path length forbids the CA below it")
    if not usage.key_cert_sign:
        raise ConfigError("may not sign certificates (keyUsage keyCertSign)")
    try:
        extended = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & {
        *extended
    }:
        raise ConfigError("may not issue for TLS servers (extendedKeyUsage serverAuth)")


def ip_address(host: str) -> Address | None:
    """The address that ``host`` is a literal of (brackets allowed), or ``None`` for a name."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: SigningKey) -> bytes:
    """The key in the clear, for those who must have it: OpenSSL and the key file."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _below(host: str, address: Address | None, subtree: x509.GeneralName) -> bool:
    if address is not None:
        network = subtree.value
        assert isinstance(network, ipaddress.IPv4Network | ipaddress.IPv6Network)  # RFC 5280
        return address in network
    base = str(subtree.value).lower().rstrip(".")
    # A leading dot is no RFC's, but CAs write it and OpenSSL and Go read it: names below only.
    return host.endswith(base) if base[:1] in {"", "."} else f".{host}".endswith(f".{base}")


def _authority_key(certificate: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    own = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _hash(key: SigningKey) -> hashes.SHA256 | hashes.SHA384:
    wide = isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.key_size > 256
    return hashes.SHA384() if wide else hashes.SHA256()


def _spki(key: object) -> bytes:
    assert hasattr(key, "public_bytes")
    encoded = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert isinstance(encoded, bytes)
    return encoded


def _date(moment: float) -> datetime:
    """Unix time as X.509 has it: whole seconds, UTC."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(moment))
