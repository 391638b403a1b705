"""One call: a request from the workload, its way to the target, the answer back.

The relay of one message pair. Bodies stream both ways as they come; whichever side can't take
more stops the other side's reading. Framing is always rebuilt: a length stays a length, chunks
are decoded and encoded anew, trailers end here. What becomes of an answer's bytes is `Answer`'s;
time, both connections and how it all ends are here.

A call goes through `Phase`s in order. What ends it decides what becomes of both connections:
they are used again only if both messages ended exactly where their framing said.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from valetkey.contracts import codes
from valetkey.contracts.codes import Code
from valetkey.contracts.errors import TargetError
from valetkey.proxy.core.bounds import UNBOUNDED
from valetkey.proxy.core.credential import Succession
from valetkey.proxy.http1.answer import Answer
from valetkey.proxy.http1.chunked import LAST_CHUNK, ChunkedDecoder, ChunkedInvalid, encode_chunk
from valetkey.proxy.http1.outbound import TargetConnection
from valetkey.proxy.http1.phase import Phase
from valetkey.proxy.http1.unsent import unsent

if TYPE_CHECKING:
    from valetkey.proxy.core.decision import NeedsCredential, NeedsMessage, Permit
    from valetkey.proxy.credentials.supply import Waiting
    from valetkey.proxy.http1.head import RequestHead, ResponseHead
    from valetkey.proxy.http1.inbound import WorkloadConnection
    from valetkey.proxy.http1.relay import Relay
    from valetkey.proxy.http1.upgrade import Upgrade
    from valetkey.proxy.pep import EnforcementPoint
    from valetkey.proxy.streams import Watch

# A body that came whole, in one piece with its head or right behind it, is kept up to this size
# until the answer begins, so that the call can be repeated (nonce challenges, stale connections).
_REPLAYABLE_BODY: Final = 64 << 10
# RFC 9110 §9.2.2.
_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
# Bound once: it is called six times per call.
_monotonic: Final = time.monotonic


class Call:
    """One request and its response. Made by `WorkloadConnection`, driven by events."""

    __slots__ = (
        "_answer", "_collected", "_decoder", "_in_memory", "_left", "_moved_at", "_retried_stale",
        "actor", "asked", "attempts", "body_limit", "body_open", "deadline", "decision_seq",
        "ended", "first_byte", "head", "hold_until", "inbound", "kind", "lines", "needs",
        "outbound", "pace", "patience", "pending", "pep", "permit", "phase", "received",
        "recheck_at", "relay", "replay", "retried_nonce", "scrubbed", "sent", "sessions", "started",
        "status", "succession", "t_answer", "t_forward", "t_reply", "upgrade", "waits", "watch",
    )  # fmt: skip

    def __init__(
        self, inbound: WorkloadConnection, head: RequestHead, pep: EnforcementPoint
    ) -> None:
        block = head.block
        self.inbound = inbound
        self.head = head
        self.pep = pep
        self.phase: int = Phase.DECIDING
        self.lines = b""
        """The request's header lines that go on, set with the permit."""
        self.asked: NeedsMessage | None = None
        """Set if the body decides (MCP)."""
        self.needs: NeedsCredential | None = None
        self.permit: Permit | None = None
        self.outbound: TargetConnection | None = None
        self.decision_seq = 0
        self.actor = b""
        """Who calls, rendered for the record with the decision."""
        self.attempts = 0
        self.retried_nonce = False
        self.succession: Succession | None = None
        """Set once another credential than the decision's is to be had."""
        # the request's body
        self._decoder = ChunkedDecoder() if block.chunked else None
        self._left = block.length or 0
        self.body_open = block.chunked or self._left > 0
        self.body_limit = UNBOUNDED
        """Most bytes of it, where they are not known beforehand."""
        self.pending: list[bytes] = []
        self.replay: list[bytes] | None = []
        self._collected: bytearray | None = None
        self._in_memory = 0
        """Bytes of messages that are held for this call: see `_holds`."""
        # the response
        self._answer: Answer | None = None
        """Of the attempt that is under way."""
        self._retried_stale = False
        self.scrubbed = ""
        """Where the target had put the credential that it got, and it no longer stands."""
        self.sessions = False
        """Whether the target tried to set cookies, and they were dropped."""
        self.status = 0
        self.sent = 0
        self.received = 0
        self.started = _monotonic()
        self.t_forward = 0.0
        self.t_answer = 0.0
        self.t_reply = 0.0
        self.ended = 0.0
        self.deadline = 0.0
        # Time limits: the general ones until there is a route.
        self.first_byte = 0.0
        self.patience: float = pep.timeouts.stall
        """How long a body may make no progress: ``stall``, or ``stream`` of an event stream."""
        self.pace: float = pep.pace
        """Seconds that each byte of a body buys, if it has used up some of that time."""
        self._moved_at = 0.0
        self.upgrade: Upgrade | None = None
        """The switch to another protocol that it asks for."""
        self.relay: Relay | None = None
        """Set once it has switched."""
        self.kind = ""
        """What sort of stream it became, if it did: ``event_stream``, or a protocol."""
        self.recheck_at = 0.0
        """When the sweep looks at the permit again; see `valetkey.proxy.streams`."""
        self.watch: Watch | None = None
        self.waits: Waiting | None = None
        """What waits for a person on its behalf, and is over with it."""
        self.hold_until = 0.0
        """When that ends, once it has begun."""

    def permitted(self, permit: Permit) -> None:
        """It may leave, within its route's time limits."""
        self.permit = permit
        self.watch = None
        route = permit.route
        self.first_byte = route.first_byte
        self.patience = route.stall
        self.pace = route.pace

    def succeed(self, *, refused: bool) -> None:
        """Another credential is to take the place of the permit's.

        ``refused``: by the target. Else it had ended before it could be sent.
        """
        permit = self.permit
        assert permit is not None
        if self.succession is None:
            self.succession = Succession(permit.credential)
        self.succession.note(permit.credential, self.attempts)
        self.succession.refused = self.succession.refused or refused

    # --- the request's body -------------------------------------------------------------------

    def body_received(self, data: bytes) -> bytes:
        """Take the body's part of ``data``; what is behind its end is returned."""
        before, sent = self.deadline, self.sent
        self._moved_at = _monotonic()
        self.deadline = self._moved_at + self.patience
        if self._decoder is None:
            rest = b""
            if len(data) > self._left:
                data, rest = data[: self._left], data[self._left :]
            self._left -= len(data)
            self.sent += len(data)
            self.body_open = self._left > 0
            if self.body_open and before:
                self._keep_pace(before, self.sent - sent)
            if self._collected is not None:
                self._collect(data)
                return rest
            wire = data
        else:
            try:
                pieces = self._decoder.feed(data)
            except ChunkedInvalid as error:
                self.fail(codes.REQUEST_BODY_MALFORMED, str(error))
                return b""
            self.sent += sum(map(len, pieces))
            if self.sent > self.body_limit:
                self.pep.too_large(self)
                return b""
            self.body_open = not self._decoder.done
            if self.body_open and before:
                self._keep_pace(before, self.sent - sent)
            rest = self._decoder.rest
            if self._collected is not None:
                self._collect(b"".join(pieces))
                return rest
            wire = b"".join(map(encode_chunk, pieces))
            if not self.body_open:
                wire += LAST_CHUNK
        if wire:
            self._pass_on(wire)
        if not self.body_open and self.phase == Phase.WAITING:
            self.deadline = _monotonic() + self.first_byte
        return rest

    def _keep_pace(self, before: float, size: int) -> None:
        """A body that trickles uses its time up: ``size`` bytes buy no more than they are worth.

        ``before`` is the deadline that was in force. Once an answer has begun, it is a stream.
        """
        if self.phase <= Phase.WAITING:
            self.deadline = min(self.deadline, before + size * self.pace)

    def _pass_on(self, wire: bytes) -> None:
        if self.outbound is not None and self.phase >= Phase.WAITING:
            self.replay = None  # the body no longer fits into what is kept
            self.outbound.write(wire)
        elif self.phase < Phase.WAITING:
            self.pending.append(wire)
            if sum(map(len, self.pending)) >= _REPLAYABLE_BODY:
                self.inbound.hold_reading()

    def collect(self, asked: NeedsMessage) -> None:
        """Hold the body back until it is whole: see `EnforcementPoint.message_came`."""
        self.asked = asked
        self.phase = Phase.COLLECTING
        self.deadline = _monotonic() + self.pep.timeouts.stall
        early = b"".join(self.pending)
        self.pending = []
        if self._decoder is not None:
            early = b"".join(ChunkedDecoder().feed(early))
        self._collected = bytearray(early)
        # RFC 9110 §10.1.1: nobody behind us is asked before it is here.
        if self.body_open and self.head.block.expect_continue and self.head.version and not early:
            self.inbound.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self.body_open:
            self.holds(len(early))

    @property
    def is_collected(self) -> bool:
        """Whether the body was held back and is whole now."""
        return self.phase == Phase.COLLECTING and not self.body_open

    def _collect(self, payload: bytes) -> None:
        assert self._collected is not None
        assert self.asked is not None
        self._collected += payload
        if self.body_open and len(self._collected) > self.asked.endpoint.limit:
            self.pep.limit_hit("limits.message")
            self.fail(codes.REQUEST_BODY_TOO_LARGE, "more than limits.message")
        elif self.body_open:  # whole, it is judged by `EnforcementPoint.message_came`
            self.holds(len(self._collected))

    def holds(self, size: int) -> bool:
        """Account for the bytes of messages that this call has in memory.

        False: there is no room for them, and the call is over.
        """
        pep = self.pep
        pep.messages += size - self._in_memory
        self._in_memory = size
        if pep.messages <= pep.max_messages:
            return True
        pep.limit_hit("limits.messages")
        self.fail(codes.PROXY_OVERLOADED, "more than limits.messages in memory")
        return False

    def collected(self) -> bytes:
        """The body that was held back, whole. It goes on, with the framing that it came with."""
        assert self._collected is not None
        payload = bytes(self._collected)
        self._collected = None
        self.phase = Phase.DECIDING
        self.pending = [payload]
        if self._decoder is not None:
            self.pending = [encode_chunk(payload), LAST_CHUNK] if payload else [LAST_CHUNK]
        return payload

    # --- the way to the target ----------------------------------------------------------------

    def forward(self, connection: TargetConnection, head: bytes) -> None:
        """Send the request (its head is rendered) over a connection; the body follows."""
        self.outbound = connection
        connection.borrower = self
        connection.unsent = -1
        self.phase = Phase.WAITING
        self.attempts += 1
        self._answer = Answer(self)
        self.t_answer = 0.0
        body = self.pending if self.attempts == 1 else self.replay or []
        if self.attempts == 1 and (body or self.body_open):
            complete = not self.body_open and (
                self.asked is not None or sum(map(len, body)) <= _REPLAYABLE_BODY
            )
            self.replay = body if complete else None
            self.pending = []
        self.inbound.release_reading()  # before the write, which may hold it again
        connection.write(b"".join((head, *body)) if body else head)
        now = self.t_forward = _monotonic()
        self.deadline = now + (self.patience if self.body_open else self.first_byte)

    @property
    def replayable(self) -> bool:
        """Whether the same request can be sent once more, byte for byte."""
        return self.replay is not None and not self.body_open and self.phase <= Phase.WAITING

    @property
    def has_content(self) -> bool:
        """Whether the request has a body, be it an empty one in chunks."""
        return self.sent > 0 or self._decoder is not None

    # --- the answer ---------------------------------------------------------------------------

    def target_received(self, data: bytes) -> None:
        """Bytes of the response (or of an interim one before it)."""
        answer = self._answer
        assert answer is not None
        if self.phase >= Phase.HOLDING:
            before = self.deadline
            self._moved_at = _monotonic()
            self.deadline = self._moved_at + self.patience
            if answer.left is not None and not self.kind:
                # Of unknown length it may be a stream, which takes its time.
                self.deadline = min(self.deadline, before + len(data) * self.pace)
            answer.relay(data, b"")
            return
        if not self.t_answer:
            self.t_answer = _monotonic()
        answer.received(data)

    def switch(self, head: ResponseHead, rest: bytes) -> None:
        """RFC 9110 §15.2.2: what comes now, ``rest`` and all after it, is of another protocol.

        Raises `TargetError` where nobody asked for that.
        """
        upgrade, outbound = self.upgrade, self.outbound
        if upgrade is None:
            raise TargetError(codes.TARGET_BAD_RESPONSE, "switching protocols unasked")
        answer = upgrade.accepted(head)
        if head.cookies:
            answer += self.cookies(head)
        assert outbound is not None
        if head.block.nonce:
            self.pep.challenged(self, head)
        self.status = head.status
        self.phase = Phase.SWITCHED
        self.replay = None
        self.outbound = None  # the relay's from now on
        self.inbound.write(answer + b"\r\n")
        self.t_reply = _monotonic()
        self.becomes(upgrade.protocol)
        self.relay = self.pep.tunnels.switched(self, outbound, rest)

    def switched_ended(self, relay: Relay) -> None:
        """The tunnel that it became is over."""
        self.sent += relay.sent
        self.received += relay.received
        self._end(relay.outcome, relay.code)

    def becomes(self, kind: str) -> None:
        """A stream: it may be silent for long."""
        permit = self.permit
        assert permit is not None
        self.kind = kind
        self.patience = permit.route.stream
        self.pep.accounts.stream_opened(kind)

    def cookies(self, head: ResponseHead) -> bytes:
        """Cookies that the target sets: the workload's if its own go there, else nobody's."""
        permit = self.permit
        assert permit is not None
        if permit.target.headers.passes_sessions:
            return head.cookies
        self.sessions = True
        self.pep.accounts.session_dropped(self)
        return b""

    def echoed(self, where: str) -> None:
        """The target sent the credential back, and it was overwritten."""
        if not self.scrubbed:
            self.pep.accounts.echoed(self)
        if where not in self.scrubbed:
            self.scrubbed += f",{where}" if self.scrubbed else where

    def complete(self, *, reuse: bool) -> None:
        """The response ended where it should. ``reuse``: its connection may carry another one."""
        outbound, self.outbound = self.outbound, None
        if outbound is not None:
            # RFC 9110 §7.8: an answer like any other; who asked for a switch had better be sure.
            reuse = reuse and self.upgrade is None
            if reuse and not self.body_open and not outbound.congested:
                if self.inbound.write_paused:
                    outbound.transport.resume_reading()  # stopped on behalf of this call
                outbound.pool.give_back(outbound)
            else:
                outbound.close()
        self._end("completed", None)

    # --- ends that are not the response's own -------------------------------------------------

    def target_ended(self) -> None:
        """The target sends no more: the end of an unframed body, or a failure."""
        if self._answer is None or not self._answer.ended():
            self.target_lost()

    def target_lost(self) -> None:
        """The connection is gone before the response was complete."""
        outbound = self.outbound
        if outbound is None:
            return
        if self.phase == Phase.ANSWERING:
            # Also a body that ends with the connection: its end would have been announced
            # (`target_ended`); a reset, or TLS without close_notify, is none.
            self.cut(b"", codes.TARGET_CLOSED)
            return
        # A connection that was kept open may have been closed before our request reached it: a
        # request that may be repeated is, once, on a new connection (RFC 9112 §9.3.1).
        repeatable = self.head.method in _IDEMPOTENT or not outbound.asked
        if self.t_answer or not repeatable or not self._again(outbound):
            self.drop_target()
            self.fail(codes.TARGET_CLOSED, "closed before the response head")

    def target_unasked(self) -> None:
        """Bytes came before anything of the request was sent: they answer something else."""
        outbound = self.outbound
        if outbound is not None and not self._again(outbound):
            self.drop_target()
            self.fail(codes.TARGET_BAD_RESPONSE, "an answer before the request")

    def _again(self, outbound: TargetConnection) -> bool:
        """Repeat the request on a new connection, if it was an old one that let us down."""
        if not outbound.used or self._retried_stale or not self.replayable:
            return False
        self._retried_stale = True
        self.drop_target()
        self.pep.send_again(self)
        return True

    def target_write_paused(self) -> None:
        if self.outbound is not None:
            self.outbound.unsent = unsent(self.outbound.transport)
        self.inbound.hold_reading()

    def target_write_resumed(self) -> None:
        self._progressed()
        self.inbound.release_reading()

    def workload_write_paused(self) -> None:
        self.inbound.unsent = unsent(self.inbound.transport)
        if self.kind:  # silence is the stream's own, but not to take what is there
            permit = self.permit
            assert permit is not None
            self.deadline = _monotonic() + permit.route.stall
        if self.outbound is not None and self.outbound.open:
            self.outbound.transport.pause_reading()

    def workload_write_resumed(self) -> None:
        self._progressed()
        if self.outbound is not None and self.outbound.open:
            self.outbound.transport.resume_reading()

    def _progressed(self) -> None:
        """A side took what waited for it: whoever is next to move has its whole time again."""
        if self.phase >= Phase.WAITING:
            last_word = self.phase == Phase.WAITING and not self.body_open
            self.deadline = _monotonic() + (self.first_byte if last_word else self.patience)

    def workload_lost(self) -> None:
        """The workload is gone: nobody waits for the answer."""
        if self.phase != Phase.DONE:
            self.drop_target()
            self._end("client_closed", None)

    def expired(self) -> None:
        """The deadline passed: whose turn it was decides what that means."""
        phase, inbound = self.phase, self.inbound
        if phase == Phase.ANSWERING:
            if inbound.write_paused:
                if self._taken(inbound):
                    return
                self.pep.limit_hit("timeouts.stall")
                self.cut(b"", codes.REQUEST_TIMEOUT)
            elif self.kind:
                self.pep.limit_hit("timeouts.stream")
                self.cut(b"", codes.STREAM_IDLE)
            else:
                self._too_slow()
                self.cut(b"", codes.TARGET_TIMEOUT)
        elif phase == Phase.COLLECTING:
            self.fail(codes.REQUEST_TIMEOUT, f"the request body {self._too_slow()}")
        elif phase == Phase.HOLDING:
            self.fail(codes.TARGET_TIMEOUT, f"the answer {self._too_slow()}")
        elif phase == Phase.WAITING:
            # Deciding and connecting have time limits of their own.
            outbound = self.outbound
            if self.body_open and not inbound.held:
                self.fail(codes.REQUEST_TIMEOUT, f"the request body {self._too_slow()}")
            elif outbound is not None and self._taken(outbound):
                if not self.body_open and not outbound.unsent:
                    self.deadline = _monotonic() + self.first_byte  # it has the request only now
            elif self.body_open:
                self.pep.limit_hit("timeouts.stall")
                self.fail(codes.TARGET_TIMEOUT, "the target does not take the request body")
            else:
                self.pep.limit_hit("timeouts.first_byte")
                self.fail(codes.TARGET_TIMEOUT, "no response head in time")

    def _taken(self, connection: WorkloadConnection | TargetConnection) -> bool:
        """Whether a peer that seemed to take nothing only takes its time; it gets more then."""
        before, left = connection.unsent, unsent(connection.transport)
        connection.unsent = left
        if before < 0:  # nobody has looked yet
            taken, start = left, _monotonic()
        else:
            taken, start = before - left, self.deadline
        if taken <= 0:
            return False
        permit = self.permit
        assert permit is not None
        now = _monotonic()
        self.deadline = min(now + permit.route.stall, start + taken * self.pace)
        return self.deadline > now

    def _too_slow(self) -> str:
        """What ended a body's time, for the record: count it."""
        if _monotonic() < self._moved_at + self.patience:
            self.pep.limit_hit("limits.body_rate")
            return "came too slowly"
        self.pep.limit_hit("timeouts.stall")
        return "stalled"

    def fail(self, code: Code, reason: str) -> None:
        """End the call with an error: an answer if none has begun, else a cut connection."""
        if self.phase == Phase.DONE:
            return
        if self.relay is not None:
            self.relay.cut("cut", code)
            return
        self.drop_target()
        if self.phase == Phase.ANSWERING:
            self.cut(b"", code)
            return
        self.pep.refused(self, code, reason)

    def answer_problem(self, code: Code, outcome: str, approval: str = "") -> None:
        """Send the problem for ``code`` and end. Called by the enforcement point."""
        self.status = code.status
        self.drop_target()
        self.inbound.send_problem(code, self.pep.instance_of(self), approval)
        self._end(outcome, code)

    def cut(self, lines: bytes, code: Code) -> None:
        """The response can't be completed: the workload must see that it is not whole."""
        if lines:
            self.inbound.write(lines)
        self.drop_target()
        self.inbound.close_after = True
        # Chunks or a length are short now, which the workload notices; a body that ends with the
        # connection needs a reset, and so does a reader that does not read.
        shows = self._answer is not None and self._answer.shows_its_end
        self.inbound.reset_after = not shows or self.inbound.write_paused
        self._end("cut", code)

    def drop_target(self) -> None:
        """Close the connection to the target, if there is one."""
        outbound, self.outbound = self.outbound, None
        if outbound is not None:
            outbound.close()

    def _end(self, outcome: str, code: Code | None) -> None:
        self.phase = Phase.DONE
        self._answer = None  # it refers to this call: no cycle is left for the collector
        self.ended = _monotonic()
        if self._in_memory:
            self.pep.messages -= self._in_memory
            self._in_memory = 0
        self.pep.ended(self, outcome, code)
        self.inbound.call_ended(self)
