"""One connection from the workload: requests in, answers out, one after the other.

Pipelined requests wait their turn in the buffer; while a call is under way, the buffer is bounded
by no longer reading. After an error in a head, and wherever the end of a request is not known for
sure, the answer is the last one on the connection (RFC 9112 §9.6): it is half-closed, what still
arrives is thrown away for a moment, then it is closed.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from typing import TYPE_CHECKING, Final, Protocol, cast

from valetkey.contracts import codes
from valetkey.contracts.codes import Code
from valetkey.contracts.errors import CallerError
from valetkey.proxy.core.entry import Entry
from valetkey.proxy.http1.call import Call
from valetkey.proxy.http1.outbox import LARGE
from valetkey.proxy.http1.phase import Phase
from valetkey.proxy.http1.reset import reset
from valetkey.proxy.http1.respond import problem_answer, tls_alert
from valetkey.proxy.http1.unsent import unsent

if TYPE_CHECKING:
    from valetkey.proxy.http1.head import RequestHead
    from valetkey.proxy.pep import EnforcementPoint

# How much of later requests is taken in while one is being answered.
_AHEAD: Final = 64 << 10
# How many answers of one turn wait for its end: see `LARGE`, which bounds the size of each.
_UNSENT: Final = 32
# nginx's lingering_timeout is 5 s, its lingering_time 30 s; a sidecar's peer is on the same host.
_LINGER: Final = 2.0
# struct ucred: pid, uid, gid.
_CREDENTIALS: Final = struct.Struct("iII")
_CLOSE: Final = b"connection: close\r\n"
_KEEP_ALIVE: Final = b"connection: keep-alive\r\n"


class Tunnels(Protocol):
    """What CONNECT leads to: see `intercept.connect`."""

    def open(self, call: Call) -> None:
        """Answer the call, or take its connection over."""


class WorkloadConnection:
    """Reads heads, makes calls, writes answers: an `asyncio.Protocol` by its methods."""

    __slots__ = (
        "_buffer", "_ended", "_in_head", "_lingering", "_looping", "_lost", "_out", "call",
        "close_after", "deadline", "endpoints", "entry", "held", "minor", "peer", "pep",
        "reset_after", "source", "tls", "transport", "tunnels", "uids", "unsent", "write_paused",
    )  # fmt: skip

    def __init__(
        self,
        pep: EnforcementPoint,
        entry: Entry,
        tunnels: Tunnels | None = None,
        uids: frozenset[int] | None = None,
        *,
        tls: bool = False,
    ) -> None:
        self.pep = pep
        self.entry = entry
        self.tunnels = tunnels
        self.uids = uids
        """On a Unix socket: whose processes may call; empty for all, None on TCP."""
        self.tls = tls
        """Whether the peer began with a ClientHello, which is still unread (transparent mode)."""
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.call: Call | None = None
        self.peer: tuple[str, int] = ("", 0)
        self.source = b""
        """The peer, rendered for the record."""
        self.endpoints = b""
        """The same for a decision: also where a redirected connection was going."""
        self.close_after = False
        self.reset_after = False
        self.write_paused = False
        self.unsent = -1
        """What the workload had not taken when it was looked at last; -1: nobody looked yet."""
        self.minor = 1
        self.deadline = 0.0
        self._buffer = b""
        self._ended = False
        self.held = False
        self._in_head = False
        self._lingering = False
        self._looping = False
        self._lost = False
        self._out: list[bytes] = []

    # --- events -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.deadline = time.monotonic() + self.pep.timeouts.idle
        if self.uids is None:
            peer = transport.get_extra_info("peername")
            self.peer = (str(peer[0]), int(peer[1])) if peer else ("", 0)
            self.source = b'"src_endpoint":{"ip":"%b","port":%d}' % (
                self.peer[0].encode(),
                self.peer[1],
            )
            self.endpoints = self.source
            if self.entry.destination is not None:
                host, port = self.entry.destination
                self.endpoints += b',"dst_endpoint":{"ip":"%b","port":%d}' % (host.encode(), port)
            self.pep.opened(self)
        else:
            uid = _peer_uid(transport)
            self.peer = ("unix", uid)
            self.source = b'"src_endpoint":{"name":"unix","uid":"%d"}' % uid
            self.endpoints = self.source
            self.pep.opened(self)
            if self.uids and uid not in self.uids and not self.close_after:
                self.refuse_head(CallerError(codes.CALLER_UID, f"uid {uid}"))

    def data_received(self, data: bytes) -> None:
        call = self.call
        if call is None:
            if self._lingering:
                return
            if self.write_paused:
                self._keep(data)
                return
            self._buffer = self._buffer + data if self._buffer else data
            self._read_requests()
        elif call.body_open:
            rest = call.body_received(data)
            if rest:
                self._keep(rest)
            if call.is_collected:
                try:
                    self.pep.message_came(call)
                except Exception as error:  # noqa: BLE001 - as in `_begin`
                    self.pep.failed(call, error)
        else:
            self._keep(data)

    def eof_received(self) -> bool | None:
        """The workload sends no more; what it has asked for is still answered."""
        self._ended = True
        call = self.call
        if self._lingering or (call is None and not (self.write_paused and self._buffer)):
            self.end()
            return None
        if call is None:
            return True
        if not self._buffer:
            self.close_after = True
        # Who waits for a person and closes has left: a FIN is all that tells (nginx takes it so).
        if call.body_open or call.waits is not None:
            call.workload_lost()
            return None
        return True

    def connection_lost(self, _exc: Exception | None) -> None:
        self._lost = True
        self.pep.closed(self)
        call, self.call = self.call, None
        if call is not None:
            call.workload_lost()

    def pause_writing(self) -> None:
        self.write_paused = True
        if self.call is not None:
            self.call.workload_write_paused()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.call is not None:
            self.call.workload_write_resumed()
        else:
            self._read_requests()

    def take_over(self) -> asyncio.Transport:
        """Leave the transport to somebody else, paused; nothing more happens here.

        What the workload sent behind its last request is lost with it: see `unread`.
        """
        self.flush()
        self.transport.pause_reading()
        self._lost = True
        self.call = None
        self.pep.closed(self)
        return self.transport

    @property
    def unread(self) -> bool:
        """Whether the workload sent something behind the request under way."""
        return bool(self._buffer) or self._ended

    def rest(self) -> tuple[bytes, bool]:
        """What the workload sent behind the request under way, and whether it sends no more."""
        return self._buffer, self._ended

    def expired(self, now: float) -> None:
        """A deadline passed (called by the sweep)."""
        if self.call is not None:
            if self.call.deadline and now >= self.call.deadline:
                self.call.expired()
        elif self._takes_its_time():
            self.deadline = now + self.pep.timeouts.stall
        elif self._lingering or not self._buffer or self.write_paused:
            self.transport.abort()
        else:
            self.refuse_head(self.pep.head_timeout())

    def _takes_its_time(self) -> bool:
        """Whether the last answer is written, but not taken, and a little more of it than before.

        Its call is over by then: what was written is out of the sidecar's hands.
        """
        left = unsent(self.transport)
        before, self.unsent = self.unsent, left
        return left > 0 and (before < 0 or left < before)

    # --- requests -----------------------------------------------------------------------------

    def _read_requests(self) -> None:
        """Read heads and make calls until bytes or turns run out. Never recursive.

        A workload that does not take its answers gets no further ones to wait in memory.
        """
        if self._looping:
            return
        self._looping = True
        try:
            while self._buffer and not self._lingering:
                try:
                    head = self.pep.heads.request(self._buffer)
                except CallerError as error:
                    self.refuse_head(error)
                    return
                if head is None:
                    if self._ended:
                        self.end()
                    elif not self._in_head:
                        self._in_head = True
                        self.deadline = time.monotonic() + self.pep.timeouts.head
                    return
                self.begin(head)
                if self.call is not None:
                    return
                if len(self._out) > _UNSENT:
                    self.flush()
                if self.write_paused:
                    return
        finally:
            self._looping = False

    def begin(self, head: RequestHead) -> None:
        """Make a call of a head, read from the buffer or standing for something else."""
        rest = self._buffer[head.size :]
        self._buffer = b""
        self._in_head = False
        self.minor = head.version
        block = head.block
        self.close_after = (
            block.close or (head.version == 0 and not block.keep_alive) or self.pep.draining
        )
        call = self.call = Call(self, head, self.pep)
        if rest and call.body_open:
            rest = call.body_received(rest)
        if rest:
            self._keep(rest)
        elif self._ended and call.phase != Phase.DONE:
            # The workload had sent all that it will: this is its last call, or a part of one.
            self.close_after = True
            if call.body_open:
                call.workload_lost()
                return
        if call.phase == Phase.DECIDING:
            try:
                self.pep.begin(call)
            except Exception as error:  # noqa: BLE001 - a defect of ours must end in a refusal
                self.pep.failed(call, error)

    def _keep(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if len(self._buffer) > _AHEAD:
            self.hold_reading()

    def refuse_head(self, error: CallerError) -> None:
        """Answer what is no request, and say goodbye: nobody knows where the next one begins."""
        self._buffer = b""
        self.close_after = True
        self.pep.accounts.refused_head(self, error)
        self.send_problem(error.code, "")
        self._say_goodbye()

    # --- answers ------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send at the end of this turn of the loop, or now what is large."""
        if not self._out:
            self.pep.outbox.add(self)
        self._out.append(data)
        if len(data) >= LARGE:
            self.flush()

    def flush(self) -> None:
        """Send now what was written."""
        out, self._out = self._out, []
        # A transport that was lost in the same turn takes no more, and uvloop says so by raising.
        if out and not self._lost and self.pep.outbox.kept():
            self.transport.write(out[0] if len(out) == 1 else b"".join(out))

    def discard(self) -> None:
        """Give up what was written and not sent: its call is not on record."""
        self._out = []
        if not self._lost:
            self.transport.abort()

    def connection_line(self) -> bytes:
        """The Connection header of an answer, as this connection will go on."""
        if self.close_after:
            return _CLOSE
        return _KEEP_ALIVE if self.minor == 0 else b""

    def send_problem(self, code: Code, instance: str, approval: str = "") -> None:
        """Answer with a problem. A body that was not read whole makes it the last answer."""
        call = self.call
        if call is not None and call.body_open:
            self.close_after = True
        if self.tls:
            self.write(tls_alert(code))
            return
        self.write(
            problem_answer(
                code,
                instance=instance,
                connection=self.connection_line(),
                head_only=call is not None and call.head.method == "HEAD",
                approval=approval,
            )
        )

    def call_ended(self, call: Call) -> None:
        """The call is over; the next one, or the end."""
        if self.call is not call:
            return
        unread = call.body_open or self.tls
        self.call = None
        if self.reset_after:
            self._reset()
        elif self.close_after or self.tls:
            if unread and not self._ended:
                self._say_goodbye()
            else:
                self.end()
        else:
            self.unsent = -1
            self.deadline = call.ended + self.pep.timeouts.idle
            self.release_reading()
            if self._buffer and not self.write_paused:
                self._read_requests()

    def drain(self) -> None:
        """The sidecar is going away: idle connections close, busy ones after their answer."""
        self.close_after = True
        if self.call is None and not self._buffer:
            self.end()

    def hold_reading(self) -> None:
        if not self.held:
            self.held = True
            self.transport.pause_reading()

    def release_reading(self) -> None:
        if self.held and len(self._buffer) <= _AHEAD:
            self.held = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def end(self) -> None:
        """Close once what was written is out; the sweep ends it if that takes too long."""
        self._buffer = b""
        self.unsent = -1
        self.deadline = time.monotonic() + self.pep.timeouts.stall
        self.flush()
        self.transport.close()

    def _reset(self) -> None:
        """End so that the workload can't take it for a clean end: RST, not FIN."""
        self._buffer = b""
        self.flush()
        reset(self.transport)

    def _say_goodbye(self) -> None:
        if self._ended:
            self.end()
            return
        self._lingering = True
        self._buffer = b""
        self.deadline = time.monotonic() + _LINGER
        self.flush()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.release_reading()


def _peer_uid(transport: asyncio.BaseTransport) -> int:
    """Whose process is at the other end of a Unix socket (unix(7), SO_PEERCRED)."""
    peer = transport.get_extra_info("socket")
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])
