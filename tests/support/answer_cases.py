"""Bytes that a target may answer with, and what must reach the workload: the other half of the table.

A row is a name, the exact bytes, what the target does behind them (`STAYS` or `ENDS`), the outcome
and the reason. The outcome is `Passed`, a decision code for an answer of the sidecar's own, or
`BROKEN`: the answer began, and the workload sees that it is not whole.

`tests.integration.test_wire_answers` plays each row in process, cut in two at every position and
byte by byte, and whole over real sockets. A second call on the same connection always follows, and
gets its own answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Passed:
    """The answer as the workload gets it."""

    body: bytes = b"hello"
    status: int = 200
    fields: tuple[str, ...] = ()
    """Besides framing and what the sidecar adds."""


@dataclass(frozen=True)
class AnswerCase:
    """One row. ``method`` is the first call's."""

    group: str
    name: str
    raw: bytes
    ends: bool
    then: Passed | str
    why: str
    method: str = "GET"

    @property
    def id(self) -> str:
        return f"{self.group}: {self.name}"


def answer(*lines: str, body: str = "", start: str = "HTTP/1.1 200 OK") -> bytes:
    return ("\r\n".join([start, *lines, "", ""]) + body).encode("latin-1")


def sized(*lines: str, body: str = "hello", start: str = "HTTP/1.1 200 OK") -> bytes:
    return answer(*lines, f"Content-Length: {len(body)}", body=body, start=start)


def chunks(body: str, *lines: str) -> bytes:
    return answer("Transfer-Encoding: chunked", *lines, body=body)


HELLO: Final = "5\r\nhello\r\n0\r\n\r\n"
POISON: Final = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
EMPTY: Final = "0\r\n\r\n"

STAYS: Final = False
ENDS: Final = True
BAD: Final = "target.bad_response"
CLOSED: Final = "target.closed"
BROKEN: Final = "broken"

Row = tuple[str, bytes, bool, Passed | str, str]

