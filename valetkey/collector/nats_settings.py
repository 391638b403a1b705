"""Where the record is handed on to: a JetStream stream. Secrets are files, never values.

Invariants, checked while loading:

- What goes beyond this machine goes over TLS, unless settings say that something else speaks it.
- Who the collector is to NATS is proven by a key: there are no passwords.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from msgspec import Meta

from valetkey.contracts.errors import ConfigError
from valetkey.contracts.fetch import is_loopback
from valetkey.contracts.settings import Duration, Settings, duration, pattern

# What a name of a stream may be: no part of a subject's syntax (NATS: "Naming", streams).
_STREAM: Final = r"[A-Za-z0-9_-]{1,200}"
_SUBJECT: Final = r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*"
_LONGEST: Final = 60.0


class NatsTlsSettings(Settings, frozen=True, kw_only=True):
    """TLS to NATS. Without ``ca_file`` its certificate must be of one of the system's authorities.

    ``cert_file`` and ``key_file`` are the collector's own certificate, where NATS asks for one.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")

    def context(self) -> ssl.SSLContext:
        """A client context, of what the files hold now. Raises `ConfigError`."""
        try:
            context = ssl.create_default_context(
                cafile=str(self.ca_file) if self.ca_file is not None else None
            )
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.cert_file is not None and self.key_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"nats.tls: {error}") from error
        return context


class NatsSettings(Settings, frozen=True, kw_only=True):
    """A JetStream stream that the record is handed on to, once it is in the database.

    ``servers`` are URLs, ``tls://HOST:PORT``; ``nats://`` is for loopback, or for ``tls:
    terminated``: something between speaks TLS, and nothing else reaches it. ``credentials_file`` (a
    user's JWT and seed) or ``nkey_file`` (a seed) says who the collector is; both are read anew for
    each connection. ``domain`` is JetStream's, where it is behind a leaf node.

    ``stream`` is there already; ``subject`` begins the subject of each message, and the stream
    takes ``SUBJECT.>`` and nothing else. ``acknowledge`` says when a sidecar's batch is: once it is
    ``stored`` in the database, or ``handed_on`` as well, so that without NATS none is.

    ``batch`` is how many messages are under way at once, ``connect`` and ``answer`` how long NATS
    may take for a connection and for an acknowledgement.
    """

    servers: Annotated[tuple[str, ...], Meta(min_length=1)]
    stream: Annotated[str, pattern(_STREAM)]
    subject: Annotated[str, pattern(_SUBJECT)] = "valetkey.record"
    domain: Annotated[str, pattern(_STREAM)] | None = None
    tls: NatsTlsSettings | Literal["terminated"] | None = None
    credentials_file: Path | None = None
    nkey_file: Path | None = None
    acknowledge: Literal["stored", "handed_on"] = "stored"
    batch: Annotated[int, Meta(ge=1, le=4000)] = 500
    connect: Duration = duration(5)
    answer: Duration = duration(5)

    def __post_init__(self) -> None:
        for url in self.servers:
            _check(url, self.tls)
        if self.credentials_file is not None and self.nkey_file is not None:
            raise ValueError("give one of credentials_file and nkey_file")
        for name in ("connect", "answer"):
            if not 0.1 <= getattr(self, name) <= _LONGEST:
                raise ValueError(f"{name} is between 100ms and 1m")

    @property
    def subjects(self) -> str:
        """What the stream takes."""
        return f"{self.subject}.>"

    def context(self) -> ssl.SSLContext | None:
        """The TLS of ``tls://``; ``None`` without it. Raises `ConfigError`."""
        if not self.servers[0].startswith("tls:"):
            return None
        tls = self.tls if isinstance(self.tls, NatsTlsSettings) else NatsTlsSettings()
        return tls.context()


def _check(url: str, tls: NatsTlsSettings | Literal["terminated"] | None) -> None:
    scheme, separator, rest = url.partition("://")
    try:
        parts = urlsplit(f"//{rest}")
        host, complete = parts.hostname or "", bool(parts.hostname and parts.port)
    except ValueError:
        host, complete = "", False
    if scheme not in {"tls", "nats"} or not separator or not complete or parts.netloc != rest:
        raise ValueError(f"{scheme}: a server is tls://HOST:PORT or nats://HOST:PORT")
    if parts.username is not None:
        raise ValueError("a server's URL has no user: name a credentials_file or nkey_file")
    if scheme == "tls" and tls == "terminated":
        raise ValueError("tls: terminated is for nats://, which something else makes TLS")
    if scheme == "nats" and isinstance(tls, NatsTlsSettings):
        raise ValueError("tls is given, so a server is tls://HOST:PORT")
    if scheme == "nats" and tls is None and not is_loopback(host):
        raise ValueError(
            f"nats://{host} is not loopback: use tls://, or set tls: terminated if something "
            "between speaks TLS"
        )
