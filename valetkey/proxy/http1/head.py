"""Request and response heads of HTTP/1.1 (RFC 9112): what routing, framing and the record need.

How they are read off the wire, strictly, is `valetkey.proxy.http1.head_reader`'s.
"""

from __future__ import annotations

from typing import Final

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.contracts.secret import Secret
from valetkey.proxy.core.authority import DEFAULT_PORTS, join_host, origin_of, split_host
from valetkey.proxy.core.headers import (
    SESSION,
    Field,
    HeaderPolicy,
    check_connection,
    check_overrides,
    request_fields,
    response_fields,
    session_fields,
)
from valetkey.proxy.http1.respond import status_line

# RFC 9110 §7.6.3: a proxy adds itself to each message that it forwards, with the version that the
# message came in.
_VIA: Final = (b"via: 1.0 valetkey\r\n", b"via: 1.1 valetkey\r\n")

# The forms of a request target (RFC 9112 §3.2); the fourth, `*`, is refused.
ORIGIN_FORM: Final = 0
ABSOLUTE_FORM: Final = 1
AUTHORITY_FORM: Final = 2

_NONE: Final[list[bytes]] = []
_EVENT_STREAM: Final = b"text/event-stream"


class HeaderBlock:
    """The header fields of one head, with what framing and routing need of them."""

    __slots__ = (
        "_forward", "chunked", "close", "expect_continue", "fields", "host", "host_name",
        "host_port", "keep_alive", "length", "listed", "memorable", "names", "nonce", "subject",
        "traceparent", "upgrade",
    )  # fmt: skip

    def __init__(self, fields: tuple[Field, ...]) -> None:
        self.fields = fields
        self.host: str | None = None
        """Host, without the port of ``http``; its parts as given are beside it."""
        self.host_name = ""
        self.host_port = 0
        self.length: int | None = None
        self.chunked = False
        self.expect_continue = False
        self.upgrade: bytes | None = None
        self.traceparent = b""
        self.subject: Secret | None = None
        self.nonce = ""
        self.listed: frozenset[str] = frozenset()
        self.close = False
        self.keep_alive = False
        self.memorable = True
        self._forward: dict[HeaderPolicy, tuple[bytes, tuple[str, ...]]] = {}
        self.names: dict[str, list[bytes]] = {}
        """The values of each field, by normal name."""
        for name, _, value in fields:
            if name in self.names:
                self.names[name].append(value)
            else:
                self.names[name] = [value]

    def value(self, name: str) -> list[bytes]:
        """All values of a field, by normal name."""
        return self.names.get(name, _NONE)

    def forward(self, policy: HeaderPolicy) -> tuple[bytes, tuple[str, ...]]:
        """Lines that go on under a target's policy, and names of credentials dropped.

        Raises `CallerError` for a Connection list that names what is not of this hop, and for
        what would have the target serve another call.
        """
        made = self._forward.get(policy)
        if made is None:
            check_connection(self.listed, policy)
            check_overrides(self.names, policy)
            made = self._forward[policy] = request_fields(self.fields, self.listed, policy)
        return made

    def dropped(self, policy: HeaderPolicy) -> tuple[str, ...]:
        """The names of credentials that are dropped, whether the block may go on or not."""
        return request_fields(self.fields, self.listed, policy)[1]


class RequestHead:
    """One request head. ``size`` is its length in bytes on the wire."""

    __slots__ = (
        "authority", "block", "form", "method", "origin", "path", "query", "size", "version",
    )  # fmt: skip

    def __init__(
        self, method: str, version: int, target: str, block: HeaderBlock, size: int
    ) -> None:
        self.method = method
        self.version = version  # the minor version: 0 or 1
        self.block = block
        self.size = size
        self.authority = block.host or ""
        self.form = ORIGIN_FORM
        self.origin = ""
        """What absolute-form names, as ``scheme://host[:port]``; CONNECT: ``host:port``."""
        if not target.startswith("/"):
            target = self._connect(target) if method == "CONNECT" else self._absolute(target)
        path, mark, query = target.partition("?")
        self.path = path
        self.query = query if mark else None

    def _absolute(self, target: str) -> str:
        """Absolute-form (RFC 9112 §3.2.2): the authority must equal Host."""
        scheme, mark, rest = target.partition("://")
        scheme = scheme.lower()
        if not mark or scheme not in DEFAULT_PORTS:
            raise CallerError(codes.REQUEST_MALFORMED, "neither origin-form nor absolute-form")
        end = next((i for i, char in enumerate(rest) if char in "/?"), len(rest))
        authority, path = rest[:end], rest[end:]
        # Userinfo is a credential in a place where nobody looks (RFC 9110 §4.2.4): no host.
        name, port = split_host(authority)
        self._agree(name, port, DEFAULT_PORTS[scheme])
        self.form = ABSOLUTE_FORM
        self.origin = origin_of(scheme, name, port)
        self.authority = join_host(name, port, 80)
        return path if path.startswith("/") else "/" + path

    def _connect(self, target: str) -> str:
        """Authority-form (RFC 9110 §9.3.6): host and port, both; no path at all."""
        name, port = split_host(target)
        if not port:
            raise CallerError(codes.REQUEST_MALFORMED, "CONNECT without a port")
        self._agree(name, port, self.block.host_port or port)
        self.form = AUTHORITY_FORM
        self.origin = f"{name}:{port}"
        return ""

    def _agree(self, name: str, port: int, default: int) -> None:
        """RFC 9112 §3.2.2: the request target wins over Host. One that disagrees is refused."""
        block = self.block
        if block.host is None and self.version == 0:
            return  # before HTTP/1.1 there was no Host to agree with
        if name != block.host_name or (port or default) != (block.host_port or default):
            raise CallerError(codes.REQUEST_AMBIGUOUS_HOST, "request target and Host disagree")


class ResponseHead:
    """One response head, with the lines that go on to the workload."""

    __slots__ = (
        "block", "cookies", "echoes", "event_stream", "lines", "size", "sized", "status", "version",
    )  # fmt: skip

    def __init__(
        self, status: int, version: int, reason: bytes, block: HeaderBlock, size: int
    ) -> None:
        self.status = status
        self.version = version
        self.block = block
        self.size = size
        self.echoes = False
        """Whether it held the credential that was sent (it does no more)."""
        self.cookies = session_fields(block.fields) if not SESSION.isdisjoint(block.names) else b""
        # Without framing, and with a length: what most answers need, made once per head.
        self.lines = (
            status_line(status, reason)
            + response_fields(block.fields, block.listed)
            + _VIA[version]
        )
        self.sized = (
            b"%bcontent-length: %d\r\n" % (self.lines, block.length)
            if block.length is not None
            else b""
        )
        types = block.value("content-type")
        self.event_stream = bool(types) and (
            types[0].partition(b";")[0].strip().lower() == _EVENT_STREAM
        )
        """Server-sent events (HTML Living Standard §9.2): long silences belong to them."""

    def lines_without(self, names: frozenset[str]) -> bytes:
        """`lines` without the fields of these names (in normal form)."""
        line_end = self.lines.index(b"\r\n") + 2
        fields = (field for field in self.block.fields if field[0] not in names)
        kept = response_fields(fields, self.block.listed)
        return self.lines[:line_end] + kept + _VIA[self.version]
