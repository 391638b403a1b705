"""The server name that a TLS client asks for, read before anything is answered.

Pure: bytes in, a name or a refusal out. The bytes are judged as strictly as the specifications
allow, since this reading chooses the target: a hello that another TLS stack could read differently
is refused, not interpreted. Extensions that are not the server's name are only measured, so GREASE
values (RFC 8701) and an Encrypted ClientHello pass; of the latter only the outer name is seen.

What is behind the hello (early data) is left alone: whoever speaks TLS next reads the same bytes
once more.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError

# The records of the hello together. Real ones have 200 to 2,000 bytes; Envoy's tls_inspector and
# nginx's ssl_preread stop at the same number.
MAX_HELLO: Final = 16 << 10

HANDSHAKE: Final = 22  # ContentType, RFC 8446 §5.1: the first byte that tells TLS from HTTP
_CLIENT_HELLO: Final = 1  # HandshakeType, §4
_SERVER_NAME: Final = b"\x00\x00"  # ExtensionType, §4.2
_HOST_NAME: Final = b"\x00"  # NameType, RFC 6066 §3
_RECORD_HEAD: Final = 5
_MESSAGE_HEAD: Final = 4
_MAX_RECORD: Final = 1 << 14  # §5.1
# RFC 5246 §E.1, RFC 8446 §4.1.2: TLS 1.3 says 1.2 here. SSL is none of these.
_VERSIONS: Final = frozenset({b"\x03\x01", b"\x03\x02", b"\x03\x03"})
# A-labels and the underscore of service names. RFC 6066 §3: no dot at the end and no address; a
# name whose last label has digits only is one for many readers (`127.1`), as is `0x7f000001`.
_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*"
    r"(?!(?:[0-9]+|0x[0-9a-f]*)\Z)[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
)


class Hello(NamedTuple):
    """A whole ClientHello. ``server_name`` is in lower case."""

    server_name: str


class Partial(NamedTuple):
    """The beginning of one. Looking again is of no use before there are ``need`` bytes in all."""

    need: int


def read_client_hello(data: bytes) -> Hello | Partial:
    """Read the ClientHello at the start of ``data``, however it is cut into records.

    Raises `CallerError`: `tls.hello_malformed` for what is none or is too long,
    `tls.no_server_name` for one without a usable name.
    """
    message = b""
    missing = _MESSAGE_HEAD  # of the message: at least so much; exact once its head is there
    at = 0
    while missing:
        fragment = at + _RECORD_HEAD
        if len(data) < fragment:
            return _partial(fragment + missing)
        end = fragment + _record_size(data[at:fragment])
        message += data[fragment:end]
        if message and message[0] != _CLIENT_HELLO:
            raise _malformed("the first handshake message is no ClientHello")
        size = _MESSAGE_HEAD
        if len(message) >= _MESSAGE_HEAD:
            size += int.from_bytes(message[1:_MESSAGE_HEAD], "big")
        coming = max(0, end - len(data))
        missing = size - len(message) - coming
        if missing < 0 and len(message) >= _MESSAGE_HEAD:
            # RFC 8446 §5.1: nothing may follow before the server has answered.
            raise _malformed("bytes behind the ClientHello, in the same record")
        if coming:
            return _partial(end + (_RECORD_HEAD + missing if missing > 0 else 0))
        at = end
    return Hello(_server_name(_body(message[_MESSAGE_HEAD:])))


def _partial(need: int) -> Partial:
    if need > MAX_HELLO:
        raise _malformed(f"a ClientHello of more than {MAX_HELLO} bytes")
    return Partial(need)


def _record_size(head: bytes) -> int:
    """RFC 8446 §5.1. A fragment of a handshake message is never empty."""
    size = int.from_bytes(head[3:], "big")
    if head[0] != HANDSHAKE or head[1:3] not in _VERSIONS or not 0 < size <= _MAX_RECORD:
        raise _malformed("not a TLS handshake record")
    return size


def _body(body: bytes) -> bytes:
    """The extensions of a ClientHello (RFC 8446 §4.1.2), everything before them measured."""
    fields = _Reader(body)
    if fields.take(2) not in _VERSIONS:
        raise _malformed("not a version of TLS")
    fields.take(32)  # random
    if len(fields.vector(1)) > 32:
        raise _malformed("the session id is too long")
    suites = fields.vector(2)
    if not suites or len(suites) % 2:
        raise _malformed("the cipher suites are no list of pairs of bytes")
    if not fields.vector(1):
        raise _malformed("no compression method")
    # RFC 5246 §7.4.1.2: extensions may be absent, which is not the same as an empty list.
    extensions = b"" if fields.done else fields.vector(2)
    fields.end("bytes behind the extensions")
    return extensions


def _server_name(extensions: bytes) -> str:
    block = _Reader(extensions)
    seen: dict[bytes, bytes] = {}
    while not block.done:
        kind = block.take(2)
        if kind in seen:  # RFC 8446 §4.2
            raise _malformed("an extension is there twice")
        seen[kind] = block.vector(2)
    if _SERVER_NAME not in seen:
        raise CallerError(codes.TLS_NO_SERVER_NAME, "no server_name extension")
    extension = _Reader(seen[_SERVER_NAME])
    names = _Reader(extension.vector(2))
    extension.end("bytes behind the list of server names")
    # RFC 6066 §3: of each type one, and there is but one type.
    if names.take(1) != _HOST_NAME:
        raise _malformed("a server name of an unknown type")
    raw = names.vector(2)
    names.end("more than one server name")
    name = raw.decode("latin-1").lower()
    if not _NAME.fullmatch(name):
        raise CallerError(codes.TLS_NO_SERVER_NAME, "the server name is not a DNS host name")
    return name


class _Reader:
    """Takes fields off the front of bytes (RFC 8446 §3). Raises what `_malformed` makes."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def done(self) -> bool:
        return self._at == len(self._data)

    def take(self, size: int) -> bytes:
        begin, self._at = self._at, self._at + size
        if self._at > len(self._data):
            raise _malformed("a field ends before its length")
        return self._data[begin : self._at]

    def vector(self, width: int) -> bytes:
        """A vector behind its length, which has ``width`` bytes (§3.4)."""
        return self.take(int.from_bytes(self.take(width), "big"))

    def end(self, otherwise: str) -> None:
        if not self.done:
            raise _malformed(otherwise)


def _malformed(reason: str) -> CallerError:
    return CallerError(codes.TLS_HELLO_MALFORMED, reason)
