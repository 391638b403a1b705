"""The chunked transfer coding (RFC 9112 §7.1), read strictly, without I/O.

Sizes are hexadecimal digits and nothing else, lines end in CRLF, extensions are checked and
dropped (§7.1.1; without the white space that history allows in them, as llhttp and h11 do), trailer
fields are checked and dropped (§7.1.2: they are not relayed unasked). One that says where a message
ends, or whom it is for, must not be there at all (RFC 9110 §6.5.1): readers that merge trailers
into the head, or look at what they say, take the message for another one.
"""

from __future__ import annotations

import re
from typing import Final

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED: Final = rb'"(?:[\t\x20\x21\x23-\x5b\x5d-\x7e]|\\[\t\x20-\x7e])*"'
# 16 digits is a 64-bit size; more can only be an attempt to overflow somebody behind us.
_SIZE_LINE: Final = re.compile(
    rb"([0-9A-Fa-f]{1,16})(?:;%b(?:=(?:%b|%b))?)*" % (_TOKEN, _TOKEN, _QUOTED)
)
_TRAILER: Final = re.compile(rb"%b:[\t\x20-\x7e\x80-\xff]*" % _TOKEN)
# Whatever stands for the hyphen, as in heads. Precedent: Go refuses them, h11 a value that is odd.
_MISPLACED: Final = re.compile(
    rb"(?:content[^a-z0-9]length|transfer[^a-z0-9]encoding|host):", re.IGNORECASE
)
# Precedent: llhttp and nginx both stop at a few KiB of chunk line.
_MAX_LINE: Final = 4096
_MAX_TRAILERS: Final = 16_384


class ChunkedInvalid(ValueError):  # noqa: N818
    """The body does not follow the coding."""


class ChunkedDecoder:
    """Feed bytes, get the payload's pieces. ``done`` is true after the last chunk and trailers."""

    __slots__ = ("_buffer", "_left", "_state", "_trailers", "done", "rest")

    def __init__(self) -> None:
        self.done = False
        self.rest = b""
        """What came after the end of the body: it belongs to the next message."""
        self._state = "size"
        self._left = 0
        self._buffer = b""
        self._trailers = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The payload bytes in ``data``, in order. Raises `ChunkedInvalid`."""
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        pieces: list[bytes] = []
        at, end = 0, len(data)
        while not self.done:
            if self._state == "payload":
                take = min(self._left, end - at)
                if take:
                    pieces.append(data[at : at + take])
                    at += take
                    self._left -= take
                if self._left:
                    return pieces
                self._state = "after"
            if self._state == "after":
                if end - at < 2:
                    if end - at and data[at : at + 1] != b"\r":
                        raise ChunkedInvalid("a chunk is longer than its size")
                    self._buffer = data[at:]
                    return pieces
                if data[at : at + 2] != b"\r\n":
                    raise ChunkedInvalid("a chunk is longer than its size")
                at += 2
                self._state = "size"
            line_end = data.find(b"\r\n", at)
            line = data[at:line_end] if line_end >= 0 else data[at:]
            if len(line) > _MAX_LINE:
                raise ChunkedInvalid("a line is too long")
            if b"\n" in line or b"\r" in line.removesuffix(b"\r"):
                raise ChunkedInvalid("bare CR or LF")
            if line_end < 0:
                self._buffer = line
                return pieces
            at = line_end + 2
            self._line(line)
        self.rest = data[at:]
        return pieces

    def _line(self, line: bytes) -> None:
        if self._state == "size":
            match = _SIZE_LINE.fullmatch(line)
            if match is None:
                raise ChunkedInvalid("not a chunk size")
            self._left = int(match[1], 16)
            self._state = "payload" if self._left else "trailers"
        elif not line:
            self.done = True
        else:
            self._trailers += len(line)
            if self._trailers > _MAX_TRAILERS or _TRAILER.fullmatch(line) is None:
                raise ChunkedInvalid("not a trailer field")
            if _MISPLACED.match(line) is not None:
                raise ChunkedInvalid("a trailer field that belongs into the head")


def encode_chunk(piece: bytes) -> bytes:
    """One chunk. ``piece`` is not empty: an empty one would end the body."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


LAST_CHUNK: Final = b"0\r\n\r\n"
