"""Reading heads of HTTP/1.1 strictly (RFC 9112).

llhttp, through httptools with no leniency set, reads every header block; start lines are matched
here, and what llhttp as httptools sets it lets through is refused here: HTTP/0.9, more than one
space in the request line, CRLF before it, Transfer-Encoding on HTTP/1.0, and all framing that two
readers could take differently.

A workload that keeps a connection open sends the same header block again and again. A block that
was read before is not read again: the result is kept by its exact bytes, in a small bounded table
(`HeadReader`), unless it carried something that must not stay in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import httptools

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError, TargetError
from valetkey.contracts.secret import Secret
from valetkey.proxy.core.authority import join_host, split_host
from valetkey.proxy.core.headers import (
    MANAGED,
    SESSION,
    Field,
    check_single,
    normal,
)
from valetkey.proxy.core.scrub import Needles, blank, holds
from valetkey.proxy.http1.head import HeaderBlock, RequestHead, ResponseHead
from valetkey.proxy.http1.memo import Memo

# RFC 9112 §3: method SP request-target SP HTTP-version; the target is visible ASCII.
_REQUEST_LINE: Final = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])"
)
# RFC 9112 §4.
_STATUS_LINE: Final = re.compile(
    rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?"
)
_NONCE: Final = re.compile(rb"[\x21\x23-\x5b\x5d-\x7e]{1,256}")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_TRACEPARENT: Final = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
# The first byte of a request is the method's; anything else is another protocol (TLS, HTTP/2).
_METHOD_START: Final = frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+-.^_`|~"
)

_FRAMING: Final = frozenset({"content-length", "transfer-encoding"})

_KNOWN_NAMES: Final = 1024
_USUAL: Final = (b"keep-alive", b"close")
# What carried a credential must not stay in memory; a subprotocol can be one.
_NOT_KEPT: Final = MANAGED | {"sec-websocket-protocol"}


class HeadReader:
    """Reads heads off the front of a buffer. One per process; its tables are bounded."""

    __slots__ = (
        "_hosts",
        "_max_fields",
        "_max_size",
        "_names",
        "_requests",
        "_responses",
        "_subject",
    )

    def __init__(self, *, max_size: int, max_fields: int, subject_header: str) -> None:
        self._max_size = max_size
        self._max_fields = max_fields
        self._subject = normal(subject_header)
        # Normal forms of field names seen: there are few, and the same ones come every time.
        self._names: dict[bytes, str] = {}
        self._hosts: dict[bytes, tuple[str, int]] = {}
        self._requests: Memo[HeaderBlock] = Memo()
        self._responses: Memo[ResponseHead] = Memo()

    def request(self, buffer: bytes) -> RequestHead | None:
        """The head at the front, ``None`` while it is incomplete. Raises `CallerError`."""
        end = buffer.find(b"\r\n\r\n")
        if end < 0 or end > self._max_size:
            self._check_incomplete(buffer, end)
            return None
        line_end = buffer.find(b"\r\n")
        match = _REQUEST_LINE.fullmatch(buffer, 0, line_end)
        if match is None:
            raise CallerError(codes.REQUEST_MALFORMED, "not a request line")
        method, target, major, minor = match.groups()
        if major != b"1" or minor not in b"01":
            raise CallerError(codes.REQUEST_VERSION, "not HTTP/1.0 or HTTP/1.1")
        raw = buffer[line_end + 2 : end + 4]
        block = self._requests.entries.get(raw)
        if block is None:
            block = self._read_request_block(raw)
            if block.memorable:
                self._requests.offer(raw, block)
        if minor == b"0":
            if block.chunked:  # RFC 9112 §6.1: framing of such a message is faulty
                raise CallerError(codes.REQUEST_AMBIGUOUS_FRAMING, "Transfer-Encoding in HTTP/1.0")
        elif block.host is None:  # RFC 9112 §3.2
            raise CallerError(codes.REQUEST_AMBIGUOUS_HOST, "no Host in HTTP/1.1")
        return RequestHead(
            method.decode(), 1 if minor == b"1" else 0, target.decode(), block, end + 4
        )

    def response(self, buffer: bytes, needles: Needles = ()) -> ResponseHead | None:
        """The head at the front, ``None`` while it is incomplete. Raises `TargetError`.

        ``needles``, the shortest first, are what the target may not send back (`core.scrub`).
        """
        end = buffer.find(b"\r\n\r\n")
        if end < 0 or end > self._max_size:
            if len(buffer) > self._max_size:
                raise _bad_response("head too large")
            if not buffer.startswith(b"HTTP/1."[: len(buffer)]):
                raise _bad_response("not the start of a status line")
            if buffer.count(b"\n") != buffer.count(b"\r\n"):
                raise _bad_response("bare LF")
            return None
        raw = buffer[: end + 4]
        # Most heads are shorter than a token: they can't hold it.
        if needles and end >= len(needles[0]) and holds(raw, needles, end):
            echoing = self._read_response(blank(raw, needles))
            echoing.echoes = True
            return echoing  # and is not kept: it says so of this one answer
        head = self._responses.entries.get(raw)
        if head is None:
            head = self._read_response(raw)
            if head.block.memorable:
                self._responses.offer(raw, head)
        return head

    def _check_incomplete(self, buffer: bytes, end: int) -> None:
        """Refuse early what can't become a head any more, so that nobody waits for the rest."""
        if end > self._max_size or len(buffer) > self._max_size:
            raise CallerError(codes.REQUEST_HEAD_TOO_LARGE, "head exceeds limits.head_size")
        if buffer and buffer[0] not in _METHOD_START:
            raise CallerError(codes.REQUEST_MALFORMED, "not the start of a request line")
        if buffer.count(b"\n") != buffer.count(b"\r\n"):
            raise CallerError(codes.REQUEST_MALFORMED, "bare LF")
        line_end = buffer.find(b"\r\n")
        if line_end >= 0 and _REQUEST_LINE.fullmatch(buffer, 0, line_end) is None:
            raise CallerError(codes.REQUEST_MALFORMED, "not a request line")

    def _read_request_block(self, raw: bytes) -> HeaderBlock:
        try:
            fields = _fields(raw, httptools.HttpRequestParser, b"GET / HTTP/1.1\r\n", self._names)
        except _Refused as error:
            framing = isinstance(error, _FramingRefused)
            code = codes.REQUEST_AMBIGUOUS_FRAMING if framing else codes.REQUEST_MALFORMED
            raise CallerError(code, str(error)) from error
        if len(fields) > self._max_fields:
            raise CallerError(codes.REQUEST_TOO_MANY_HEADERS, "more than limits.headers")
        block = HeaderBlock(fields)
        try:
            _read_framing(block)
        except _Refused as error:
            raise CallerError(codes.REQUEST_AMBIGUOUS_FRAMING, str(error)) from error
        if len(block.names) < len(fields):
            check_single(block.names)
        _read_connection(block)
        hosts = block.value("host")
        if len(hosts) > 1:
            raise CallerError(codes.REQUEST_AMBIGUOUS_HOST, "more than one Host")
        if hosts:
            block.host_name, block.host_port = self._host(hosts[0])
            block.host = join_host(block.host_name, block.host_port, 80)
        expectations = block.value("expect")
        if expectations:
            if len(expectations) > 1 or expectations[0].lower() != b"100-continue":
                raise CallerError(codes.REQUEST_EXPECTATION, "unknown expectation")
            block.expect_continue = True
        traces = block.value("traceparent")
        if len(traces) == 1 and _TRACEPARENT.fullmatch(traces[0]):
            block.traceparent = traces[0]
        subjects = block.value(self._subject)
        if len(subjects) > 1:
            raise CallerError(codes.SUBJECT_INVALID, "more than one user token")
        if subjects:
            # RFC 6750 §2.1 allows the scheme's name before it; the token itself is ASCII.
            token = subjects[0].decode("latin-1").strip()
            if token[:7].lower() == "bearer ":
                token = token[7:].strip()
            block.subject = Secret(token)
        block.memorable = not subjects and _NOT_KEPT.isdisjoint(block.names)
        return block

    def _host(self, raw: bytes) -> tuple[str, int]:
        """`split_host`, remembered: a workload calls few hosts, again and again."""
        host = self._hosts.get(raw)
        if host is None:
            host = split_host(raw.decode("latin-1"))
            if len(self._hosts) < _KNOWN_NAMES:
                self._hosts[raw] = host
        return host

    def _read_response(self, raw: bytes) -> ResponseHead:
        line_end = raw.find(b"\r\n")
        match = _STATUS_LINE.fullmatch(raw, 0, line_end)
        if match is None:
            raise _bad_response("not a status line")
        minor, status, reason = match.groups()
        try:
            block = HeaderBlock(
                _fields(
                    raw[line_end + 2 :],
                    httptools.HttpResponseParser,
                    b"HTTP/1.1 200 OK\r\n",
                    self._names,
                )
            )
            _read_framing(block)
        except _Refused as error:
            raise _bad_response(str(error)) from error
        _read_connection(block)
        if minor == b"0" and block.chunked:
            raise _bad_response("Transfer-Encoding in HTTP/1.0")
        nonces = block.value("dpop-nonce")
        # RFC 9449 §8.1: exactly one, of NQCHAR; anything else is no nonce of ours.
        if len(nonces) == 1 and _NONCE.fullmatch(nonces[0]):
            block.nonce = nonces[0].decode()
        block.memorable = not nonces and SESSION.isdisjoint(block.names)
        return ResponseHead(int(status), int(minor), reason or b"", block, len(raw))


