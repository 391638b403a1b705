"""CONNECT (RFC 9110 §9.3.6): tunnels to targets are opened up, tunnels to listed hosts are opaque.

A tunnel to a target ends here: the client is answered with a certificate of the sidecar's own CA,
and what it then asks inside is decided on call by call. Anything but TLS inside is refused and
recorded. Where the target's url is http, there is no TLS: undici, for one, opens tunnels for plain
calls too. A tunnel to a passthrough host carries what it carries, without a credential; that it was
opened, and how much went through, is on record.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

from valetkey.contracts import codes
from valetkey.contracts.codes import Code
from valetkey.contracts.errors import TargetError, ValetkeyError
from valetkey.proxy.core.decision import Deny, TunnelPermit
from valetkey.proxy.core.entry import Entry
from valetkey.proxy.http1.call import Call
from valetkey.proxy.http1.inbound import WorkloadConnection
from valetkey.proxy.http1.phase import Phase
from valetkey.proxy.intercept.handshake import HandshakeFailed, serve
from valetkey.proxy.intercept.unread import Unread

if TYPE_CHECKING:
    # What makes certificates takes 2 MiB, and not every sidecar makes any.
    from valetkey.proxy.core.snapshot import Target
    from valetkey.proxy.intercept.authority import InterceptionAuthority
    from valetkey.proxy.pep import EnforcementPoint

_ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"


class ConnectTunnels:
    """Opens tunnels for the forward listeners of one sidecar."""

    def __init__(self, pep: EnforcementPoint, authority: InterceptionAuthority | None) -> None:
        self._pep = pep
        self._authority = authority

    def open(self, call: Call) -> None:
        """Decide on a CONNECT, answer it, and take its connection over."""
        verdict = self._pep.tunnels.decide(call, intercepts=self._authority is not None)
        if verdict is None:
            return  # refused, and answered
        if isinstance(verdict, TunnelPermit):
            self._pep.spawn(call, self._pass_through(call, verdict))
        elif verdict.tls:
            self._pep.spawn(call, self._open_up(call, verdict))
        else:
            self._pep.spawn(call, self._read_on(call, verdict))

    async def _open_up(self, call: Call, target: Target) -> None:
        """End the client's TLS here, and read the calls inside."""
        assert self._authority is not None
        pep, inbound = self._pep, call.inbound
        try:
            context = self._authority.context(target.host)
        except ValetkeyError as error:  # `certificates.CannotIssue`
            self._pep.deny(call, Deny(error.code, error.reason))
            return
        # Paused before the answer goes out: the client's hello must meet TLS, not this reader.
        transport = inbound.take_over()
        if not inbound.tls:
            transport.write(_ESTABLISHED)
        greeter = _Greeter()
        pep.tunnels.handshakes += 1
        try:
            tls = await serve(transport, greeter, context, within=pep.timeouts.head)
        except OSError as error:
            pep.tunnels.refused(call, target, *_why(error))
            transport.abort()
            return
        finally:
            pep.tunnels.handshakes -= 1
        pep.tunnels.opened("intercepted")
        entry = Entry(origin=target.url, destination=inbound.entry.destination)
        greeter.hand_over(tls, WorkloadConnection(pep, entry, uids=inbound.uids))

    async def _read_on(self, call: Call, target: Target) -> None:
        """Read the calls of a tunnel without TLS."""
        pep, inbound = self._pep, call.inbound
        if call.phase == Phase.DONE:
            return
        if inbound.unread:
            pep.deny(call, Deny(codes.TUNNEL_EARLY_DATA, "bytes before the tunnel was there"))
            return
        transport = inbound.take_over()
        transport.write(_ESTABLISHED)
        pep.tunnels.opened("plain")
        inner = WorkloadConnection(pep, Entry(origin=target.url), uids=inbound.uids)
        transport.set_protocol(cast("asyncio.Protocol", inner))
        inner.connection_made(transport)
        transport.resume_reading()

    async def _pass_through(self, call: Call, permit: TunnelPermit) -> None:
        """Connect the client to the host, and stay out of it."""
        pep, inbound = self._pep, call.inbound
        try:
            arrived: _Arrived = await pep.dialler.dial(
                _Arrived,
                permit.host.strip("[]"),
                permit.port,
                allowed=permit.passthrough.allowed,
                seconds=pep.timeouts.connect,
                callers=True,
            )
        except TargetError as error:
            call.fail(error.code, error.reason)
            return
        target = arrived.transport
        if target is None:
            call.fail(codes.TARGET_CLOSED, "closed at once")
        elif call.phase == Phase.DONE or inbound.unread:
            target.abort()
            call.fail(codes.TUNNEL_EARLY_DATA, "bytes before the tunnel was there")
        else:
            begun = _Arrived()
            workload = await _establish(inbound.take_over(), begun)
            relay = pep.tunnels.opaque(call, permit, workload, target)
            if begun.transport is None:
                relay.cut("client_closed")
            elif arrived.transport is None:
                relay.cut("cut", codes.TARGET_CLOSED)
            else:
                relay.start(
                    arrived.early, ended=arrived.ended, said=begun.early, said_all=begun.ended
                )


async def _establish(transport: asyncio.Transport, begun: _Arrived) -> asyncio.Transport:
    """Let the client speak: tell it, or take what it has said into ``begun``."""
    if isinstance(transport, Unread):
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_accepted_socket(lambda: begun, transport.release())
    else:
        begun.connection_made(transport)
        transport.write(_ESTABLISHED)
    return transport


def _why(error: OSError) -> tuple[Code, str]:
    """What a handshake that did not come about says of the client."""
    if isinstance(error, HandshakeFailed):
        return error.code, error.detail or f"server name {error.server_name!r}"
    # It left, or took its time.
    return codes.INTERCEPTION_HANDSHAKE_FAILED, type(error).__name__


class _Arrived(asyncio.Protocol):
    """An end of an opaque tunnel, until the relay takes over: what comes early is kept."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.early = b""
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        self.early += data

    def eof_received(self) -> bool:
        self.ended = True
        return True

    def connection_lost(self, _exc: Exception | None) -> None:
        self.transport = None


class _Greeter(asyncio.Protocol):
    """Stands in during the handshake; what arrives right behind it is handed over."""

    def __init__(self) -> None:
        self._early: list[bytes] = []
        self._ended = False
        self._lost = False

    def data_received(self, data: bytes) -> None:
        self._early.append(data)

    def eof_received(self) -> None:
        self._ended = True

    def connection_lost(self, _exc: Exception | None) -> None:
        self._lost = True

    def hand_over(self, tls: asyncio.Transport, connection: WorkloadConnection) -> None:
        if self._lost or tls.is_closing():
            tls.abort()
            return
        tls.set_protocol(cast("asyncio.Protocol", connection))
        connection.connection_made(tls)
        for data in self._early:
            connection.data_received(data)
        if self._ended:
            connection.eof_received()
