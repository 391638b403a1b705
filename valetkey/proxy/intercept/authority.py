"""TLS towards the client in an opened tunnel: a context per host, made when first asked for.

Invariants:

- The CA's key is in this process alone, unless settings name a file for it; so is the leaves' key,
  always. OpenSSL takes keys from files only: it gets them through a pipe.
- One host, one context: its certificate names that host, a handshake that asks for another name
  (SNI) fails, and no session is taken up under another name (RFC 6066 §3). A client that asks for
  no name is served for IP addresses alone.
- Contexts are bounded, least recently used out first, and replaced well before they expire.

All leaves of one run share one P-256 key. It is as well kept as the CA's key, with which anyone
could sign leaves for keys of their own, so a key per leaf would protect nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Final, Self

from cachetools import LRUCache
from cryptography import x509

from valetkey.proxy.intercept import certificates
from valetkey.proxy.intercept.authority_files import AuthorityFiles
from valetkey.proxy.intercept.certificates import CannotIssue, Issuer, ip_address
from valetkey.proxy.intercept.handshake import Handshake, server_context
from valetkey.proxy.settings import InterceptionSettings

Clock = Callable[[], float]

# A context takes about 20 KiB, so this is about 5 MiB; each has one host of the settings.
_CONTEXTS: Final = 256
# A client without session tickets (RFC 5077) leaves its TLS 1.2 session with the context, 20,480
# of them as OpenSSL has it.
_SESSIONS: Final = 1000
_RENEW_AT: Final = 0.8  # of the lifetime, as credentials are


class InterceptionAuthority:
    """The CA of one sidecar and the contexts made under it."""

    def __init__(
        self,
        settings: InterceptionSettings,
        files: AuthorityFiles,
        issuer: Issuer,
        now: Clock,
    ) -> None:
        self._settings = settings
        self._files = files
        self._issuer = issuer
        self._now = now
        key = certificates.new_key()
        self._leaf_public = key.public_key()
        self._leaf_key = certificates.key_pem(key)
        self._contexts: LRUCache[str, tuple[ssl.SSLContext, float]] = LRUCache(_CONTEXTS)
        self.minted = 0

    @classmethod
    def open(cls, settings: InterceptionSettings, *, instance: str, now: Clock = time.time) -> Self:
        """Make a CA for this process, or take the one that settings give.

        ``instance`` is the sidecar's name in the record. Blocking. Raises `ConfigError` with the
        key path.
        """
        files = AuthorityFiles(settings, instance)
        return cls(settings, files, files.issuer(now()), now)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.certificate.subject.rfc4514_string()!r})"

    @property
    def certificate(self) -> x509.Certificate:
        """What clients must trust."""
        return self._issuer.anchor

    @property
    def pem(self) -> bytes:
        """What clients must trust, as PEM."""
        return certificates.pem(self._issuer.anchor)

    @property
    def expires(self) -> float:
        """When the CA, or the first of its issuers, ends: Unix time."""
        return self._issuer.expires

    @property
    def problem(self) -> str:
        """Why no certificate can be made now; empty if all is well."""
        return "the CA has expired" if self._now() >= self._issuer.expires else ""

    def publish(self) -> None:
        """Write the files that settings name for clients. Blocking. Raises `ConfigError`."""
        self._files.publish(self._issuer.anchor)

    def renew(self) -> bool:
        """Take up a given CA whose files changed, or extend a made one in time; then `publish`.

        A made CA keeps its name and key, so clients that trust the certificate that they read at
        their start go on. To be called now and then; true if there was something to do.
        Blocking. Raises `ConfigError`, and the CA stays the one it was.
        """
        new = self._files.changed(self._issuer, self._now())
        if new is None:
            return False
        self._files.publish(new.anchor)
        # In this order: `context` reads them in the other, so that no context of the old CA is
        # kept with those of the new one.
        self._issuer = new
        self._contexts = LRUCache(_CONTEXTS)
        return True

    def context(self, host: str) -> ssl.SSLContext:
        """TLS as the server ``host``: a DNS name (A-labels) or an IP literal, in any case.

        About 1 ms for a host that has none yet. Raises `CannotIssue`.
        """
        name = _normal(host)
        contexts = self._contexts
        known = contexts.get(name)
        if known is not None:
            context, renew_at = known
            if self._now() < renew_at and not _is_full(context):
                return context
        context, renew_at = self._mint(name)
        contexts[name] = context, renew_at
        return context

    def _mint(self, name: str) -> tuple[ssl.SSLContext, float]:
        now = self._now()
        issuer = self._issuer
        leaf = issuer.leaf(
            name, self._leaf_public, now=now, until=now + self._settings.leaf_lifetime
        )
        try:
            context = _loaded(leaf.pem, self._leaf_key)
        except OSError as error:  # no file descriptor to spare
            raise CannotIssue(f"no context: {error.strerror or type(error).__name__}") from error
        address = ip_address(name)

        def check(connection: ssl.SSLObject, asked: str | None, _: ssl.SSLContext) -> int | None:
            assert isinstance(connection, Handshake)
            connection.server_name = asked or ""
            if asked is None:
                # RFC 6066 §3: literal addresses are not permitted in SNI.
                return connection.refuse_name() if address is None else None
            return None if _normal(asked) == name else connection.refuse_name()

        context.sni_callback = check
        self.minted += 1
        return context, now + (leaf.expires - now) * _RENEW_AT


def _is_full(context: ssl.SSLContext) -> bool:
    """Whether it is time to let the context's sessions go, and the context with them."""
    return context.session_stats()["number"] >= _SESSIONS


def _loaded(certificate: bytes, key: bytes) -> ssl.SSLContext:
    """A context with this certificate, without a file: both go through a pipe's buffer."""
    context = server_context()
    with _readable(certificate) as certfile, _readable(key) as keyfile:
        context.load_cert_chain(certfile, keyfile)
    return context


@contextlib.contextmanager
def _readable(content: bytes) -> Iterator[str]:
    """A path under which ``content`` can be read once. Raises `OSError`."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", 0):
        with os.fdopen(writer, "wb", 0):
            # A pipe holds 64 KiB without a reader; non-blocking, more than that is an error.
            os.set_blocking(writer, False)
            written = os.write(writer, content)
        if written != len(content):
            raise OSError(errno.ENOBUFS, "a certificate chain larger than a pipe holds")
        yield f"/dev/fd/{reader}"


def _normal(host: str) -> str:
    """One spelling per host: names in lower case without the root's dot, addresses compressed."""
    name = host.lower().removesuffix(".")
    address = ip_address(name)
    return name if address is None else str(address)