class _Refused(Exception):  # noqa: N818
    """llhttp, or a check beside it, does not take the block."""


class _FramingRefused(_Refused):
    """llhttp does not take the length or the coding."""


class _Collector:
    """httptools callbacks: keeps the fields in order."""

    __slots__ = ("_names", "complete", "fields")

    def __init__(self, names: dict[bytes, str]) -> None:
        self._names = names
        self.fields: list[Field] = []
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        known = self._names.get(name)
        if known is None:
            known = normal(name.decode("latin-1"))
            if len(self._names) < _KNOWN_NAMES:
                self._names[name] = known
        self.fields.append((known, name, value))

    def on_headers_complete(self) -> None:
        self.complete = True


def _fields(
    raw: bytes, parser: Callable[[Any], Any], start_line: bytes, names: dict[bytes, str]
) -> tuple[Field, ...]:
    """The fields of a block (header lines and the empty line), as llhttp reads them.

    The start line before it is a fixed one: what llhttp says of a block must not depend on what
    stood before it, since the result is kept by the block alone.
    """
    # Three of llhttp's own refusals once more, so that they hang on no build option of it.
    if raw.count(b"\n") != raw.count(b"\r\n") or raw.count(b"\r") != raw.count(b"\n"):
        raise _Refused("bare CR or LF")
    if b"\r\n " in raw or b"\r\n\t" in raw:
        raise _Refused("obs-fold")
    if b"\0" in raw:
        raise _Refused("NUL")
    collector = _Collector(names)
    try:
        parser(collector).feed_data(start_line + raw)
    except httptools.HttpParserUpgrade:
        pass  # the block asks for an upgrade; whether it gets one is not decided here
    except httptools.HttpParserError as error:
        # The parser's text can hold the offending line; its type says enough.
        about_framing = any(name in str(error) for name in ("Content-Length", "Transfer-Encoding"))
        raise (_FramingRefused if about_framing else _Refused)(type(error).__name__) from error
    if not collector.complete:
        raise _Refused("incomplete")
    return tuple(collector.fields)


