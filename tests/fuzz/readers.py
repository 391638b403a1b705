"""Other readers of HTTP/1.1, each with what it takes a stream of requests (or an answer) for.

`h11`, strict, is the second reader of everything. `llhttp` with every leniency on, and
`http.server`, are how lax a target may be: what goes upstream must look the same even to them.
"""

from __future__ import annotations

import http.server
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import h11
import httptools

_LARGE = 1 << 20


@dataclass
class Read:
    """A request as somebody read it. Names of ``fields`` are in lower case."""

    method: str
    target: str
    fields: list[tuple[str, bytes]]
    body: bytes = b""
    complete: bool = False
    version: str = "1.1"

    @property
    def with_body(self) -> bool:
        """Whether its fields announce a body, be it an empty one."""
        return any(name in {"content-length", "transfer-encoding"} for name, _ in self.fields)

    @property
    def last(self) -> bool:
        """Whether its connection ends with it (RFC 9112 §9.3)."""
        options = {
            option.strip().lower()
            for name, value in self.fields
            if name == "connection"
            for option in value.split(b",")
        }
        return b"close" in options or (self.version == "1.0" and b"keep-alive" not in options)

    def bare(self, ignoring: frozenset[str]) -> tuple[object, ...]:
        """What must be the same to every reader; ``ignoring`` fields of these names."""
        fields = [
            (name, value.strip(b" \t")) for name, value in self.fields if name not in ignoring
        ]
        return self.method, self.target, fields, self.body


class RequestReader:
    """h11 as a server: `feed` gives each request as soon as its head is there.

    ``refused`` is set where h11 takes the stream for no HTTP; then nothing more is read. The
    request under way is completed in place, and ``on_complete`` called with it.
    """

    def __init__(self) -> None:
        self._connection = self._new()
        self._current: Read | None = None
        self.refused = ""
        self.on_complete: Callable[[Read], None] | None = None

    @staticmethod
    def _new() -> h11.Connection:
        return h11.Connection(h11.SERVER, max_incomplete_event_size=_LARGE)

    def feed(self, data: bytes) -> list[Read]:
        begun: list[Read] = []
        if self.refused or not data:
            return begun
        self._connection.receive_data(data)
        while True:
            try:
                event = self._connection.next_event()
            except h11.RemoteProtocolError as error:
                self.refused = str(error)
                return begun
            if isinstance(event, h11.Request):
                self._current = Read(
                    event.method.decode(),
                    event.target.decode(),
                    [(name.decode(), value) for name, value in event.headers],
                    version=event.http_version.decode(),
                )
                begun.append(self._current)
            elif isinstance(event, h11.Data):
                assert self._current is not None
                self._current.body += event.data
            elif isinstance(event, h11.EndOfMessage):
                self._end(begun)
            else:
                return begun

    def _end(self, begun: list[Read]) -> None:
        read, self._current = self._current, None
        assert read is not None
        read.complete = True
        rest = self._connection.trailing_data[0]
        # A connection of its own for each request: whether one would have been the last is not
        # what is asked here.
        self._connection = self._new()
        if read not in begun and self.on_complete is not None:
            done, self.on_complete = self.on_complete, None
            done(read)
        if rest:
            self._connection.receive_data(rest)


def by_h11(raw: bytes) -> tuple[list[Read], str]:
    """The requests in ``raw``, and why h11 stopped, if it did."""
    reader = RequestReader()
    return reader.feed(raw), reader.refused


class _Lenient:
    """httptools callbacks."""

    def __init__(self) -> None:
        self.reads: list[Read] = []
        self.parser: Any = None

    def on_message_begin(self) -> None:
        self.reads.append(Read("", "", []))

    def on_url(self, url: bytes) -> None:
        self.reads[-1].target += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.reads[-1].fields.append((name.decode("latin-1").lower(), value))

    def on_headers_complete(self) -> None:
        self.reads[-1].method = self.parser.get_method().decode()

    def on_body(self, body: bytes) -> None:
        self.reads[-1].body += body

    def on_message_complete(self) -> None:
        self.reads[-1].complete = True