# fmt: off
STATUS: list[Row] = [
    ("usual", sized(), STAYS, Passed(), "RFC 9112 §4"),
    ("no reason", sized(start="HTTP/1.1 200 "), STAYS, Passed(), "RFC 9112 §4"),
    ("no reason, no space", sized(start="HTTP/1.1 200"), STAYS, Passed(), "many servers"),
    ("Latin-1 in the reason", sized(start="HTTP/1.1 200 \xe9"), STAYS, Passed(), "RFC 9112 §4: obs-text"),
    ("HTTP/1.0", sized(start="HTTP/1.0 200 OK"), STAYS, Passed(), "RFC 9112 §2.3"),
    ("an unknown status", sized(start="HTTP/1.1 299 Odd"), STAYS, Passed(status=299), "RFC 9110 §15"),
    ("an error", sized(start="HTTP/1.1 503 No"), STAYS, Passed(status=503), "passed on"),
    ("a redirect", sized("Location: http://169.254.169.254/", start="HTTP/1.1 302 Found"), STAYS, Passed(status=302, fields=("Location: http://169.254.169.254/",)), "never followed"),
    ("nothing", b"", ENDS, CLOSED, "RFC 9112 §8"),
    ("half a head", b"HTTP/1.1 200 OK\r\nContent-Le", ENDS, CLOSED, "RFC 9112 §8"),
    ("HTTP/2", sized(start="HTTP/2.0 200 OK"), STAYS, BAD, "RFC 9112 §2.3"),
    ("HTTP/2 settings", bytes.fromhex("000012040000000000") + b"\0" * 18, STAYS, BAD, "RFC 9113 §3.4"),
    ("HTTP/1.2", sized(start="HTTP/1.2 200 OK"), STAYS, BAD, "RFC 9112 §2.3"),
    ("HTTP/0.9", b"<html>hello</html>", ENDS, BAD, "RFC 9112 §2.3"),
    ("http/1.1", sized(start="http/1.1 200 OK"), STAYS, BAD, "RFC 9112 §2.3: case-sensitive"),
    ("ICY", sized(start="ICY 200 OK"), STAYS, BAD, "llhttp takes it"),
    ("RTSP", sized(start="RTSP/1.0 200 OK"), STAYS, BAD, "llhttp takes it"),
    ("TLS alert", bytes.fromhex("15030300020228"), ENDS, BAD, "another protocol"),
    ("SSH banner", b"SSH-2.0-x\r\n", STAYS, BAD, "another protocol"),
    ("SMTP banner", b"220 mail ESMTP\r\n", STAYS, BAD, "another protocol"),
    ("a request", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", STAYS, BAD, "another protocol"),
    ("CRLF in front", b"\r\n" + sized(), STAYS, BAD, "RFC 9112 §4"),
    ("space in front", b" " + sized(), STAYS, BAD, "RFC 9112 §4"),
    ("two spaces", sized(start="HTTP/1.1  200 OK"), STAYS, BAD, "RFC 9112 §4"),
    ("tab for space", sized(start="HTTP/1.1\t200 OK"), STAYS, BAD, "RFC 9112 §4"),
    ("two digits", sized(start="HTTP/1.1 20 OK"), STAYS, BAD, "RFC 9112 §4"),
    ("four digits", sized(start="HTTP/1.1 2000 OK"), STAYS, BAD, "RFC 9112 §4"),
    ("status 0", sized(start="HTTP/1.1 000 OK"), STAYS, BAD, "RFC 9110 §15"),
    ("status 600", sized(start="HTTP/1.1 600 OK"), STAYS, BAD, "RFC 9110 §15"),
    ("status with a sign", sized(start="HTTP/1.1 +20 OK"), STAYS, BAD, "RFC 9112 §4"),
    ("control in the reason", sized(start="HTTP/1.1 200 O\x01K"), STAYS, BAD, "RFC 9112 §4"),
    ("CR in the reason", sized(start="HTTP/1.1 200 O\rK"), STAYS, BAD, "response splitting"),
    ("LF behind the status line", b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n", STAYS, BAD, "RFC 9112 §2.2"),
]

FIELDS: list[Row] = [
    ("as they came", sized("x-Odd_NAME:  b  ", "X-A: \xe9"), STAYS, Passed(fields=("x-Odd_NAME: b  ", "X-A: \xe9")), "bytes as they came"),
    ("what Connection lists", sized("Connection: X-Hop", "X-Hop: 1"), STAYS, Passed(), "RFC 9110 §7.6.1"),
    ("hop-by-hop", sized("Keep-Alive: timeout=5", "Upgrade: h2c", "Proxy-Connection: close"), STAYS, Passed(), "RFC 9110 §7.6.1"),
    ("challenges", sized("WWW-Authenticate: Bearer", "DPoP-Nonce: n", "Authentication-Info: x", "Proxy-Authenticate: x"), STAYS, Passed(), "for the sidecar"),
    ("LF between fields", b"HTTP/1.1 200 OK\r\nX-A: b\nContent-Length: 0\r\n\r\n", STAYS, BAD, "response splitting"),
    ("LF LF as the end", b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", STAYS, BAD, "RFC 9112 §2.2"),
    ("CR in a value", sized("X-A: b\rSet-Cookie: a=b"), STAYS, BAD, "response splitting"),
    ("NUL in a value", sized("X-A: \0"), STAYS, BAD, "RFC 9110 §5.5"),
    ("control in a value", sized("X-A: \x01"), STAYS, BAD, "RFC 9110 §5.5"),
    ("vertical tab in a value", sized("X-A: b\x0bc"), STAYS, BAD, "RFC 9110 §5.5"),
    ("obs-fold", sized("X-A: b", " c"), STAYS, BAD, "RFC 9112 §5.2"),
    ("space before the colon", sized("X-A : b"), STAYS, BAD, "RFC 9112 §5.1"),
    ("no colon", sized("X-A"), STAYS, BAD, "RFC 9112 §5"),
    ("no name", sized(": b"), STAYS, BAD, "RFC 9112 §5"),
    ("Latin-1 in a name", sized("X\xe9: b"), STAYS, BAD, "RFC 9110 §5.6.2"),
    ("too large", sized(f"X-A: {'b' * 1100}"), STAYS, BAD, "limits.head_size"),
    ("too large, without an end", b"HTTP/1.1 200 OK\r\nX-A: " + b"b" * 1100, STAYS, BAD, "limits.head_size"),
]

FRAMING: list[Row] = [
    ("chunks", chunks(HELLO), STAYS, Passed(), "RFC 9112 §7.1"),
    ("chunks with extension and trailer", chunks("5;a=b\r\nhello\r\n0\r\nX-T: a\r\n\r\n"), STAYS, Passed(), "RFC 9112 §7.1"),
    ("chunks in capitals", answer("TRANSFER-ENCODING: Chunked", body=HELLO), STAYS, Passed(), "RFC 9112 §7"),
    ("to the end", answer(body="hello"), ENDS, Passed(), "RFC 9112 §6.3"),
    ("to the end, HTTP/1.0", answer(body="hello", start="HTTP/1.0 200 OK"), ENDS, Passed(), "RFC 9112 §6.3"),
    ("another answer within a body to the end", answer(body=POISON), ENDS, Passed(POISON.encode()), "it stays a body"),
    ("another answer within a length", sized(body=POISON), STAYS, Passed(POISON.encode()), "it stays a body"),
    ("another answer within a chunk", chunks(f"{len(POISON):x}\r\n{POISON}\r\n{EMPTY}"), STAYS, Passed(POISON.encode()), "it stays a body"),
    ("length and coding", answer("Content-Length: 5", "Transfer-Encoding: chunked", body=HELLO), STAYS, BAD, "RFC 9112 §6.3"),
    ("coding and length", answer("Transfer-Encoding: chunked", "Content-Length: 5", body=HELLO), STAYS, BAD, "RFC 9112 §6.3"),
    ("two lengths", answer("Content-Length: 5", "Content-Length: 6", body="hello"), STAYS, BAD, "RFC 9112 §6.3"),
    ("two equal lengths", answer("Content-Length: 5", "Content-Length: 5", body="hello"), STAYS, BAD, "RFC 9112 §6.3: stricter"),
    ("length list", answer("Content-Length: 5, 5", body="hello"), STAYS, BAD, "RFC 9110 §8.6: stricter"),
    ("length with plus", answer("Content-Length: +5", body="hello"), STAYS, BAD, "RFC 9110 §8.6"),
    ("negative length", answer("Content-Length: -1", body="hello"), ENDS, BAD, "RFC 9110 §8.6"),
    ("length in hexadecimal", answer("Content-Length: 0x5", body="hello"), STAYS, BAD, "RFC 9110 §8.6"),
    ("empty length", answer("Content-Length:", body="hello"), ENDS, BAD, "RFC 9110 §8.6"),
    ("enormous length", answer("Content-Length: 99999999999999999999", body="hello"), ENDS, BAD, "overflow"),
    ("length with _", answer("Content_Length: 5", body="hello"), ENDS, BAD, "CGI: one name"),
    ("length, space before the colon", answer("Content-Length : 5", body="hello"), STAYS, BAD, "RFC 9112 §5.1"),
    ("gzip, chunked", answer("Transfer-Encoding: gzip, chunked", body=HELLO), STAYS, BAD, "RFC 9112 §6.1"),
    ("gzip", answer("Transfer-Encoding: gzip", body="hello"), ENDS, BAD, "RFC 9112 §6.3"),
    ("identity", answer("Transfer-Encoding: identity", body="hello"), ENDS, BAD, "withdrawn by RFC 7230"),
    ("xchunked", answer("Transfer-Encoding: xchunked", body=HELLO), ENDS, BAD, "TE.TE"),
    ("two codings", answer("Transfer-Encoding: chunked", "Transfer-Encoding: identity", body=HELLO), STAYS, BAD, "TE.TE"),
    ("coding behind a vertical tab", answer("Transfer-Encoding: \x0bchunked", body=HELLO), STAYS, BAD, "TE.TE"),
    ("coding in HTTP/1.0", answer("Transfer-Encoding: chunked", body=HELLO, start="HTTP/1.0 200 OK"), STAYS, BAD, "RFC 9112 §6.1"),
    ("shorter than its length", answer("Content-Length: 50", body="hello"), ENDS, BROKEN, "RFC 9112 §8"),
    ("no last chunk", chunks("5\r\nhello\r\n"), ENDS, BROKEN, "RFC 9112 §8"),
    ("last chunk without its end", chunks("5\r\nhello\r\n0\r\n"), ENDS, BROKEN, "RFC 9112 §8"),
    ("chunk size that is none", chunks("5\r\nhello\r\nzz\r\n"), STAYS, BROKEN, "RFC 9112 §7.1"),
    ("chunk size with 0x", chunks("0x5\r\nhello\r\n0\r\n\r\n"), STAYS, BROKEN, "RFC 9112 §7.1"),
    ("chunk size with a space", chunks("5 \r\nhello\r\n0\r\n\r\n"), STAYS, BROKEN, "RFC 9112 §7.1"),
    ("chunk size that overflows", chunks("10000000000000005\r\nhello\r\n0\r\n\r\n"), STAYS, BROKEN, "overflow"),
    ("chunk longer than its size", chunks("4\r\nhello\r\n0\r\n\r\n"), STAYS, BROKEN, "RFC 9112 §7.1"),
    ("chunk with LF", chunks("5\nhello\n0\n\n"), STAYS, BROKEN, "RFC 9112 §2.2"),
    ("an answer for a trailer", chunks("0\r\nHTTP/1.1 200 OK\r\n\r\n"), STAYS, BROKEN, "response splitting"),
    ("a length as trailer", chunks("5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n"), STAYS, BROKEN, "RFC 9110 §6.5.1"),
    ("an empty length as trailer", chunks("5\r\nhello\r\n0\r\nContent-Length:\r\n\r\n"), STAYS, BROKEN, "h11 refuses the value"),
    ("a coding as trailer", chunks("5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"), STAYS, BROKEN, "RFC 9110 §6.5.1"),
    ("trailer with a space before the colon", chunks("0\r\nX-A : b\r\n\r\n"), STAYS, BROKEN, "RFC 9112 §5.1"),
]

BODILESS: list[Row] = [
    ("204", answer(start="HTTP/1.1 204 No Content"), STAYS, Passed(b"", 204), "RFC 9112 §6.3"),
    ("204 with a length and a body", sized(start="HTTP/1.1 204 No Content"), STAYS, Passed(b"", 204), "RFC 9112 §6.3"),
    ("204 with chunks", answer("Transfer-Encoding: chunked", body=HELLO, start="HTTP/1.1 204 No Content"), STAYS, Passed(b"", 204), "RFC 9112 §6.3"),
    ("304 with a length", answer("Content-Length: 5", start="HTTP/1.1 304 Not Modified"), STAYS, Passed(b"", 304), "RFC 9110 §15.4.5"),
    ("304 with a length and a body", sized(start="HTTP/1.1 304 Not Modified"), STAYS, Passed(b"", 304), "RFC 9112 §6.3"),
    ("205 with a body", sized(start="HTTP/1.1 205 Reset Content"), STAYS, Passed(status=205), "framing says so"),
    ("an empty body", sized(body=""), STAYS, Passed(b""), "RFC 9112 §6.3"),
]

HEADS: list[Row] = [
    ("a length", answer("Content-Length: 5"), STAYS, Passed(b""), "RFC 9110 §9.3.2"),
    ("a length and its body", sized(), STAYS, Passed(b""), "HEAD with a body"),
    ("chunks", answer("Transfer-Encoding: chunked"), STAYS, Passed(b""), "RFC 9110 §9.3.2"),
    ("chunks and their body", chunks(HELLO), STAYS, Passed(b""), "HEAD with a body"),
    ("another answer behind", answer("Content-Length: 5", body=POISON), STAYS, Passed(b""), "response queue poisoning"),
]

INTERIM: list[Row] = [
    ("100 unasked", answer(start="HTTP/1.1 100 Continue") + sized(), STAYS, Passed(), "RFC 9110 §15.2.1: ends here"),
    ("103", answer("Link: a", start="HTTP/1.1 103 Early Hints") + sized(), STAYS, Passed(), "RFC 8297"),
    ("102 and 103", answer(start="HTTP/1.1 102 Processing") + answer(start="HTTP/1.1 103 Early Hints") + sized(), STAYS, Passed(), "RFC 9110 §15.2"),
    ("sixteen", answer(start="HTTP/1.1 102 Processing") * 16 + sized(), STAYS, Passed(), "bounded"),
    ("seventeen", answer(start="HTTP/1.1 102 Processing") * 17 + sized(), STAYS, BAD, "1xx flood"),
    ("101 unasked", answer("Upgrade: websocket", "Connection: Upgrade", start="HTTP/1.1 101 Switching Protocols"), STAYS, BAD, "RFC 9110 §15.2.2"),
    ("101 before an answer", answer(start="HTTP/1.1 101 Switching Protocols") + sized(), STAYS, BAD, "RFC 9110 §15.2.2"),
    ("103 with a body", sized(start="HTTP/1.1 103 Early Hints") + sized(), STAYS, BAD, "RFC 9110 §15.2: no content"),
    ("103 with chunks", answer("Transfer-Encoding: chunked", body=HELLO, start="HTTP/1.1 103 Early Hints") + sized(), STAYS, BAD, "RFC 9110 §15.2: no content"),
    ("103 and nothing", answer(start="HTTP/1.1 103 Early Hints"), ENDS, CLOSED, "RFC 9112 §8"),
    ("103 malformed", answer("X-A : b", start="HTTP/1.1 103 Early Hints") + sized(), STAYS, BAD, "RFC 9112 §5.1"),
]

BEHIND: list[Row] = [
    ("a length", sized() + POISON.encode(), STAYS, Passed(), "response queue poisoning"),
    ("a length of nothing", sized(body="") + POISON.encode(), STAYS, Passed(b""), "response queue poisoning"),
    ("chunks", chunks(HELLO) + POISON.encode(), STAYS, Passed(), "response queue poisoning"),
    ("204", answer(start="HTTP/1.1 204 No Content") + POISON.encode(), STAYS, Passed(b"", 204), "response queue poisoning"),
    ("304", answer(start="HTTP/1.1 304 Not Modified") + POISON.encode(), STAYS, Passed(b"", 304), "response queue poisoning"),
    ("a length, and the end", sized() + POISON.encode(), ENDS, Passed(), "response queue poisoning"),
    ("a length, CRLF", sized() + b"\r\n", STAYS, Passed(), "RFC 9112 §2.2: of requests"),
    ("a length, half an answer", sized() + b"HTTP/1.1 200 OK\r\nX-A: b", STAYS, Passed(), "response queue poisoning"),
    ("a length, 103", sized() + answer(start="HTTP/1.1 103 Early Hints"), STAYS, Passed(), "response queue poisoning"),
    ("a length, noise", sized() + b"\x00", STAYS, Passed(), "response queue poisoning"),
]
# fmt: on

_TABLES: Final[list[tuple[str, str, list[Row]]]] = [
    ("status", "GET", STATUS),
    ("fields", "GET", FIELDS),
    ("framing", "GET", FRAMING),
    ("bodiless", "GET", BODILESS),
    ("head", "HEAD", HEADS),
    ("interim", "GET", INTERIM),
    ("behind", "GET", BEHIND),
]

ANSWER_CASES: Final = [
    AnswerCase(group, name, raw, ends, then, why, method)
    for group, method, rows in _TABLES
    for name, raw, ends, then, why in rows
]
