"""X.509-SVIDs by the bundle of their trust domain (X509-SVID §5, SPIFFE Trust Domain and Bundle).

The roots are the bundle's ``x509-svid`` keys and no others: an X.509-SVID is never judged by the
system's trust store. A leaf names exactly one URI, the SPIFFE ID of a workload, and may sign
nothing. JWT-SVIDs of the same bundle are read by `valetkey.contracts.spiffe`.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from valetkey.contracts.jose import TokenInvalid
from valetkey.contracts.spiffe_id import SpiffeId, SpiffeIdInvalid

USE_X509: Final = "x509-svid"  # X509-SVID §6.1
_BUNDLE: Final = msgspec.json.Decoder(dict[str, Any])


def read_authorities(document: bytes) -> tuple[x509.Certificate, ...]:
    """The roots in a bundle. Raises `TokenInvalid` if it is none, or has none."""
    try:
        entries = _BUNDLE.decode(document)["keys"]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError) as error:
        raise TokenInvalid("not a SPIFFE bundle") from error
    if not isinstance(entries, list):
        raise TokenInvalid("not a SPIFFE bundle")
    authorities = []
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("use") != USE_X509:
            continue
        chain = entry.get("x5c")
        # X509-SVID §6.1: exactly one certificate
        if not isinstance(chain, list) or len(chain) != 1 or not isinstance(chain[0], str):
            raise TokenInvalid("a root of the bundle is not one certificate")
        try:
            der = base64.b64decode(chain[0], validate=True)
            authorities.append(x509.load_der_x509_certificate(der))
        except (binascii.Error, ValueError) as error:
            raise TokenInvalid("a root of the bundle can't be read") from error
    if not authorities:
        raise TokenInvalid("the bundle holds no roots of certificates")
    return tuple(authorities)


def verify_chain(
    leaf: x509.Certificate,
    intermediates: Sequence[x509.Certificate],
    authorities: Sequence[x509.Certificate],
    *,
    now: float,
) -> None:
    """Whether the chain leads to one of ``authorities`` (RFC 5280 §6). Raises `TokenInvalid`.

    ``now`` is in seconds since the epoch, and judged without leeway: a certificate has a time of
    its own on both ends.
    """
    when = dt.datetime.fromtimestamp(now, dt.UTC).replace(tzinfo=None)
    verifier = PolicyBuilder().store(Store(list(authorities))).time(when).build_client_verifier()
    try:
        verifier.verify(leaf, list(intermediates))
    except VerificationError as error:
        raise TokenInvalid("the certificate's chain does not hold") from error


def workload_of(leaf: x509.Certificate) -> SpiffeId:
    """The workload that an X.509-SVID is of. Raises `TokenInvalid`; the chain is another matter."""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
        basic = leaf.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound as error:
        raise TokenInvalid("the certificate lacks an extension of X.509-SVIDs") from error
    except ValueError as error:
        raise TokenInvalid("the certificate's extensions can't be read") from error
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:  # X509-SVID §2
        raise TokenInvalid("the certificate does not name exactly one URI")
    # X509-SVID §4.1, §4.3, appendix A
    if basic.ca or not usage.critical or not usage.value.digital_signature:
        raise TokenInvalid("the certificate is no leaf for authentication")
    if usage.value.key_cert_sign or usage.value.crl_sign:
        raise TokenInvalid("the certificate may sign others")
    try:
        identity = SpiffeId.parse(uris[0])
    except SpiffeIdInvalid as error:
        raise TokenInvalid(f"the certificate's URI: {error}") from error
    if not identity.path:
        raise TokenInvalid("the certificate names a trust domain, not a workload")
    return identity
