"""Bytes for targets to answer with: good answers with something odd about them, some noise."""

from __future__ import annotations

from typing import Final

from hypothesis import strategies as st

from tests.fuzz.requests import EXTENSIONS, ODD_CHUNKS, ODD_ENDS, TRAILERS, changed

STARTS: Final = ["GET HTTP/1.1", "POST HTTP/1.1", "HEAD HTTP/1.1", "GET HTTP/1.0"]
POISON: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"

_LINES: Final = [
    b"HTTP/1.1 200 OK", b"HTTP/1.1 200", b"HTTP/1.1 404 Not Found", b"HTTP/1.0 200 OK", b"HTTP/1.1 500 ",
    b"HTTP/1.1 204 No Content", b"HTTP/1.1 304 Not Modified", b"HTTP/1.1 302 Found", b"HTTP/1.1 401 No",
    b"HTTP/1.1 205 Reset Content", b"HTTP/1.1 206 Partial Content", b"HTTP/1.1 299 Odd \xe9",
]  # fmt: skip
_ODD_LINES: Final = [
    b"HTTP/1.1 20 OK", b"HTTP/1.1 2000 OK", b"HTTP/1.1 600 OK", b"HTTP/1.1 099 OK", b"HTTP/1.1  200 OK",
    b"HTTP/1.1 200\tOK", b"HTTP/1.1 200 O\x00K", b"HTTP/1.2 200 OK", b"HTTP/2.0 200 OK", b"HTTP/0.9 200 OK",
    b"http/1.1 200 OK", b"ICY 200 OK", b"200 OK", b"", b" HTTP/1.1 200 OK", b"\r\nHTTP/1.1 200 OK",
    b"HTTP/1.1 101 Switching Protocols", b"HTTP/1.1 100 Continue",
]  # fmt: skip
_INTERIM: Final = [
    b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n",
    b"HTTP/1.1 102 Processing\r\n\r\n" * 17, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"HTTP/1.0 100 \r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nConnection: close\r\n\r\n",
]  # fmt: skip
_FIELDS: Final = [
    b"X-A: b", b"Date: now", b"Content-Type: text/plain", b"Location: http://other/", b"X-Latin: \xe9",
    b"X-Empty:", b"WWW-Authenticate: Bearer", b"DPoP-Nonce: n", b"Keep-Alive: timeout=5", b"Via: 1.1 x",
    b"Connection: close", b"Connection: keep-alive", b"Connection: X-A", b"Upgrade: h2c", b"Trailer: X-T",
]  # fmt: skip
_ODD_FIELDS: Final = [
    b"Content-Length: 5", b"Content-Length: 0", b"Content-Length: +5", b"Content-Length: 5, 5",
    b"Content_Length: 5", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: identity", b"Transfer-Encoding : chunked", b" folded", b"X-A : b", b"no colon",
    b"X-A: b\rX-B: c", b"X-A: b\nX-B: c", b"X-A: \x00", b"X-A: \x7f", b"X\xe9: b", b": no name",
    b"X-A: b\r\n\r\nHTTP/1.1 200 OK",
]  # fmt: skip
_BODIES: Final = [b"", b"hello", b"0\r\n\r\n", POISON, b"\r\n\r\n", b"\x00\xff", b"x" * 300]
_EXTRA: Final = [b""] * 8 + [POISON, b"\r\n", b"x", b"0\r\n\r\n", b"HTTP/1.1 "]


def mostly(usual: list[bytes], odd: list[bytes], *, one_in: int = 24) -> st.SearchStrategy[bytes]:
    """One draw: the usual ones often enough that only one in so many is odd."""
    times = -(-len(odd) * (one_in - 1) // len(usual))
    return st.sampled_from(usual * times + odd)


_SOME_LINE: Final = mostly(_LINES, _ODD_LINES)
_SOME_FIELDS: Final = st.lists(mostly(_FIELDS, _ODD_FIELDS), max_size=4)
_SOME_CHUNK: Final = mostly([b"%x" + extension + b"\r\n" for extension in EXTENSIONS], ODD_CHUNKS)
_SOME_END: Final = mostly([b"0\r\n" + trailer + b"\r\n" for trailer in TRAILERS], ODD_ENDS)


@st.composite
def chunked(draw: st.DrawFn, payload: bytes) -> bytes:
    """``payload`` in chunks, with something odd about one of them now and then."""
    body = b""
    while payload:
        size = draw(st.integers(1, len(payload)))
        body += draw(_SOME_CHUNK).replace(b"%x", b"%x" % size) + payload[:size] + b"\r\n"
        payload = payload[size:]
    return body + draw(_SOME_END)


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, bool]:
    """An answer, and whether the target ends its connection behind it."""
    if draw(st.integers(0, 29)) == 0:
        return draw(st.binary(max_size=60)), draw(st.booleans())
    raw = draw(st.sampled_from(_INTERIM)) if draw(st.integers(0, 5)) == 0 else b""
    fields = list(draw(_SOME_FIELDS))
    payload = draw(st.sampled_from(_BODIES))
    ends = draw(st.integers(0, 3)) == 0
    match draw(st.integers(0, 9)):
        case 0 | 1 | 2 | 3:
            body = payload
            fields.append(b"Content-Length: %d" % len(body))
        case 4 | 5 | 6:
            body = draw(chunked(payload))
            fields.append(b"Transfer-Encoding: chunked")
        case 7:
            body = payload
            fields.append(b"Content-Length: %d" % draw(st.integers(0, 60)))
        case _:
            body, ends = payload, True
    raw += b"\r\n".join([draw(_SOME_LINE), *fields, b"", b""]) + body
    raw += draw(st.sampled_from(_EXTRA))
    return (draw(changed(raw)) if draw(st.integers(0, 3)) == 0 else raw), ends
