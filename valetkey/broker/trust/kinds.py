"""Which kinds of issuer the broker reads, each in a file of its own."""

from __future__ import annotations

from typing import Final

from valetkey.broker.trust.kubernetes import KubernetesIssuer
from valetkey.broker.trust.oidc import OidcIssuer
from valetkey.broker.trust.pki import CertificateIssuer
from valetkey.contracts.issuer import IssuerKinds
from valetkey.contracts.spiffe import SpiffeIssuer

KINDS: Final[IssuerKinds] = {
    "oidc": OidcIssuer,
    "kubernetes": KubernetesIssuer,
    "spiffe": SpiffeIssuer,
    "x509": CertificateIssuer,
}