def _read_framing(block: HeaderBlock) -> None:
    """RFC 9112 §6: at most one length, or chunked as the only coding; never both."""
    lengths = block.value("content-length")
    codings = block.value("transfer-encoding")
    if not lengths and not codings:
        return
    if any(raw.lower() != name.encode() for name, raw, _ in block.fields if name in _FRAMING):
        raise _Refused("a framing field spelled without its -, which some readers take for it")
    if lengths and codings:
        raise _Refused("Content-Length and Transfer-Encoding")
    if len(lengths) > 1 or len(codings) > 1:
        raise _Refused("framing given twice")
    if lengths:
        text = lengths[0].decode("latin-1")
        if _LENGTH.fullmatch(text) is None:
            raise _Refused("Content-Length is not one number")
        block.length = int(text)
    if codings:
        if codings[0].lower() != b"chunked":
            raise _Refused("a transfer coding other than chunked")
        block.chunked = True


def _read_connection(block: HeaderBlock) -> None:
    """RFC 9110 §7.6.1: connection options, close and keep-alive among them."""
    values = block.value("connection")
    if not values:
        return
    if len(values) == 1 and values[0] in _USUAL:  # what nearly every head has
        block.keep_alive = values[0] == b"keep-alive"
        block.close = not block.keep_alive
        return
    options: set[str] = set()
    for value in values:
        options.update(
            option
            for part in value.decode("latin-1").split(",")
            if (option := normal(part.strip(" \t")))
        )
    block.close = "close" in options
    block.keep_alive = "keep-alive" in options
    # RFC 9110 §7.8: only with the option; h2c may be ignored, and is (no h2c upgrade here).
    if "upgrade" in options:
        upgrade = b", ".join(block.value("upgrade"))
        if upgrade and upgrade.lower() != b"h2c":
            block.upgrade = upgrade
    block.listed = frozenset(options - {"close", "keep-alive", "upgrade", "te", "http2-settings"})


def _bad_response(reason: str) -> TargetError:
    return TargetError(codes.TARGET_BAD_RESPONSE, reason)
