"""Heads: what is read, what is refused with which code, however the bytes arrive."""

from __future__ import annotations

import contextlib
from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valetkey.contracts import codes
from valetkey.contracts.codes import Code
from valetkey.contracts.errors import CallerError, TargetError
from valetkey.proxy.core.headers import HeaderPolicy
from valetkey.proxy.core.scrub import needles_of
from valetkey.proxy.http1.head import RequestHead, ResponseHead
from valetkey.proxy.http1.head_reader import HeadReader

MAX_SIZE, MAX_FIELDS = 4096, 20


def reader() -> HeadReader:
    return HeadReader(max_size=MAX_SIZE, max_fields=MAX_FIELDS, subject_header="X-User")


def wire(*lines: str, start: str = "GET /a?b HTTP/1.1", host: bool = True) -> bytes:
    hosts = ["Host: h"] if host else []
    return "\r\n".join([start, *hosts, *lines, "", ""]).encode("latin-1")


def fed(raw: bytes, step: int) -> RequestHead:
    """The head, with the buffer growing as it does on a connection."""
    heads = reader()
    for end in range(step, len(raw) + step, step):
        head = heads.request(raw[:end])
        if head is not None:
            return head
    raise AssertionError("incomplete")


GOOD: list[tuple[str, bytes, dict[str, Any]]] = [
    ("usual", wire(), {"method": "GET", "path": "/a", "query": "b", "authority": "h", "version": 1}),
    ("no query", wire(start="GET /a HTTP/1.1"), {"path": "/a", "query": None}),
    ("empty query", wire(start="GET /a? HTTP/1.1"), {"path": "/a", "query": ""}),
    ("two question marks", wire(start="GET /a?b?c HTTP/1.1"), {"query": "b?c"}),
    ("HTTP/1.0 without Host", wire(start="GET / HTTP/1.0", host=False), {"version": 0, "authority": ""}),
    ("absolute form", wire(start="GET http://h/a?b HTTP/1.1"), {"path": "/a", "query": "b", "authority": "h"}),
    ("absolute form, default port", wire(start="GET http://H.:80/a HTTP/1.1"), {"path": "/a", "authority": "h"}),
    ("absolute form, no path", wire(start="GET http://h HTTP/1.1"), {"path": "/", "query": None}),
    ("absolute form, query alone", wire(start="GET http://h?b HTTP/1.1"), {"path": "/", "query": "b"}),
    ("absolute form, https", wire(start="GET HTTPS://h/a HTTP/1.1"), {"path": "/a"}),
    ("odd method", wire(start="M-SEARCH /a HTTP/1.1"), {"method": "M-SEARCH"}),
    ("lower-case method", wire(start="get /a HTTP/1.1"), {"method": "get"}),
    ("Host in upper case with default port", wire("HOST: API.example.:80", host=False), {"authority": "api.example"}),
]  # fmt: skip

