"""Clients by certificate: mutual TLS at a listener of its own (RFC 8705).

- TLS proves that the client has the certificate's key; whose it is, and whether its chain holds,
  is judged here by the bundle of the trust domain that it names, or by the roots of a PKI. What
  OpenSSL accepted in the handshake is only a first sieve, over all roots together.
- Behind a terminator the certificate comes in a header (RFC 9440). Such a header is read from the
  settings' own terminator alone: everything on a loopback listener that is for nothing else, or a
  peer that has authenticated as the terminator's SPIFFE ID. From anybody else it is refused, not
  passed over.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from cachetools import TTLCache
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from valetkey.broker.mtls_settings import LOOPBACK, MtlsSettings
from valetkey.broker.trust.certificate_header import CERT, CHAIN, read_certificates
from valetkey.broker.trust.pki import client_of, names_spiffe_id
from valetkey.broker.trust.roots import Roots
from valetkey.broker.trust.spiffe import workload_of
from valetkey.broker.trust.tokens import VerifiedToken
from valetkey.contracts import binding, codes
from valetkey.contracts.errors import CallerError
from valetkey.contracts.issuer import IssuerSettings
from valetkey.contracts.jose import TokenInvalid, VerifiedClaims
from valetkey.contracts.served_certificate import ServedCertificate

# A chain that held is taken to hold for as long as keys of tokens are (contracts/issuer.py).
_REMEMBERED: Final = 60.0
_REMEMBERED_MOST: Final = 10_000
# More certificates than any trust domain has between leaf and root.
_MAX_CHAIN: Final = 8
# How often new roots are taken up for handshakes, and files of roots are looked at.
_REFRESH: Final = 2.0


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """A workload's certificate whose key was proved and whose chain holds.

    ``thumbprint`` is its ``x5t#S256``, ``begins`` and ``expires`` in seconds since the epoch,
    ``base`` the URL under which the request came (RFC 8705 §5).
    """

    settings: IssuerSettings
    subject: str
    thumbprint: str
    begins: float
    expires: float
    base: str

    def as_token(self) -> VerifiedToken:
        """The same party as a JWT-SVID of this workload says, until the certificate expires."""
        claims = {"sub": self.subject, "iat": self.begins, "exp": self.expires}
        verified = VerifiedClaims(self.settings.issuer, self.subject, claims, {})
        return VerifiedToken(verified, self.settings)


class Certificates:
    """The certificates of a broker's clients.

    ``issuers`` are those in settings. Without ``settings`` nobody comes with a certificate.
    ``served`` is what their listener presents, if it is not a terminator's on loopback: ``context``
    is what that speaks TLS with.
    """

    def __init__(
        self,
        issuers: Iterable[IssuerSettings],
        settings: MtlsSettings | None,
        served: ServedCertificate | None = None,
    ) -> None:
        self._served = served
        self.context = served.asking_clients() if served is not None else None
        self._base = settings.url if settings is not None else ""
        self._terminator = settings.terminator if settings is not None else ""
        self._ports: set[int] = set()
        roots = [Roots(issuer) for issuer in issuers if issuer.kind in {"spiffe", "x509"}]
        self._domains = {one.settings.issuer: one for one in roots if one.settings.kind == "spiffe"}
        self._pkis = [one for one in roots if one.settings.kind == "x509"]
        self._held: TTLCache[bytes, _Held] = TTLCache(_REMEMBERED_MOST, _REMEMBERED)

    def listens(self, port: int) -> None:
        """Connections to this port come through the listener for certificates."""
        self._ports.add(port)

    async def brought(self, request: web.Request, *, now: float) -> str:
        """The thumbprint of the certificate that came with the request, or empty.

        Nothing is said of its chain: RFC 8705 §3 asks for none to use a bound token.
        Raises `CallerError`.
        """
        chain = await self._chain(request, now)
        return binding.thumbprint(chain[0]) if chain else ""

    async def of(self, request: web.Request, *, now: float) -> ClientCertificate | None:
        """The client's certificate, if one came. Raises `CallerError` for one that can't count."""
        chain = await self._chain(request, now)
        if not chain:
            return None
        held = await self._verify(chain, now)
        return ClientCertificate(
            held.settings,
            held.subject,
            binding.thumbprint(chain[0]),
            held.begins,
            held.expires,
            self._base,
        )

    async def _chain(self, request: web.Request, now: float) -> list[bytes]:
        """The client's own certificate and what it sent with it, in DER, or nothing."""
        told = CERT in request.headers or CHAIN in request.headers
        if not self._came_for_certificates(request):
            if told:
                raise CallerError(codes.MTLS_HEADER, "a client certificate header from a stranger")
            return []
        if self._terminator == LOOPBACK:
            return _from_header(request) if told else []
        transport = request.transport
        tls = transport.get_extra_info("ssl_object") if transport is not None else None
        peer = _peer_chain(tls) if tls is not None else []
        if self._terminator and peer and await self._is_terminator(peer, now):
            # Its own certificate is never the client's: it may relay calls of clients without one.
            return _from_header(request) if told else []
        if told:
            raise CallerError(codes.MTLS_HEADER, "a client certificate header from a stranger")
        return peer

    async def _is_terminator(self, peer: Sequence[bytes], now: float) -> bool:
        return (await self._verify(peer, now)).subject == self._terminator

    def _came_for_certificates(self, request: web.Request) -> bool:
        transport = request.transport
        own = transport.get_extra_info("sockname") if transport is not None else None
        return isinstance(own, tuple) and own[1] in self._ports

    async def _verify(self, chain: Sequence[bytes], now: float) -> _Held:
        key = hashlib.sha256(b"".join(chain)).digest()
        held = self._held.get(key)
        try:
            if held is None:
                held = await self._judge(chain, now)
                self._held[key] = held
            if not held.begins <= now < held.expires:
                raise TokenInvalid("the certificate is not valid at this time")  # noqa: TRY301
        except TokenInvalid as error:
            raise CallerError(codes.MTLS_INVALID, str(error)) from error
        return held

    async def _judge(self, chain: Sequence[bytes], now: float) -> _Held:
        if len(chain) > _MAX_CHAIN:
            raise TokenInvalid("the certificate's chain is too long")
        try:
            leaf, *intermediates = [x509.load_der_x509_certificate(der) for der in chain]
        except ValueError as error:
            raise TokenInvalid("a certificate can't be read") from error
        roots, subject = await self._find(leaf, intermediates, now)
        return _Held(
            roots.settings,
            subject,
            leaf.not_valid_before_utc.timestamp(),
            leaf.not_valid_after_utc.timestamp(),
        )

    async def _find(
        self, leaf: x509.Certificate, intermediates: Sequence[x509.Certificate], now: float
    ) -> tuple[Roots, str]:
        """Whose certificate it is, and the name of its client there. Raises `TokenInvalid`."""
        if names_spiffe_id(leaf):
            identity = workload_of(leaf)
            subject = str(identity)
            domain = self._domains.get(identity.trust_domain)
            if domain is None:
                raise TokenInvalid("the certificate is of a foreign trust domain")
            await domain.verify(subject, leaf, intermediates, now=now)
            return domain, subject
        subject = client_of(leaf)
        refused = TokenInvalid("no issuer's certificates have such names")
        for roots in self._pkis:
            try:
                await roots.verify(subject, leaf, intermediates, now=now)
            except TokenInvalid as error:
                refused = error
            else:
                return roots, subject
        raise refused

    async def keep_roots(self) -> None:
        """Let handshakes know the roots of all bundles, until cancelled."""
        while True:
            await self.load_roots()
            await asyncio.sleep(_REFRESH)

    async def load_roots(self) -> None:
        """Add the current roots. None is taken out: `of` judges by the current bundle alone."""
        if self._served is None:
            return
        for roots in (*self._domains.values(), *self._pkis):
            new = await roots.not_known()
            self._served.trust(authority.public_bytes(Encoding.DER) for authority in new)


@dataclass(frozen=True, slots=True)
class _Held:
    settings: IssuerSettings
    subject: str
    begins: float
    expires: float


def _from_header(request: web.Request) -> list[bytes]:
    try:
        return read_certificates(
            request.headers.getall(CERT, ()), request.headers.getall(CHAIN, ())
        )
    except ValueError as error:
        raise CallerError(codes.MTLS_INVALID, str(error)) from error


def _peer_chain(tls: Any) -> list[bytes]:
    """What the client sent, leaf first, in DER.

    Python has it in public from 3.13 on; before, on the object underneath.
    """
    public = getattr(tls, "get_unverified_chain", None)
    if public is not None:
        return list(public())
    sent = (tls._sslobj.get_unverified_chain() if tls._sslobj is not None else None) or []
    return [one.public_bytes(_ENCODING_DER) for one in sent]


_ENCODING_DER: Final = 2  # _ssl.ENCODING_DER
