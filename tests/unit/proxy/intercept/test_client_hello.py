"""One reading of a ClientHello, or none: tables, real clients, and OpenSSL as the second reader."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.proxy.intercept.client_hello import MAX_HELLO, Hello, Partial, read_client_hello

NAME = "tickets.example.com"
# First messages as clients sent them: OpenSSL 3.0, curl 7.88, CPython 3.11, Node 20, Go 1.26 (whose
# key share is post-quantum), Java 17, and Chromium 156 (with GREASE, shuffled extensions and ECH).
REAL = {
    path.stem: bytes.fromhex(path.read_text()) for path in Path(__file__).parent.glob("hellos/*")
}
WITH_NAME = {name: raw for name, raw in REAL.items() if name != "openssl-no-sni"}


def vector(width: int, data: bytes) -> bytes:
    return len(data).to_bytes(width, "big") + data


def extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, data)


def names(*entries: bytes) -> bytes:
    return extension(0, vector(2, b"".join(b"\0" + vector(2, entry) for entry in entries)))


SNI = names(NAME.encode())
VERSIONS = extension(43, b"\x02\x03\x04")
GREASE = extension(0x3A3A, b"\0") + extension(0xFAFA, b"")
# draft-ietf-tls-esni: outer hello, HKDF-SHA256 with AES-128-GCM, config id, encapsulated key, payload.
ECH = extension(0xFE0D, b"\0\0\x01\0\x01\x2a" + vector(2, bytes(32)) + vector(2, bytes(176)))


def body(
    extensions: bytes | None = SNI,
    *,
    version: bytes = b"\x03\x03",
    session: bytes = b"",
    suites: bytes = b"\x13\x01",
    compression: bytes = b"\0",
    behind: bytes = b"",
) -> bytes:
    start = version + bytes(32) + vector(1, session) + vector(2, suites) + vector(1, compression)
    return start + (b"" if extensions is None else vector(2, extensions)) + behind


def message(content: bytes, kind: int = 1) -> bytes:
    return bytes([kind]) + vector(3, content)


def record(fragment: bytes, *, kind: int = 22, version: bytes = b"\x03\x01") -> bytes:
    return bytes([kind]) + version + vector(2, fragment)


def hello(extensions: bytes | None = SNI, **more: bytes) -> bytes:
    return record(message(body(extensions, **more)))


def outcome(raw: bytes) -> str:
    """The name, the code of the refusal, or how much is needed."""
    try:
        found = read_client_hello(raw)
    except CallerError as error:
        return error.code.name
    return found.server_name if isinstance(found, Hello) else f"{found.need} bytes"


MALFORMED = codes.TLS_HELLO_MALFORMED.name
NO_NAME = codes.TLS_NO_SERVER_NAME.name

TABLE = {
    "the name": (hello(), NAME),
    "upper case": (hello(names(b"TICKETS.Example.COM")), NAME),
    "one label": (hello(names(b"tickets")), "tickets"),
    "A-label": (hello(names(b"xn--bcher-kva.example")), "xn--bcher-kva.example"),
    "underscore": (hello(names(b"_sip.a_b.example")), "_sip.a_b.example"),
    "digits first": (hello(names(b"1password.com")), "1password.com"),
    "63 in a label": (hello(names(b"a" * 63 + b".example")), "a" * 63 + ".example"),
    "GREASE around it": (hello(GREASE + SNI + VERSIONS), NAME),
    "GREASE suites": (hello(suites=b"\x0a\x0a\x13\x01"), NAME),
    "encrypted hello: the outer name": (hello(SNI + ECH), NAME),
    "version 1.0": (hello(version=b"\x03\x01"), NAME),
    "record version 1.2": (record(message(body()), version=b"\x03\x03"), NAME),
    "session id of 32": (hello(session=bytes(32)), NAME),
    "early data behind it": (hello() + record(bytes(50), kind=23), NAME),
    "two records": (record(message(body())[:20]) + record(message(body())[20:]), NAME),
    "records of a byte": (b"".join(record(bytes([each])) for each in message(body())), NAME),
    # not one well-formed hello
    "an alert": (record(b"\x02\x28", kind=21), MALFORMED),
    "application data": (record(message(body()), kind=23), MALFORMED),
    "record of SSL 3.0": (record(message(body()), version=b"\x03\x00"), MALFORMED),
    "record of TLS 1.3": (record(message(body()), version=b"\x03\x04"), MALFORMED),
    "record of nothing": (record(b"") + hello(), MALFORMED),
    "record of 16,385": (b"\x16\x03\x01\x40\x01", MALFORMED),
    "a ServerHello": (record(message(body(), kind=2)), MALFORMED),
    "a HelloRequest in front": (record(message(b"", kind=0) + message(body())), MALFORMED),
    "interleaved alert": (record(message(body())[:9]) + record(b"\1\0", kind=21), MALFORMED),
    "a second message in the record": (record(message(body()) + message(body())), MALFORMED),
    "a byte behind, in the record": (record(message(body()) + b"\0"), MALFORMED),
    "a byte behind, in the next": (
        record(message(body())[:40]) + record(message(body())[40:] + b"\0"),
        MALFORMED,
    ),
    "a byte behind, not here yet": (record(message(body()) + b"\0")[:-1], MALFORMED),
    "larger than is read": (record(b"\1\0\x40\0" + bytes(100)), MALFORMED),
    "SSL 3.0": (hello(version=b"\x03\x00"), MALFORMED),
    "TLS 1.3 as version": (hello(version=b"\x03\x04"), MALFORMED),
    "session id of 33": (hello(session=bytes(33)), MALFORMED),
    "no suites": (hello(suites=b""), MALFORMED),
    "half a suite": (hello(suites=b"\x13\x01\x13"), MALFORMED),
    "no compression": (hello(compression=b""), MALFORMED),
    "bytes behind the extensions": (hello(behind=b"\0"), MALFORMED),
    "no body": (record(message(b"")), MALFORMED),
    "random cut": (record(message(b"\x03\x03" + bytes(31))), MALFORMED),
    "extension cut": (hello(SNI[:-1]), MALFORMED),
    "extension's head cut": (hello(SNI + b"\0"), MALFORMED),
    "the name's extension twice": (hello(SNI + SNI), MALFORMED),
    "another extension twice": (hello(SNI + VERSIONS + VERSIONS), MALFORMED),
    "the same GREASE twice": (hello(SNI + GREASE + GREASE), MALFORMED),
    "two names": (hello(names(b"a.example", NAME.encode())), MALFORMED),
    "a name of another type": (hello(extension(0, vector(2, b"\1" + vector(2, b"a")))), MALFORMED),
    "no names in the list": (hello(names()), MALFORMED),
    "an empty extension": (hello(extension(0, b"")), MALFORMED),
    "bytes behind the list": (hello(extension(0, SNI[4:] + b"\0")), MALFORMED),
    "list longer than its entry": (
        hello(extension(0, vector(2, b"\0" + vector(2, b"a.example") + b"\0"))),
        MALFORMED,
    ),
    "list shorter than its entry": (
        hello(extension(0, vector(2, b"\0" + vector(2, b"a.example"))[:-3])),
        MALFORMED,
    ),
    # a hello, but of whom?
    "no extensions": (hello(None), NO_NAME),
    "an empty list of extensions": (hello(b""), NO_NAME),
    "no name among them": (hello(GREASE + VERSIONS + ECH), NO_NAME),
    "empty": (hello(names(b"")), NO_NAME),
    "NUL": (hello(names(b"tickets.example.com\0.evil.example")), NO_NAME),
    "newline": (hello(names(b"tickets.example.com\n")), NO_NAME),
    "space": (hello(names(b"tickets.example.com ")), NO_NAME),
    "port": (hello(names(b"tickets.example.com:443")), NO_NAME),
    "userinfo": (hello(names(b"a@tickets.example.com")), NO_NAME),
    "wildcard": (hello(names(b"*.example.com")), NO_NAME),
    "dot at the end": (hello(names(b"tickets.example.com.")), NO_NAME),
    "dot at the start": (hello(names(b".example.com")), NO_NAME),
    "two dots": (hello(names(b"tickets..example.com")), NO_NAME),
    "hyphen at a label's end": (hello(names(b"tickets-.example.com")), NO_NAME),
    "64 in a label": (hello(names(b"a" * 64 + b".example")), NO_NAME),
    "254 in all": (hello(names(b"a." * 126 + b"aa")), NO_NAME),
    "UTF-8": (hello(names("bücher.example".encode())), NO_NAME),
    "Latin-1": (hello(names("BÜCHER.example".encode("latin-1"))), NO_NAME),
    "percent": (hello(names(b"tickets%2eexample.com")), NO_NAME),
    "IPv4": (hello(names(b"192.0.2.1")), NO_NAME),
    "IPv4, short": (hello(names(b"127.1")), NO_NAME),
    "IPv4, one number": (hello(names(b"2130706433")), NO_NAME),
    "IPv4, hexadecimal": (hello(names(b"0x7f000001")), NO_NAME),
    "IPv6": (hello(names(b"2001:db8::1")), NO_NAME),
    "IPv6 in brackets": (hello(names(b"[2001:db8::1]")), NO_NAME),
    # not whole yet
    "nothing": (b"", "9 bytes"),
    "the first byte": (b"\x16", "9 bytes"),
    "a record's head": (hello()[:5], f"{len(hello())} bytes"),
    "all but one byte": (hello()[:-1], f"{len(hello())} bytes"),
    "the first record of many": (
        record(message(body())[:20]),
        f"{25 + 5 + len(body()) - 16} bytes",
    ),
    "three bytes of the message": (record(message(body())[:3]), "14 bytes"),
    "as large as may be": (
        record(b"\1" + (MAX_HELLO - 14).to_bytes(3, "big") + b"\3")[:-1],
        f"{MAX_HELLO} bytes",
    ),
}


@pytest.mark.parametrize(("raw", "expected"), TABLE.values(), ids=TABLE.keys())
def test_a_hello_is_read_in_one_way(raw: bytes, expected: str) -> None:
    assert outcome(raw) == expected


@pytest.mark.parametrize("raw", WITH_NAME.values(), ids=WITH_NAME.keys())
def test_the_name_that_real_clients_ask_for(raw: bytes) -> None:
    assert read_client_hello(raw) == Hello(NAME)


def test_a_real_client_without_a_name() -> None:
    assert len(REAL) >= 9
    assert outcome(REAL["openssl-no-sni"]) == NO_NAME


@pytest.mark.parametrize("raw", WITH_NAME.values(), ids=WITH_NAME.keys())
def test_every_beginning_asks_for_more_and_no_more_than_there_is(raw: bytes) -> None:
    for size in range(len(raw)):
        found = read_client_hello(raw[:size])
        assert isinstance(found, Partial)
        assert size < found.need <= len(raw)


cuts = st.lists(st.integers(1, 400), min_size=0, max_size=40)


@given(cuts, st.sampled_from(sorted(WITH_NAME)), st.data())
def test_records_may_cut_it_anywhere(sizes: list[int], name: str, data: st.DataObject) -> None:
    content = REAL[name][5:]
    raw, at = b"", 0
    for size in [*sizes, len(content)]:
        if content[at : at + size]:
            raw += record(content[at : at + size])
        at += size
    assert read_client_hello(raw) == Hello(NAME)
    begun = data.draw(st.integers(0, len(raw) - 1))
    found = read_client_hello(raw[:begun])
    assert isinstance(found, Partial)
    assert begun < found.need <= len(raw)


def test_few_looks_are_enough_however_small_the_records() -> None:
    """Waiting for what is needed bounds the work for one that sends a byte per record."""
    content = message(body(SNI + extension(21, bytes(2000))))
    raw = b"".join(record(bytes([each])) for each in content)
    looks, have = 0, 0
    while isinstance(found := read_client_hello(raw[:have]), Partial):
        looks, have = looks + 1, found.need
    assert found == Hello(NAME)
    assert looks < 60


# --- OpenSSL reads the same, or nothing ----------------------------------------------------------


def openssl_reads(raw: bytes) -> str | None:
    """The name that OpenSSL, as a server, takes from these bytes; None where it refuses them."""
    seen: list[str | None] = []

    def note(_socket: object, name: str | None, _context: object) -> int:
        seen.append(name)
        return ssl.ALERT_DESCRIPTION_HANDSHAKE_FAILURE

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = note
    incoming = ssl.MemoryBIO()
    incoming.write(raw)
    server = context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    # Refused by the callback, or before it came to that; or it waits for more.
    with contextlib.suppress(ssl.SSLError, UnicodeDecodeError, ValueError):
        server.do_handshake()
    return seen[0] if seen else None


@pytest.mark.parametrize("raw", WITH_NAME.values(), ids=WITH_NAME.keys())
def test_openssl_reads_the_same_of_real_hellos(raw: bytes) -> None:
    assert openssl_reads(raw) == NAME


def agrees(raw: bytes) -> None:
    """Whatever we take for a name is the one that OpenSSL would take, if it takes any."""
    try:
        found = read_client_hello(raw)
    except CallerError:
        return
    if isinstance(found, Hello):
        other = openssl_reads(raw)
        assert other is None or other.lower() == found.server_name


changes = st.lists(
    st.tuples(
        st.sampled_from(["set", "cut", "put", "twice"]),
        st.integers(0, 2000),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


@given(st.sampled_from(sorted(REAL)), changes)
def test_no_changed_hello_is_read_in_two_ways(
    name: str, edits: list[tuple[str, int, bytes]]
) -> None:
    raw = REAL[name]
    for kind, where, data in edits:
        at = where % (len(raw) + 1)
        match kind:
            case "set":
                raw = raw[:at] + data + raw[at + len(data) :]
            case "cut":
                raw = raw[:at] + raw[at + len(data) :]
            case "put":
                raw = raw[:at] + data + raw[at:]
            case "twice":
                raw = raw[: at + len(data)] + raw[at:]
    agrees(raw)


@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                [SNI, VERSIONS, ECH, names(b"a.example"), names(b"a.example", b"b.example")]
            ),
            st.builds(extension, st.integers(0, 60), st.binary(max_size=12)),
            st.builds(names, st.binary(max_size=30)),
        ),
        max_size=6,
    ),
    st.binary(max_size=3),
)
def test_no_made_up_hello_is_read_in_two_ways(extensions: list[bytes], behind: bytes) -> None:
    agrees(hello(b"".join(extensions), suites=b"\x13\x01\xc0\x2f", behind=behind))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    assert outcome(raw)
    assert outcome(b"\x16\x03\x01" + raw)
