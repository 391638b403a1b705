"""Bytes that a workload may send, and what must come of them: one table for all tests of the wire.

A row is a name, the exact bytes, the outcome and the reason: a clause of an RFC, or the name under
which the trick is known. The outcome is a decision code, or `Sent` (what the target gets), or a
list of both for bytes that hold several requests; `NOTHING` where no request ever becomes whole.

`tests.integration.test_wire_table` plays each row against a real sidecar: whole, byte by byte, and
cut in two at every position. The fuzzing (`tests.fuzz`) takes the rows apart and mixes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.support.sidecar import dechunk

# Small, so that what exceeds them can be cut at every position too.
MAX_HEAD: Final = 1024
MAX_FIELDS: Final = 40

PASSED: Final = ["Ocp-Apim-Subscription-Key", "X-HTTP-Method"]
"""``pass_headers`` of the target that the table is played against."""


@dataclass(frozen=True)
class Sent:
    """What the target gets, host, via and credential apart."""

    line: str = "GET /a HTTP/1.1"
    fields: tuple[str, ...] = ()
    framing: tuple[str, ...] = ()
    body: bytes = b""

    @property
    def payload(self) -> bytes:
        """The body without its framing: how it came in pieces is how its chunks are cut."""
        return dechunk(self.body) if self.framing == CHUNKED else self.body


Outcome = str | Sent


@dataclass(frozen=True)
class Case:
    """One row. ``then`` are the outcomes in order, ``entry`` is the way in.

    ``reverse``: a listener of the target's own. ``shared``: one for all targets. ``forward``: a
    forward listener. ``tunnel`` and ``plain``: inside of a tunnel to the upstream of https, which
    is intercepted, or to that of http.
    """

    group: str
    name: str
    raw: bytes
    then: tuple[Outcome, ...]
    why: str
    entry: str = "reverse"

    @property
    def id(self) -> str:
        return f"{self.group}: {self.name}"

    def at(self, port: int, secure: int) -> bytes:
        """The bytes, for upstreams at these ports (of five digits, as all that are dynamic)."""
        raw = self.raw.replace(b":65000", b":%d" % port).replace(b":65001", b":%d" % secure)
        assert len(raw) == len(self.raw)
        return raw


def wire(
    *lines: str, start: str = "GET /a HTTP/1.1", host: str | None = "h", body: str = ""
) -> bytes:
    """A request. Text is Latin-1: a character is a byte."""
    hosts = [] if host is None else [f"Host: {host}"]
    return ("\r\n".join([start, *hosts, *lines, "", ""]) + body).encode("latin-1")


def get(target: str) -> bytes:
    return wire(start=f"GET {target} HTTP/1.1")


def post(*lines: str, body: str = "") -> bytes:
    return wire(*lines, start="POST /a HTTP/1.1", body=body)


def chunks(body: str, *lines: str) -> bytes:
    return post("Transfer-Encoding: chunked", *lines, body=body)


def utf8(text: str) -> str:
    """UTF-8, as `wire` takes it."""
    return text.encode().decode("latin-1")


POST: Final = "POST /a HTTP/1.1"
CHUNKED: Final = ("transfer-encoding: chunked",)
EMPTY: Final = "0\r\n\r\n"
HELLO: Final = "5\r\nhello\r\n0\r\n\r\n"
INNER: Final = "GET /b HTTP/1.1\r\nHost: h\r\n\r\n"
"""A request, for where none may be read."""


def sized(body: str, *fields: str, line: str = POST) -> Sent:
    return Sent(line, fields, (f"content-length: {len(body)}",), body.encode())


def chunked(body: str = "hello", *fields: str) -> Sent:
    framed = f"{len(body):x}\r\n{body}\r\n" if body else ""
    return Sent(POST, fields, CHUNKED, f"{framed}{EMPTY}".encode())


def fields(*lines: str) -> Sent:
    return Sent(fields=lines)


def to(target: str) -> Sent:
    return Sent(f"GET {target} HTTP/1.1")


# Their lower case is an ASCII letter, or their upper case is.
LONG_S: Final = utf8("\u017f")
KELVIN: Final = utf8("\u212a")

NOTHING: Final[list[Outcome]] = []

MALFORMED: Final = "request.malformed"
VERSION: Final = "request.version_unsupported"
TOO_LARGE: Final = "request.head_too_large"
TOO_MANY: Final = "request.too_many_headers"
FRAMING: Final = "request.ambiguous_framing"
BODY: Final = "request.body_malformed"
HOST: Final = "request.ambiguous_host"
PATH: Final = "request.ambiguous_path"
LISTED: Final = "request.connection_header"
OVERRIDE: Final = "request.override"
REPEATED: Final = "request.repeated_header"
EXPECTATION: Final = "request.expectation_failed"
UPGRADE: Final = "request.upgrade_denied"
CONNECT: Final = "request.connect_denied"
NO_ROUTE: Final = "route.no_match"
NO_TARGET: Final = "target.no_match"
SUBJECT: Final = "subject.invalid"

Row = tuple[str, bytes, Outcome | list[Outcome], str]

# fmt: off
LENGTH: list[Row] = [
    ("usual", post("Content-Length: 5", body="hello"), sized("hello"), "RFC 9112 §6.2"),
    ("without a space", post("Content-Length:5", body="hello"), sized("hello"), "RFC 9112 §5"),
    ("spaces and a tab in front", post("Content-Length: \t 5", body="hello"), sized("hello"), "RFC 9112 §5.1: OWS"),
    ("zeros in front", post("Content-Length: 0005", body="hello"), sized("hello"), "written anew: octal nowhere"),
    ("nothing", post("Content-Length: 0"), sized(""), "RFC 9112 §6.2"),
    ("nothing, spelled long", post("Content-Length: 00"), sized(""), "written anew"),
    ("with GET", wire("Content-Length: 5", body="hello"), sized("hello", line="GET /a HTTP/1.1"), "RFC 9110 §9.3.1, 0.CL"),
    ("in HTTP/1.0", wire("Content-Length: 5", start="POST /a HTTP/1.0", body="hello"), sized("hello"), "RFC 9112 §6"),
    ("a request as the body", post(f"Content-Length: {len(INNER)}", body=INNER), sized(INNER), "CL.0: it stays a body"),
    ("longer than the body", post("Content-Length: 6", body="hello"), NOTHING, "RFC 9112 §8: incomplete"),
    ("not cut to 32 bits", post("Content-Length: 4294967301", body="hello"), NOTHING, "overflow"),
    ("not cut to 64 bits", post("Content-Length: 18446744073709551621", body="hello"), FRAMING, "overflow"),
    ("more than 18 digits", post("Content-Length: 0000000000000000005", body="hello"), FRAMING, "overflow"),
    ("enormous", post("Content-Length: 99999999999999999999"), FRAMING, "overflow"),
    ("twice", post("Content-Length: 5", "Content-Length: 0", body="hello"), FRAMING, "RFC 9112 §6.3, CL.CL"),
    ("twice the same", post("Content-Length: 5", "Content-Length: 5", body="hello"), FRAMING, "RFC 9112 §6.3"),
    ("twice, far apart", post("content-length: 5", "X-A: b", "CONTENT-LENGTH: 5", body="hello"), FRAMING, "RFC 9112 §6.3"),
    ("list", post("Content-Length: 5, 5", body="hello"), FRAMING, "RFC 9110 §8.6"),
    ("list of two values", post("Content-Length: 5,6", body="hello"), FRAMING, "RFC 9112 §6.3"),
    ("list with an empty element", post("Content-Length: 5,", body="hello"), FRAMING, "RFC 9110 §5.6.1"),
    ("plus", post("Content-Length: +5", body="hello"), FRAMING, "strtol, int()"),
    ("minus", post("Content-Length: -5", body="hello"), FRAMING, "strtol"),
    ("minus nothing", post("Content-Length: -0"), FRAMING, "strtol"),
    ("hexadecimal", post("Content-Length: 0x5", body="hello"), FRAMING, "strtol with base 0"),
    ("underscore", post("Content-Length: 0_5", body="hello"), FRAMING, "int() of Python"),
    ("fraction", post("Content-Length: 5.0", body="hello"), FRAMING, "float"),
    ("exponent", post("Content-Length: 5e0", body="hello"), FRAMING, "float"),
    ("letter behind", post("Content-Length: 5a", body="hello"), FRAMING, "atoi"),
    ("parameter behind", post("Content-Length: 5;a", body="hello"), FRAMING, "atoi"),
    ("space inside", post("Content-Length: 1 5", body="hello"), FRAMING, "atoi"),
    ("space behind", post("Content-Length: 5 ", body="hello"), FRAMING, "stricter than RFC 9112 §5.1"),
    ("tab behind", post("Content-Length: 5\t", body="hello"), FRAMING, "stricter than RFC 9112 §5.1"),
    ("form feed in front", post("Content-Length: \x0c5", body="hello"), FRAMING, "isspace()"),
    ("NUL behind", post("Content-Length: 5\0", body="hello"), MALFORMED, "C strings"),
    ("no-break space behind", post("Content-Length: 5\xa0", body="hello"), FRAMING, "str.strip()"),
    ("superscript digit", post("Content-Length: \xb2"), FRAMING, "str.isdigit()"),
    ("fullwidth digit", post(f"Content-Length: {utf8('５')}", body="hello"), FRAMING, "int() of Python"),
    ("in quotes", post('Content-Length: "5"', body="hello"), FRAMING, "RFC 9110 §8.6"),
    ("empty", post("Content-Length:", body="hello"), FRAMING, "RFC 9110 §8.6"),
    ("blank", post("Content-Length: \t ", body="hello"), FRAMING, "RFC 9110 §8.6"),
    ("name with _", post("Content_Length: 5", body="hello"), FRAMING, "CGI, WSGI: one name"),
    ("name with a dot", post("Content.Length: 5", body="hello"), FRAMING, "CGI: one name"),
    ("both names", post("Content-Length: 5", "Content_Length: 0", body="hello"), FRAMING, "CGI: one name"),
    ("space before the colon", post("Content-Length : 5", body="hello"), MALFORMED, "RFC 9112 §5.1"),
    ("tab before the colon", post("Content-Length\t: 5", body="hello"), MALFORMED, "RFC 9112 §5.1"),
    ("behind an obs-fold", post("X-A: b", " Content-Length: 5", body="hello"), MALFORMED, "RFC 9112 §5.2"),
    ("value in an obs-fold", post("Content-Length:", " 5", body="hello"), MALFORMED, "RFC 9112 §5.2"),
    ("behind a bare CR", post("X-A: b\rContent-Length: 5", body="hello"), MALFORMED, "RFC 9112 §2.2"),
]

CODING: list[Row] = [
    ("usual", chunks(HELLO), chunked(), "RFC 9112 §7.1"),
    ("other case", post("TRANSFER-encoding: CHUNKED", body=HELLO), chunked(), "RFC 9112 §7"),
    ("without a space", post("Transfer-Encoding:chunked", body=HELLO), chunked(), "RFC 9112 §5"),
    ("tab in front", post("Transfer-Encoding:\tchunked", body=HELLO), chunked(), "RFC 9112 §5.1: OWS"),
    ("listed in Connection", chunks(HELLO, "Connection: Transfer-Encoding"), chunked(), "framing is rebuilt"),
    ("length and coding", post("Content-Length: 5", "Transfer-Encoding: chunked", body=EMPTY), FRAMING, "RFC 9112 §6.3, CL.TE"),
    ("coding and length", post("Transfer-Encoding: chunked", "Content-Length: 5", body=EMPTY), FRAMING, "RFC 9112 §6.3, TE.CL"),
    ("coding and length of nothing", post("Transfer-Encoding: chunked", "Content-Length: 0", body=EMPTY), FRAMING, "RFC 9112 §6.3"),
    ("length, and coding with _", post("Content-Length: 5", "Transfer_Encoding: chunked", body="hello"), FRAMING, "CGI: one name"),
    ("length, and coding unknown", post("Content-Length: 5", "Transfer-Encoding: x", body="hello"), FRAMING, "TE.TE"),
    ("name with _", post("Transfer_Encoding: chunked", body=EMPTY), FRAMING, "CGI, WSGI: one name"),
    ("name with a dot", post("Transfer.Encoding: chunked", body=EMPTY), FRAMING, "CGI: one name"),
    ("another name", post("X-Transfer-Encoding: chunked", body=EMPTY), [Sent(POST, ("X-Transfer-Encoding: chunked",)), MALFORMED], "it frames nothing"),
    ("chunked in a list twice", post("Transfer-Encoding: chunked, chunked", body=EMPTY), FRAMING, "RFC 9112 §6.1"),
    ("chunked in two fields", post("Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=EMPTY), FRAMING, "RFC 9112 §6.1"),
    ("chunked and identity", post("Transfer-Encoding: chunked", "Transfer-Encoding: identity", body=EMPTY), FRAMING, "TE.TE"),
    ("identity and chunked", post("Transfer-Encoding: identity", "Transfer-Encoding: chunked", body=EMPTY), FRAMING, "TE.TE"),
    ("gzip and chunked", post("Transfer-Encoding: gzip", "Transfer-Encoding: chunked", body=EMPTY), FRAMING, "RFC 9112 §6.1"),
    ("gzip, chunked", post("Transfer-Encoding: gzip, chunked", body=EMPTY), FRAMING, "RFC 9112 §6.1: not offered"),
    ("chunked, gzip", post("Transfer-Encoding: chunked, gzip", body=EMPTY), FRAMING, "RFC 9112 §6.3"),
    ("chunked, identity", post("Transfer-Encoding: chunked, identity", body=EMPTY), FRAMING, "TE.TE"),
    ("identity", post("Transfer-Encoding: identity", body="hello"), FRAMING, "withdrawn by RFC 7230"),
    ("gzip", post("Transfer-Encoding: gzip", body="hello"), FRAMING, "RFC 9112 §6.3"),
    ("xchunked", post("Transfer-Encoding: xchunked", body=EMPTY), FRAMING, "TE.TE"),
    ("chunkedx", post("Transfer-Encoding: chunkedx", body=EMPTY), FRAMING, "TE.TE"),
    ("x chunked", post("Transfer-Encoding: x chunked", body=EMPTY), FRAMING, "TE.TE"),
    ("chunk", post("Transfer-Encoding: chunk", body=EMPTY), FRAMING, "TE.TE: prefix"),
    ("with a parameter", post("Transfer-Encoding: chunked;q=1", body=EMPTY), FRAMING, "TE.TE"),
    ("with a comma behind", post("Transfer-Encoding: chunked,", body=EMPTY), FRAMING, "RFC 9110 §5.6.1"),
    ("with a comma in front", post("Transfer-Encoding: ,chunked", body=EMPTY), FRAMING, "RFC 9110 §5.6.1"),
    ("in quotes", post('Transfer-Encoding: "chunked"', body=EMPTY), FRAMING, "TE.TE"),
    ("in single quotes", post("Transfer-Encoding: 'chunked'", body=EMPTY), FRAMING, "TE.TE"),
    ("space behind", post("Transfer-Encoding: chunked ", body=EMPTY), FRAMING, "stricter than RFC 9112 §5.1"),
    ("tab behind", post("Transfer-Encoding: chunked\t", body=EMPTY), FRAMING, "TE.TE"),
    ("vertical tab in front", post("Transfer-Encoding: \x0bchunked", body=EMPTY), MALFORMED, "TE.TE: isspace()"),
    ("form feed behind", post("Transfer-Encoding: chunked\x0c", body=EMPTY), MALFORMED, "TE.TE: isspace()"),
    ("no-break space in front", post("Transfer-Encoding: \xa0chunked", body=EMPTY), FRAMING, "TE.TE: str.strip()"),
    ("NEL behind", post("Transfer-Encoding: chunked\x85", body=EMPTY), FRAMING, "TE.TE: str.strip()"),
    ("NUL behind", post("Transfer-Encoding: chunked\0", body=EMPTY), MALFORMED, "TE.TE: C strings"),
    ("long s for s", post(f"Tran{LONG_S}fer-Encoding: chunked", body=EMPTY), MALFORMED, "str.lower()"),
    ("Kelvin sign for k", post(f"Transfer-Encoding: chun{KELVIN}ed", body=EMPTY), FRAMING, "str.lower()"),
    ("empty", post("Transfer-Encoding:", body=EMPTY), FRAMING, "RFC 9112 §6.1"),
    ("space before the colon", post("Transfer-Encoding : chunked", body=EMPTY), MALFORMED, "RFC 9112 §5.1, TE.TE"),
    ("tab before the colon", post("Transfer-Encoding\t: chunked", body=EMPTY), MALFORMED, "RFC 9112 §5.1, TE.TE"),
    ("vertical tab before the colon", post("Transfer-Encoding\x0b: chunked", body=EMPTY), MALFORMED, "TE.TE"),
    ("NUL before the colon", post("Transfer-Encoding\0: chunked", body=EMPTY), MALFORMED, "TE.TE"),
    ("space in front of the name", post("X-A: b", " Transfer-Encoding: chunked", body=EMPTY), MALFORMED, "RFC 9112 §5.2, TE.TE"),
    ("value in an obs-fold", post("Transfer-Encoding:", " chunked", body=EMPTY), MALFORMED, "RFC 9112 §5.2, TE.TE"),
    ("behind a bare LF", post("X-A: b\nTransfer-Encoding: chunked", body=EMPTY), MALFORMED, "RFC 9112 §2.2, TE.TE"),
    ("behind a bare CR", post("X-A: b\rTransfer-Encoding: chunked", body=EMPTY), MALFORMED, "RFC 9112 §2.2, TE.TE"),
    ("in HTTP/1.0", wire("Transfer-Encoding: chunked", start="POST /a HTTP/1.0", body=EMPTY), FRAMING, "RFC 9112 §6.1"),
    ("in HTTP/1.0, kept alive", wire("Transfer-Encoding: chunked", "Connection: keep-alive", start="POST /a HTTP/1.0", body=EMPTY), FRAMING, "RFC 9112 §6.1"),
]

CHUNKS: list[Row] = [
    ("none but the last", chunks(EMPTY), chunked(""), "RFC 9112 §7.1"),
    ("a request in a chunk", chunks(f"{len(INNER):x}\r\n{INNER}\r\n{EMPTY}"), chunked(INNER), "TE.CL: it stays a body"),
    ("sizes are written anew", chunks("0005\r\nhello\r\n00\r\n\r\n"), chunked(), "leading zeros"),
    ("size in capitals", chunks(f"A\r\nhellohello\r\n{EMPTY}"), chunked("hellohello"), "RFC 9112 §7.1"),
    ("extensions end here", chunks('5;a="b"\r\nhello\r\n0;c\r\n\r\n'), chunked(), "RFC 9112 §7.1.1"),
    ("space before an extension", chunks(f"5 ;a=b\r\nhello\r\n{EMPTY}"), BODY, "stricter than RFC 9112 §7.1.1: BWS"),
    ("space in an extension", chunks(f"5;a = b\r\nhello\r\n{EMPTY}"), BODY, "stricter than RFC 9112 §7.1.1: BWS"),
    ("extension without a name", chunks(f"5;\r\nhello\r\n{EMPTY}"), BODY, "RFC 9112 §7.1.1"),
    ("trailers end here", chunks("5\r\nhello\r\n0\r\nX-A: b\r\n\r\n", "Trailer: X-A"), chunked(), "RFC 9112 §7.1.2"),
    ("a credential as trailer", chunks("5\r\nhello\r\n0\r\nAuthorization: Bearer stolen\r\n\r\n"), chunked(), "RFC 9110 §6.5.1"),
    ("a length as trailer", chunks("5\r\nhello\r\n0\r\nContent-Length: 0\r\n\r\n"), BODY, "RFC 9110 §6.5.1: framing"),
    ("an empty length as trailer", chunks("5\r\nhello\r\n0\r\nContent-Length:\r\n\r\n"), BODY, "h11 refuses the value"),
    ("a length with _ as trailer", chunks("5\r\nhello\r\n0\r\nX-A: b\r\nContent_Length: 5\r\n\r\n"), BODY, "CGI: one name"),
    ("a coding as trailer", chunks("5\r\nhello\r\n0\r\nTransfer-Encoding: x\r\n\r\n"), BODY, "RFC 9110 §6.5.1: framing"),
    ("Host as trailer", chunks("5\r\nhello\r\n0\r\nHost: other\r\n\r\n"), BODY, "RFC 9110 §6.5.1: routing"),
    ("no size", chunks(f"\r\nhello\r\n{EMPTY}"), BODY, "RFC 9112 §7.1"),
    ("size with 0x", chunks(f"0x5\r\nhello\r\n{EMPTY}"), BODY, "strtol"),
    ("size with plus", chunks(f"+5\r\nhello\r\n{EMPTY}"), BODY, "int()"),
    ("size with minus", chunks(f"-5\r\nhello\r\n{EMPTY}"), BODY, "strtol"),
    ("minus nothing", chunks("-0\r\n\r\n"), BODY, "strtol"),
    ("size with an underscore", chunks(f"0_5\r\nhello\r\n{EMPTY}"), BODY, "int() of Python"),
    ("space before the size", chunks(f" 5\r\nhello\r\n{EMPTY}"), BODY, "RFC 9112 §7.1"),
    ("space behind the size", chunks(f"5 \r\nhello\r\n{EMPTY}"), BODY, "RFC 9112 §7.1"),
    ("tab behind the size", chunks(f"5\t\r\nhello\r\n{EMPTY}"), BODY, "RFC 9112 §7.1"),
    ("space behind the last size", chunks("0 \r\n\r\n"), BODY, "RFC 9112 §7.1"),
    ("size in quotes", chunks(f'"5"\r\nhello\r\n{EMPTY}'), BODY, "RFC 9112 §7.1"),
    ("size with a letter", chunks(f"5g\r\nhello\r\n{EMPTY}"), BODY, "strtol"),
    ("size with a comma", chunks(f"5,5\r\nhello\r\n{EMPTY}"), BODY, "RFC 9112 §7.1"),
    ("size with a colon", chunks(f"5:a\r\nhello\r\n{EMPTY}"), BODY, "RFC 9112 §7.1.1"),
    ("size with NUL", chunks(f"5\0\r\nhello\r\n{EMPTY}"), BODY, "C strings"),
    ("size in fullwidth digits", chunks(f"{utf8('５')}\r\nhello\r\n{EMPTY}"), BODY, "int() of Python"),
    ("size that overflows 64 bits", chunks(f"10000000000000005\r\nhello\r\n{EMPTY}"), BODY, "overflow"),
    ("size of 64 bits", chunks(f"ffffffffffffffff\r\nhello\r\n{EMPTY}"), NOTHING, "overflow to -1"),
    ("size of 32 bits and 5", chunks(f"100000005\r\nhello\r\n{EMPTY}"), NOTHING, "overflow"),
    ("longer than its size", chunks(f"4\r\nhello\r\n{EMPTY}"), BODY, "RFC 9112 §7.1"),
    ("shorter than its size", chunks(f"6\r\nhello\r\n{EMPTY}"), BODY, "RFC 9112 §7.1"),
    ("no CRLF behind the data", chunks(f"5\r\nhello{EMPTY}"), BODY, "RFC 9112 §7.1"),
    ("LF behind the data", chunks(f"5\r\nhello\n{EMPTY}"), BODY, "RFC 9112 §2.2"),
    ("CR behind the data", chunks(f"5\r\nhello\r{EMPTY}"), BODY, "RFC 9112 §2.2"),
    ("other bytes for CRLF", chunks(f"5\r\nhelloXX{EMPTY}"), BODY, "two bytes skipped unread"),
    ("two CRLF behind the data", chunks(f"5\r\nhello\r\n\r\n{EMPTY}"), BODY, "RFC 9112 §7.1"),
    ("LF behind the size", chunks(f"5\nhello\r\n{EMPTY}"), BODY, "RFC 9112 §2.2"),
    ("CR behind the size", chunks(f"5\rhello\r\n{EMPTY}"), BODY, "RFC 9112 §2.2"),
    ("LF in an extension", chunks(f"5;a\nhello\r\n{EMPTY}"), BODY, "TERM.EXT"),
    ("CR in an extension", chunks(f"5;a\rb\r\nhello\r\n{EMPTY}"), BODY, "TERM.EXT"),
    ("CR at the end of an extension", chunks(f"5;a\r\r\nhello\r\n{EMPTY}"), BODY, "EXT.TERM"),
    ("CRLF in a quoted extension", chunks(f'5;a="\r\nhello"\r\n{EMPTY}'), BODY, "RFC 9112 §7.1.1"),
    ("NUL in an extension", chunks(f"5;a\0\r\nhello\r\n{EMPTY}"), BODY, "C strings"),
    ("Latin-1 in an extension", chunks(f"5;\xe9\r\nhello\r\n{EMPTY}"), BODY, "RFC 9112 §7.1.1"),
    ("an extension of more than 4 KiB", chunks(f"5;{'a' * 4100}\r\nhello\r\n{EMPTY}"), BODY, "CVE-2023-39326"),
    ("LF LF as the end", chunks("0\n\n"), BODY, "RFC 9112 §2.2"),
    ("LF as the end", chunks("0\r\n\n"), BODY, "RFC 9112 §2.2"),
    ("no end", chunks("5\r\nhello\r\n0\r\n"), NOTHING, "RFC 9112 §8: incomplete"),
    ("no last chunk", chunks("5\r\nhello\r\n"), NOTHING, "RFC 9112 §8: incomplete"),
    ("a request for a trailer", chunks(f"0\r\n{INNER}"), BODY, "RFC 9112 §7.1.2"),
    ("trailer with a space before the colon", chunks("0\r\nX-A : b\r\n\r\n"), BODY, "RFC 9112 §5.1"),
    ("trailer without a colon", chunks("0\r\nX-A\r\n\r\n"), BODY, "RFC 9112 §5"),
    ("trailer with an obs-fold", chunks("0\r\nX-A: b\r\n c\r\n\r\n"), BODY, "RFC 9112 §5.2"),
    ("trailer with NUL", chunks("0\r\nX-A: \0\r\n\r\n"), BODY, "RFC 9110 §5.5"),
    ("trailer with LF", chunks("0\r\nX-A: b\nX-B: c\r\n\r\n"), BODY, "RFC 9112 §2.2"),
    ("trailer with CR", chunks("0\r\nX-A: b\rX-B: c\r\n\r\n"), BODY, "RFC 9112 §2.2"),
]

LINES: list[Row] = [
    ("bare LF everywhere", b"GET /a HTTP/1.1\nHost: h\n\n", MALFORMED, "RFC 9112 §2.2"),
    ("bare LF between fields", b"GET /a HTTP/1.1\r\nHost: h\nX-A: b\r\n\r\n", MALFORMED, "RFC 9112 §2.2"),
    ("bare LF behind the request line", b"GET /a HTTP/1.1\nHost: h\r\n\r\n", MALFORMED, "RFC 9112 §2.2"),
    ("bare LF as the end", b"GET /a HTTP/1.1\r\nHost: h\r\n\n", MALFORMED, "RFC 9112 §2.2"),
    ("LF CR", b"GET /a HTTP/1.1\n\rHost: h\n\r\n\r", MALFORMED, "RFC 9112 §2.2"),
    ("bare CR in a value", wire("X-A: b\rX-B: c"), MALFORMED, "RFC 9110 §5.5"),
    ("bare CR between fields", b"GET /a HTTP/1.1\r\nHost: h\rX-A: b\r\n\r\n", MALFORMED, "RFC 9112 §2.2"),
    ("CR CR LF", b"GET /a HTTP/1.1\r\nHost: h\r\r\n\r\n", MALFORMED, "RFC 9112 §2.2"),
    ("CR CR LF as the end", b"GET /a HTTP/1.1\r\nHost: h\r\n\r\r\n\r\n", MALFORMED, "RFC 9112 §2.2"),
    ("obs-fold", wire("X-A: b", " c"), MALFORMED, "RFC 9112 §5.2"),
    ("obs-fold with a tab", wire("X-A: b", "\tc"), MALFORMED, "RFC 9112 §5.2"),
    ("obs-fold of nothing", wire("X-A: b", " "), MALFORMED, "RFC 9112 §5.2"),
    ("space before the first field", b"GET /a HTTP/1.1\r\n Host: h\r\n\r\n", MALFORMED, "RFC 9112 §2.2"),
    ("space before the colon", wire("X-A : b"), MALFORMED, "RFC 9112 §5.1"),
    ("no colon", wire("X-A"), MALFORMED, "RFC 9112 §5"),
    ("no name", wire(": b"), MALFORMED, "RFC 9112 §5"),
    ("nothing but a colon", wire(":"), MALFORMED, "RFC 9112 §5"),
    ("space in a name", wire("X A: b"), MALFORMED, "RFC 9110 §5.6.2"),
    ("NUL in a name", wire("X\0: b"), MALFORMED, "RFC 9110 §5.6.2"),
    ("control in a name", wire("X\x01: b"), MALFORMED, "RFC 9110 §5.6.2"),
    ("DEL in a name", wire("X\x7f: b"), MALFORMED, "RFC 9110 §5.6.2"),
    ("Latin-1 in a name", wire("X\xe9: b"), MALFORMED, "RFC 9110 §5.6.2"),
    ("soft hyphen in a name", wire("Autho\xadrization: b"), MALFORMED, "RFC 9110 §5.6.2"),
    ("parentheses in a name", wire("X(A): b"), MALFORMED, "RFC 9110 §5.6.2"),
    ("brackets in a name", wire("X[A]: b"), MALFORMED, "RFC 9110 §5.6.2"),
    ("slash in a name", wire("X/A: b"), MALFORMED, "RFC 9110 §5.6.2"),
    ("quotes in a name", wire('"X": b'), MALFORMED, "RFC 9110 §5.6.2"),
    ("semicolon in a name", wire("X;A: b"), MALFORMED, "RFC 9110 §5.6.2"),
    ("backslash in a name", wire("X\\A: b"), MALFORMED, "RFC 9110 §5.6.2"),
    ("at sign in a name", wire("X@A: b"), MALFORMED, "RFC 9110 §5.6.2"),
    ("NUL in a value", wire("X-A: b\0"), MALFORMED, "RFC 9110 §5.5"),
    ("control in a value", wire("X-A: b\x01"), MALFORMED, "RFC 9110 §5.5"),
    ("escape in a value", wire("X-A: \x1b[2J"), MALFORMED, "terminals that show logs"),
    ("vertical tab in a value", wire("X-A: b\x0bX-B: c"), MALFORMED, "str.splitlines()"),
    ("form feed in a value", wire("X-A: b\x0cX-B: c"), MALFORMED, "str.splitlines()"),
    ("file separator in a value", wire("X-A: b\x1cX-B: c"), MALFORMED, "str.splitlines()"),
    ("DEL in a value", wire("X-A: b\x7f"), MALFORMED, "RFC 9110 §5.5"),
    ("Latin-1 in a value", wire("X-A: \xe9"), fields("X-A: \xe9"), "RFC 9110 §5.5: obs-text"),
    ("UTF-8 in a value", wire(f"X-A: {utf8('漢')}"), fields(f"X-A: {utf8('漢')}"), "RFC 9110 §5.5: obs-text"),
    ("tab in a value", wire("X-A: b\tc"), fields("X-A: b\tc"), "RFC 9110 §5.5"),
    ("empty value", wire("X-A:"), fields("X-A: "), "RFC 9110 §5.5"),
    ("colon in a value", wire("X-A: b: c"), fields("X-A: b: c"), "RFC 9112 §5"),
    ("encoded CRLF in a value", wire("X-A: %0d%0aX-B: c"), fields("X-A: %0d%0aX-B: c"), "nothing is decoded"),
    ("names and values as they came", wire("x-Odd_NAME:  b  c "), fields("x-Odd_NAME: b  c "), "bytes as they came"),
    ("odd characters of a name", wire("!#$%&'*+.^`|~: b"), fields("!#$%&'*+.^`|~: b"), "RFC 9110 §5.6.2"),
    ("order and repeats are kept", wire("X-B: 1", "X-A: 2", "X-B: 3"), fields("X-B: 1", "X-A: 2", "X-B: 3"), "RFC 9110 §5.3"),
    ("as large as it may be", wire(f"X-A: {'b' * (MAX_HEAD - 35)}"), fields(f"X-A: {'b' * (MAX_HEAD - 35)}"), "limits.head_size"),
    ("too large", wire(f"X-A: {'b' * MAX_HEAD}"), TOO_LARGE, "limits.head_size"),
    ("request line too large", get("/" + "a" * MAX_HEAD), TOO_LARGE, "limits.head_size"),
    ("too large, without an end", b"GET /a HTTP/1.1\r\nX-A: " + b"b" * MAX_HEAD, TOO_LARGE, "limits.head_size"),
    ("one field too many", wire(*["X-A: b"] * MAX_FIELDS), TOO_MANY, "limits.headers"),
    ("as many fields as may be", wire(*["X-A: b"] * (MAX_FIELDS - 1)), fields(*["X-A: b"] * (MAX_FIELDS - 1)), "limits.headers"),
]

START: list[Row] = [
    ("usual", wire(), Sent(), "RFC 9112 §3"),
    ("HTTP/1.0 without Host", wire(start="GET /a HTTP/1.0", host=None), Sent(), "RFC 9112 §3.2"),
    ("HTTP/1.0 with Host", wire(start="GET /a HTTP/1.0"), Sent(), "RFC 9112 §3.2"),
    ("HTTP/0.9", b"GET /a\r\n\r\n", MALFORMED, "RFC 9112 §3"),
    ("HTTP/0.9 with fields", b"GET /a\r\nHost: h\r\n\r\n", MALFORMED, "RFC 9112 §3"),
    ("HTTP/0.9 by name", wire(start="GET /a HTTP/0.9"), VERSION, "RFC 9112 §2.3"),
    ("HTTP/1.2", wire(start="GET /a HTTP/1.2"), VERSION, "RFC 9110 §2.5"),
    ("HTTP/1.9", wire(start="GET /a HTTP/1.9"), VERSION, "RFC 9110 §2.5"),
    ("HTTP/2.0", wire(start="GET /a HTTP/2.0"), VERSION, "RFC 9113 §3"),
    ("HTTP/3.0", wire(start="GET /a HTTP/3.0"), VERSION, "RFC 9114"),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", VERSION, "RFC 9113 §3.4"),
    ("HTTP/1.10", wire(start="GET /a HTTP/1.10"), MALFORMED, "RFC 9112 §2.3"),
    ("HTTP/1.01", wire(start="GET /a HTTP/1.01"), MALFORMED, "RFC 9112 §2.3"),
    ("HTTP/01.1", wire(start="GET /a HTTP/01.1"), MALFORMED, "RFC 9112 §2.3"),
    ("HTTP/1", wire(start="GET /a HTTP/1"), MALFORMED, "RFC 9112 §2.3"),
    ("HTTP/1.1.1", wire(start="GET /a HTTP/1.1.1"), MALFORMED, "RFC 9112 §2.3"),
    ("HTTP/1,1", wire(start="GET /a HTTP/1,1"), MALFORMED, "RFC 9112 §2.3"),
    ("HTTP/ 1.1", wire(start="GET /a HTTP/ 1.1"), MALFORMED, "RFC 9112 §2.3"),
    ("http/1.1", wire(start="GET /a http/1.1"), MALFORMED, "RFC 9112 §2.3: case-sensitive"),
    ("HTTPS/1.1", wire(start="GET /a HTTPS/1.1"), MALFORMED, "RFC 9112 §2.3"),
    ("RTSP/1.0", wire(start="GET /a RTSP/1.0"), MALFORMED, "llhttp takes it"),
    ("ICE/1.0", wire(start="SOURCE /a ICE/1.0"), MALFORMED, "llhttp takes it"),
    ("two versions", wire(start="GET /a HTTP/1.1 HTTP/1.1"), MALFORMED, "RFC 9112 §3"),
    ("TLS hello", bytes.fromhex("16030100c8010000c40303") + b"\0" * 190, MALFORMED, "another protocol"),
    ("SSH banner", b"SSH-2.0-OpenSSH_9.9\r\n\r\n", MALFORMED, "another protocol"),
    ("SOCKS5", bytes.fromhex("050100"), MALFORMED, "another protocol"),
    ("PROXY protocol", b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + wire(), MALFORMED, "another protocol"),
    ("CRLF in front", b"\r\n" + wire(), MALFORMED, "stricter than RFC 9112 §2.2"),
    ("LF in front", b"\n" + wire(), MALFORMED, "RFC 9112 §2.2"),
    ("space in front", b" " + wire(), MALFORMED, "RFC 9112 §3"),
    ("NUL in front", b"\0" + wire(), MALFORMED, "RFC 9112 §3"),
    ("two spaces behind the method", wire(start="GET  /a HTTP/1.1"), MALFORMED, "RFC 9112 §3"),
    ("two spaces before the version", wire(start="GET /a  HTTP/1.1"), MALFORMED, "RFC 9112 §3"),
    ("tab behind the method", wire(start="GET\t/a HTTP/1.1"), MALFORMED, "RFC 9112 §3"),
    ("tab before the version", wire(start="GET /a\tHTTP/1.1"), MALFORMED, "RFC 9112 §3"),
    ("vertical tab behind the method", wire(start="GET\x0b/a HTTP/1.1"), MALFORMED, "RFC 9112 §3"),
    ("form feed before the version", wire(start="GET /a\x0cHTTP/1.1"), MALFORMED, "RFC 9112 §3"),
    ("space in the target", wire(start="GET /a b HTTP/1.1"), MALFORMED, "RFC 9112 §3"),
    ("space behind the version", wire(start="GET /a HTTP/1.1 "), MALFORMED, "RFC 9112 §3"),
    ("tab behind the version", wire(start="GET /a HTTP/1.1\t"), MALFORMED, "RFC 9112 §3"),
    ("CR behind the version", wire(start="GET /a HTTP/1.1\r"), MALFORMED, "RFC 9112 §2.2"),
    ("CR in the target", wire(start="GET /a\rb HTTP/1.1"), MALFORMED, "RFC 9112 §3"),
    ("NUL in the target", wire(start="GET /a\0b HTTP/1.1"), MALFORMED, "RFC 9112 §3.2"),
    ("DEL in the target", wire(start="GET /a\x7f HTTP/1.1"), MALFORMED, "RFC 9112 §3.2"),
    ("UTF-8 in the target", wire(start=f"GET /{utf8('é')} HTTP/1.1"), MALFORMED, "RFC 9112 §3.2"),
    ("no target", wire(start="GET HTTP/1.1"), MALFORMED, "RFC 9112 §3"),
    ("no method", wire(start="/a HTTP/1.1"), MALFORMED, "RFC 9112 §3"),
    ("no space behind the method", wire(start="GET/a HTTP/1.1"), MALFORMED, "RFC 9112 §3"),
    ("method of 33 characters", wire(start="G" * 33 + " /a HTTP/1.1"), MALFORMED, "bounded"),
    ("parenthesis in the method", wire(start="G(T /a HTTP/1.1"), MALFORMED, "RFC 9110 §5.6.2"),
    ("control in the method", wire(start="GE\x01T /a HTTP/1.1"), MALFORMED, "RFC 9110 §5.6.2"),
    ("lower-case method", wire(start="get /a HTTP/1.1"), NO_ROUTE, "RFC 9110 §9.1: case-sensitive"),
    ("mixed-case method", wire(start="GeT /a HTTP/1.1"), NO_ROUTE, "RFC 9110 §9.1: case-sensitive"),
    ("method with a letter more", wire(start="GETS /a HTTP/1.1"), NO_ROUTE, "RFC 9110 §9.1"),
    ("method with odd characters", wire(start="GET! /a HTTP/1.1"), NO_ROUTE, "RFC 9110 §9.1"),
    ("PURGE", wire(start="PURGE /a HTTP/1.1"), NO_ROUTE, "no route allows it"),
    ("TRACE", wire(start="TRACE /a HTTP/1.1"), NO_ROUTE, "RFC 9110 §9.3.8: shows credentials"),
    ("TRACK", wire(start="TRACK /a HTTP/1.1"), NO_ROUTE, "TRACE of old IIS"),
    ("PRI", wire(start="PRI /a HTTP/1.1"), NO_ROUTE, "RFC 9113 §3.4"),
    ("CONNECT", wire(start="CONNECT h:443 HTTP/1.1", host="h:443"), CONNECT, "RFC 9110 §9.3.6"),
    ("CONNECT to a path", wire(start="CONNECT /a HTTP/1.1"), NO_ROUTE, "RFC 9112 §3.2.3"),
    ("OPTIONS *", wire(start="OPTIONS * HTTP/1.1"), MALFORMED, "RFC 9112 §3.2.4: no route"),
    ("GET *", wire(start="GET * HTTP/1.1"), MALFORMED, "RFC 9112 §3.2.4"),
    ("authority form", wire(start="GET h:80 HTTP/1.1"), MALFORMED, "RFC 9112 §3.2.3"),
    ("path without a slash", wire(start="GET a HTTP/1.1"), MALFORMED, "RFC 9112 §3.2.1"),
    ("query alone", wire(start="GET ?a HTTP/1.1"), MALFORMED, "RFC 9112 §3.2.1"),
    ("dot-dot without a slash", wire(start="GET ../a HTTP/1.1"), MALFORMED, "RFC 9112 §3.2.1"),
    ("backslash for the slash", wire(start="GET \\a HTTP/1.1"), MALFORMED, "RFC 9112 §3.2.1"),
    ("at sign in front of the path", wire(start="GET @other/a HTTP/1.1"), MALFORMED, "joined to an origin it is userinfo"),
    ("another method", wire(start="DELETE /a HTTP/1.1"), Sent("DELETE /a HTTP/1.1"), "bytes as they came"),
]

HOSTS: list[Row] = [
    ("with a trailing dot", wire(host="h."), Sent(), "the target's own is sent"),
    ("with a port", wire(host="h:7070"), Sent(), "the target's own is sent"),
    ("with a port of zeros in front", wire(host="h:00080"), Sent(), "a number"),
    ("in capitals", wire(host="H"), Sent(), "RFC 9110 §4.2.3"),
    ("A-label", wire(host="xn--bcher-kva.example"), Sent(), "RFC 5891"),
    ("IPv4", wire(host="127.0.0.1:7070"), Sent(), "RFC 3986 §3.2.2"),
    ("IPv6", wire(host="[::1]:7070"), Sent(), "RFC 3986 §3.2.2"),
    ("with an underscore", wire(host="a_b"), Sent(), "names of containers"),
    ("none", wire(host=None), HOST, "RFC 9112 §3.2"),
    ("twice", wire("Host: h"), HOST, "RFC 9112 §3.2"),
    ("twice, far apart, other case", wire("X-A: b", "hOST: other"), HOST, "RFC 9112 §3.2"),
    ("twice in HTTP/1.0", wire("Host: other", start="GET /a HTTP/1.0"), HOST, "RFC 9112 §3.2"),
    ("list", wire(host="h, other"), HOST, "RFC 9110 §7.2"),
    ("the same in a list", wire(host="h, h"), HOST, "RFC 9110 §7.2"),
    ("empty", wire(host=""), HOST, "RFC 9110 §7.2"),
    ("blank", wire(host=" \t"), HOST, "RFC 9110 §7.2"),
    ("space before the colon", wire("Host : h", host=None), MALFORMED, "RFC 9112 §5.1"),
    ("space inside", wire(host="h other"), HOST, "RFC 3986 §3.2.2"),
    ("space behind", wire(host="h "), HOST, "stricter than RFC 9112 §5.1"),
    ("tab inside", wire(host="h\tother"), HOST, "RFC 3986 §3.2.2"),
    ("in an obs-fold", wire(" h", host=""), MALFORMED, "RFC 9112 §5.2"),
    ("another in an obs-fold", wire(" Host: other"), MALFORMED, "RFC 9112 §5.2"),
    ("userinfo", wire(host="user@h"), HOST, "RFC 9110 §4.2.4"),
    ("userinfo with a password", wire(host="user:pass@h"), HOST, "RFC 9110 §4.2.4"),
    ("path", wire(host="h/b"), HOST, "RFC 9110 §7.2"),
    ("query", wire(host="h?b"), HOST, "RFC 9110 §7.2"),
    ("fragment", wire(host="h#@other"), HOST, "RFC 9110 §7.2"),
    ("backslash", wire(host="h\\@other"), HOST, "WHATWG URL: a slash"),
    ("scheme", wire(host="http://h"), HOST, "RFC 9110 §7.2"),
    ("parameter", wire(host="h;other"), HOST, "RFC 3986 §3.2.2"),
    ("port empty", wire(host="h:"), HOST, "stricter than RFC 3986 §3.2.3"),
    ("port 0", wire(host="h:0"), HOST, "RFC 6335 §6"),
    ("port beyond", wire(host="h:65536"), HOST, "16 bits"),
    ("port beyond, cut to 80", wire(host="h:65616"), HOST, "16 bits"),
    ("port of six digits", wire(host="h:000080"), HOST, "bounded"),
    ("port in words", wire(host="h:http"), HOST, "RFC 3986 §3.2.3"),
    ("port in hexadecimal", wire(host="h:0x50"), HOST, "RFC 3986 §3.2.3"),
    ("port with a sign", wire(host="h:+80"), HOST, "RFC 3986 §3.2.3"),
    ("port with a space", wire(host="h: 80"), HOST, "RFC 3986 §3.2.3"),
    ("port in other digits", wire(host="h:8\xb2"), HOST, "str.isdigit()"),
    ("two ports", wire(host="h:80:81"), HOST, "RFC 3986 §3.2"),
    ("port and userinfo behind", wire(host="h:80@other"), HOST, "RFC 3986 §3.2"),
    ("two trailing dots", wire(host="h.."), HOST, "RFC 1034 §3.1"),
    ("dot in front", wire(host=".h"), HOST, "RFC 1034 §3.1"),
    ("dot alone", wire(host="."), HOST, "RFC 1034 §3.1"),
    ("hyphen in front", wire(host="-h"), HOST, "RFC 1123 §2.1"),
    ("escape", wire(host="h%2e"), HOST, "RFC 3986 §3.2.2: two spellings"),
    ("escaped slash", wire(host="h%2fb"), HOST, "RFC 3986 §3.2.2"),
    ("Latin-1", wire(host="b\xfccher"), HOST, "RFC 5891: A-labels"),
    ("UTF-8", wire(host=utf8("bücher")), HOST, "RFC 5891: A-labels"),
    ("fullwidth", wire(host=utf8("ｈ")), HOST, "IDNA: maps to h"),
    ("ideographic full stop", wire(host=utf8("h。")), HOST, "IDNA: maps to a dot"),
    ("IPv6 without brackets", wire(host="::1"), HOST, "RFC 3986 §3.2.2"),
    ("IPv6 with a zone", wire(host="[fe80::1%25eth0]"), HOST, "RFC 6874: of this host alone"),
    ("bracket not closed", wire(host="[::1"), HOST, "RFC 3986 §3.2.2"),
    ("bracket and more", wire(host="[::1]other"), HOST, "RFC 3986 §3.2.2"),
    ("future literal", wire(host="[v1.a]"), HOST, "RFC 3986 §3.2.2"),
]

ABSOLUTE: list[Row] = [
    ("usual", get("http://h/a?b"), to("/a?b"), "RFC 9112 §3.2.2"),
    ("scheme and host in capitals", get("HTTP://H/a"), to("/a"), "RFC 3986 §3.1"),
    ("without a path", get("http://h"), to("/"), "RFC 9110 §4.2.3"),
    ("query alone", get("http://h?b"), to("/?b"), "RFC 9110 §4.2.3"),
    ("Host with default port", wire(start="GET http://h/a HTTP/1.1", host="H.:80"), Sent(), "RFC 9110 §4.2.3"),
    ("default port", get("http://h:80/a"), Sent(), "RFC 9110 §4.2.3"),
    ("empty query", get("http://h/a?"), to("/a?"), "bytes as they came"),
    ("another host", get("http://other/a"), HOST, "RFC 9112 §3.2.2"),
    ("another port", get("http://h:8080/a"), HOST, "RFC 9112 §3.2.2"),
    ("a part of the host", get("http://h.other/a"), HOST, "RFC 9112 §3.2.2"),
    ("without Host", wire(start="GET http://h/a HTTP/1.1", host=None), HOST, "RFC 9112 §3.2"),
    ("no host", get("http:///a"), HOST, "RFC 9110 §4.2.1"),
    ("nothing behind the scheme", get("http://"), HOST, "RFC 9110 §4.2.1"),
    ("userinfo", get("http://user:pass@h/a"), HOST, "RFC 9110 §4.2.4"),
    ("empty userinfo", get("http://@h/a"), HOST, "RFC 9110 §4.2.4"),
    ("the host as userinfo", get("http://h@other/a"), HOST, "RFC 9110 §4.2.4"),
    ("the host as userinfo with a port", get("http://h:80@other/a"), HOST, "RFC 9110 §4.2.4"),
    ("backslash before userinfo", get("http://h\\@other/a"), HOST, "WHATWG URL: a slash"),
    ("fragment before userinfo", get("http://h#@other/a"), HOST, "CVE-2017-7189"),
    ("semicolon before userinfo", get("http://h;@other/a"), HOST, "RFC 3986 §3.2"),
    ("escaped host", get("http://%68/a"), HOST, "RFC 3986 §3.2.2: two spellings"),
    ("empty port", get("http://h:/a"), HOST, "stricter than RFC 3986 §3.2.3"),
    ("two ports", get("http://h:80:80/a"), HOST, "RFC 3986 §3.2"),
    ("fragment", get("http://h/a#b"), PATH, "RFC 9112 §3.2.2"),
    ("dot-dot", get("http://h/a/../b"), PATH, "RFC 3986 §5.2.4"),
    ("double slash", get("http://h//a"), PATH, "an empty segment"),
    ("dot-dot for the host", get("http://../a"), HOST, "RFC 3986 §3.2.2"),
    ("another scheme", get("ftp://h/a"), MALFORMED, "RFC 9112 §3.2.2"),
    ("ws", get("ws://h/a"), MALFORMED, "RFC 6455 §3: never on the wire"),
    ("file", get("file:///etc/passwd"), MALFORMED, "RFC 9112 §3.2.2"),
    ("one slash", get("http:/h/a"), MALFORMED, "WHATWG URL: two"),
    ("no slash", get("http:h/a"), MALFORMED, "WHATWG URL: two"),
    ("backslashes", get("http:\\\\h\\a"), MALFORMED, "WHATWG URL: slashes"),
    ("space in the scheme", get("http ://h/a"), MALFORMED, "RFC 9112 §3"),
    ("slash in front", get("/http://h/a"), PATH, "an empty segment"),
    ("three slashes and the host", get("http:///h/a"), HOST, "WHATWG URL: two"),
    ("network path", get("//h/a"), PATH, "RFC 3986 §4.2: a host to some"),
]

PATHS: list[Row] = [
    ("root", get("/"), to("/"), "bytes as they came"),
    ("slash at the end", get("/a/"), to("/a/"), "bytes as they came"),
    ("escapes as they came", get("/%61/b%20c"), to("/%61/b%20c"), "bytes as they came"),
    ("parameters", get("/a;v=1/b"), to("/a;v=1/b"), "same route without them"),
    ("capitals and a last slash", get("/Stricter/"), to("/Stricter/"), "no narrower route either way"),
    ("capitals of a wildcard's segment", get("/strict/A"), to("/strict/A"), "the same route in lower case"),
    ("case to a route of another method", wire("Content-Length: 0", start="POST /Strict/a HTTP/1.1"), sized("", line="POST /Strict/a HTTP/1.1"), "that route is for GET"),
    ("case", get("/A/b"), to("/A/b"), "RFC 9110 §4.2.3: case-sensitive"),
    ("three dots", get("/..."), to("/..."), "no dot segment"),
    ("dots inside", get("/a..b/.c"), to("/a..b/.c"), "no dot segment"),
    ("percent sign", get("/100%25"), to("/100%25"), "a second decoding changes nothing"),
    ("encoded question mark", get("/a%3fb"), to("/a%3fb"), "RFC 3986 §2.2: data"),
    ("encoded hash", get("/c%23"), to("/c%23"), "RFC 3986 §2.2: data"),
    ("UTF-8", get("/%C3%A9"), to("/%C3%A9"), "RFC 3987 §3.1"),
    ("dot-dot", get("/a/../b"), PATH, "RFC 3986 §5.2.4"),
    ("dot-dot first", get("/../a"), PATH, "RFC 3986 §5.2.4"),
    ("dot-dot last", get("/a/.."), PATH, "RFC 3986 §5.2.4"),
    ("dot", get("/a/./b"), PATH, "RFC 3986 §5.2.4"),
    ("dot last", get("/a/."), PATH, "RFC 3986 §5.2.4"),
    ("encoded dot-dot", get("/a/%2e%2e/b"), PATH, "RFC 3986 §6.2.2"),
    ("encoded dot-dot in capitals", get("/a/%2E%2E/b"), PATH, "RFC 3986 §6.2.2"),
    ("half encoded dot-dot", get("/a/.%2e/b"), PATH, "CVE-2021-41773"),
    ("half encoded dot-dot, other half", get("/a/%2e./b"), PATH, "CVE-2021-41773"),
    ("encoded dot", get("/a/%2e/b"), PATH, "RFC 3986 §6.2.2"),
    ("doubly encoded dot-dot", get("/a/%252e%252e/b"), PATH, "CVE-2021-42013"),
    ("digits encoded", get("/a/%%32%65%%32%65/b"), PATH, "CVE-2021-42013"),
    ("doubly encoded slash", get("/a%252fb"), PATH, "decoded twice"),
    ("triply encoded dot-dot", get("/a/%25252e%25252e/b"), PATH, "decoded twice"),
    ("encoded slash", get("/a%2fb"), PATH, "RFC 3986 §2.2"),
    ("dot-dot and encoded slash", get("/a/..%2fb"), PATH, "RFC 3986 §2.2"),
    ("dot-dot, all encoded", get("/a%2f%2e%2e%2fb"), PATH, "RFC 3986 §2.2"),
    ("overlong dot-dot", get("/a/%c0%ae%c0%ae/b"), PATH, "RFC 3629 §3"),
    ("overlong slash", get("/a%c0%afb"), PATH, "RFC 3629 §3"),
    ("overlong slash of three bytes", get("/a%e0%80%afb"), PATH, "RFC 3629 §3"),
    ("overlong backslash", get("/a%c1%9cb"), PATH, "CVE-2000-0884"),
    ("UTF-16 escape", get("/a/%u002e%u002e/b"), PATH, "IIS"),
    ("surrogate", get("/%ed%a0%80"), PATH, "RFC 3629 §3"),
    ("invalid UTF-8", get("/%ff"), PATH, "RFC 3629 §3"),
    ("Latin-1", get("/%e9"), PATH, "RFC 3629 §3"),
    ("fullwidth slash", get("/a%ef%bc%8fb"), PATH, "NFKC: a slash"),
    ("fullwidth dot-dot", get("/a/%ef%bc%8e%ef%bc%8e/b"), PATH, "NFKC: dot-dot"),
    ("two dot leader", get("/a/%e2%80%a5/b"), PATH, "NFKC: dot-dot"),
    ("account-of sign", get("/%e2%84%80"), PATH, "NFKC: a slash in it"),
    ("double slash", get("/a//b"), PATH, "an empty segment: merged by some"),
    ("double slash in front", get("//other.example/a"), PATH, "RFC 3986 §4.2: a host to some"),
    ("double slash at the end", get("/a//"), PATH, "an empty segment: merged by some"),
    ("backslash", get("/a\\b"), PATH, "a slash to some"),
    ("backslash dot-dot", get("/a\\..\\b"), PATH, "a slash to some"),
    ("encoded backslash", get("/a%5cb"), PATH, "a slash to some"),
    ("encoded backslash dot-dot", get("/a/..%5cb"), PATH, "a slash to some"),
    ("encoded NUL", get("/a%00"), PATH, "C strings"),
    ("encoded NUL and suffix", get("/a%00.txt"), PATH, "C strings"),
    ("encoded CRLF", get("/a%0d%0aX-A:%20b"), PATH, "response splitting, logs"),
    ("encoded LF", get("/a%0ab"), PATH, "CVE-2019-11043"),
    ("encoded tab", get("/a/..%09/b"), PATH, "WHATWG URL: removed"),
    ("encoded space behind dot-dot", get("/a/..%20/b"), PATH, "Windows: cut off"),
    ("encoded DEL", get("/a%7f"), PATH, "a control"),
    ("encoded C1 control", get("/a%c2%85"), PATH, "a control"),
    ("percent without digits", get("/a%zz"), PATH, "RFC 3986 §2.1"),
    ("percent with one digit", get("/a%2"), PATH, "RFC 3986 §2.1"),
    ("percent last", get("/a%"), PATH, "RFC 3986 §2.1"),
    ("dot-dot with a parameter", get("/a/..;/b"), PATH, "Tomcat behind nginx"),
    ("dot-dot with a named parameter", get("/a/..;x=y/b"), PATH, "Tomcat behind nginx"),
    ("encoded dot-dot with a parameter", get("/a/%2e%2e;x=y/b"), PATH, "Tomcat behind nginx"),
    ("dot-dot with an encoded parameter", get("/a/..%3bx/b"), PATH, "Tomcat behind nginx"),
    ("nothing but a parameter", get("/a/;x/b"), PATH, "CVE-2007-1860"),
    ("nothing but a semicolon", get("/;/a"), PATH, "CVE-2020-11989"),
    ("dot-dot behind a parameter", get("/a;x/../b"), PATH, "RFC 3986 §5.2.4"),
    ("a parameter to another route", get("/strict;x/a"), PATH, "servlets cut it first"),
    ("an encoded parameter to another route", get("/strict%3bx/a"), PATH, "servlets cut it first"),
    ("case to another route", get("/Strict/a"), PATH, "Express, IIS: case is ignored"),
    ("an encoded capital to another route", get("/%53trict/a"), PATH, "Express, IIS: case is ignored"),
    ("the long s to another route", get("/%c5%bftrict/a"), PATH, "its capital is S"),
    ("a last slash to another route", get("/strict/a/"), PATH, "Express, Rails: it is ignored"),
    ("a parameter and case to another route", get("/STRICT;x/a"), PATH, "both at once"),
    ("fragment", get("/a#b"), PATH, "RFC 9112 §3.2"),
    ("quote", get('/a"b'), PATH, "RFC 3986 §3.3"),
    ("angle brackets", get("/<a>"), PATH, "RFC 3986 §3.3"),
    ("braces", get("/{a}"), PATH, "RFC 3986 §3.3"),
    ("bar", get("/a|b"), PATH, "RFC 3986 §3.3"),
    ("caret", get("/a^b"), PATH, "RFC 3986 §3.3"),
    ("backtick", get("/a`b"), PATH, "RFC 3986 §3.3"),
    ("square brackets", get("/[a]"), PATH, "RFC 3986 §3.3"),
    ("129 segments", get("/a" * 129), PATH, "bounded"),
]

QUERIES: list[Row] = [
    ("as it came", get("/a?b=c&d=%2f..%2f"), to("/a?b=c&d=%2f..%2f"), "bytes as they came"),
    ("empty", get("/a?"), to("/a?"), "bytes as they came"),
    ("another question mark", get("/a?b?c"), to("/a?b?c"), "RFC 3986 §3.4"),
    ("a path in it", get("/a?/../b//c;d"), to("/a?/../b//c;d"), "RFC 3986 §3.4: data"),
    ("encoded CRLF", get("/a?b=%0d%0aX-A:%20b"), to("/a?b=%0d%0aX-A:%20b"), "nothing is decoded"),
    ("not RFC 3986, but usual", get('/a?b[]="c|d"'), to('/a?b[]="c|d"'), "browsers send it"),
    ("fragment", get("/a?b#c"), MALFORMED, "RFC 9112 §3.2"),
    ("access token", get("/a?b=1&access_token=x&c=2"), to("/a?b=1&c=2"), "RFC 6750 §2.3"),
    ("access token alone", get("/a?access_token=x"), to("/a?"), "RFC 6750 §2.3"),
    ("access token, encoded", get("/a?%61ccess%5ftoken=x"), to("/a?"), "names are decoded"),
    ("access token, in capitals", get("/a?ACCESS_TOKEN=x&b"), to("/a?b"), "names without case"),
    ("access token behind a semicolon", get("/a?b;access_token=x&c"), to("/a?c"), "; for &"),
    ("access token as PHP reads it", get("/a?access.token=x&access%20token=y&b"), to("/a?b"), "PHP: one name"),
    ("access token in an array", get("/a?access_token[]=x&b"), to("/a?b"), "PHP: one name"),
    ("API key", get("/a?api_key=x&api-key=y&apikey=z&b"), to("/a?b"), "credentials in the query"),
    ("signature", get("/a?X-Amz-Signature=x&b"), to("/a?b"), "credentials in the query"),
    ("token in a value", get("/a?b=access_token"), to("/a?b=access_token"), "data"),
    ("method", get("/a?_method=DELETE"), OVERRIDE, "Symfony, WordPress, Jersey"),
    ("method, encoded", get("/a?b&%5fmethod=DELETE"), OVERRIDE, "names are decoded"),
    ("method behind a semicolon", get("/a?b;_method=DELETE"), OVERRIDE, "; for &"),
    ("method as PHP reads it", get("/a?.method=DELETE"), OVERRIDE, "PHP: one name"),
]

TRACE: Final = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"

HEADERS: list[Row] = [
    ("Authorization", wire("Authorization: Bearer stolen"), Sent(), "replaced"),
    ("Authorization twice", wire("Authorization: Bearer stolen", "AUTHORIZATION: Basic stolen"), Sent(), "replaced"),
    ("Proxy-Authorization", wire("Proxy-Authorization: Basic stolen"), Sent(), "RFC 9110 §11.7.2"),
    ("DPoP and Txn-Token", wire("DPoP: stolen", "Txn-Token: stolen"), Sent(), "RFC 9449 §4"),
    ("API keys", wire("X-API-Key: stolen", "ApiKey: stolen", "X-Goog-Api-Key: stolen", "X-Vault-Token: stolen"), Sent(), "dropped"),
    ("API keys in other spellings", wire("X_Api_Key: stolen", "x-api_key: stolen", "X.Api.Key: stolen", "x!api~key: stolen"), Sent(), "CGI: one name"),
    ("cookies", wire("Cookie: session=stolen"), Sent(), "dropped"),
    ("a passed header", wire("ocp-apim-subscription-key: a"), fields("ocp-apim-subscription-key: a"), "pass_headers"),
    ("X-Authorization", wire("X-Authorization: a"), fields("X-Authorization: a"), "none of ours"),
    ("Proxy", wire("Proxy: http://evil.example"), Sent(), "httpoxy, CVE-2016-5385"),
    ("Via", wire("Via: 1.0 x"), Sent(), "RFC 9110 §7.6.3"),
    ("X-HTTP-Method-Override", post("X-HTTP-Method-Override: DELETE"), OVERRIDE, "the target would serve another call"),
    ("X-HTTP-Method-Override with _", post("X_HTTP_Method_Override: DELETE"), OVERRIDE, "CGI: one name"),
    ("X-HTTP-Method-Override of the same", wire("X-HTTP-Method-Override: GET"), OVERRIDE, "not even this"),
    ("X-Method-Override", post("X-Method-Override: DELETE"), OVERRIDE, "the target would serve another call"),
    ("X-HTTP-Method, passed", post("X-HTTP-Method: MERGE"), Sent(POST, ("X-HTTP-Method: MERGE",)), "pass_headers"),
    ("X-Original-URL", wire("X-Original-URL: /admin"), OVERRIDE, "CVE-2018-14773"),
    ("X-Rewrite-URL", wire("X-Rewrite-URL: /admin"), OVERRIDE, "CVE-2018-14773"),
    ("X-Forwarded-Uri", wire("X-Forwarded-Uri: /admin"), OVERRIDE, "forward auth"),
    ("X-Envoy-Original-Path", wire("X-Envoy-Original-Path: /admin"), OVERRIDE, "Envoy"),
    ("SCRIPT_NAME", wire("SCRIPT_NAME: /a"), OVERRIDE, "gunicorn cuts it off the path"),
    ("PATH_INFO", wire("Path-Info: /admin"), OVERRIDE, "CGI: one name"),
    ("X-Forwarded-Host", wire("X-Forwarded-Host: other.example"), OVERRIDE, "another tenant's host"),
    ("X-Host", wire("X-Host: other.example"), OVERRIDE, "another tenant's host"),
    ("Forwarded with host", wire("Forwarded: for=10.0.0.1;host=other.example"), OVERRIDE, "RFC 7239 §5.3"),
    ("Forwarded with host, spaced", wire('Forwarded: for=a, HOST = "other.example"'), OVERRIDE, "RFC 7239 §5.3"),
    ("Forwarded without host", wire("Forwarded: for=10.0.0.1"), fields("Forwarded: for=10.0.0.1"), "RFC 7239: where from"),
    ("X-Forwarded-For", wire("X-Forwarded-For: 10.0.0.1"), fields("X-Forwarded-For: 10.0.0.1"), "where from"),
    ("two Content-Types", post("Content-Type: a/b", "Content-Type: c/d"), REPEATED, "RFC 9110 §5.3: first or last"),
    ("two Content-Types in two spellings", post("Content-Type: a/b", "Content_Type: c/d"), REPEATED, "CGI: one name"),
    ("two Ranges", wire("Range: bytes=0-1", "Range: bytes=2-3"), REPEATED, "RFC 9110 §5.3"),
    ("two Accepts", wire("Accept: a/b", "Accept: c/d"), fields("Accept: a/b", "Accept: c/d"), "RFC 9110 §5.3: a list"),
    ("trace context", wire(f"traceparent: {TRACE}"), fields(f"traceparent: {TRACE}"), "W3C Trace Context"),
    ("trace context with JSON", wire('traceparent: 00-","x":"y'), fields('traceparent: 00-","x":"y'), "not into the record"),
    ("two user's tokens", wire("X-Valetkey-Subject: a", "X-Valetkey-Subject: b"), SUBJECT, "one or none"),
    ("two user's tokens in two spellings", wire("X-Valetkey-Subject: a", "x_valetkey_subject: b"), SUBJECT, "one or none"),
    ("empty user's token", wire("X-Valetkey-Subject:"), SUBJECT, "never the workload's own right"),
    ("user's token that is none", wire("X-Valetkey-Subject: Bearer nonsense"), SUBJECT, "the broker says"),
    ("expectation", post("Expect: 100-continue", "Content-Length: 5", body="hello"), sized("hello", "Expect: 100-continue"), "RFC 9110 §10.1.1"),
    ("expectation in other case", post("Expect: 100-Continue", "Content-Length: 5", body="hello"), sized("hello", "Expect: 100-Continue"), "RFC 9110 §10.1.1"),
    ("expectation with chunks", chunks(HELLO, "Expect: 100-continue"), chunked("hello", "Expect: 100-continue"), "RFC 9110 §10.1.1"),
    ("expectation without a body", wire("Expect: 100-continue"), fields("Expect: 100-continue"), "RFC 9110 §10.1.1"),
    ("unknown expectation", wire("Expect: something"), EXPECTATION, "RFC 9110 §10.1.1"),
    ("expectation with a word in front", post("Expect: y 100-continue", "Content-Length: 5", body="hello"), EXPECTATION, "0.CL by Expect"),
    ("expectation with a space behind", post("Expect: 100-continue ", "Content-Length: 5", body="hello"), EXPECTATION, "0.CL by Expect"),
    ("expectation with a parameter", post("Expect: 100-continue;a", "Content-Length: 5", body="hello"), EXPECTATION, "0.CL by Expect"),
    ("expectations in a list", wire("Expect: 100-continue, x"), EXPECTATION, "RFC 9110 §10.1.1"),
    ("two expectations", wire("Expect: 100-continue", "Expect: 100-continue"), EXPECTATION, "RFC 9110 §10.1.1"),
    ("empty expectation", wire("Expect:"), EXPECTATION, "0.CL by Expect"),
]

HOPS: list[Row] = [
    ("hop-by-hop fields", wire("Keep-Alive: timeout=5", "TE: trailers", "Trailer: X-A", "Proxy-Connection: keep-alive"), Sent(), "RFC 9110 §7.6.1"),
    ("with _", wire("Keep_Alive: timeout=5", "Proxy_Connection: keep-alive"), Sent(), "CGI: one name"),
    ("what Connection lists", wire("Connection: X-Hop, keep-alive", "X-Hop: 1", "x_hop: 2"), Sent(), "RFC 9110 §7.6.1"),
    ("empty elements in Connection", wire("Connection: ,, X-Hop ,\t,", "X-Hop: 1"), Sent(), "RFC 9110 §5.6.1"),
    ("two Connections", wire("Connection: X-Hop", "Connection: X-Hip", "X-Hop: 1", "X-Hip: 2"), Sent(), "RFC 9110 §7.6.1"),
    ("Proxy-Connection lists nothing", wire("Proxy-Connection: X-Hop", "X-Hop: 1"), fields("X-Hop: 1"), "no such thing"),
    ("Connection: Accept", wire("Connection: Accept", "Accept: a/b"), Sent(), "RFC 9110 §7.6.1"),
    ("Connection: Authorization", wire("Connection: Authorization", "Authorization: Bearer stolen"), LISTED, "the next hop would drop ours"),
    ("Connection: close, authorization", wire("Connection: close, authorization"), LISTED, "the next hop would drop ours"),
    ("Connection: Authorization in a second field", wire("Connection: keep-alive", "Connection: Authorization"), LISTED, "the next hop would drop ours"),
    ("Connection: DPoP", wire("Connection: DPoP"), LISTED, "the next hop would drop ours"),
    ("Connection: Cookie", wire("Connection: Cookie", "Cookie: a=b"), LISTED, "end-to-end"),
    ("Connection: X_Api_Key", wire("Connection: X_Api_Key"), LISTED, "CGI: one name"),
    ("Connection: X.Api.Key", wire("Connection: X.Api.Key"), LISTED, "CGI: one name"),
    ("Connection: Host", wire("Connection: Host"), LISTED, "RFC 9110 §7.6.1"),
    ("Connection: Content-Length", post("Connection: Content-Length", "Content-Length: 5", body="hello"), LISTED, "CL.0 by removal"),
    ("Connection: Content-Type", post("Connection: Content-Type", "Content-Type: a/b"), LISTED, "end-to-end"),
    ("Connection: X-Forwarded-For", wire("Connection: X-Forwarded-For"), LISTED, "CVE-2022-31813"),
    ("Connection: Forwarded", wire("Connection: forwarded"), LISTED, "CVE-2022-31813"),
    ("Connection: Via", wire("Connection: keep-alive, Via"), LISTED, "end-to-end"),
    ("Connection: traceparent", wire("Connection: traceparent"), LISTED, "the trail ends"),
    ("Connection: Cache-Control", wire("Connection: Cache-Control"), LISTED, "RFC 9110 §7.6.1"),
    ("Connection: Expect", wire("Connection: Expect"), LISTED, "end-to-end"),
    ("Connection: Range", wire("Connection: Range"), LISTED, "end-to-end"),
    ("Connection: the user's token", wire("Connection: X-Valetkey-Subject"), LISTED, "the next hop would drop ours"),
    ("Connection: an override", wire("Connection: X-Original-URL", "X-Original-URL: /admin"), OVERRIDE, "whatever is listed"),
    ("h2c", wire("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQ"), Sent(), "RFC 9110 §7.8: ignored"),
    ("h2c without Connection", wire("Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQ"), Sent(), "RFC 9110 §7.8"),
    ("HTTP2-Settings alone", wire("HTTP2-Settings: AAMAAABkAAQ"), Sent(), "RFC 7540 §3.2.1"),
    ("upgrade without the option", wire("Upgrade: websocket"), Sent(), "RFC 9110 §7.8"),
    ("option without an upgrade", wire("Connection: Upgrade"), Sent(), "RFC 9110 §7.8"),
    ("websocket", wire("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"), UPGRADE, "RFC 6455 §4.1"),
    ("websocket with h2c", wire("Connection: Upgrade", "Upgrade: h2c, websocket"), UPGRADE, "RFC 9110 §7.8"),
    ("upgrade to TLS", wire("Connection: Upgrade", "Upgrade: TLS/1.0"), UPGRADE, "RFC 2817"),
    ("h2c in capitals", wire("Connection: Upgrade", "Upgrade: H2C"), Sent(), "RFC 9110 §7.8: names have no case"),
    ("websocket behind h2c", wire("Connection: Upgrade", "Upgrade: h2c", "Upgrade: websocket"), UPGRADE, "RFC 9110 §7.8"),
]

PIPELINES: list[Row] = [
    ("two", wire() + get("/b"), [Sent(), to("/b")], "RFC 9112 §9.3.2"),
    ("body and the next", post("Content-Length: 5", body="hello") + get("/b"), [sized("hello"), to("/b")], "RFC 9112 §6.3"),
    ("body of nothing and the next", post("Content-Length: 0") + get("/b"), [sized(""), to("/b")], "CL.0"),
    ("POST without a body and the next", post() + get("/b"), [Sent(POST), to("/b")], "RFC 9112 §6.3"),
    ("chunks and the next", chunks(HELLO) + get("/b"), [chunked(), to("/b")], "RFC 9112 §7.1"),
    ("trailers and the next", chunks("0\r\nX-A: b\r\n\r\n") + get("/b"), [chunked(""), to("/b")], "RFC 9112 §7.1.2"),
    ("more than its length", post("Content-Length: 3", body="hello") + get("/b"), [sized("hel"), NO_ROUTE], "RFC 9112 §6.3: the rest is a method"),
    ("a body that nobody announced", post(body="hello\r\n\r\n"), [Sent(POST), MALFORMED], "RFC 9112 §6.3"),
    ("CRLF behind a body", post("Content-Length: 5", body="hello\r\n") + get("/b"), [sized("hello"), MALFORMED], "stricter than RFC 9112 §2.2"),
    ("CRLF behind a head", wire() + b"\r\n" + get("/b"), [Sent(), MALFORMED], "stricter than RFC 9112 §2.2"),
    ("a request behind the last chunk", chunks(f"0\r\n\r\n{INNER}"), [chunked(""), to("/b")], "RFC 9112 §7.1"),
    ("refused between two", wire() + get("/a/../b") + get("/b"), [Sent(), PATH, to("/b")], "a decision leaves the framing whole"),
    ("no route between two", wire() + wire(start="PURGE /a HTTP/1.1") + get("/b"), [Sent(), NO_ROUTE, to("/b")], "a decision leaves the framing whole"),
    ("override between two", wire() + wire("X-Original-URL: /b") + get("/b"), [Sent(), OVERRIDE, to("/b")], "a decision leaves the framing whole"),
    ("malformed, then good", wire(start="GET  /a HTTP/1.1") + get("/b"), MALFORMED, "RFC 9112 §9.6: the last one"),
    ("good, malformed, good", wire() + wire("X-A : b") + get("/b"), [Sent(), MALFORMED], "RFC 9112 §9.6: the last one"),
    ("ambiguous framing, then good", post("Content-Length: 5", "Transfer-Encoding: chunked", body=EMPTY) + get("/b"), FRAMING, "RFC 9112 §6.3: the last one"),
    ("two Hosts, then good", wire("Host: other") + get("/b"), HOST, "the last one"),
    ("another version, then good", wire(start="GET /a HTTP/1.2") + get("/b"), VERSION, "the last one"),
    ("bad chunk, then good", chunks("zz\r\n") + get("/b"), BODY, "the last one"),
    ("close, then good", wire("Connection: close") + get("/b"), [Sent()], "RFC 9112 §9.6"),
    ("close in a list, then good", wire("Connection: X-A, CLOSE") + get("/b"), [Sent()], "RFC 9112 §9.6"),
    ("close and keep-alive, then good", wire("Connection: keep-alive, close") + get("/b"), [Sent()], "RFC 9112 §9.3"),
    ("HTTP/1.0, then good", wire(start="GET /a HTTP/1.0") + get("/b"), [Sent()], "RFC 9112 §9.3"),
    ("HTTP/1.0 kept alive, then good", wire("Connection: keep-alive", start="GET /a HTTP/1.0") + get("/b"), [Sent(), to("/b")], "RFC 9112 §9.3"),
    ("HTTP/1.0 POST without a length", wire(start="POST /a HTTP/1.0", body="hello"), [Sent(POST)], "RFC 9112 §6.3"),
    ("half a head behind", wire() + wire()[:-2], [Sent()], "RFC 9112 §8: incomplete"),
    ("the same head in two versions", post("Content-Length: 0") + wire("Content-Length: 0", start="POST /b HTTP/1.0"), [sized(""), sized("", line="POST /b HTTP/1.1")], "what is kept of a block depends on it alone"),
    ("another user's head in between", wire("X-A: 1") + wire("X-A: 2") + wire("X-A: 1"), [fields("X-A: 1"), fields("X-A: 2"), fields("X-A: 1")], "what is kept of a block depends on it alone"),
]

SHARED: list[Row] = [
    ("by Host", wire(host="up.example"), Sent(), "targets.NAME.hosts"),
    ("by Host in another spelling", wire(host="UP.example.:80"), Sent(), "RFC 9110 §4.2.3"),
    ("by prefix", get("/up/a"), to("/a"), "targets.NAME.prefix"),
    ("by prefix, encoded", get("/%75p/a"), to("/a"), "each segment is decoded once"),
    ("by prefix, to the root", get("/up/"), to("/"), "targets.NAME.prefix"),
    ("absolute form", wire(start="GET http://up.example/a HTTP/1.1", host="up.example"), Sent(), "RFC 9112 §3.2.2"),
    ("prefix wins over Host", wire(start="GET /up/a HTTP/1.1", host="other.example"), Sent(), "find_target"),
    ("Host of nobody", wire(host="other.example"), NO_TARGET, "no default target"),
    ("no Host in HTTP/1.0", wire(start="GET /a HTTP/1.0", host=None), NO_TARGET, "no default target"),
    ("Host with another port", wire(host="up.example:8080"), NO_TARGET, "RFC 9110 §4.2.3"),
    ("Host below", wire(host="a.up.example"), NO_TARGET, "exact"),
    ("Host with a suffix", wire(host="up.example.evil"), NO_TARGET, "exact"),
    ("Host with userinfo", wire(host="x@up.example"), HOST, "RFC 9110 §4.2.4"),
    ("prefix alone", get("/up"), NO_TARGET, "no path behind it"),
    ("prefix in other case", get("/UP/a"), NO_TARGET, "case-sensitive"),
    ("prefix with a letter more", get("/upx/a"), NO_TARGET, "whole segments"),
    ("prefix with a parameter", get("/up;x/a"), NO_TARGET, "whole segments"),
    ("out of the prefix", get("/up/../other"), PATH, "RFC 3986 §5.2.4"),
    ("out of the prefix, encoded", get("/up/%2e%2e/other"), PATH, "RFC 3986 §6.2.2"),
    ("double slash behind the prefix", get("/up//other.example/a"), PATH, "a host behind the cut"),
    ("prefix with an encoded slash", get("/up%2fa"), PATH, "RFC 3986 §2.2"),
    ("absolute form of another host", wire(start="GET http://other.example/a HTTP/1.1", host="up.example"), HOST, "RFC 9112 §3.2.2"),
    ("X-Forwarded-Host of the target", wire("X-Forwarded-Host: up.example", host="other.example"), NO_TARGET, "Host alone leads to a target"),
]
AT: Final = "127.0.0.1:65000"
BY_NAME: Final = "localhost:65000"
SECURE: Final = "localhost:65001"
"""Where the upstreams are: whoever plays a row puts in the ports that they have (`Case.at`)."""

OPENED: Final = "200"
"""The outcome of a CONNECT that is answered with a tunnel."""

NO_ORIGIN: Final = "request.no_origin"
MISDIRECTED: Final = "request.misdirected"


def forward(url: str, *lines: str, host: str | None = AT, start: str = "GET") -> bytes:
    return wire(*lines, start=f"{start} {url} HTTP/1.1", host=host)


FORWARD: list[Row] = [
    ("usual", forward(f"http://{AT}/a"), Sent(), "RFC 9112 §3.2.2"),
    ("with a query", forward(f"http://{AT}/a?b=/../c"), to("/a?b=/../c"), "bytes as they came"),
    ("without a path", forward(f"http://{AT}"), to("/"), "RFC 9110 §4.2.3"),
    ("query alone", forward(f"http://{AT}?b"), to("/?b"), "RFC 9110 §4.2.3"),
    ("scheme in capitals", forward(f"HTTP://{AT}/a"), Sent(), "RFC 3986 §3.1"),
    ("by name", forward(f"http://{BY_NAME}/a", host=BY_NAME), Sent(), "targets by origin"),
    ("name in capitals", forward(f"http://{BY_NAME.upper()}/a", host=BY_NAME), Sent(), "RFC 9110 §4.2.3"),
    ("name with a trailing dot", forward("http://localhost.:65000/a", host=BY_NAME), Sent(), "RFC 1034 §3.1"),
    ("without Host in HTTP/1.0", wire(start=f"GET http://{AT}/a HTTP/1.0", host=None), Sent(), "RFC 9112 §3.2"),
    ("OPTIONS without a path", forward(f"http://{AT}", start="OPTIONS"), Sent("OPTIONS / HTTP/1.1"), "RFC 9112 §3.2.4 says *: / was decided on"),
    ("what is for proxies ends here", forward(f"http://{AT}/a", "Proxy-Connection: keep-alive", "Proxy-Authorization: Basic stolen"), Sent(), "RFC 9110 §11.7.2"),
    ("origin-form", wire(host=AT), NO_ORIGIN, "RFC 9112 §3.2.1"),
    ("origin-form of HTTP/1.0", wire(start="GET /a HTTP/1.0", host=AT), NO_ORIGIN, "RFC 9112 §3.2.1"),
    ("network path", get(f"//{AT}/a"), NO_ORIGIN, "RFC 3986 §4.2"),
    ("URL as a path", get(f"/http://{AT}/a"), NO_ORIGIN, "RFC 9112 §3.2.1"),
    ("path of CONNECT", wire(start="CONNECT /a HTTP/1.1", host=AT), NO_ORIGIN, "RFC 9112 §3.2.3"),
    ("OPTIONS *", wire(start="OPTIONS * HTTP/1.1", host=AT), MALFORMED, "RFC 9112 §3.2.4"),
    ("Host of another", forward(f"http://{AT}/a", host="other.example"), HOST, "RFC 9112 §3.2.2: refused instead"),
    ("Host without the port", forward(f"http://{AT}/a", host="127.0.0.1"), HOST, "RFC 9110 §7.2"),
    ("Host by another name", forward(f"http://{AT}/a", host=BY_NAME), HOST, "RFC 9110 §7.2"),
    ("no Host", forward(f"http://{AT}/a", host=None), HOST, "RFC 9112 §3.2"),
    ("two Hosts", forward(f"http://{AT}/a", f"Host: {AT}"), HOST, "RFC 9112 §3.2"),
    ("another port", forward("http://127.0.0.1:1/a", host="127.0.0.1:1"), NO_TARGET, "RFC 6454 §4"),
    ("no port", forward("http://127.0.0.1/a", host="127.0.0.1"), NO_TARGET, "RFC 6454 §4"),
    ("another scheme", forward(f"https://{AT}/a"), NO_TARGET, "RFC 6454 §4"),
    ("a scheme that is none", forward(f"ws://{AT}/a"), MALFORMED, "RFC 9112 §3.2.2"),
    ("one slash", forward(f"http:/{AT}/a"), MALFORMED, "WHATWG URL: two"),
    ("no slash", forward(f"http:{AT}/a"), MALFORMED, "WHATWG URL: two"),
    ("backslashes", forward(f"http:\\\\{AT}\\a"), MALFORMED, "WHATWG URL: slashes"),
    ("no scheme", forward(f"{AT}/a"), MALFORMED, "RFC 9112 §3.2"),
    ("no host", forward("http:///a"), HOST, "RFC 9110 §4.2.1"),
    ("userinfo", forward(f"http://user:pass@{AT}/a"), HOST, "RFC 9110 §4.2.4"),
    ("target as userinfo", forward(f"http://{AT}@evil.example/a"), HOST, "RFC 9110 §4.2.4"),
    ("backslash before userinfo", forward(f"http://evil.example\\@{AT}/a"), HOST, "WHATWG URL: a slash"),
    ("fragment before userinfo", forward(f"http://evil.example#@{AT}/a"), HOST, "CVE-2017-7189"),
    ("fragment", forward(f"http://{AT}/a#b"), PATH, "RFC 9112 §3.2.2"),
    ("dot-dot", forward(f"http://{AT}/a/../b"), PATH, "RFC 3986 §5.2.4"),
    ("encoded dot-dot", forward(f"http://{AT}/a/%2e%2e/b"), PATH, "RFC 3986 §6.2.2"),
    ("double slash", forward(f"http://{AT}//evil.example/a"), PATH, "RFC 3986 §4.2"),
    ("address in one number", forward("http://2130706433:65000/a", host="2130706433:65000"), NO_TARGET, "inet_aton()"),
    ("address in hexadecimal", forward("http://0x7f.1:65000/a", host="0x7f.1:65000"), NO_TARGET, "inet_aton()"),
    ("address in octal", forward("http://0177.0.0.1:65000/a", host="0177.0.0.1:65000"), NO_TARGET, "inet_aton()"),
    ("address with a part missing", forward("http://127.1:65000/a", host="127.1:65000"), NO_TARGET, "inet_aton()"),
    ("address within IPv6", forward("http://[::ffff:127.0.0.1]:65000/a", host="[::ffff:127.0.0.1]:65000"), NO_TARGET, "RFC 4291 §2.5.5"),
    ("unspecified address", forward("http://0.0.0.0:65000/a", host="0.0.0.0:65000"), NO_TARGET, "connects to loopback"),
    ("metadata service", forward("http://169.254.169.254/latest", host="169.254.169.254"), NO_TARGET, "SSRF"),
    ("a host below", forward("http://a.localhost:65000/a", host="a.localhost:65000"), NO_TARGET, "exact"),
    ("prefix of a reverse listener", forward("http://other.example/up/a", host="other.example"), NO_TARGET, "by origin alone"),
    ("Host of a reverse listener", forward("http://up.example/a", host="up.example"), NO_TARGET, "by origin alone"),
    ("escaped host", forward("http://127%2e0.0.1:65000/a"), HOST, "RFC 3986 §3.2.2"),
    ("X-Forwarded-Host", forward(f"http://{AT}/a", "X-Forwarded-Host: evil.example"), OVERRIDE, "another host than was decided on"),
    ("length and coding", forward(f"http://{AT}/a", "Content-Length: 5", "Transfer-Encoding: chunked"), FRAMING, "RFC 9112 §6.3"),
    ("one host, another, the first", forward(f"http://{AT}/a") + forward("http://other.example/a", host="other.example") + forward(f"http://{AT}/b"), [Sent(), NO_TARGET, to("/b")], "each call names its own"),
    ("origin-form behind absolute-form", forward(f"http://{AT}/a") + wire(host=AT), [Sent(), NO_ORIGIN], "each call names its own"),
    ("origin-form in a body", forward(f"http://{AT}/a", f"Content-Length: {len(INNER)}", start="POST") + INNER.encode(), sized(INNER), "it stays a body"),
]


def connect(authority: str, *lines: str, host: str | None = "", version: str = "1.1") -> bytes:
    return wire(*lines, start=f"CONNECT {authority} HTTP/{version}", host=authority if host == "" else host)


TUNNELS: list[Row] = [
    ("usual", connect(SECURE), OPENED, "RFC 9110 §9.3.6"),
    ("name in capitals", connect(SECURE.upper(), host=SECURE), OPENED, "RFC 9110 §4.2.3"),
    ("name with a trailing dot", connect("localhost.:65001", host=SECURE), OPENED, "RFC 1034 §3.1"),
    ("Host without the port", connect(SECURE, host="localhost"), OPENED, "clients differ"),
    ("HTTP/1.0 without Host", connect(SECURE, host=None, version="1.0"), OPENED, "RFC 9112 §3.2"),
    ("fields that lead nowhere", connect(SECURE, "X-Forwarded-Host: evil.example", "Cookie: a=stolen"), OPENED, "nothing of it goes on"),
    ("Host of another", connect(SECURE, host="other.example:65001"), HOST, "RFC 9112 §3.2"),
    ("Host with another port", connect(SECURE, host="localhost:80"), HOST, "RFC 9112 §3.2"),
    ("no Host", connect(SECURE, host=None), HOST, "RFC 9112 §3.2"),
    ("two Hosts", connect(SECURE, f"Host: {SECURE}"), HOST, "RFC 9112 §3.2"),
    ("no port", connect("localhost"), MALFORMED, "RFC 9110 §9.3.6"),
    ("empty port", connect("localhost:", host="localhost"), HOST, "RFC 9110 §9.3.6"),
    ("port 0", connect("localhost:0", host="localhost"), HOST, "RFC 9110 §9.3.6"),
    ("port beyond", connect("localhost:65536", host="localhost"), HOST, "16 bits"),
    ("port in words", connect("localhost:https", host="localhost"), HOST, "RFC 9112 §3.2.3"),
    ("two ports", connect("localhost:443:65001", host="localhost"), HOST, "RFC 9112 §3.2.3"),
    ("userinfo", connect(f"x@{SECURE}", host=SECURE), HOST, "RFC 9112 §3.2.3"),
    ("path", connect(f"{SECURE}/a", host=SECURE), HOST, "RFC 9112 §3.2.3"),
    ("query", connect(f"{SECURE}?a", host=SECURE), HOST, "RFC 9112 §3.2.3"),
    ("fragment", connect(f"{SECURE}#a", host=SECURE), HOST, "RFC 9112 §3.2.3"),
    ("URL", connect(f"https://{SECURE}", host=SECURE), HOST, "RFC 9112 §3.2.3"),
    ("list", connect(f"{SECURE},other.example:443", host=SECURE), HOST, "RFC 9112 §3.2.3"),
    ("star", connect("*:443", host="localhost"), HOST, "RFC 9112 §3.2.3"),
    ("colon alone", connect(":443", host="localhost"), HOST, "RFC 9112 §3.2.3"),
    ("lower-case method", wire(start=f"connect {SECURE} HTTP/1.1", host=SECURE), MALFORMED, "RFC 9110 §9.1"),
    ("another method with an authority", wire(start=f"GET {SECURE} HTTP/1.1", host=SECURE), MALFORMED, "RFC 9112 §3.2.3"),
    ("HTTP/2", wire(start=f"CONNECT {SECURE} HTTP/2.0", host=SECURE), VERSION, "RFC 9113 §8.5"),
    ("HTTP/0.9", f"CONNECT {SECURE}\r\n\r\n".encode(), MALFORMED, "RFC 9112 §3"),
    ("a length of nothing", connect(SECURE, "Content-Length: 0"), FRAMING, "RFC 9110 §9.3.6"),
    ("a length", connect(SECURE, "Content-Length: 5") + b"hello", FRAMING, "RFC 9110 §9.3.6"),
    ("chunks", connect(SECURE, "Transfer-Encoding: chunked") + EMPTY.encode(), FRAMING, "RFC 9110 §9.3.6"),
    ("upgrade", connect(SECURE, "Connection: Upgrade", "Upgrade: websocket"), UPGRADE, "RFC 9110 §7.8"),
    ("another port of a target", connect("localhost:1"), NO_TARGET, "RFC 6454 §4"),
    ("a target of http", connect(AT), OPENED, "undici: calls inside are decided on"),
    ("a target of http by another name", connect("127.1:65000"), NO_TARGET, "exact"),
    ("the sidecar's own host", connect("valetkey.invalid:443"), OPENED, "calls inside are refused"),
    ("the sidecar's own host, another port", connect("valetkey.invalid:444"), NO_TARGET, "exact"),
    ("target by its address", connect("127.0.0.1:65001"), NO_TARGET, "exact"),
    ("target by another address", connect("[::1]:65001"), NO_TARGET, "exact"),
    ("address in one number", connect("2130706433:65001"), NO_TARGET, "inet_aton()"),
    ("metadata service", connect("169.254.169.254:80"), NO_TARGET, "SSRF"),
    ("the admin port of anybody", connect("127.0.0.1:7071"), NO_TARGET, "no default"),
    ("mail", connect("mail.example:25"), NO_TARGET, "a relay for spam"),
    ("nobody, then a call", connect("other.example:443") + forward(f"http://{AT}/a"), NO_TARGET, "what follows was for a tunnel"),
    ("no port, then a call", connect("localhost") + forward(f"http://{AT}/a"), MALFORMED, "the last one"),
    ("a call, then nobody", forward(f"http://{AT}/a") + connect("other.example:443"), [Sent(), NO_TARGET], "each is decided on"),
]


def inside(
    *lines: str, start: str = "GET /a HTTP/1.1", host: str | None = SECURE, body: str = ""
) -> bytes:
    return wire(*lines, start=start, host=host, body=body)


INSIDE: list[Row] = [
    ("usual", inside(), Sent(), "RFC 9110 §9.3.6"),
    ("Host in capitals", inside(host=SECURE.upper()), Sent(), "RFC 9110 §4.2.3"),
    ("body", inside("Content-Length: 5", start=POST, body="hello"), sized("hello"), "RFC 9112 §6.2"),
    ("chunks", inside("Transfer-Encoding: chunked", start=POST, body=HELLO), chunked(), "RFC 9112 §7.1"),
    ("credentials", inside("Authorization: Bearer stolen", "Proxy-Authorization: Basic stolen"), Sent(), "replaced"),
    ("absolute form", inside(start=f"GET https://{SECURE}/a HTTP/1.1"), Sent(), "RFC 9112 §3.2.2"),
    ("absolute form of http", inside(start=f"GET http://{SECURE}/a HTTP/1.1"), MISDIRECTED, "RFC 9110 §15.5.20"),
    ("absolute form of another", inside(start="GET https://other.example/a HTTP/1.1", host="other.example"), MISDIRECTED, "RFC 9110 §15.5.20"),
    ("absolute form of another, own Host", inside(start="GET https://other.example/a HTTP/1.1"), HOST, "RFC 9112 §3.2.2"),
    ("Host of another", inside(host="other.example"), MISDIRECTED, "domain fronting"),
    ("Host of another target", inside(host=AT), MISDIRECTED, "domain fronting"),
    ("Host with another port", inside(host="localhost:1"), MISDIRECTED, "domain fronting"),
    ("Host without the port", inside(host="localhost"), MISDIRECTED, "RFC 9110 §7.2"),
    ("Host by address", inside(host="127.0.0.1:65001"), MISDIRECTED, "domain fronting"),
    ("no Host", inside(host=None), HOST, "RFC 9112 §3.2"),
    ("no Host in HTTP/1.0", inside(start="GET /a HTTP/1.0", host=None), MISDIRECTED, "nothing to agree"),
    ("two Hosts", inside(f"Host: {SECURE}"), HOST, "RFC 9112 §3.2"),
    ("X-Forwarded-Host", inside("X-Forwarded-Host: other.example"), OVERRIDE, "another host than was decided on"),
    ("CONNECT", inside(start=f"CONNECT {SECURE} HTTP/1.1"), CONNECT, "no tunnel in a tunnel"),
    ("CONNECT to another", inside(start="CONNECT other.example:443 HTTP/1.1", host="other.example:443"), CONNECT, "no tunnel in a tunnel"),
    ("dot-dot", inside(start="GET /a/../b HTTP/1.1"), PATH, "RFC 3986 §5.2.4"),
    ("network path", inside(start="GET //other.example/a HTTP/1.1"), PATH, "RFC 3986 §4.2"),
    ("length and coding", inside("Content-Length: 5", "Transfer-Encoding: chunked", start=POST, body=EMPTY), FRAMING, "RFC 9112 §6.3"),
    ("bad chunk", inside("Transfer-Encoding: chunked", start=POST, body="zz\r\n"), BODY, "RFC 9112 §7.1"),
    ("bare LF", b"GET /a HTTP/1.1\nHost: localhost:65001\n\n", MALFORMED, "RFC 9112 §2.2"),
    ("TLS in TLS", bytes.fromhex("16030100c8010000c40303") + b"\0" * 20, MALFORMED, "another protocol"),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", VERSION, "ALPN: http/1.1 alone"),
    ("websocket", inside("Connection: Upgrade", "Upgrade: websocket"), UPGRADE, "RFC 6455 §4.1"),
    ("another host between two", inside() + inside(host="other.example") + inside(start="GET /b HTTP/1.1"), [Sent(), MISDIRECTED, to("/b")], "each call names its own"),
    ("malformed between two", inside() + inside("X-A : b") + inside(), [Sent(), MALFORMED], "RFC 9112 §9.6: the last one"),
]
PLAIN: list[Row] = [
    ("usual", wire(host=AT), Sent(), "RFC 9110 §9.3.6"),
    ("absolute form", forward(f"http://{AT}/a"), Sent(), "RFC 9112 §3.2.2"),
    ("absolute form of https", forward(f"https://{AT}/a"), MISDIRECTED, "RFC 9110 §15.5.20"),
    ("absolute form of another", forward("http://other.example/a", host="other.example"), MISDIRECTED, "RFC 9110 §15.5.20"),
    ("another target by its name", wire(host=BY_NAME), MISDIRECTED, "domain fronting"),
    ("Host without the port", wire(host="127.0.0.1"), MISDIRECTED, "RFC 9110 §7.2"),
    ("prefix of a reverse listener", wire(start="GET /up/a HTTP/1.1", host=AT), to("/up/a"), "by origin alone"),
    ("CONNECT", connect(AT), CONNECT, "no tunnel in a tunnel"),
    ("TLS", bytes.fromhex("16030100c8010000c40303") + b"\0" * 20, MALFORMED, "another protocol"),
    ("another host between two", wire(host=AT) + wire(host="other.example") + wire(host=AT), [Sent(), MISDIRECTED, Sent()], "each call names its own"),
]
# fmt: on

_TABLES: Final[list[tuple[str, str, list[Row]]]] = [
    ("length", "reverse", LENGTH),
    ("coding", "reverse", CODING),
    ("chunks", "reverse", CHUNKS),
    ("lines", "reverse", LINES),
    ("start", "reverse", START),
    ("host", "reverse", HOSTS),
    ("absolute", "reverse", ABSOLUTE),
    ("path", "reverse", PATHS),
    ("query", "reverse", QUERIES),
    ("headers", "reverse", HEADERS),
    ("hops", "reverse", HOPS),
    ("pipeline", "reverse", PIPELINES),
    ("shared", "shared", SHARED),
    ("forward", "forward", FORWARD),
    ("connect", "forward", TUNNELS),
    ("inside", "tunnel", INSIDE),
    ("plain", "plain", PLAIN),
]

CASES: Final = [
    Case(group, name, raw, tuple(then) if isinstance(then, list) else (then,), why, entry)
    for group, entry, rows in _TABLES
    for name, raw, then, why in rows
]
