"""Settings of the listener for client certificates, and what they have to fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import urlsplit

from valetkey.contracts.errors import ConfigError
from valetkey.contracts.fetch import is_loopback, is_safe_url
from valetkey.contracts.issuer import IssuerSettings
from valetkey.contracts.service import address
from valetkey.contracts.settings import Settings
from valetkey.contracts.spiffe_id import SpiffeId, SpiffeIdInvalid

LOOPBACK: Final = "loopback"


class MtlsSettings(Settings, frozen=True, kw_only=True):
    """A second listener, for clients with certificates (RFC 8705).

    Their issuers are those of ``kind: spiffe`` (X.509-SVIDs) and ``kind: x509``. ``url`` is how
    clients reach it (``mtls_endpoint_aliases`` of the metadata). It presents the certificate in
    ``tls`` and lets nobody through without one of theirs.

    ``terminator`` is who may bring a client's certificate in ``Client-Cert`` (RFC 9440): a SPIFFE
    ID, for a terminator that comes with a certificate of its own; or ``loopback``, where the
    terminator runs beside the broker and is the only one that reaches ``bind``, which then is
    loopback and without TLS.
    """

    bind: str
    url: str
    terminator: str = ""

    def __post_init__(self) -> None:
        host = _host(self.bind)
        parts = urlsplit(self.url)
        if not is_safe_url(self.url) or parts.scheme != "https" or parts.path:
            raise ValueError("mtls.url must be an https URL without a path, not even a slash")
        if self.terminator == LOOPBACK:
            if not is_loopback(host):
                raise ValueError(f"mtls.bind {self.bind} is not loopback, as its terminator is")
        elif self.terminator:
            try:
                SpiffeId.parse(self.terminator)
            except SpiffeIdInvalid as error:
                raise ValueError(f"mtls.terminator: loopback, or: {error}") from error


def check_certificates(
    mtls: MtlsSettings | None,
    issuers: Iterable[IssuerSettings],
    *,
    main: str,
    bound: Sequence[str],
    has_tls: bool,
) -> None:
    """Whether the listener and the rest of the broker's settings make sense of each other.

    ``main`` is the address of the main listener, ``bound`` are the targets whose tokens are bound
    to certificates. Raises `ValueError`.
    """
    if mtls is None:
        if bound:
            raise ValueError(f"target {bound[0]}: credential: mtls needs the listener in mtls")
        for issuer in issuers:
            if issuer.kind == "x509":
                raise ValueError(f"issuer {issuer.issuer}: kind: x509 needs the listener in mtls")
        return
    # Connections are told apart by the port that they came to.
    if _port(mtls.bind) == _port(main) != 0:
        raise ValueError("mtls.bind: take another port than that of bind")
    if mtls.terminator != LOOPBACK and not has_tls:
        raise ValueError("mtls: give tls a certificate and key, or set terminator: loopback")
    known = [issuer for issuer in issuers if issuer.kind in {"spiffe", "x509"}]
    if not known:
        raise ValueError(
            "mtls: no issuer is of kind: spiffe or x509, so no certificate could count"
        )
    domains = {issuer.issuer for issuer in known if issuer.kind == "spiffe"}
    if mtls.terminator not in {"", LOOPBACK}:
        domain = SpiffeId.parse(mtls.terminator).trust_domain
        if domain not in domains:
            raise ValueError("mtls.terminator is of a trust domain that is no issuer")


def _port(bind: str) -> int:
    try:
        return address(bind)[1]
    except ConfigError as error:
        raise ValueError(f"mtls.bind: {error}") from error


def _host(bind: str) -> str:
    try:
        return address(bind)[0]
    except ConfigError as error:
        raise ValueError(f"mtls.bind: {error}") from error
