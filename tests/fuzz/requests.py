"""Bytes for workloads to send: good requests, good ones with one thing odd about them, some noise.

A stream is up to three requests behind one another. Each is put together from parts that any
server takes; then one part is exchanged for one that has tricked servers before, or a few bytes are
changed. Rows of the table stand among good requests. Noise alone would never get past the first
line, and with two odd parts the first would hide the second.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from hypothesis import strategies as st

from tests.support.wire_cases import CASES

HOSTS: Final = {
    "reverse": [b"h", b"H.:80", b"[::1]:7070", b"h:8080"],
    "shared": [b"up.example", b"UP.example.", b"up.example:80"],
    "forward": [b"127.0.0.1:65000"],
    "plain": [b"127.0.0.1:65000"],
    "tunnel": [b"secure.example", b"SECURE.example.", b"secure.example:443"],
}
SCHEMES: Final = {entry: b"https" if entry == "tunnel" else b"http" for entry in HOSTS}

METHODS: Final = [b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"HEAD"]
SEGMENTS: Final = [
    b"a", b"b", b"A", b"up", b"strict", b"Strict", b"%61", b"%C3%A9", b"c%23", b"a;v=1", b"a;", b"...", b"a%20b",
    b"100%25", b"a:b@c", b"~!$&'()*+,=", b"a.b",
]  # fmt: skip
QUERIES: Final = [
    b"", b"a=b", b"a=b&c=d", b"a=%2f..%2f", b"a?b", b"access_token=x", b"a&%61ccess_token=y&b",
    b"API_KEY=z", b"a;access_token=x&b", b"a=/../b", b"access.token[]=x&q", b"X-Amz-Signature=z", b"%",
]  # fmt: skip
FIELDS: Final = [
    b"X-A: b", b"X-A: c", b"x-Odd_NAME: \t d ", b"Accept: */*", b"X-Empty:", b"X-Latin: \xe9", b"X-Tab: a\tb",
    b"Authorization: Bearer stolen", b"x_API.key: stolen", b"Cookie: stolen=1", b"DPoP: stolen",
    b"Proxy-Authorization: Basic stolen", b"Connection: keep-alive", b"Connection: X-A, keep-alive",
    b"Connection: ,x_a ,\tTE", b"Keep-Alive: 5", b"TE: trailers", b"Trailer: X-A", b"Via: 1.1 x",
    b"Upgrade: websocket", b"Expect: 100-continue", b"traceparent: x", b"Proxy: http://evil.example",
    b"X-Forwarded-For: 10.0.0.1", b"Forwarded: for=a", b"Ocp-Apim-Subscription-Key: k",
    b"Proxy-Connection: X-A", b"HTTP2-Settings: a", b"!#$%&'*+.^`|~: b",
]  # fmt: skip
PAYLOADS: Final = [
    b"hello", b"0\r\n\r\n", b"GET /b HTTP/1.1\r\nHost: h\r\n\r\n", b"\r\n\r\n", b"\x00\xff", b"x" * 300, b"\r",
]  # fmt: skip
EXTENSIONS: Final = [b"", b"", b"", b";a", b';a="b;c"', b";a=b;c"]
TRAILERS: Final = [
    b"", b"", b"", b"X-A: b\r\n", b"X-A: b\r\nx-b:\r\n", b"Authorization: Bearer stolen\r\n",
]  # fmt: skip

# What one part is exchanged for, or what is put in.
ODD_METHODS: Final = [
    b"get",
    b"TRACE",
    b"CONNECT",
    b"GET!",
    b"1GET",
    b"PRI",
    b"G" * 33,
    b"",
    b"G\x00T",
]
ODD_TARGETS: Final = [
    b"*",
    b"a",
    b"?a",
    b"h:80",
    b"http:/h/a",
    b"http:///a",
    b"ftp://h/a",
    b"//h/a",
    b"\\a",
]
ODD_VERSIONS: Final = [
    b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9", b"http/1.1", b"HTTP/1.10", b"", b"HTTP/1.1 ", b"RTSP/1.0",
]  # fmt: skip
ODD_SPACES: Final = [b"  ", b"\t", b" \t", b"\x0b", b"\x0c", b"", b"\r", b"\x00", b"\xa0"]
ODD_SEGMENTS: Final = [
    b"", b".", b"..", b"%2e%2e", b"%2E", b".%2e", b"%252e", b"%2f", b"%5c", b"\\", b"%00", b"%0d%0a", b";x",
    b"..;x", b"%c0%ae", b"%ef%bc%8f", b"%zz", b"%", b"#", b'"', b"..%20", b"\xe9", b"%ff", b"strict;x",
    b"strict%3bx", b"%25%32%65", b"stric%54", b"%C5%BFtrict",
]  # fmt: skip
ODD_QUERIES: Final = [
    b"_method=DELETE",
    b"a#b",
    b"a\\b",
    b"a&%5Fmethod=x",
    b"a\xe9",
    b"a b",
    b"a\x7f",
]
ODD_HOSTS: Final = [
    b"", b"h, h", b"user@h", b"h/", b"h:", b"h:0", b"h#", b"h\\", b"%68", b"h ", b"[::1", b"\xff", b"other",
    b"up.example@other", b"h:65616", b"h\x0b",
]  # fmt: skip
ODD_FIELDS: Final = [
    b"Host: other", b"Host: h", b" folded", b"\tfolded", b"X-A : b", b"X A: b", b"no colon", b": no name",
    b"X\x00: b", b"X-A: \x00", b"X-A: \x7f", b"X-A: b\rX-B: c", b"X-A: b\nX-B: c", b"X-\xe9: b", b"X-A: \x1c",
    b"Connection: close", b"Connection: Authorization", b"Connection: X.Api.Key", b"Connection: Upgrade",
    b"Connection: Content-Length", b"Connection: Transfer-Encoding", b"Expect: x", b"Expect: 100-continue ",
    b"X-Original-URL: /b", b"X-HTTP-Method-Override: PUT", b"X-Forwarded-Host: x", b"Forwarded: host=x",
    b"Content-Type: c/d\r\nContent-Type: a/b", b"X-Valetkey-Subject: user", b"X-Valetkey-Subject:",
    b"X-Long: " + b"l" * 900, b"traceparent: 00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"\r\n", b"\n", b"\r",
]  # fmt: skip
ODD_FRAMING: Final = [
    b"Content-Length: %d, %d", b"Content-Length: +%d", b"Content-Length: 0x%x", b"Content-Length: %d ",
    b"Content-Length : %d", b"Content-Length:\r\n %d", b"Content_Length: %d", b"Content.Length: %d",
    b"Content-Length: %d\r\nContent-Length: %d", b"Content-Length: %d\r\nContent_Length: 0",
    b"Content-Length: %d\r\nContent-Length: 0", b"Content-Length: -%d", b"Content-Length: %d_0",
    b"Content-Length: %d\r\nTransfer-Encoding: chunked", b"Content-Length: %d\x0b",
    b"Transfer-Encoding: chunked\r\nContent-Length: %d", b"Content-Length: %d\r\nTransfer-Encoding: x",
    b"Content-Length: %d\r\nTransfer_Encoding: chunked", b"Transfer_Encoding: chunked",
    b"Transfer.Encoding: chunked", b"Transfer-Encoding: \x0bchunked", b"Transfer-Encoding : chunked",
    b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding: x",
    b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    b"Transfer-Encoding:\r\n chunked", b"Transfer-Encoding: chunked ", b'Transfer-Encoding: "chunked"',
    b"X-A: b\nTransfer-Encoding: chunked", b"X-A: b\rContent-Length: %d", b" Content-Length: %d",
    b"X-Transfer-Encoding: chunked", b"Transfer-Encoding: xchunked", b"Transfer-Encoding: \xa0chunked",
]  # fmt: skip
ODD_CHUNKS: Final = [
    b"0x%x\r\n", b"+%x\r\n", b"%x \r\n", b" %x\r\n", b"%x\n", b"%x;a\n", b"%x;a\r", b"-%x\r\n", b"%xg\r\n",
    b"%x\r\n\r\n", b"%x ;a\r\n", b"0_%x\r\n", b"%x;\x00\r\n", b"1000000000000000%x\r\n", b"%x,\r\n", b"\r\n", b"%x;\r\n", b"%x;a =b\r\n",
]  # fmt: skip
ODD_ENDS: Final = [
    b"0\r\n", b"0\n\n", b"0 \r\n\r\n", b"-0\r\n\r\n", b"0\r\nGET / HTTP/1.1\r\n\r\n", b"0x0\r\n\r\n", b"0\r\n\n",
    b"0\r\nX-A : b\r\n\r\n", b"0\r\nX-A: b\r\n c\r\n\r\n", b"00\r\nX-A: b\rX\r\n\r\n", b"",
    b"0\r\nContent-Length: 5\r\n\r\n", b"0\r\nContent-Length:\r\n\r\n", b"0\r\nX-A: b\r\ncontent_length: 0\r\n\r\n",
    b"0\r\nTransfer-Encoding: x\r\n\r\n", b"0\r\nHost: other\r\n\r\n",
]  # fmt: skip
BYTES: Final = [
    bytes([octet]) for octet in b"\x00\t\n\x0b\x0c\r \x1c\x7f\x80\x85\xa0\xff0:;,_-./%\\?#@[+"
] + [b"\r\n", b"\r\n\r\n", b"\n\n", b"chunked", b"HTTP/1.1", b"\r\n "]

PARTS: Final = (
    "method", "target", "version", "space", "segment", "query", "origin", "host", "no host", "field",
    "framing", "framing", "framing", "chunk", "chunk", "end", "length", "line end",
)  # fmt: skip


@dataclass
class Draft:
    """A request in its parts."""

    entry: str
    method: bytes
    segments: list[bytes]
    query: bytes | None
    absolute: bool
    version: bytes
    host: bytes | None
    fields: list[bytes] = field(default_factory=list)
    payload: bytes | None = None
    chunked: bool = False
    # What is odd about it.
    target: bytes | None = None
    origin: bytes | None = None
    space: bytes = b" "
    framing: bytes | None = None
    chunk: bytes = b"%x\r\n"
    last: bytes = b"0\r\n\r\n"
    end: bytes = b"\r\n"

    def render(self) -> bytes:
        target = self.target
        if target is None:
            target = b"/" + b"/".join(self.segments)
            if self.query is not None:
                target += b"?" + self.query
            if self.absolute:
                host = self.host if self.host is not None else HOSTS[self.entry][0]
                target = (self.origin or SCHEMES[self.entry] + b"://" + host) + target
        lines = [self.space.join([self.method, target]) + b" " + self.version]
        if self.host is not None:
            lines.append(b"Host: " + self.host)
        lines += self.fields
        body = b""
        if self.chunked:
            if self.framing is None:
                lines.append(b"Transfer-Encoding: chunked")
            if self.payload:
                body = self.chunk.replace(b"%x", b"%x" % len(self.payload)) + self.payload + b"\r\n"
            body += self.last
        elif self.payload is not None:
            if self.framing is None:
                lines.append(b"Content-Length: %d" % len(self.payload))
            body = self.payload
        if self.framing is not None:
            size = len(self.payload or b"")
            lines.append(self.framing.replace(b"%d", b"%d" % size).replace(b"%x", b"%x" % size))
        return self.end.join([*lines, b"", b""]) + body


_SOME_SEGMENTS: Final = st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=3)
_SOME_QUERY: Final = st.sampled_from([None] * len(QUERIES) * 2 + QUERIES)
_SOME_FIELDS: Final = st.lists(st.sampled_from(FIELDS), max_size=4)
_SOME_PAYLOAD: Final = st.sampled_from([None, b"", *PAYLOADS])


@st.composite
def drafts(draw: st.DrawFn, entry: str) -> Draft:
    """A request that there is nothing wrong with."""
    chance = draw(st.integers(0, 63))
    draft = Draft(
        entry,
        draw(st.sampled_from(METHODS)),
        draw(_SOME_SEGMENTS),
        draw(_SOME_QUERY),
        absolute=entry == "forward" or chance % 8 == 0,
        version=b"HTTP/1.0" if chance >= 58 else b"HTTP/1.1",
        host=draw(st.sampled_from(HOSTS[entry])),
        fields=draw(_SOME_FIELDS),
        payload=draw(_SOME_PAYLOAD),
    )
    draft.chunked = draft.payload is not None and chance % 2 == 0 and draft.version == b"HTTP/1.1"
    if draft.chunked:
        draft.chunk = b"%x" + draw(st.sampled_from(EXTENSIONS)) + b"\r\n"
        draft.last = b"0\r\n" + draw(st.sampled_from(TRAILERS)) + b"\r\n"
    return draft


@st.composite
def twisted(draw: st.DrawFn, draft: Draft) -> Draft:
    """The same request with one part that is odd."""

    def odd(values: list[bytes]) -> bytes:
        return draw(st.sampled_from(values))

    match draw(st.sampled_from(PARTS)):
        case "method":
            draft.method = odd(ODD_METHODS)
        case "target":
            draft.target = odd(ODD_TARGETS)
        case "version":
            draft.version = odd(ODD_VERSIONS)
        case "space":
            draft.space = odd(ODD_SPACES)
        case "segment":
            draft.segments.insert(draw(st.integers(0, len(draft.segments))), odd(ODD_SEGMENTS))
        case "query":
            draft.query = odd(ODD_QUERIES)
        case "origin":
            draft.absolute, draft.origin = True, SCHEMES[draft.entry] + b"://" + odd(ODD_HOSTS)
        case "host":
            draft.host = odd(ODD_HOSTS)
        case "no host":
            draft.host = None
        case "field":
            draft.fields.insert(draw(st.integers(0, len(draft.fields))), odd(ODD_FIELDS))
        case "framing":
            draft.framing = odd(ODD_FRAMING)
        case "chunk":
            draft.payload, draft.chunked = draft.payload or b"hello", True
            draft.chunk = odd(ODD_CHUNKS)
        case "end":
            draft.payload, draft.chunked, draft.last = (
                draft.payload or b"hello",
                True,
                odd(ODD_ENDS),
            )
        case "length":
            draft.framing = b"Content-Length: %d" % draw(st.integers(0, 320))
        case _:
            draft.end = odd([b"\n", b"\r", b"\r\r\n", b"\n\r"])
    return draft


@st.composite
def changed(draw: st.DrawFn, raw: bytes) -> bytes:
    """Some bytes taken out, put in, doubled or replaced."""
    for _ in range(draw(st.integers(1, 2)) if raw else 0):
        at = draw(st.integers(0, len(raw)))
        end = min(len(raw), at + draw(st.integers(0, 6)))
        match draw(st.integers(0, 3)):
            case 0:
                raw = raw[:at] + raw[end:]
            case 1:
                raw = raw[:at] + draw(st.sampled_from(BYTES)) + raw[at:]
            case 2:
                raw = raw[:end] + raw[at:]
            case _:
                raw = raw[:at] + draw(st.sampled_from(BYTES)) + raw[end:]
    return raw


ROWS: Final = {
    entry: [case.raw for case in CASES if case.entry == entry and len(case.raw) < 900]
    for entry in HOSTS
}


@st.composite
def streams(draw: st.DrawFn, entry: str) -> bytes:
    """What a workload may send over one connection that came in by ``entry``."""
    kind = draw(st.integers(0, 19))
    if kind == 19:
        return draw(st.binary(max_size=80))
    requests = draw(st.lists(drafts(entry), min_size=1, max_size=3))
    odd = draw(st.integers(0, len(requests) - 1))
    if 5 <= kind < 12:
        requests[odd] = draw(twisted(requests[odd]))
    parts = [request.render() for request in requests]
    if 12 <= kind < 17:
        parts[odd] = draw(st.sampled_from(ROWS[entry]))
    raw = b"".join(parts)
    return draw(changed(raw)) if kind >= 16 else raw


_BEGIN: Final = re.compile(rb"[A-Z]{3,7} (?=/|http)")


def cuts() -> st.SearchStrategy[list[int]]:
    """Where to cut a stream: see `places`."""
    return st.lists(st.integers(0, 1 << 16), max_size=5)


def places(raw: bytes, marks: list[int]) -> list[int]:
    """Places to cut at: half of them anywhere, half beside an end of a line or of a request."""
    edges = [at + shift for at in range(len(raw)) if raw[at] in b"\r\n" for shift in (0, 1, 2)]
    edges += [
        begin.start() + shift for begin in _BEGIN.finditer(raw) for shift in (-1, 0, 1, 2)
    ] * 3
    return [
        edges[mark // 2 % len(edges)] if edges and mark % 2 else mark // 2 % (len(raw) + 1)
        for mark in marks
    ]
