"""Bytes in, and what comes of them: a refusal with its code, or exact bytes at the upstream.

Each case goes over a real socket into a real sidecar, whole and byte by byte; a part of them also
cut in two at every position.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.recording import Recording
from tests.support.sidecar import Answer, Sidecar, World, dechunk, target
from valetkey.contracts import codes

pytest_plugins = ["tests.support.wire_fixtures"]

MAX_HEAD, MAX_FIELDS = 8192, 40


@pytest.fixture(scope="module")
def sidecar(wire_world: World, session_upstream: Recording) -> Iterator[Sidecar]:
    made = wire_world.sidecar(
        "table",
        {"up": target(session_upstream.url, pass_headers=["Ocp-Apim-Subscription-Key"])},
        listeners=[{"bind": "127.0.0.1:0", "target": "up"}],
        limits={"head_size": f"{MAX_HEAD}B", "headers": MAX_FIELDS},
    )
    yield made
    assert made.defects() == []
    made.stop()


def wire(
    *lines: str, start: str = "GET /a HTTP/1.1", host: str | None = "h", body: str = ""
) -> bytes:
    hosts = [] if host is None else [f"Host: {host}"]
    return ("\r\n".join([start, *hosts, *lines, "", ""]) + body).encode("latin-1")


def path(text: str) -> bytes:
    return wire(start=f"GET {text} HTTP/1.1")


def post(*lines: str, body: str = "") -> bytes:
    return wire(*lines, start="POST /a HTTP/1.1", body=body)


def chunks(body: str, *lines: str) -> bytes:
    return post("Transfer-Encoding: chunked", *lines, body=body)


MALFORMED = "request.malformed"
FRAMING = "request.ambiguous_framing"
HOST = "request.ambiguous_host"
PATH = "request.ambiguous_path"
BODY = "request.body_malformed"
LISTED = "request.connection_header"

REFUSED: list[tuple[str, bytes, str]] = [
    # --- framing
    ("length and coding", post("Content-Length: 5", "Transfer-Encoding: chunked", body="0\r\n\r\n"), FRAMING),
    ("coding and length", post("Transfer-Encoding: chunked", "Content-Length: 5", body="0\r\n\r\n"), FRAMING),
    ("two lengths", post("Content-Length: 5", "Content-Length: 0", body="hello"), FRAMING),
    ("two equal lengths", post("Content-Length: 5", "Content-Length: 5", body="hello"), FRAMING),
    ("length list", post("Content-Length: 5, 5", body="hello"), FRAMING),
    ("length list in one field", post("Content-Length: 5,6", body="hello"), FRAMING),
    ("length with plus", post("Content-Length: +5", body="hello"), FRAMING),
    ("negative length", post("Content-Length: -5", body="hello"), FRAMING),
    ("length with a tab behind", post("Content-Length: 5\t", body="hello"), FRAMING),
    ("length with a space inside", post("Content-Length: 1 5", body="hello"), FRAMING),
    ("length in hexadecimal", post("Content-Length: 0x5", body="hello"), FRAMING),
    ("length with a letter", post("Content-Length: 5a", body="hello"), FRAMING),
    ("empty length", post("Content-Length:", body="hello"), FRAMING),
    ("enormous length", post("Content-Length: 99999999999999999999"), FRAMING),
    ("length spelled with _", post("Content_Length: 5", body="hello"), FRAMING),
    ("coding spelled with _", post("Transfer_Encoding: chunked", body="0\r\n\r\n"), FRAMING),
    ("length beside a coding with _", post("Content-Length: 5", "Transfer_Encoding: chunked", body="hello"), FRAMING),
    ("chunked twice", post("Transfer-Encoding: chunked, chunked", body="0\r\n\r\n"), FRAMING),
    ("two codings", post("Transfer-Encoding: gzip", "Transfer-Encoding: chunked", body="0\r\n\r\n"), FRAMING),
    ("gzip, chunked", post("Transfer-Encoding: gzip, chunked", body="0\r\n\r\n"), FRAMING),
    ("identity", post("Transfer-Encoding: identity", body="hello"), FRAMING),
    ("xchunked", post("Transfer-Encoding: xchunked", body="0\r\n\r\n"), FRAMING),
    ("chunked behind a vertical tab", post("Transfer-Encoding: \x0bchunked", body="0\r\n\r\n"), MALFORMED),
    ("chunked in quotes", post('Transfer-Encoding: "chunked"', body="0\r\n\r\n"), FRAMING),
    ("empty coding", post("Transfer-Encoding:", body="0\r\n\r\n"), FRAMING),
    ("space before the colon of the coding", post("Transfer-Encoding : chunked", body="0\r\n\r\n"), MALFORMED),
    ("tab before the colon of the coding", post("Transfer-Encoding\t: chunked", body="0\r\n\r\n"), MALFORMED),
    ("space before the colon of the length", post("Content-Length : 5", body="hello"), MALFORMED),
    ("coding behind an obs-fold", post("X-A: b", " Transfer-Encoding: chunked", body="0\r\n\r\n"), MALFORMED),
    ("coding in HTTP/1.0", wire("Transfer-Encoding: chunked", start="POST /a HTTP/1.0", body="0\r\n\r\n"), FRAMING),
    # --- lines and characters
    ("bare LF everywhere", b"GET /a HTTP/1.1\nHost: h\n\n", MALFORMED),
    ("bare LF between fields", b"GET /a HTTP/1.1\r\nHost: h\nX-A: b\r\n\r\n", MALFORMED),
    ("bare LF as the end", b"GET /a HTTP/1.1\r\nHost: h\r\n\n", MALFORMED),
    ("bare CR in a value", wire("X-A: b\rX-B: c"), MALFORMED),
    ("CR CR LF", b"GET /a HTTP/1.1\r\nHost: h\r\r\n\r\n", MALFORMED),
    ("obs-fold", wire("X-A: b", " c"), MALFORMED),
    ("obs-fold with tab", wire("X-A: b", "\tc"), MALFORMED),
    ("space before the first field", b"GET /a HTTP/1.1\r\n Host: h\r\n\r\n", MALFORMED),
    ("NUL in a value", wire("X-A: b\0"), MALFORMED),
    ("NUL in a name", wire("X\0: b"), MALFORMED),
    ("control in a value", wire("X-A: b\x01"), MALFORMED),
    ("DEL in a value", wire("X-A: b\x7f"), MALFORMED),
    ("control in a name", wire("X\x01: b"), MALFORMED),
    ("space in a name", wire("X A: b"), MALFORMED),
    ("Latin-1 in a name", wire("X\xe9: b"), MALFORMED),
    ("no colon", wire("X-A"), MALFORMED),
    ("no name", wire(": b"), MALFORMED),
    # --- request line
    ("HTTP/0.9", b"GET /a\r\n\r\n", MALFORMED),
    ("HTTP/1.2", wire(start="GET /a HTTP/1.2"), "request.version_unsupported"),
    ("HTTP/2.0", wire(start="GET /a HTTP/2.0"), "request.version_unsupported"),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "request.version_unsupported"),
    ("HTTP/1.10", wire(start="GET /a HTTP/1.10"), MALFORMED),
    ("HTTP in lower case", wire(start="GET /a http/1.1"), MALFORMED),
    ("TLS hello", bytes.fromhex("16030100c8010000c40303") + b"\0" * 190, MALFORMED),
    ("CRLF before the request line", b"\r\n" + wire(), MALFORMED),
    ("two spaces behind the method", wire(start="GET  /a HTTP/1.1"), MALFORMED),
    ("two spaces before the version", wire(start="GET /a  HTTP/1.1"), MALFORMED),
    ("tab behind the method", wire(start="GET\t/a HTTP/1.1"), MALFORMED),
    ("space in the target", wire(start="GET /a b HTTP/1.1"), MALFORMED),
    ("space behind the version", wire(start="GET /a HTTP/1.1 "), MALFORMED),
    ("UTF-8 in the target", "GET /é HTTP/1.1\r\nHost: h\r\n\r\n".encode(), MALFORMED),
    ("lower-case method", wire(start="get /a HTTP/1.1"), "route.no_match"),
    ("unknown method", wire(start="PURGE /a HTTP/1.1"), "route.no_match"),
    ("TRACE", wire(start="TRACE /a HTTP/1.1"), "route.no_match"),
    ("CONNECT", wire(start="CONNECT h:443 HTTP/1.1"), "request.connect_denied"),
    ("CONNECT to a path", wire(start="CONNECT /a HTTP/1.1"), "route.no_match"),
    ("OPTIONS *", wire(start="OPTIONS * HTTP/1.1"), MALFORMED),
    ("head too large", wire("X-A: " + "b" * MAX_HEAD), "request.head_too_large"),
    ("request line too large", path("/" + "a" * MAX_HEAD), "request.head_too_large"),
    ("head without end", b"GET /a HTTP/1.1\r\nX-A: " + b"b" * MAX_HEAD, "request.head_too_large"),
    ("too many fields", wire(*["X-A: b"] * MAX_FIELDS), "request.too_many_headers"),
    # --- host
    ("no Host", wire(host=None), HOST),
    ("two Hosts", wire("Host: h"), HOST),
    ("two different Hosts", wire("hOST: other"), HOST),
    ("empty Host", wire(host=""), HOST),
    ("Host with userinfo", wire(host="user@h"), HOST),
    ("Host with a space inside", wire(host="h other"), HOST),
    ("Host list", wire(host="h, other"), HOST),
    ("Host with a path", wire(host="h/b"), HOST),
    ("Host with an empty port", wire(host="h:"), HOST),
    ("Host with two ports", wire(host="h:80:81"), HOST),
    ("Host with a port in words", wire(host="h:http"), HOST),
    ("Host with a port beyond", wire(host="h:65536"), HOST),
    ("Host with two trailing dots", wire(host="h.."), HOST),
    ("Host with an escape", wire(host="h%2e"), HOST),
    ("Host that is not ASCII", wire(host="b\xfccher"), HOST),
    ("Host without brackets", wire(host="::1"), HOST),
    ("absolute form, other host", wire(start="GET http://other/a HTTP/1.1"), HOST),
    ("absolute form, other port", wire(start="GET http://h:8080/a HTTP/1.1"), HOST),
    ("absolute form with userinfo", wire(start="GET http://user:pass@h/a HTTP/1.1"), HOST),
    ("absolute form, host as userinfo", wire(start="GET http://h@other/a HTTP/1.1"), HOST),
    ("absolute form without Host", wire(start="GET http://h/a HTTP/1.1", host=None), HOST),
    ("absolute form of another scheme", wire(start="GET ftp://h/a HTTP/1.1"), MALFORMED),
    ("authority form", wire(start="GET h:80 HTTP/1.1"), MALFORMED),
    # --- path
    ("dot-dot", path("/a/../b"), PATH),
    ("dot-dot at the end", path("/a/.."), PATH),
    ("dot", path("/a/./b"), PATH),
    ("encoded dot-dot", path("/a/%2e%2e/b"), PATH),
    ("encoded dot-dot in capitals", path("/a/%2E%2E/b"), PATH),
    ("half encoded dot-dot", path("/a/.%2e/b"), PATH),
    ("doubly encoded dot-dot", path("/a/%252e%252e/b"), PATH),
    ("doubly encoded slash", path("/a%252fb"), PATH),
    ("overlong dot-dot", path("/a/%c0%ae%c0%ae/b"), PATH),
    ("double slash", path("/a//b"), PATH),
    ("double slash in front", path("//other.example/a"), PATH),
    ("backslash", path("/a\\b"), PATH),
    ("backslash dot-dot", path("/a\\..\\b"), PATH),
    ("encoded backslash", path("/a%5cb"), PATH),
    ("encoded slash", path("/a%2fb"), PATH),
    ("encoded NUL", path("/a%00"), PATH),
    ("encoded CRLF", path("/a%0d%0aX-A:%20b"), PATH),
    ("invalid UTF-8", path("/%ff"), PATH),
    ("percent without digits", path("/a%zz"), PATH),
    ("dot-dot with a parameter", path("/a/..;/b"), PATH),
    ("encoded dot-dot with a parameter", path("/a/%2e%2e;x=y/b"), PATH),
    ("nothing but a parameter", path("/a/;x/b"), PATH),
    ("fragment", path("/a#b"), PATH),
    ("fragment in the query", path("/a?b#c"), MALFORMED),
    ("absolute form with dot-dot", wire(start="GET http://h/a/../b HTTP/1.1"), PATH),
    # --- connection, upgrade, expectation
    ("Connection: Authorization", wire("Connection: Authorization", "Authorization: Bearer x"), LISTED),
    ("Connection: close, authorization", wire("Connection: close, authorization"), LISTED),
    ("Connection: Host", wire("Connection: Host"), LISTED),
    ("Connection: Content-Length", post("Connection: Content-Length", "Content-Length: 5", body="hello"), LISTED),
    ("Connection: X_Api_Key", wire("Connection: X_Api_Key"), LISTED),
    ("Connection: X-Forwarded-For", wire("Connection: X-Forwarded-For"), LISTED),
    ("Connection: Via", wire("Connection: keep-alive, Via"), LISTED),
    ("Connection: DPoP in a second field", wire("Connection: keep-alive", "Connection: DPoP"), LISTED),
    ("Connection: the user's token", wire("Connection: X-Valetkey-Subject"), LISTED),
    ("websocket", wire("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"), "request.upgrade_denied"),
    ("upgrade to TLS", wire("Connection: Upgrade", "Upgrade: TLS/1.0"), "request.upgrade_denied"),
    ("h2c among others", wire("Connection: Upgrade", "Upgrade: h2c, websocket"), "request.upgrade_denied"),
    ("method override", post("X-HTTP-Method-Override: DELETE"), "request.override"),
    ("path override", wire("X_Original_URL: /admin"), "request.override"),
    ("host override", wire("X-Forwarded-Host: other.example"), "request.override"),
    ("method in the query", path("/a?_method=DELETE"), "request.override"),
    ("two content types", post("Content-Type: a/b", "Content_Type: c/d", "Content-Length: 0"), "request.repeated_header"),
    ("unknown expectation", wire("Expect: something"), "request.expectation_failed"),
    ("two expectations", wire("Expect: 100-continue", "Expect: 100-continue"), "request.expectation_failed"),
    ("two user's tokens", wire("X-Valetkey-Subject: a", "X-Valetkey-Subject: b"), "subject.invalid"),
    ("empty user's token", wire("X-Valetkey-Subject:"), "subject.invalid"),
    ("user's token that is none", wire("X-Valetkey-Subject: Bearer nonsense"), "subject.invalid"),
    # --- chunks
    ("no chunk size", chunks("\r\nhello\r\n0\r\n\r\n"), BODY),
    ("chunk size with 0x", chunks("0x5\r\nhello\r\n0\r\n\r\n"), BODY),
    ("chunk size with plus", chunks("+5\r\nhello\r\n0\r\n\r\n"), BODY),
    ("negative chunk size", chunks("-5\r\nhello\r\n0\r\n\r\n"), BODY),
    ("chunk size behind a space", chunks(" 5\r\nhello\r\n0\r\n\r\n"), BODY),
    ("chunk size before a space", chunks("5 \r\nhello\r\n0\r\n\r\n"), BODY),
    ("chunk size that overflows", chunks("10000000000000005\r\nhello\r\n0\r\n\r\n"), BODY),
    ("chunk size with an underscore", chunks("1_0\r\nhello\r\n0\r\n\r\n"), BODY),
    ("chunk longer than its size", chunks("4\r\nhello\r\n0\r\n\r\n"), BODY),
    ("chunk without CRLF", chunks("5\r\nhello0\r\n\r\n"), BODY),
    ("chunk with LF alone", chunks("5\r\nhello\n0\r\n\r\n"), BODY),
    ("chunk size with LF alone", chunks("5\nhello\r\n0\r\n\r\n"), BODY),
    ("bare LF in a chunk extension", chunks("5;a\nhello\r\n0\r\n\r\n"), BODY),
    ("bare CR in a chunk extension", chunks("5;a\rb\r\nhello\r\n0\r\n\r\n"), BODY),
    ("LF LF as the end of the chunks", chunks("0\n\n"), BODY),
    ("trailer that is none", chunks("0\r\nGET /b HTTP/1.1\r\n\r\n"), BODY),
    ("trailer with a space before the colon", chunks("0\r\nX-A : b\r\n\r\n"), BODY),
]  # fmt: skip


@dataclass(frozen=True)
class Sent:
    """What the upstream gets, host, via and credential apart."""

    line: str = "GET /a HTTP/1.1"
    fields: tuple[str, ...] = ()
    framing: tuple[str, ...] = ()
    body: bytes = b""


def sized(body: str, *fields: str, line: str = "POST /a HTTP/1.1") -> Sent:
    return Sent(line, fields, (f"content-length: {len(body)}",), body.encode())


CHUNKED = ("transfer-encoding: chunked",)
HELLO = b"5\r\nhello\r\n0\r\n\r\n"
POST = "POST /a HTTP/1.1"

FORWARDED: list[tuple[str, bytes, Sent]] = [
    ("usual", wire(), Sent()),
    ("names and values as they came", wire("x-Odd_NAME:  b  c "), Sent(fields=("x-Odd_NAME: b  c ",))),
    ("order and repeats are kept", wire("X-B: 1", "X-A: 2", "X-B: 3"), Sent(fields=("X-B: 1", "X-A: 2", "X-B: 3"))),
    ("Latin-1 in a value", wire("X-A: \xe9"), Sent(fields=("X-A: \xe9",))),
    ("empty value", wire("X-A:"), Sent(fields=("X-A: ",))),
    ("query", path("/a?b=c&d=%2f..%2f"), Sent("GET /a?b=c&d=%2f..%2f HTTP/1.1")),
    ("empty query", path("/a?"), Sent("GET /a? HTTP/1.1")),
    ("escapes as they came", path("/%61/b%20c"), Sent("GET /%61/b%20c HTTP/1.1")),
    ("parameters", path("/a;v=1/b"), Sent("GET /a;v=1/b HTTP/1.1")),
    ("case of the path", path("/A/b"), Sent("GET /A/b HTTP/1.1")),
    ("another method", wire(start="DELETE /a HTTP/1.1"), Sent("DELETE /a HTTP/1.1")),
    ("absolute form", wire(start="GET http://h/a?b HTTP/1.1"), Sent("GET /a?b HTTP/1.1")),
    ("absolute form without path", wire(start="GET http://h HTTP/1.1"), Sent("GET / HTTP/1.1")),
    ("absolute form, Host with default port", wire(start="GET http://h/a HTTP/1.1", host="H.:80"), Sent()),
    ("Host with a trailing dot", wire(host="h."), Sent()),
    ("Host with a port", wire(host="h:7070"), Sent()),
    ("HTTP/1.0", wire(start="GET /a HTTP/1.0", host=None), Sent()),
    ("body of a length", post("Content-Length: 5", body="hello"), sized("hello")),
    ("length with zeros", post("Content-Length: 0005", body="hello"), sized("hello")),
    ("length of nothing", post("Content-Length: 0"), sized("")),
    ("body of a GET", wire("Content-Length: 5", body="hello"), sized("hello", line="GET /a HTTP/1.1")),
    ("chunks", chunks("5\r\nhello\r\n0\r\n\r\n"), Sent(POST, (), CHUNKED, HELLO)),
    ("coding in capitals", post("TRANSFER-encoding: CHUNKED", body="5\r\nhello\r\n0\r\n\r\n"), Sent(POST, (), CHUNKED, HELLO)),
    ("chunk sizes are written anew", chunks("0005\r\nhello\r\n00\r\n\r\n"), Sent(POST, (), CHUNKED, HELLO)),
    ("chunk extensions end here", chunks('5;a="b"\r\nhello\r\n0;c\r\n\r\n'), Sent(POST, (), CHUNKED, HELLO)),
    ("trailers end here", chunks("5\r\nhello\r\n0\r\nAuthorization: Bearer x\r\n\r\n", "Trailer: Authorization"), Sent(POST, (), CHUNKED, HELLO)),
    ("no chunk but the last", chunks("0\r\n\r\n"), Sent(POST, (), CHUNKED, b"0\r\n\r\n")),
    ("hop-by-hop fields end here", wire("Keep-Alive: timeout=5", "TE: trailers", "Proxy-Connection: keep-alive", "Via: 1.0 x"), Sent()),
    ("what Connection lists ends here", wire("Connection: X-Hop, keep-alive", "X-Hop: 1", "x_hop: 2"), Sent()),
    ("Authorization", wire("Authorization: Bearer stolen"), Sent()),
    ("Authorization twice", wire("Authorization: Bearer a", "AUTHORIZATION: Basic b"), Sent()),
    ("Proxy-Authorization", wire("Proxy-Authorization: Basic b"), Sent()),
    ("DPoP and Txn-Token", wire("DPoP: a", "Txn-Token: b"), Sent()),
    ("API keys", wire("X-API-Key: a", "X_Api_Key: b", "x-api_key: c", "ApiKey: d", "Api_Key: e"), Sent()),
    ("cookies", wire("Cookie: session=a"), Sent()),
    ("a passed header", wire("ocp-apim-subscription-key: a"), Sent(fields=("ocp-apim-subscription-key: a",))),
    ("X-Authorization is none of ours", wire("X-Authorization: a"), Sent(fields=("X-Authorization: a",))),
    ("credential in the query", path("/a?b=1&access_token=x&c=2"), Sent("GET /a?b=1&c=2 HTTP/1.1")),
    ("credential in the query, encoded", path("/a?%61ccess_token=x"), Sent("GET /a? HTTP/1.1")),
    ("credential in the query, capitals", path("/a?API_KEY=x&b"), Sent("GET /a?b HTTP/1.1")),
    ("credential in the query behind ;", path("/a?b;access_token=x&c"), Sent("GET /a?c HTTP/1.1")),
    ("h2c is ignored", wire("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQ"), Sent()),
    ("upgrade without the option", wire("Upgrade: websocket"), Sent()),
    ("expectation with its body", post("Expect: 100-continue", "Content-Length: 5", body="hello"), sized("hello", "Expect: 100-continue")),
    ("trace context goes on", wire("traceparent: 00-" + "a" * 32 + "-" + "b" * 16 + "-01"), Sent(fields=("traceparent: 00-" + "a" * 32 + "-" + "b" * 16 + "-01",))),
    ("forwarding headers go on", wire("X-Forwarded-For: 10.0.0.1"), Sent(fields=("X-Forwarded-For: 10.0.0.1",))),
]  # fmt: skip

STATUS = {code.name: code.status for code in codes.all_codes()}


def ask(sidecar: Sidecar, raw: bytes, cuts: list[int]) -> tuple[Answer, bool]:
    """The answer, and whether the connection ends behind it."""
    with sidecar.open() as client:
        with contextlib.suppress(ConnectionError):  # refused before all of it was sent
            for begin, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
                client.send(raw[begin:end])
                if len(cuts) == 1:
                    time.sleep(0.001)
        answer = client.answer()
        return answer, client.ended(1) if answer.closes else False


def check_refused(sidecar: Sidecar, raw: bytes, cuts: list[int], code: str) -> None:
    answer, ended = ask(sidecar, raw, cuts)
    assert answer.code == code
    assert answer.status == STATUS[answer.code]
    assert b"stolen" not in answer.wire
    assert ended or not answer.closes


def check_forwarded(
    sidecar: Sidecar,
    upstream: Recording,
    raw: bytes,
    cuts: list[int],
    sent: Sent,
) -> None:
    upstream.requests.clear()
    answer, _ = ask(sidecar, raw, cuts)
    assert (answer.status, answer.body) == (200, b"ok")
    [request] = upstream.requests
    assert request.line.decode() == sent.line
    assert [field.decode("latin-1") for field in request.fields] == [
        f"host: 127.0.0.1:{upstream.port}",
        "via: 1.1 valetkey",
        *sent.fields,
        *sent.framing,
        "authorization: Bearer",
    ]
    if sent.framing == CHUNKED:
        # How a payload was cut is how its chunks are cut; what is in them stays the same.
        assert dechunk(request.body) == dechunk(sent.body)
        assert len(cuts) > 0 or request.body == sent.body
    else:
        assert request.body == sent.body


def bytewise(raw: bytes) -> list[int]:
    return list(range(1, len(raw)))


@pytest.mark.parametrize("how", ["whole", "bytes"])
@pytest.mark.parametrize(("name", "raw", "code"), REFUSED, ids=[case[0] for case in REFUSED])
def test_refused(
    name: str,
    raw: bytes,
    code: str,
    how: str,
    sidecar: Sidecar,
    upstream: Recording,
) -> None:
    check_refused(sidecar, raw, [] if how == "whole" else bytewise(raw)[:2000], code)
    assert upstream.requests == []


@pytest.mark.parametrize("how", ["whole", "bytes"])
@pytest.mark.parametrize(("name", "raw", "sent"), FORWARDED, ids=[case[0] for case in FORWARDED])
def test_forwarded(
    name: str,
    raw: bytes,
    sent: Sent,
    how: str,
    sidecar: Sidecar,
    upstream: Recording,
) -> None:
    check_forwarded(sidecar, upstream, raw, [] if how == "whole" else bytewise(raw), sent)


CUT = {
    "length and coding", "two spaces behind the method", "bare LF between fields", "no Host",
    "encoded dot-dot", "Connection: Authorization", "websocket", "chunk without CRLF",
    "bare LF in a chunk extension", "space before the colon of the coding", "HTTP/1.2",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "raw", "code"),
    [case for case in REFUSED if case[0] in CUT],
    ids=[case[0] for case in REFUSED if case[0] in CUT],
)
def test_refused_wherever_it_is_cut(
    name: str,
    raw: bytes,
    code: str,
    sidecar: Sidecar,
    upstream: Recording,
) -> None:
    for cut in range(1, len(raw)):
        check_refused(sidecar, raw, [cut], code)
    assert upstream.requests == []


CUT_SENT = {
    "usual", "body of a length", "chunks", "trailers end here", "Authorization twice",
    "absolute form", "credential in the query",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "raw", "sent"),
    [case for case in FORWARDED if case[0] in CUT_SENT],
    ids=[case[0] for case in FORWARDED if case[0] in CUT_SENT],
)
def test_forwarded_wherever_it_is_cut(
    name: str,
    raw: bytes,
    sent: Sent,
    sidecar: Sidecar,
    upstream: Recording,
) -> None:
    for cut in range(1, len(raw)):
        check_forwarded(sidecar, upstream, raw, [cut], sent)
