"""The TLS handshake with a client of an opened tunnel, and what it says when it fails.

Event loops drop the alert that OpenSSL wrote when a handshake fails, and tell little of why. Here
the client gets its alert, so that it can say what is wrong, and the caller gets a code.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Final, cast

from valetkey.contracts import codes
from valetkey.contracts.codes import Code
from valetkey.proxy.intercept.unread import Unread

# RFC 9325 §4.2: forward secrecy and AEAD. TLS 1.3's suites are all like that.
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"


class HandshakeFailed(ssl.SSLError):
    """A client's handshake did not come about.

    ``code`` is one of ``interception.*``, ``detail`` OpenSSL's name for what was wrong (empty
    where the server name was), ``server_name`` what the client asked for, and ``alert`` what it
    is to be sent (RFC 8446 §6.2; empty where nothing can be said).
    """

    def __init__(self, code: Code, detail: str, server_name: str, alert: bytes) -> None:
        super().__init__(1, f"{code.name}: {detail or server_name or 'no server name'}")
        self.code = code
        self.detail = detail
        self.server_name = server_name
        self.alert = alert


class Handshake(ssl.SSLObject):
    """The server's side of one connection; a failure raises `HandshakeFailed`."""

    outgoing: ssl.MemoryBIO
    server_name: str = ""
    """What the client asked for, as it spelt it."""
    _refused = False

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            wrong_name = codes.INTERCEPTION_SERVER_NAME, ""
            code, detail = wrong_name if self._refused else _explained(error)
            alert = self.outgoing.read()
            raise HandshakeFailed(code, detail, self.server_name, alert) from error

    def refuse_name(self) -> int:
        """What a ``sni_callback`` returns for a name that is not served here (RFC 6066 §3)."""
        self._refused = True
        return int(ssl.AlertDescription.ALERT_DESCRIPTION_UNRECOGNIZED_NAME)


class _Context(ssl.SSLContext):
    """Lets the connections know where their bytes go."""

    sslobject_class: type[ssl.SSLObject]

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        connection = super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        assert isinstance(connection, Handshake)
        connection.outgoing = outgoing
        return connection


def server_context() -> ssl.SSLContext:
    """TLS 1.2 or later towards a client, HTTP/1.1 inside; without a certificate yet."""
    context = _Context(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    context.sslobject_class = Handshake
    return context


async def serve(
    transport: asyncio.Transport,
    protocol: asyncio.BaseProtocol,
    context: ssl.SSLContext,
    *,
    within: float,
) -> asyncio.Transport:
    """Be the server of the client behind ``transport``, which is not reading.

    ``within`` is the time for it in seconds. Raises `HandshakeFailed` if the client can't be
    served or would not be, another `OSError` if it went away or took too long.
    """
    # The loop closes the connection before the alert is out: a second descriptor outlives that.
    spare = cast("socket.socket", transport.get_extra_info("socket")).dup()
    with spare:
        try:
            tls = await _start(transport, protocol, context, within)
        except HandshakeFailed as failed:
            with contextlib.suppress(OSError):  # gone, or not reading
                spare.send(failed.alert)
            raise
    if tls is None:
        raise ConnectionAbortedError("closed during the handshake")
    return tls


async def _start(
    transport: asyncio.Transport,
    protocol: asyncio.BaseProtocol,
    context: ssl.SSLContext,
    within: float,
) -> asyncio.Transport | None:
    loop = asyncio.get_running_loop()
    if isinstance(transport, Unread):  # the hello is there: whatever reads first must be TLS
        tls, _ = await loop.connect_accepted_socket(
            lambda: protocol, transport.release(), ssl=context, ssl_handshake_timeout=within
        )
        return tls
    return await loop.start_tls(
        transport, protocol, context, server_side=True, ssl_handshake_timeout=within
    )


_UNTRUSTED: Final = frozenset({
    "SSLV3_ALERT_BAD_CERTIFICATE", "SSLV3_ALERT_CERTIFICATE_EXPIRED",
    "SSLV3_ALERT_CERTIFICATE_REVOKED", "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE", "TLSV1_ALERT_UNKNOWN_CA",
})  # fmt: skip
# OpenSSL's names for bytes that are no TLS record of a version it knows.
_NOT_TLS: Final = frozenset({
    "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL",
    "UNEXPECTED_MESSAGE", "PACKET_LENGTH_TOO_LONG", "RECORD_LENGTH_MISMATCH",
    "RECORD_LAYER_FAILURE", "BAD_RECORD_TYPE",
})  # fmt: skip


def _explained(error: ssl.SSLError) -> tuple[Code, str]:
    detail = error.reason or type(error).__name__
    if detail in _UNTRUSTED:
        return codes.INTERCEPTION_UNTRUSTED, detail
    if detail in _NOT_TLS:
        return codes.INTERCEPTION_NOT_TLS, detail
    return codes.INTERCEPTION_HANDSHAKE_FAILED, detail
