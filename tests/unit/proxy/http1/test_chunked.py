"""The chunked coding: each case whole, byte by byte, and with trailing data; h11 as second reader."""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from valetkey.proxy.http1.chunked import (
    LAST_CHUNK,
    ChunkedDecoder,
    ChunkedInvalid,
    encode_chunk,
)

GOOD = [
    ("empty", b"0\r\n\r\n", b""),
    ("one chunk", b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
    ("two chunks", b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", b"hello"),
    ("hexadecimal", b"1A\r\n" + b"x" * 26 + b"\r\n0\r\n\r\n", b"x" * 26),
    ("lower case", b"1a\r\n" + b"x" * 26 + b"\r\n0\r\n\r\n", b"x" * 26),
    ("leading zeros", b"0005\r\nhello\r\n000\r\n\r\n", b"hello"),
    ("sixteen digits", b"0000000000000005\r\nhello\r\n0\r\n\r\n", b"hello"),
    ("CRLF in the payload", b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
    ("a last chunk in the payload", b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n"),
    ("extension", b"5;a=b\r\nhello\r\n0\r\n\r\n", b"hello"),
    ("two extensions", b"5;a=b;c\r\nhello\r\n0;d;e=f\r\n\r\n", b"hello"),
    ("extension without value", b"5;a\r\nhello\r\n0;b\r\n\r\n", b"hello"),
    ("quoted extension", b'5;a="b; \\" c"\r\nhello\r\n0\r\n\r\n', b"hello"),
    ("trailer", b"1\r\nx\r\n0\r\nDigest: abc\r\n\r\n", b"x"),
    ("two trailers", b"1\r\nx\r\n0\r\nA: b\r\nC:d\r\n\r\n", b"x"),
    (
        "names that only begin alike",
        b"1\r\nx\r\n0\r\nHosts: b\r\nContent-Length-2: d\r\n\r\n",
        b"x",
    ),
]

BAD = [
    ("no size", b"\r\nhello\r\n0\r\n\r\n"),
    ("not hexadecimal", b"g\r\n"),
    ("0x", b"0x5\r\nhello\r\n0\r\n\r\n"),
    ("plus", b"+5\r\nhello\r\n0\r\n\r\n"),
    ("minus", b"-5\r\nhello\r\n0\r\n\r\n"),
    ("underscore", b"1_0\r\n"),
    ("space in front", b" 5\r\nhello\r\n0\r\n\r\n"),
    ("space behind", b"5 \r\nhello\r\n0\r\n\r\n"),
    ("tab behind", b"5\t\r\nhello\r\n0\r\n\r\n"),
    ("two numbers", b"5 5\r\nhello\r\n0\r\n\r\n"),
    ("seventeen digits", b"00000000000000005\r\nhello\r\n"),
    ("overflow of 64 bits", b"10000000000000000\r\n"),
    ("bare LF behind the size", b"5\nhello\r\n0\r\n\r\n"),
    ("bare CR behind the size", b"5\rhello\r\n0\r\n\r\n"),
    ("CR CR LF", b"5\r\r\nhello\r\n0\r\n\r\n"),
    ("bare LF in an extension", b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
    ("bare LF that ends an extension", b"5;a\n0\r\n\r\n"),
    ("space before an extension", b"5 ;a=b\r\nhello\r\n0\r\n\r\n"),
    ("space in an extension", b"5;a =b\r\nhello\r\n0\r\n\r\n"),
    ("space behind an extension", b"5;a=b \r\nhello\r\n0\r\n\r\n"),
    ("extension without a name", b"5;\r\nhello\r\n0\r\n\r\n"),
    ("extension without a value", b"5;a=\r\nhello\r\n0\r\n\r\n"),
    ("quoted extension without an end", b'5;a="b\r\nhello\r\n0\r\n\r\n'),
    ("NUL in an extension", b"5;a\0\r\nhello\r\n0\r\n\r\n"),
    ("an endless extension", b"5;" + b"a" * 5000),
    ("payload longer than its size", b"5\r\nhello!\r\n0\r\n\r\n"),
    ("payload shorter than its size", b"5\r\nhell\r\n0\r\n\r\n"),
    ("no CRLF behind the payload", b"5\r\nhello0\r\n\r\n"),
    ("LF behind the payload", b"5\r\nhello\n0\r\n\r\n"),
    ("CR alone behind the payload", b"5\r\nhello\r0\r\n\r\n"),
    ("trailer without colon", b"0\r\nabc\r\n\r\n"),
    ("trailer with a space before the colon", b"0\r\nA : b\r\n\r\n"),
    ("trailer that is folded", b"0\r\nA: b\r\n c\r\n\r\n"),
    ("trailer with NUL", b"0\r\nA: \0\r\n\r\n"),
    ("trailer with a bare LF", b"0\r\nA: b\nC: d\r\n\r\n"),
    ("bare LF as the end", b"0\r\n\n"),
    ("LF LF as the end", b"0\n\n"),
    ("a request instead of the end", b"0\r\nGET / HTTP/1.1\r\n\r\n"),
    ("length as trailer", b"0\r\nContent-Length: 5\r\n\r\n"),
    ("empty length as trailer", b"0\r\nContent-Length:\r\n\r\n"),
    ("length as second trailer", b"0\r\nA: b\r\ncontent-LENGTH: 0\r\n\r\n"),
    ("length with _ as trailer", b"0\r\nContent_Length: 5\r\n\r\n"),
    ("coding as trailer", b"0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ("coding with . as trailer", b"0\r\ntransfer.encoding: x\r\n\r\n"),
    ("Host as trailer", b"0\r\nHost: other\r\n\r\n"),
    ("endless trailers", b"0\r\n" + b"A: b\r\n" * 5000),
]  # fmt: skip


def read(decoder: ChunkedDecoder, data: bytes, step: int) -> bytes:
    got = b""
    for at in range(0, len(data), step):
        got += b"".join(decoder.feed(data[at : at + step]))
        if decoder.done:
            decoder.rest += data[at + step :]
            break
    return got


@pytest.mark.parametrize("step", [1, 2, 3, 1 << 20])
@pytest.mark.parametrize("trailing", [b"", b"\r\n", b"GET / HTTP/1.1\r\n\r\n", b"0\r\n\r\n"])
@pytest.mark.parametrize(("name", "wire", "payload"), GOOD, ids=[case[0] for case in GOOD])
def test_good_bodies(name: str, wire: bytes, payload: bytes, trailing: bytes, step: int) -> None:
    decoder = ChunkedDecoder()
    assert read(decoder, wire + trailing, step) == payload
    assert decoder.done
    assert decoder.rest == trailing


@pytest.mark.parametrize(("name", "wire", "payload"), GOOD, ids=[case[0] for case in GOOD])
def test_every_beginning_of_a_good_body_is_only_incomplete(
    name: str, wire: bytes, payload: bytes
) -> None:
    for cut in range(len(wire)):
        decoder = ChunkedDecoder()
        got = b"".join(decoder.feed(wire[:cut])) if cut else b""
        assert not decoder.done
        got += b"".join(decoder.feed(wire[cut:]))
        assert decoder.done
        assert got == payload


@pytest.mark.parametrize("step", [1, 2, 3, 1 << 20])
@pytest.mark.parametrize(("name", "wire"), BAD, ids=[case[0] for case in BAD])
def test_bad_bodies(name: str, wire: bytes, step: int) -> None:
    decoder = ChunkedDecoder()
    with pytest.raises(ChunkedInvalid):
        read(decoder, wire + b"\r\n\r\n", step)
    assert not decoder.done


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.integers(1, 64))
def test_what_is_encoded_is_decoded(pieces: list[bytes], step: int) -> None:
    wire = b"".join(map(encode_chunk, pieces)) + LAST_CHUNK
    decoder = ChunkedDecoder()
    assert read(decoder, wire, step) == b"".join(pieces)
    assert decoder.done
    assert decoder.rest == b""


def h11_reads(wire: bytes) -> bytes | None:
    """The body as h11 reads it; ``None`` where it refuses or wants more."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" + wire
    )
    body = b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return body
            elif event is h11.NEED_DATA:
                return None
    except h11.RemoteProtocolError:
        return None


PIECES = st.sampled_from(
    [b"5\r\nhello\r\n", b"0\r\n\r\n", b"0\r\n", b"\r\n", b"\n", b"\r", b"1", b"a", b";x=y", b" ", b"5;a\r\n",
     b"hello", b"A: b\r\n", b"Content-Length:", b"Transfer-Encoding: ", b"Host:", b"-", b"+", b"0x", b"\0", b"3\r\nabc\r\n"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=8).map(b"".join), st.integers(1, 9))
@example(b"5\r\nhello\r\n0\r\nA: b\r\n\r\n", 1)
@example(b"5\r\nhello\r\n0\r\nContent-Length:\r\n\r\n", 1)
@settings(max_examples=400, deadline=None)
def test_never_another_body_than_h11_reads(wire: bytes, step: int) -> None:
    """Whatever we take, a second strict reader takes too, and reads the same bytes."""
    decoder = ChunkedDecoder()
    try:
        body = read(decoder, wire, step)
    except ChunkedInvalid:
        return
    if decoder.done:
        assert h11_reads(wire[: len(wire) - len(decoder.rest)]) == body
    # How it was cut makes no difference.
    whole = ChunkedDecoder()
    assert b"".join(whole.feed(wire)) == body
    assert (whole.done, whole.rest if whole.done else b"") == (
        decoder.done,
        decoder.rest if decoder.done else b"",
    )