BLOCKS: list[tuple[str, bytes, dict[str, Any]]] = [
    ("length", wire("Content-Length: 5"), {"length": 5, "chunked": False}),
    ("length of nothing", wire("Content-Length: 0"), {"length": 0}),
    ("length with zeros", wire("Content-Length: 005"), {"length": 5}),
    ("chunked", wire("Transfer-Encoding: chunked"), {"length": None, "chunked": True}),
    ("chunked in capitals", wire("TRANSFER-ENCODING: Chunked"), {"chunked": True}),
    ("close", wire("Connection: close"), {"close": True, "listed": frozenset()}),
    ("close in capitals, in a list", wire("Connection: x, CLOSE"), {"close": True, "listed": {"x"}}),
    ("keep-alive", wire("Connection: Keep-Alive"), {"keep_alive": True, "close": False}),
    ("two Connection fields", wire("Connection: a", "Connection: b,,c_d"), {"listed": {"a", "b", "c-d"}}),
    ("expectation", wire("Expect: 100-Continue"), {"expect_continue": True}),
    ("websocket", wire("Connection: Upgrade", "Upgrade: websocket"), {"upgrade": b"websocket"}),
    ("upgrade without the option", wire("Upgrade: websocket"), {"upgrade": None}),
    ("h2c is ignored", wire("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: x"), {"upgrade": None, "listed": frozenset()}),
    ("h2c among others is not", wire("Connection: Upgrade", "Upgrade: h2c, websocket"), {"upgrade": b"h2c, websocket"}),
    ("two upgrades", wire("Connection: Upgrade", "Upgrade: h2c", "Upgrade: websocket"), {"upgrade": b"h2c, websocket"}),
    ("traceparent", wire("traceparent: 00-" + "a" * 32 + "-" + "b" * 16 + "-01"), {"traceparent": b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"}),
    ("bad traceparent", wire('traceparent: 00-","x":"'), {"traceparent": b""}),
    ("two traceparents", wire(*["traceparent: 00-" + "a" * 32 + "-" + "b" * 16 + "-01"] * 2), {"traceparent": b""}),
    ("no user's token", wire(), {"subject": None}),
    ("value with tab and Latin-1", wire("X-A: b\tc\xe9"), {"memorable": True}),
    ("a credential is not kept", wire("X_API_KEY: b"), {"memorable": False}),
    ("nor a user's token", wire("x_user: b"), {"memorable": False}),
    ("nor a subprotocol, which can be one", wire("Sec_WebSocket-Protocol: b"), {"memorable": False}),
]  # fmt: skip

MALFORMED, FRAMING, HOST = (
    codes.REQUEST_MALFORMED, codes.REQUEST_AMBIGUOUS_FRAMING, codes.REQUEST_AMBIGUOUS_HOST,
)  # fmt: skip

BAD: list[tuple[str, bytes, Code]] = [
    ("HTTP/0.9", b"GET /\r\n\r\n", MALFORMED),
    ("HTTP/1.2", wire(start="GET / HTTP/1.2"), codes.REQUEST_VERSION),
    ("HTTP/2.0", wire(start="GET / HTTP/2.0"), codes.REQUEST_VERSION),
    ("HTTP/0.9 in words", wire(start="GET / HTTP/0.9"), codes.REQUEST_VERSION),
    ("HTTP/1.10", wire(start="GET / HTTP/1.10"), MALFORMED),
    ("HTTP/1", wire(start="GET / HTTP/1"), MALFORMED),
    ("http/1.1", wire(start="GET / http/1.1"), MALFORMED),
    ("another protocol", wire(start="GET / RTSP/1.0"), MALFORMED),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", codes.REQUEST_VERSION),
    ("TLS", bytes.fromhex("1603010200010001fc0303") + b"\r\n\r\n", MALFORMED),
    ("CRLF before the line", b"\r\n" + wire(), MALFORMED),
    ("LF before the line", b"\n" + wire(), MALFORMED),
    ("space before the line", b" " + wire(), MALFORMED),
    ("two spaces behind the method", wire(start="GET  / HTTP/1.1"), MALFORMED),
    ("two spaces before the version", wire(start="GET /  HTTP/1.1"), MALFORMED),
    ("space at the end", wire(start="GET / HTTP/1.1 "), MALFORMED),
    ("tab for space", wire(start="GET\t/ HTTP/1.1"), MALFORMED),
    ("space in the target", wire(start="GET /a b HTTP/1.1"), MALFORMED),
    ("control in the target", wire(start="GET /a\x01 HTTP/1.1"), MALFORMED),
    ("DEL in the target", wire(start="GET /a\x7f HTTP/1.1"), MALFORMED),
    ("UTF-8 in the target", wire(start="GET /\xc3\xa9 HTTP/1.1"), MALFORMED),
    ("no target", wire(start="GET HTTP/1.1"), MALFORMED),
    ("no method", wire(start="/ HTTP/1.1"), MALFORMED),
    ("long method", wire(start="G" * 33 + " / HTTP/1.1"), MALFORMED),
    ("odd character in the method", wire(start="G(T / HTTP/1.1"), MALFORMED),
    ("star", wire(start="OPTIONS * HTTP/1.1"), MALFORMED),
    ("path without slash", wire(start="GET a HTTP/1.1"), MALFORMED),
    ("another scheme", wire(start="GET ftp://h/ HTTP/1.1"), MALFORMED),
    ("CONNECT without a port", wire(start="CONNECT h HTTP/1.1"), MALFORMED),
    ("CONNECT, other host", wire(start="CONNECT other:443 HTTP/1.1"), HOST),
    ("CONNECT, other port", wire("Host: h:80", start="CONNECT h:443 HTTP/1.1"), HOST),
    ("CONNECT, absolute-form", wire(start="CONNECT http://h:443 HTTP/1.1"), HOST),
    ("absolute form, other host", wire(start="GET http://other/ HTTP/1.1"), HOST),
    ("absolute form, other port", wire(start="GET http://h:81/ HTTP/1.1"), HOST),
    ("absolute form, userinfo", wire(start="GET http://u:p@h/ HTTP/1.1"), HOST),
    ("absolute form, userinfo that is the host", wire(start="GET http://h@other/ HTTP/1.1"), HOST),
    ("absolute form, no host", wire(start="GET http:/// HTTP/1.1"), HOST),
    ("absolute form, backslash", wire(start="GET http://h\\@other/ HTTP/1.1"), HOST),
    ("absolute form, fragment", wire(start="GET http://h#@other/ HTTP/1.1"), HOST),
    ("no Host", wire(host=False), HOST),
    ("two Hosts", wire("Host: h"), HOST),
    ("two Hosts in two cases", wire("HOST: other"), HOST),
    ("empty Host", wire("Host:", host=False), HOST),
    ("Host with userinfo", wire("Host: u@h", host=False), HOST),
    ("Host with a space", wire("Host: h other", host=False), HOST),
    ("Host with a path", wire("Host: h/a", host=False), HOST),
    ("Host list", wire("Host: h, other", host=False), HOST),
    ("Host with two ports", wire("Host: h:80:80", host=False), HOST),
    ("Host with port 0", wire("Host: h:0", host=False), HOST),
    ("Host with a comma port", wire("Host: h:8,0", host=False), HOST),
    ("length and coding", wire("Content-Length: 5", "Transfer-Encoding: chunked"), FRAMING),
    ("coding and length", wire("Transfer-Encoding: chunked", "Content-Length: 5"), FRAMING),
    ("two lengths", wire("Content-Length: 5", "Content-Length: 6"), FRAMING),
    ("two equal lengths", wire("Content-Length: 5", "Content-Length: 5"), FRAMING),
    ("length list", wire("Content-Length: 5, 5"), FRAMING),
    ("length with plus", wire("Content-Length: +5"), FRAMING),
    ("negative length", wire("Content-Length: -5"), FRAMING),
    ("length in hexadecimal", wire("Content-Length: 0x5"), FRAMING),
    ("length with a fraction", wire("Content-Length: 5.0"), FRAMING),
    ("length with a space inside", wire("Content-Length: 1 2"), FRAMING),
    ("length with a tab behind", wire("Content-Length: 5\t"), FRAMING),
    ("empty length", wire("Content-Length:"), FRAMING),
    ("enormous length", wire("Content-Length: " + "9" * 19), FRAMING),
    ("overflowing length", wire("Content-Length: " + "9" * 30), FRAMING),
    ("length in other digits", wire("Content-Length: \xb2"), FRAMING),
    ("length spelled with _", wire("Content_Length: 5"), FRAMING),
    ("length spelled with a dot", wire("Content.Length: 5"), FRAMING),
    ("coding spelled with a tilde", wire("Transfer~Encoding: chunked"), FRAMING),
    ("length in both spellings", wire("Content_Length: 6", "Content-Length: 5"), FRAMING),
    ("coding spelled with _", wire("Transfer_Encoding: chunked"), FRAMING),
    ("coding with _ beside a length", wire("Content-Length: 5", "Transfer_Encoding: chunked"), FRAMING),
    ("chunked twice", wire("Transfer-Encoding: chunked, chunked"), FRAMING),
    ("two codings", wire("Transfer-Encoding: gzip", "Transfer-Encoding: chunked"), FRAMING),
    ("gzip, chunked", wire("Transfer-Encoding: gzip, chunked"), FRAMING),
    ("chunked, gzip", wire("Transfer-Encoding: chunked, gzip"), FRAMING),
    ("identity", wire("Transfer-Encoding: identity"), FRAMING),
    ("xchunked", wire("Transfer-Encoding: xchunked"), FRAMING),
    ("chunkedx", wire("Transfer-Encoding: chunkedx"), FRAMING),
    ("quoted chunked", wire('Transfer-Encoding: "chunked"'), FRAMING),
    ("chunked with parameter", wire("Transfer-Encoding: chunked;a=b"), FRAMING),
    ("chunked behind a vertical tab", wire("Transfer-Encoding: \x0bchunked"), MALFORMED),
    ("empty coding", wire("Transfer-Encoding:"), FRAMING),
    ("coding in HTTP/1.0", wire("Transfer-Encoding: chunked", start="POST / HTTP/1.0"), FRAMING),
    ("space before the colon", wire("Transfer-Encoding : chunked"), MALFORMED),
    ("tab before the colon", wire("Content-Length\t: 5"), MALFORMED),
    ("space before a field", wire(" X-A: b"), MALFORMED),
    ("space before the first field", b"GET / HTTP/1.1\r\n Host: h\r\n\r\n", MALFORMED),
    ("obs-fold", wire("X-A: b", " c"), MALFORMED),
    ("obs-fold with tab", wire("X-A: b", "\tc"), MALFORMED),
    ("no colon", wire("X-A"), MALFORMED),
    ("no name", wire(": b"), MALFORMED),
    ("NUL in a value", wire("X-A: b\0c"), MALFORMED),
    ("NUL in a name", wire("X\0A: b"), MALFORMED),
    ("control in a value", wire("X-A: b\x01c"), MALFORMED),
    ("DEL in a value", wire("X-A: b\x7fc"), MALFORMED),
    ("escape in a value", wire("X-A: b\x1bc"), MALFORMED),
    ("Latin-1 in a name", wire("X\xe9: b"), MALFORMED),
    ("brackets in a name", wire("X[A]: b"), MALFORMED),
    ("bare LF between fields", b"GET / HTTP/1.1\r\nHost: h\nX-A: b\r\n\r\n", MALFORMED),
    ("bare LF behind the line", b"GET / HTTP/1.1\nHost: h\r\n\r\n", MALFORMED),
    ("bare LFs as the end", b"GET / HTTP/1.1\nHost: h\n\n", MALFORMED),
    ("bare CR in a value", wire("X-A: b\rc"), MALFORMED),
    ("bare CR before a field", b"GET / HTTP/1.1\r\nHost: h\r\rX-A: b\r\n\r\n", MALFORMED),
    ("CR CR LF", b"GET / HTTP/1.1\r\nHost: h\r\r\n\r\n", MALFORMED),
    ("unknown expectation", wire("Expect: 200-ok"), codes.REQUEST_EXPECTATION),
    ("two expectations", wire("Expect: 100-continue", "Expect: 100-continue"), codes.REQUEST_EXPECTATION),
    ("expectation list", wire("Expect: 100-continue, x"), codes.REQUEST_EXPECTATION),
    ("two content types", wire("Content-Type: a/b", "content_type: c/d"), codes.REQUEST_REPEATED_HEADER),
    ("two user's tokens", wire("X-User: a", "x_user: b"), codes.SUBJECT_INVALID),
    ("too many fields", wire(*(f"X-{n}: a" for n in range(MAX_FIELDS))), codes.REQUEST_TOO_MANY_HEADERS),
    ("too large, complete", wire("X-A: " + "b" * MAX_SIZE), codes.REQUEST_HEAD_TOO_LARGE),
    ("too large, no end in sight", b"GET / HTTP/1.1\r\nX-A: " + b"b" * MAX_SIZE, codes.REQUEST_HEAD_TOO_LARGE),
    ("a line without end", b"GET /" + b"b" * MAX_SIZE, codes.REQUEST_HEAD_TOO_LARGE),
]  # fmt: skip


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
@pytest.mark.parametrize(("name", "raw", "facts"), GOOD, ids=[case[0] for case in GOOD])
def test_good_heads(name: str, raw: bytes, facts: dict[str, Any], step: int) -> None:
    for trailing in (b"", b"\r\n", b"body \r\n\r\n", wire()):
        head = fed(raw + trailing, step)
        assert head.size == len(raw)
        assert {key: getattr(head, key) for key in facts} == facts


@pytest.mark.parametrize(("name", "raw", "facts"), BLOCKS, ids=[case[0] for case in BLOCKS])
def test_header_blocks(name: str, raw: bytes, facts: dict[str, Any]) -> None:
    heads = reader()
    for _ in range(3):  # the third time from what was kept at the second
        block = heads.request(raw).block  # type: ignore[union-attr]
        assert {key: getattr(block, key) for key in facts} == facts


@pytest.mark.parametrize("step", [1, 1 << 20])
@pytest.mark.parametrize(("name", "raw", "code"), BAD, ids=[case[0] for case in BAD])
def test_bad_heads(name: str, raw: bytes, code: Code, step: int) -> None:
    with pytest.raises(CallerError) as refused:
        fed(raw, step)
    assert refused.value.code is code
    assert refused.value.reason


SUBJECTS = [
    ("token alone", "X-User: a.b.c", "a.b.c"),
    ("with scheme", "X-User: Bearer a.b.c", "a.b.c"),
    ("scheme in lower case", "X-User: bearer a.b.c", "a.b.c"),
    ("with space around", "X-User:   Bearer   a.b.c  ", "a.b.c"),
    ("empty", "X-User:", ""),
    ("the name in another spelling", "x_USER: a.b.c", "a.b.c"),
]


@pytest.mark.parametrize(("name", "line", "token"), SUBJECTS, ids=[case[0] for case in SUBJECTS])
def test_the_users_token(name: str, line: str, token: str) -> None:
    subject = reader().request(wire(line)).block.subject  # type: ignore[union-attr]
    assert subject is not None
    assert subject.reveal() == token


def test_a_kept_block_depends_on_nothing_before_it() -> None:
    """The same bytes behind another line: what was kept must say the same."""
    heads = reader()
    block = "Transfer-Encoding: chunked"
    assert heads.request(wire(block)) is not None
    with pytest.raises(CallerError) as refused:
        heads.request(wire(block, start="POST / HTTP/1.0"))
    assert refused.value.code is FRAMING
    other = heads.request(wire(block, start="POST /b HTTP/1.1"))
    assert other is not None
    assert (other.method, other.path, other.block.chunked) == ("POST", "/b", True)


def test_a_block_with_a_credential_is_read_anew_and_a_plain_one_is_not() -> None:
    heads = reader()
    policy = HeaderPolicy.of(injected=None, subject_header="X-User", passed=())
    plain = [heads.request(wire("X-A: b")) for _ in range(3)]
    secret = [heads.request(wire("Authorization: b")) for _ in range(3)]
    assert plain[1].block is plain[2].block  # type: ignore[union-attr]
    assert secret[1].block is not secret[2].block  # type: ignore[union-attr]
    assert secret[0].block.forward(policy) == (b"", ("authorization",))  # type: ignore[union-attr]
    assert not any(b"Authorization" in raw for raw in heads._requests.entries)


def test_a_block_that_asks_for_another_call_is_not_forwarded() -> None:
    head = reader().request(wire("X-Original-URL: /admin", "X-Api-Key: secret"))
    assert head is not None
    policy = HeaderPolicy.of(injected=None, subject_header="X-User", passed=())
    with pytest.raises(CallerError) as refused:
        head.block.forward(policy)
    assert refused.value.code is codes.REQUEST_OVERRIDE
    assert head.block.dropped(policy) == ("x-api-key",)  # the record names it all the same


def test_the_refusal_does_not_quote_the_line() -> None:
    with pytest.raises(CallerError) as refused:
        reader().request(wire("Authorization : secret-value-of-the-caller"))
    assert "secret-value" not in str(refused.value)
    assert "secret-value" not in str(refused.value.__cause__)


# --- responses ------------------------------------------------------------------------------------

# RFC 9110 §7.6.3: behind what others put there.
VIA = b"via: 1.1 valetkey\r\n"
ANSWERS: list[tuple[str, bytes, dict[str, Any]]] = [
    ("usual", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nA: b\r\n\r\n", {"status": 200, "version": 1, "lines": b"HTTP/1.1 200 OK\r\nA: b\r\n" + VIA, "sized": b"HTTP/1.1 200 OK\r\nA: b\r\n" + VIA + b"content-length: 2\r\n"}),
    ("no length", b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n", {"sized": b"", "lines": b"HTTP/1.1 200 OK\r\nA: b\r\n" + VIA}),
    ("no reason", b"HTTP/1.1 204 \r\n\r\n", {"status": 204, "lines": b"HTTP/1.1 204 \r\n" + VIA}),
    ("no reason, no space", b"HTTP/1.1 204\r\n\r\n", {"status": 204}),
    ("reason of its own", b"HTTP/1.1 299 Odd One\r\n\r\n", {"lines": b"HTTP/1.1 299 Odd One\r\n" + VIA}),
    ("HTTP/1.0", b"HTTP/1.0 200 OK\r\n\r\n", {"version": 0, "lines": b"HTTP/1.1 200 OK\r\nvia: 1.0 valetkey\r\n"}),
    ("interim", b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n", {"status": 103, "lines": b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n" + VIA}),
    ("what the target says of credentials", b"HTTP/1.1 401 No\r\nWWW-Authenticate: DPoP\r\nDPoP-Nonce: n\r\n\r\n", {"lines": b"HTTP/1.1 401 No\r\n" + VIA}),
    ("another proxy before", b"HTTP/1.1 200 OK\r\nVia: 1.0 cache\r\n\r\n", {"lines": b"HTTP/1.1 200 OK\r\nVia: 1.0 cache\r\n" + VIA}),
    ("what Connection lists", b"HTTP/1.1 200 OK\r\nConnection: X-Hop, close\r\nX-Hop: 1\r\n\r\n", {"lines": b"HTTP/1.1 200 OK\r\n" + VIA}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "raw", "facts"), ANSWERS, ids=[case[0] for case in ANSWERS])
def test_good_responses(name: str, raw: bytes, facts: dict[str, Any]) -> None:
    heads = reader()
    for cut in range(len(raw)):
        assert heads.response(raw[:cut]) is None
    for trailing in (b"", b"body", b"\r\n\r\n"):
        head = heads.response(raw + trailing)
        assert isinstance(head, ResponseHead)
        assert head.size == len(raw)
        assert {key: getattr(head, key) for key in facts} == facts


NONCES = [
    ("one", b"DPoP-Nonce: n-1\r\n", "n-1"),
    ("two", b"DPoP-Nonce: n-1\r\nDPoP-Nonce: n-2\r\n", ""),
    ("with a quote", b'DPoP-Nonce: a"b\r\n', ""),
    ("with a backslash", b"DPoP-Nonce: a\\b\r\n", ""),
    ("with a space", b"DPoP-Nonce: a b\r\n", ""),
    ("too long", b"DPoP-Nonce: " + b"n" * 257 + b"\r\n", ""),
    ("none", b"", ""),
]


@pytest.mark.parametrize(("name", "line", "nonce"), NONCES, ids=[case[0] for case in NONCES])
def test_nonces(name: str, line: bytes, nonce: str) -> None:
    head = reader().response(b"HTTP/1.1 401 No\r\n" + line + b"\r\n")
    assert head is not None
    assert head.block.nonce == nonce


def test_lines_without_some_fields() -> None:
    raw = b"HTTP/1.1 200 Fine\r\nA: 1\r\nE_Tag: x\r\nETag: y\r\nB: 2\r\nContent-Length: 5\r\n\r\n"
    head = reader().response(raw)
    assert head is not None
    assert head.lines_without(frozenset({"etag", "a"})) == (
        b"HTTP/1.1 200 Fine\r\nE_Tag: x\r\nB: 2\r\n" + VIA
    )
    assert head.lines_without(frozenset()) == head.lines


def test_a_nonce_or_a_cookie_is_not_kept() -> None:
    heads = reader()
    for line in (b"DPoP-Nonce: n", b"Set-Cookie: a=b"):
        raw = b"HTTP/1.1 200 OK\r\n" + line + b"\r\n\r\n"
        heads.response(raw)
        assert heads.response(raw) is not heads.response(raw)
    plain = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n"
    heads.response(plain)
    assert heads.response(plain) is heads.response(plain)


TYPES = [
    ("text/event-stream", True),
    ("Text/Event-Stream ; charset=utf-8", True),
    ("text/event-stream;charset=utf-8", True),
    ("text/event-streams", False),
    ("text/event-stream/x", False),
    ("application/json; text/event-stream", False),
    ("", False),
]


@pytest.mark.parametrize(("value", "is_stream"), TYPES)
def test_event_streams_are_known_by_their_type(value: str, is_stream: bool) -> None:
    head = reader().response(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n\r\n" % value.encode())
    assert head is not None
    assert head.event_stream == is_stream
    plain = reader().response(b"HTTP/1.1 200 OK\r\n\r\n")
    assert plain is not None
    assert not plain.event_stream


# --- what a target must not send back -------------------------------------------------------------

TOKEN = "token.of-some.length/"


def answered(raw: bytes, heads: HeadReader | None = None, token: str = TOKEN) -> ResponseHead:
    head = (heads or reader()).response(raw, needles_of(token))
    assert head is not None
    assert head.size == raw.index(b"\r\n\r\n") + 4
    return head


ECHOES = [
    ("in a field", "HTTP/1.1 200 OK\r\nX-Was: Bearer {}\r\n\r\n"),
    ("as a whole field", "HTTP/1.1 200 OK\r\nX-Was: {}\r\n\r\n"),
    ("in a redirect", "HTTP/1.1 302 Found\r\nLocation: https://a.example/?t={}&u\r\n\r\n"),
    ("in the reason", "HTTP/1.1 403 No {}\r\n\r\n"),
    ("twice", "HTTP/1.1 200 OK\r\nX-A: {}\r\nX-B: {}\r\n\r\n"),
    ("at the end", "HTTP/1.1 200 OK\r\nX-A: {}\r\n\r\nbehind it"),
]


@pytest.mark.parametrize(("name", "shape"), ECHOES, ids=[case[0] for case in ECHOES])
@pytest.mark.parametrize("form", range(3))
def test_an_echoed_credential_is_overwritten(name: str, shape: str, form: int) -> None:
    echo = needles_of(TOKEN)[form].decode()
    heads = reader()
    head = answered(shape.format(*[echo] * shape.count("{}")).encode(), heads)
    assert head.echoes
    blanked = shape.format(*["*" * len(echo)] * shape.count("{}")).partition("\r\n\r\n")[0]
    assert head.lines == f"{blanked}\r\n".encode() + VIA
    assert heads._responses.entries == {}


def test_a_head_with_a_token_is_never_kept() -> None:
    """Also if it was kept before that token was anybody's."""
    heads = reader()
    raw = f"HTTP/1.1 200 OK\r\nX-Was: {TOKEN}\r\n\r\n".encode()
    kept = [answered(raw, heads, "another.token") for _ in range(3)][-1]
    assert answered(raw, heads, "another.token") is kept
    assert not kept.echoes
    for _ in range(3):
        head = answered(raw, heads)
        assert head.echoes
        assert TOKEN.encode() not in head.lines
    fresh = reader()
    for _ in range(4):
        answered(raw, fresh)
    assert not any(TOKEN.encode() in key for key in fresh._responses.entries)


@pytest.mark.parametrize(
    "raw",
    [
        f"HTTP/1.1 200 OK\r\nX-Was: {TOKEN[:-1]}\r\n\r\n",
        f"HTTP/1.1 200 OK\r\nA: b\r\n\r\n{TOKEN}",  # the body is not looked at here
        "HTTP/1.1 200 OK\r\n\r\n",
    ],
)
def test_what_holds_no_token_is_left_alone(raw: str) -> None:
    heads = reader()
    first = [answered(raw.encode(), heads) for _ in range(3)][-1]
    assert not first.echoes
    assert answered(raw.encode(), heads) is first  # and kept, as ever


def test_an_echo_in_the_framing_is_a_bad_answer() -> None:
    with pytest.raises(TargetError):
        answered(b"HTTP/1.1 200 OK\r\nContent-Length: 123456789\r\n\r\n", token="123456789")


def test_cookies_stand_apart() -> None:
    raw = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nX-A: b\r\nset-cookie: c=d\r\nContent-Length: 0\r\n\r\n"
    head = reader().response(raw)
    assert head is not None
    assert head.cookies == b"Set-Cookie: a=b\r\nset-cookie: c=d\r\n"
    assert head.lines == b"HTTP/1.1 200 OK\r\nX-A: b\r\n" + VIA
    plain = reader().response(b"HTTP/1.1 200 OK\r\nX-A: b\r\n\r\n")
    assert plain is not None
    assert plain.cookies == b""


BAD_ANSWERS = [
    ("no status line", b"hello\r\n\r\n"),
    ("another protocol", b"SSH-2.0-server\r\n"),
    ("HTTP/2", b"HTTP/2.0 200 OK\r\n\r\n"),
    ("HTTP/1.2", b"HTTP/1.2 200 OK\r\n\r\n"),
    ("ICY", b"ICY 200 OK\r\n\r\n"),
    ("status of two digits", b"HTTP/1.1 20 OK\r\n\r\n"),
    ("status of four digits", b"HTTP/1.1 2000 OK\r\n\r\n"),
    ("status 600", b"HTTP/1.1 600 OK\r\n\r\n"),
    ("status 000", b"HTTP/1.1 000 OK\r\n\r\n"),
    ("two spaces", b"HTTP/1.1  200 OK\r\n\r\n"),
    ("control in the reason", b"HTTP/1.1 200 O\x01K\r\n\r\n"),
    ("CRLF in front", b"\r\nHTTP/1.1 200 OK\r\n\r\n"),
    (
        "length and coding",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ),
    ("two lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n"),
    ("length list", b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n"),
    ("length with plus", b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n"),
    ("length spelled with _", b"HTTP/1.1 200 OK\r\nContent_Length: 5\r\n\r\n"),
    ("gzip, chunked", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
    ("identity", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n"),
    ("coding in HTTP/1.0", b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ("obs-fold", b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n"),
    ("bare LF", b"HTTP/1.1 200 OK\nA: b\r\n\r\n"),
    ("bare LFs as the end", b"HTTP/1.1 200 OK\nA: b\n\nbody"),
    ("bare CR", b"HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n"),
    ("NUL", b"HTTP/1.1 200 OK\r\nA: \0\r\n\r\n"),
    ("space before the colon", b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n"),
    ("no colon", b"HTTP/1.1 200 OK\r\nAbc\r\n\r\n"),
    ("too large, complete", b"HTTP/1.1 200 OK\r\nA: " + b"b" * MAX_SIZE + b"\r\n\r\n"),
    ("too large, no end", b"HTTP/1.1 200 OK\r\nA: " + b"b" * MAX_SIZE),
]


@pytest.mark.parametrize("step", [1, 1 << 20])
@pytest.mark.parametrize(("name", "raw"), BAD_ANSWERS, ids=[case[0] for case in BAD_ANSWERS])
def test_bad_responses(name: str, raw: bytes, step: int) -> None:
    heads = reader()

    def feed() -> None:
        for end in range(step, len(raw) + step, step):
            assert heads.response(raw[:end]) is None

    with pytest.raises(TargetError) as refused:
        feed()
    assert refused.value.code is codes.TARGET_BAD_RESPONSE


# --- a second reader ------------------------------------------------------------------------------


def h11_request(raw: bytes) -> h11.Request | None:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(raw)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError:
        return None
    return event if isinstance(event, h11.Request) else None


LINES = st.sampled_from(
    [b"GET / HTTP/1.1\r\n", b"POST /a HTTP/1.0\r\n", b"Host: h\r\n", b"Host:h\r\n", b"Content-Length: 5\r\n",
     b"Content-Length: 05\r\n", b"Transfer-Encoding: chunked\r\n", b"X-A: b\r\n", b"X-A:\tb \r\n", b" c\r\n", b"\r\n",
     b"\n", b"\r", b"\0", b"X-A\r\n", b"X: \x80\r\n", b":\r\n", b" ", b"GET /", b"A_B: c\r\n", b"Connection: close\r\n"]
)  # fmt: skip


@given(st.lists(LINES, max_size=9).map(b"".join))
@settings(max_examples=500, deadline=None)
def test_never_more_than_h11_and_never_other_fields(lines: bytes) -> None:
    raw = b"GET /x HTTP/1.1\r\n" + lines + b"\r\n\r\n"
    try:
        head = reader().request(raw)
    except CallerError:
        return
    assert head is not None
    other = h11_request(raw[: head.size])
    assert other is not None, "taken by us, refused by h11"
    assert (other.method, other.target) == (head.method.encode(), b"/x")
    ours = [(name.lower(), value.strip(b" \t")) for _, name, value in head.block.fields]
    theirs = list(other.headers)
    # h11 writes a length in its shortest form and the coding in lower case.
    assert [n for n, _ in ours] == [n for n, _ in theirs]
    assert all(
        a == b or n == b"content-length" for (n, a), (_, b) in zip(ours, theirs, strict=True)
    )


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_bytes_at_random_are_no_request(raw: bytes) -> None:
    """What is read from noise can only be refused or waited for."""
    head = None
    with contextlib.suppress(CallerError):
        head = reader().request(raw)
    assert head is None
