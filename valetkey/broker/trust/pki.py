"""Client certificates of a PKI that is no SPIFFE trust domain (``tls_client_auth``, RFC 8705 §2.1).

The client's name is the one name in the certificate: a URI or a DNS name (§2.1.2). A certificate
with several, or with none but a distinguished name, names nobody: which counted would be a guess.
"""

from __future__ import annotations

import re
from typing import Final

from cryptography import x509

from valetkey.contracts.issuer import TrustedIssuer
from valetkey.contracts.jose import TokenInvalid, UnverifiedToken, VerifiedClaims

_DNS: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
# RFC 3986: no spaces, nothing that is not ASCII
_URI: Final = re.compile(r"[a-z][a-z0-9+.-]*:[\x21-\x7e]{1,2048}")


class CertificateIssuer(TrustedIssuer):
    """Such a PKI among the issuers of tokens, of which it is none."""

    async def verify(self, token: UnverifiedToken, *, now: float) -> VerifiedClaims:  # noqa: ARG002
        """Refuses every token."""
        raise TokenInvalid("the issuer gives certificates and no tokens")


def read_roots(pem: bytes) -> tuple[x509.Certificate, ...]:
    """The CA certificates in a file. Raises `TokenInvalid` if there are none."""
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except ValueError as error:
        raise TokenInvalid("not a file of certificates in PEM") from error


def names_spiffe_id(leaf: x509.Certificate) -> bool:
    """Whether a certificate claims to be an X.509-SVID, and so must be a whole one."""
    return any(uri.lower().startswith("spiffe:") for uri in _names(leaf)[0])


def client_of(leaf: x509.Certificate) -> str:
    """The one URI or DNS name. Raises `TokenInvalid`; the chain is another matter."""
    uris, hosts = _names(leaf)
    if len(uris) + len(hosts) != 1:
        raise TokenInvalid("the certificate does not have exactly one name")
    if not all(map(_URI.fullmatch, uris)) or not all(map(_DNS.fullmatch, hosts)):
        raise TokenInvalid("the certificate's name is written in an unusual way")
    try:
        if leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise TokenInvalid("the certificate is a CA's")
    except x509.ExtensionNotFound:  # RFC 5280 §4.2.1.9: without it, it is no CA's
        pass
    return (*uris, *hosts)[0]


def _names(leaf: x509.Certificate) -> tuple[list[str], list[str]]:
    """URIs and DNS names. Raises `TokenInvalid`."""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [], []
    except ValueError as error:
        raise TokenInvalid("the certificate's extensions can't be read") from error
    return (
        names.get_values_for_type(x509.UniformResourceIdentifier),
        names.get_values_for_type(x509.DNSName),
    )
