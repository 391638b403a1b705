"""The answer of one attempt at a call: from the target's bytes to those that the workload gets.

Made when a request goes out, so that nothing of an earlier attempt is left in it. It reads heads
and framing, and rebuilds the framing: a length stays a length, chunks are decoded and encoded anew,
trailers end here. Bodies go on as they come, through a filter (lists of tools) and without the
credential that was sent, where the route or the path asks for it.

What is in its way ends the call through `Call.fail`, before the workload got anything of it, or
`Call.cut`; its own end is `Call.complete`. Time, phases of the call and both connections are the
call's: this module only moves the phase from waiting to holding and answering.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from valetkey.contracts import codes
from valetkey.contracts.errors import TargetError
from valetkey.proxy.core.headers import OF_THE_WHOLE
from valetkey.proxy.core.scrub import Scrubber
from valetkey.proxy.core.tool_lists import AnswerFilter, answer_filter
from valetkey.proxy.http1.chunked import LAST_CHUNK, ChunkedDecoder, ChunkedInvalid, encode_chunk
from valetkey.proxy.http1.phase import Phase

if TYPE_CHECKING:
    from valetkey.proxy.core.mcp_routes import McpEndpoint
    from valetkey.proxy.http1.call import Call
    from valetkey.proxy.http1.head import ResponseHead

_MAX_INTERIM: Final = 16
# RFC 9110 §9.3.1, §9.3.7: content has no meaning in these, and there are servers that leave it
# unread and take it for the next request.
_NO_CONTENT: Final = frozenset({"GET", "HEAD", "OPTIONS"})
# What says nothing of a content coding (RFC 9110 §8.4.1: identity is not to be named, but is).
_PLAIN: Final[tuple[list[bytes], ...]] = ([], [b"identity"])
_monotonic: Final = time.monotonic


class Answer:
    """Driven by its call: `received` until there is a head, then `relay`, and `ended`."""

    __slots__ = (
        "_begun", "_call", "_dechunk", "_filter", "_held", "_interim", "_rechunk", "_scrubber",
        "left", "reuse",
    )  # fmt: skip

    def __init__(self, call: Call) -> None:
        self._call = call
        self._begun = b""
        """What came of a head that is not whole."""
        self._interim = 0
        self._filter: AnswerFilter | None = None
        self._scrubber: Scrubber | None = None
        self._held = b""
        """The lines of a head that waits for what the filter makes of the body."""
        self._dechunk: ChunkedDecoder | None = None
        self._rechunk = False
        self.left: int | None = None
        """Bytes of the body that are to come, where a length says so."""
        self.reuse = True
        """Whether the connection can be used again when this has ended where it should."""

    @property
    def shows_its_end(self) -> bool:
        """Whether the workload can tell from what it got that more was to come."""
        return self._rechunk or (self.left is not None and self._filter is None)

    # --- heads --------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """Bytes of the response's head (or of an interim one before it), and what follows."""
        call = self._call
        permit = call.permit
        assert permit is not None
        data = self._begun + data if self._begun else data
        try:
            while True:
                head = call.pep.heads.response(data, permit.credential.needles)
                if head is None:
                    self._begun = data
                    return
                if head.echoes:
                    call.echoed("head")
                data = data[head.size :]
                if head.status >= 200:
                    break
                if head.status == 101:
                    call.switch(head, data)
                    return
                self._pass_interim(head)
        except TargetError as error:
            call.fail(error.code, error.reason)
            return
        self._begun = b""
        # 401 and nonces concern the credential, and so the enforcement point first.
        if (head.status == 401 or head.block.nonce) and call.pep.challenged(call, head):
            return
        self._final(head, data)

    def _pass_interim(self, head: ResponseHead) -> None:
        """RFC 9110 §15.2: passed on, but 100 only where it was asked for."""
        self._interim += 1
        if self._interim > _MAX_INTERIM:
            raise TargetError(codes.TARGET_BAD_RESPONSE, "too many interim responses")
        asked = self._call.head
        if asked.version == 0 or (head.status == 100 and not asked.block.expect_continue):
            return
        self._call.inbound.write(head.lines + b"\r\n")

    def _final(self, head: ResponseHead, data: bytes) -> None:
        call = self._call
        permit = call.permit
        assert permit is not None
        if permit.endpoint is not None:
            try:
                self._filter = self._filter_of(head, permit.endpoint)
            except TargetError as error:
                call.fail(error.code, error.reason)
                return
        block = head.block
        status = call.status = head.status
        inbound = call.inbound
        method = call.head.method
        no_body = method == "HEAD" or status in {204, 304}
        if permit.route.scrubs and not no_body:
            if block.value("content-encoding") not in _PLAIN or block.value("content-range"):
                call.fail(codes.TARGET_ENCODED, "encoded, or a part, though asked for the whole")
                return
            self._scrubber = Scrubber(permit.credential.needles)
        call.replay = None
        call.phase = Phase.ANSWERING
        if call.body_open or call.pep.draining:
            # The answer came before the request was read whole (or we are going away).
            inbound.close_after = True
        if call.body_open or (method in _NO_CONTENT and call.has_content):
            # What the target makes of a body that it did not wait for is its own affair: it must
            # not be the next call's.
            self.reuse = False
        if block.close or (head.version == 0 and not block.keep_alive):
            self.reuse = False
        if status == 204 and (block.chunked or block.length):
            # RFC 9112 §6.3: it has no body. A target that thinks it has sends one we don't read.
            self.reuse = False
        if no_body:
            # RFC 9112 §6.3: no body, whatever the fields say; a length describes another answer.
            self.left = 0
            lines = head.sized if head.sized and status != 204 else head.lines
        elif self._filter is not None:
            call.phase = Phase.HOLDING
            self._scrubber = Scrubber(permit.credential.needles)
            self.left = block.length
            if block.chunked:
                self._dechunk = ChunkedDecoder()
            self._held = head.lines_without(OF_THE_WHOLE)
            if head.cookies:
                self._held += call.cookies(head)
            lines = b""
        elif block.length is not None:
            self.left = block.length
            lines = head.sized
        else:
            if block.chunked:
                self._dechunk = ChunkedDecoder()
            lines = head.lines + self._unsized()
        if head.cookies and self._filter is None:
            lines += call.cookies(head)
        if head.event_stream:
            call.becomes("event_stream")
        call.deadline = call.t_answer + call.patience
        self.relay(data, b"%b%b\r\n" % (lines, inbound.connection_line()))

    def _filter_of(self, head: ResponseHead, endpoint: McpEndpoint[Any]) -> AnswerFilter | None:
        """What the body has to pass through on the path of an MCP endpoint, if it has one."""
        call = self._call
        if call.head.method == "HEAD" or head.status in {204, 304}:
            return None
        block = head.block
        return answer_filter(
            endpoint,
            head.status,
            block.value("content-type"),
            block.value("content-encoding"),
            posted=call.asked is not None,
        )

    def _unsized(self) -> bytes:
        """Framing for a body whose length nobody knows: chunks, or for HTTP/1.0 the end."""
        call = self._call
        if call.head.version == 1:
            self._rechunk = True
            return b"transfer-encoding: chunked\r\n"
        call.inbound.close_after = True
        return b""

    # --- the body -----------------------------------------------------------------------------

    def relay(self, data: bytes, lines: bytes) -> None:
        """Pass ``data`` of the body on, with ``lines`` (the head) in front the first time."""
        if self._scrubber is not None:
            if self._filter is not None:
                self._relay_filtered(self._filter, data)
            else:
                self._relay_scrubbed(data, lines)
            return
        call = self._call
        done = False
        if self._dechunk is not None:
            try:
                pieces = self._dechunk.feed(data)
            except ChunkedInvalid:
                call.cut(lines, codes.TARGET_BAD_RESPONSE)
                return
            done = self._dechunk.done
            if self._dechunk.rest:
                self.reuse = False
            data = b"".join(map(encode_chunk, pieces) if self._rechunk else pieces)
            call.received += sum(map(len, pieces))
            if done and self._rechunk:
                data += LAST_CHUNK
        elif self.left is not None:
            if len(data) > self.left:
                # More than was announced: that connection's framing can't be trusted again.
                data = data[: self.left]
                self.reuse = False
            self.left -= len(data)
            call.received += len(data)
            done = self.left == 0
        else:
            call.received += len(data)
            if data and self._rechunk:
                data = encode_chunk(data)
        if lines or data:
            call.inbound.write(lines + data)
            if lines:
                call.t_reply = _monotonic()
        if done:
            call.complete(reuse=self.reuse)

    def ended(self) -> bool:
        """The target sends no more. False: that is not where this was to end."""
        call = self._call
        if call.phase < Phase.HOLDING or self._dechunk is not None or self.left is not None:
            return False
        self.reuse = False
        if self._filter is not None:
            self._relay_filtered(self._filter, b"", ended=True)
        elif self._scrubber is not None:
            self._relay_scrubbed(b"", b"", ended=True)
        else:
            if self._rechunk:
                call.inbound.write(LAST_CHUNK)
            call.complete(reuse=False)
        return True

    def _relay_scrubbed(self, data: bytes, lines: bytes, *, ended: bool = False) -> None:
        """`relay` without the credential that we sent; no length changes.

        ``ended``: the connection's end is the body's.
        """
        call = self._call
        try:
            payload, done = self._unframed(data)
        except ChunkedInvalid:
            call.cut(lines, codes.TARGET_BAD_RESPONSE)
            return
        done = done or ended
        out = self._without_credential(payload, done=done)
        if self._rechunk:
            out = (encode_chunk(out) if out else b"") + (LAST_CHUNK if done else b"")
        if lines or out:
            call.inbound.write(lines + out)
            if lines:
                call.t_reply = _monotonic()
        if done:
            call.complete(reuse=self.reuse)

    def _relay_filtered(self, answer: AnswerFilter, data: bytes, *, ended: bool = False) -> None:
        """`relay` through a filter. ``ended``: the connection's end is the body's."""
        call = self._call
        try:
            payload, done = self._unframed(data)
            done = done or ended
            out = answer.feed(payload)
            if done:
                out += answer.end()
            out = self._without_credential(out, done=done)
        except ChunkedInvalid as invalid:
            call.fail(codes.TARGET_BAD_RESPONSE, str(invalid))
            return
        except TargetError as error:
            call.fail(error.code, error.reason)
            return
        if not done and not call.holds(answer.held):
            return
        if answer.hidden:
            call.pep.accounts.hid_tools(answer.hidden)
            answer.hidden = 0
        if call.phase == Phase.HOLDING:
            if answer.waits and not out and not done:
                return
            call.phase = Phase.ANSWERING
            framing = b"content-length: %d\r\n" % len(out) if done else self._unsized()
            head = b"%b%b%b\r\n" % (self._held, framing, call.inbound.connection_line())
            call.t_reply = _monotonic()
        else:
            head = b""
        if self._rechunk:
            out = (encode_chunk(out) if out else b"") + (LAST_CHUNK if done else b"")
        if head or out:
            call.inbound.write(head + out)
        if done:
            call.complete(reuse=self.reuse)

    def _without_credential(self, data: bytes, *, done: bool) -> bytes:
        """A piece of a body that is looked through anyway, without the credential that we sent."""
        scrubber = self._scrubber
        assert scrubber is not None
        data = scrubber.feed(data)
        if done:
            data += scrubber.end()
        if scrubber.found:
            self._call.echoed("body")
        return data

    def _unframed(self, data: bytes) -> tuple[bytes, bool]:
        """The payload in ``data``, and whether the body ends with it."""
        done = False
        if self._dechunk is not None:
            data = b"".join(self._dechunk.feed(data))
            done = self._dechunk.done
            if self._dechunk.rest:
                self.reuse = False
        elif self.left is not None:
            if len(data) > self.left:
                data = data[: self.left]
                self.reuse = False
            self.left -= len(data)
            done = self.left == 0
        self._call.received += len(data)
        return data, done