def by_llhttp(raw: bytes) -> tuple[list[Read], str]:
    """llhttp with all that can be switched off switched off."""
    callbacks = _Lenient()
    parser = callbacks.parser = httptools.HttpRequestParser(callbacks)
    parser.set_dangerous_leniencies(
        lenient_headers=True, lenient_chunked_length=True, lenient_keep_alive=True,
        lenient_transfer_encoding=True, lenient_version=True, lenient_data_after_close=True,
        lenient_optional_lf_after_cr=True, lenient_optional_cr_before_lf=True,
        lenient_optional_crlf_after_chunk=True, lenient_spaces_after_chunk_size=True,
    )  # fmt: skip
    try:
        parser.feed_data(raw)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
        return callbacks.reads, type(error).__name__
    return callbacks.reads, ""


class _Handler(http.server.BaseHTTPRequestHandler):
    """Reads what a handler would be given; answers nothing."""

    protocol_version = "HTTP/1.1"

    def __init__(self, raw: bytes) -> None:
        self.rfile = io.BytesIO(raw)
        self.wfile = io.BytesIO()
        self.client_address = ("", 0)
        self.reads: list[Read] = []
        self.refused = ""

    def read(self) -> None:
        while not self.refused:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline:
                return
            if not self.parse_request():
                self.refused = self.refused or "refused"
                return
            fields = [
                (name.lower(), str(value).encode("latin-1")) for name, value in self.headers.items()
            ]
            read = Read(self.command, self.path, fields)
            self.reads.append(read)
            # http.server leaves bodies to its handlers: by the length, or chunk by chunk.
            if self.headers.get("transfer-encoding", "").lower() == "chunked":
                self._chunks(read)
            else:
                read.body = self.rfile.read(int(self.headers.get("content-length", 0)))
                read.complete = True

    def _chunks(self, read: Read) -> None:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            read.body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        read.complete = True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.refused = f"{code} {message}"

    def handle_expect_100(self) -> bool:
        return True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


def by_http_server(raw: bytes) -> tuple[list[Read], str]:
    """Python's own server, as lax as its parser for e-mail."""
    handler = _Handler(raw)
    handler.read()
    return handler.reads, handler.refused


class Reader(NamedTuple):
    """A reader of whole requests, and the fields that it does not tell of."""

    read: Callable[[bytes], tuple[list[Read], str]]
    ignoring: frozenset[str] = frozenset()


LAX: Final = {"llhttp, lenient": Reader(by_llhttp), "http.server": Reader(by_http_server)}


# --- answers --------------------------------------------------------------------------------------


@dataclass
class Response:
    """A final response as h11 read it. ``interim`` are the statuses before it."""

    status: int
    fields: list[tuple[str, bytes]] = field(default_factory=list)
    body: bytes = b""
    complete: bool = False
    interim: list[int] = field(default_factory=list)


def answers_by_h11(
    raw: bytes, methods: Iterator[str], *, ended: bool
) -> tuple[list[Response], bytes, str]:
    """The answers in ``raw`` to requests of these methods, what is left, and why h11 stopped."""
    found: list[Response] = []
    rest = raw
    for method in methods:
        if not rest:
            break
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LARGE)
        connection.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
        connection.send(h11.EndOfMessage())
        connection.receive_data(rest)
        if ended:
            connection.receive_data(b"")
        response = Response(0)
        while not response.complete:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                if response.status:
                    found.append(response)
                return found, b"", str(error)
            if isinstance(event, h11.InformationalResponse):
                response.interim.append(event.status_code)
            elif isinstance(event, h11.Response):
                response.status = event.status_code
                response.fields = [(name.decode(), value) for name, value in event.headers]
            elif isinstance(event, h11.Data):
                response.body += event.data
            elif isinstance(event, h11.EndOfMessage):
                response.complete = True
            else:
                if response.status:
                    found.append(response)
                return found, b"", "incomplete"
        found.append(response)
        rest = connection.trailing_data[0]
    return found, rest, ""
