"""A listener's TLS, whose certificate is exchanged while connections go on.

Invariants:

- A certificate is taken up whole: certificate and key fit together, or the old ones stay. A good
  one is not exchanged for one that has expired, or is not valid yet.
- Connections that are open keep what they were made with; each new handshake has the newest.
- Keys are handed to OpenSSL, which takes them from files only, through memory (memfd_create).

A listener keeps one context for its life. At each handshake it is exchanged for the newest one by
the callback for server names, which OpenSSL calls for clients that name none, too. What a
connection takes over is the certificate and the store of roots; whether the client is asked for a
certificate stays what the listener's own context says (SSL_set_SSL_CTX).
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Iterable
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from valetkey.contracts.errors import ConfigError

_NAME: Final = "valetkey-tls"


class ServedCertificate:
    """What is served by now. Nothing is, until the first `replace`: handshakes fail.

    ``context`` is for listeners. ``begins`` and ``expires`` are in seconds since the epoch.
    ``taken_up`` counts certificates.
    """

    def __init__(self) -> None:
        self._current: ssl.SSLContext | None = None
        self._content = (b"", b"")
        self._roots: list[bytes] = []
        self.begins = 0.0
        self.expires = 0.0
        self.taken_up = 0
        self.context = self._listening()

    def asking_clients(self) -> ssl.SSLContext:
        """The context of a listener that lets nobody through without a certificate of `trust`."""
        context = self._listening()
        context.verify_mode = ssl.CERT_REQUIRED
        # A bundle's root need not be self-signed.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context

    def trust(self, roots: Iterable[bytes]) -> None:
        """Roots of clients' certificates (DER), beside those of before."""
        new = list(roots)
        self._roots += new
        if self._current is not None:
            _trust(self._current, new)

    async def replace(self, certificate: bytes, key: bytes, *, now: float) -> None:
        """Take up a chain and its key, PEM, if they are others. Raises `ConfigError`."""
        if (certificate, key) == self._content:
            return
        made, leaf = await asyncio.to_thread(_made, certificate, key)
        begins = leaf.not_valid_before_utc.timestamp()
        expires = leaf.not_valid_after_utc.timestamp()
        if self.begins <= now < self.expires and not begins <= now < expires:
            raise ConfigError(
                "the certificate has expired" if now >= expires else "it is not valid yet"
            )
        _trust(made, self._roots)
        self._current, self._content = made, (certificate, key)
        self.begins, self.expires = begins, expires
        self.taken_up += 1

    def _listening(self) -> ssl.SSLContext:
        context = _context()
        context.sni_callback = self._choose
        return context

    def _choose(
        self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext
    ) -> int | None:
        if self._current is None:
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        connection.context = self._current
        return None


def _trust(context: ssl.SSLContext, roots: Iterable[bytes]) -> None:
    for root in roots:
        context.load_verify_locations(cadata=root)


def _made(certificate: bytes, key: bytes) -> tuple[ssl.SSLContext, x509.Certificate]:
    context = _context()
    try:
        leaf = x509.load_pem_x509_certificate(certificate)
        with _in_memory(certificate) as cert_file, _in_memory(key) as key_file:
            context.load_cert_chain(cert_file.path, key_file.path, password=_no_password)
    except (
        ValueError, OSError, x509.InvalidVersion, UnsupportedAlgorithm,
    ) as error:  # ssl.SSLError is an OSError  # fmt: skip
        raise ConfigError(f"certificate and key can't be used together: {error}") from error
    return context, leaf


def _no_password() -> str:
    """OpenSSL would ask the terminal."""
    raise ValueError("the key is encrypted")


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class _in_memory:  # noqa: N801 - reads as what it is in a `with`
    def __init__(self, content: bytes) -> None:
        self._descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC)
        os.write(self._descriptor, content)
        self.path = f"/proc/self/fd/{self._descriptor}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
