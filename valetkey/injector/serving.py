"""TLS of the webhook: one listener, whose certificate is exchanged while connections go on.

Invariants:

- A certificate is taken up whole: certificate and key fit together, or the old ones stay.
- Connections that are open keep what they were made with; each new handshake has the newest.
- Keys are handed to OpenSSL, which takes them from files only, through memory (memfd_create).
"""

from __future__ import annotations

import asyncio
import os
import ssl
from datetime import UTC
from typing import Final, Self

from cryptography import x509

from valetkey.contracts.errors import ConfigError

_NAME: Final = "valetkey-injector"


class ServedCertificate:
    """What is served by now. Nothing is, until the first `replace`: handshakes fail."""

    def __init__(self) -> None:
        self._current: ssl.SSLContext | None = None
        self._content = (b"", b"")
        self.expires = 0.0
        self.context = _context()
        self.context.sni_callback = self._choose

    async def replace(self, certificate: bytes, key: bytes) -> bool:
        """Take up a chain and its key, PEM. True if they are others. Raises `ConfigError`."""
        if (certificate, key) == self._content:
            return False
        made, expires = await asyncio.to_thread(_made, certificate, key)
        self._current, self._content, self.expires = made, (certificate, key), expires
        return True

    def _choose(
        self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext
    ) -> int | None:
        if self._current is None:
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        connection.context = self._current
        return None


def _made(certificate: bytes, key: bytes) -> tuple[ssl.SSLContext, float]:
    context = _context()
    try:
        leaf = x509.load_pem_x509_certificate(certificate)
        with _in_memory(certificate) as cert_file, _in_memory(key) as key_file:
            context.load_cert_chain(cert_file.path, key_file.path, password=_no_password)
    except (ValueError, OSError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(f"certificate and key can't be used together: {error}") from error
    return context, leaf.not_valid_after_utc.astimezone(UTC).timestamp()


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
