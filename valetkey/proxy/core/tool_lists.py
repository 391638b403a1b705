"""Lists of tools in the answers of an MCP endpoint, cut down to what the workload may call.

A list may come in any answer on the endpoint's path: as JSON or in an event stream, and also
where it was not asked for (a stream that is resumed, two requests under one id). So all answers
pass through here. What can't hold a list passes untouched and unread: a list is a member called
``tools``, and where nothing in a text can be read as that name, there is none. Text that may hold
one is held back until it is whole and then read strictly; what can't be read without doubt is
refused.

What is held back is bounded. A message that is larger passes only while it has no such name.

This is about what a workload gets to know. What it may call is decided on each call.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from valetkey.contracts import codes
from valetkey.contracts.errors import TargetError
from valetkey.proxy.core.mcp_routes import McpEndpoint
from valetkey.proxy.core.media_types import (
    is_event_stream,
    is_json,
    is_plain,
    may_hold_messages,
)
from valetkey.proxy.core.strict_json import NotStrict, read_strict

# The name, any spelling of it (only letters have to be escaped for another one, and serializers
# escape none), or a sign of UTF-16 and UTF-32.
_MAYBE_LIST: Final = re.compile(rb'"tools"|\\u00[4-7]|\0')
# How much of `_MAYBE_LIST` may lie before the end of a piece.
_OVERLAP: Final = 6
_LINE_END: Final = re.compile(rb"\r\n|\r|\n")
_EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")
_BOM: Final = b"\xef\xbb\xbf"

_RAW_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RAW_ARRAY: Final = msgspec.json.Decoder(list[msgspec.Raw])


class AnswerFilter:
    """The body of one answer, on its way to the workload. `feed` it, then `end` it.

    What comes out is to be sent. ``waits`` says that the head is not to be sent before something
    comes out: until then the whole answer may still be refused. Both raise `TargetError`.
    """

    __slots__ = ("endpoint", "hidden", "waits")

    def __init__(self, endpoint: McpEndpoint[Any], *, waits: bool) -> None:
        self.endpoint = endpoint
        self.waits = waits
        self.hidden = 0
        """How many tools were taken out of lists."""

    @property
    def held(self) -> int:
        """How many bytes are held back."""
        return 0

    def feed(self, data: bytes) -> bytes:
        raise NotImplementedError

    def end(self) -> bytes:
        raise NotImplementedError

    def _without_hidden(self, raw: bytes) -> bytes:
        """A JSON text with its lists cut down: ``raw`` itself if nothing was taken out."""
        if _MAYBE_LIST.search(raw) is None:
            return raw
        try:
            value = read_strict(raw)
        except NotStrict as error:
            raise _refused(f"what may be a list of tools can't be read: {error}") from error
        if not isinstance(value, list):
            return self._message(raw, value)
        # MCP 2025-03-26 had batches, in answers too.
        messages = _RAW_ARRAY.decode(raw)
        cut = [
            self._message(bytes(message), each)
            for message, each in zip(messages, value, strict=True)
        ]
        if all(new == bytes(old) for new, old in zip(cut, messages, strict=True)):
            return raw
        return msgspec.json.encode([msgspec.Raw(message) for message in cut])

    def _message(self, raw: bytes, value: Any) -> bytes:
        result = value.get("result") if isinstance(value, dict) else None
        if not isinstance(result, dict) or "tools" not in result:
            return raw
        tools = result["tools"]
        if not isinstance(tools, list):
            raise _refused("result.tools is no list")
        shown = [self._shows(tool) for tool in tools]
        if all(shown):
            return raw
        self.hidden += shown.count(False)
        # Every value that stays is, byte for byte, the target's.
        members = _RAW_OBJECT.decode(raw)
        of_result = _RAW_OBJECT.decode(members["result"])
        kept = [
            tool
            for tool, show in zip(_RAW_ARRAY.decode(of_result["tools"]), shown, strict=True)
            if show
        ]
        of_result["tools"] = msgspec.Raw(msgspec.json.encode(kept))
        members["result"] = msgspec.Raw(msgspec.json.encode(of_result))
        return msgspec.json.encode(members)

    def _shows(self, tool: Any) -> bool:
        name = tool.get("name") if isinstance(tool, dict) else None
        return isinstance(name, str) and self.endpoint.allows_tool(name)


class JsonAnswer(AnswerFilter):
    """One JSON text. Held back whole; a larger one that has no list is sent on as it comes."""

    __slots__ = ("_held", "_passing", "_tail")

    def __init__(self, endpoint: McpEndpoint[Any]) -> None:
        super().__init__(endpoint, waits=True)
        self._held = bytearray()
        self._passing = False
        self._tail = b""

    @property
    def held(self) -> int:
        return len(self._held)

    def feed(self, data: bytes) -> bytes:
        if not self._passing:
            self._held += data
            if len(self._held) <= self.endpoint.limit:
                return b""
            self._passing = True
            data = bytes(self._held)
            self._held.clear()
        self._tail = _check_no_list(self._tail + data)
        return data

    def end(self) -> bytes:
        return b"" if self._passing else self._without_hidden(bytes(self._held))


class EventStreamAnswer(AnswerFilter):
    """An event stream (WHATWG HTML §9.2.5).

    Only an event's data is held back, until its blank line; comments and events that can't hold a
    list leave in the turn in which they came.
    """

    __slots__ = (
        "_after_cr",
        "_empty_line",
        "_held",
        "_line",
        "_passing",
        "_size",
        "_start",
        "_tail",
    )

    def __init__(self, endpoint: McpEndpoint[Any]) -> None:
        super().__init__(endpoint, waits=False)
        self._start = True
        self._line = bytearray()
        """The beginning of a line whose end has not come."""
        self._held: list[bytes] = []
        """The lines of an event from its first data on."""
        self._size = 0
        self._after_cr = False
        """Whether the last byte was a CR: an LF then belongs to the same line end."""
        self._passing = False
        """Whether the event in progress is too large to be held back."""
        self._empty_line = False
        self._tail = b""

    @property
    def held(self) -> int:
        return self._size + len(self._line)

    def feed(self, data: bytes) -> bytes:
        out: list[bytes] = []
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
            if self._held:
                self._held[-1] += b"\n"
            else:
                out.append(b"\n")
            self._after_cr = False
        if not data:
            return b"".join(out)
        self._after_cr = data.endswith(b"\r")
        while data:
            if self._passing:
                end = self._end_of_event(data)
                self._tail = _check_no_list(self._tail + data[:end])
                out.append(data[:end])
                data = data[end:]
            elif (
                not self._held
                and not self._line
                and data.endswith(_EVENT_ENDS)
                and _MAYBE_LIST.search(data) is None
            ):
                self._start = False  # the usual case: whole events, none of them a list
                out.append(data)
                break
            else:
                data = self._take_lines(data, out)
        return b"".join(out)

    def end(self) -> bytes:
        """The rest of a stream that ends within an event: some readers take it, others do not."""
        if self._passing:
            return b""
        out: list[bytes] = []
        if self._line:
            self._take(bytes(self._line), out)
        out.append(self._event(b""))
        return b"".join(out)

    def _take_lines(self, data: bytes, out: list[bytes]) -> bytes:
        """Take whole lines; what is left over belongs to an event that is too large to hold."""
        self._line += data
        if b"\n" in data or b"\r" in data:
            lines = bytes(self._line).splitlines(keepends=True)
            self._line.clear()
            if not lines[-1].endswith((b"\n", b"\r")):
                self._line += lines.pop()
            for number, line in enumerate(lines, 1):
                self._take(line, out)
                if self._size > self.endpoint.limit:
                    rest = b"".join(lines[number:]) + self._line
                    self._line.clear()
                    self._pass_on(out, empty_line=True)
                    return rest
        if self._size + len(self._line) > self.endpoint.limit:
            self._held.append(bytes(self._line))
            self._line.clear()
            self._pass_on(out, empty_line=False)
        return b""

    def _take(self, line: bytes, out: list[bytes]) -> None:
        if self._start:
            self._start = False
            if line.startswith(_BOM):
                out.append(_BOM)
                line = line[len(_BOM) :]
        content = line.rstrip(b"\r\n")
        if not content:
            out.append(self._event(line) if self._held else line)
        elif self._held or _is_data(content):
            self._held.append(line)
            self._size += len(line)
        else:
            out.append(line)

    def _event(self, blank: bytes) -> bytes:
        """The held event, as it goes on, and the blank line behind it."""
        held, self._held, self._size = self._held, [], 0
        raw = b"".join(held)
        if _MAYBE_LIST.search(raw) is None:
            return raw + blank
        at = [number for number, line in enumerate(held) if _is_data(line.rstrip(b"\r\n"))]
        text = b"\n".join(_value(held[number]) for number in at)
        cut = self._without_hidden(text)
        if cut == text:
            return raw + blank
        last = held[at[-1]]
        line_end = last[len(last.rstrip(b"\r\n")) :] or b"\n"
        data = b"".join(b"data: %b%b" % (part, line_end) for part in cut.split(b"\n"))
        for number in at:
            held[number] = b""
        held[at[0]] = data
        return b"".join(held) + blank

    def _pass_on(self, out: list[bytes], *, empty_line: bool) -> None:
        """Give up holding the event back: it is too large."""
        raw = b"".join(self._held)
        self._held = []
        self._size = 0
        self._tail = _check_no_list(raw)
        self._passing = True
        self._empty_line = empty_line
        out.append(raw)

    def _end_of_event(self, data: bytes) -> int:
        """How much of ``data`` belongs to the event that is passing."""
        start = 0
        for found in _LINE_END.finditer(data):
            if self._empty_line and found.start() == start:
                self._passing = False
                return found.end()
            self._empty_line = True
            start = found.end()
        self._empty_line = self._empty_line and start == len(data)
        return len(data)


class NoMessage(AnswerFilter):
    """An answer that should hold no message, since it is of a type that MCP does not have."""

    __slots__ = ()

    def __init__(self, endpoint: McpEndpoint[Any]) -> None:
        super().__init__(endpoint, waits=True)

    def feed(self, data: bytes) -> bytes:
        if data:
            raise _refused("the answer is neither JSON nor an event stream")
        return b""

    def end(self) -> bytes:
        return b""


def answer_filter(
    endpoint: McpEndpoint[Any],
    status: int,
    types: Sequence[bytes],
    codings: Sequence[bytes],
    *,
    posted: bool,
) -> AnswerFilter | None:
    """What the body of an answer has to pass through; ``None`` if it may pass as it is.

    ``types`` and ``codings`` are the values of all Content-Type and Content-Encoding fields,
    ``posted`` tells the answer to a message from others on the same path. Raises `TargetError`.
    """
    if not may_hold_messages(types):
        # MCP, basic/transports: a message is answered by JSON or by an event stream.
        return NoMessage(endpoint) if posted and 200 <= status < 300 else None
    if not is_plain(codings) or status == 206:
        raise _refused("an answer that is encoded or partial can't be read")
    if is_json(types):
        return JsonAnswer(endpoint)
    if is_event_stream(types):
        return EventStreamAnswer(endpoint)
    if 200 <= status < 300:
        raise _refused("the answer's type is not plainly JSON or an event stream")
    return None


def _is_data(content: bytes) -> bool:
    return content.startswith(b"data:") or content == b"data"


def _value(line: bytes) -> bytes:
    """The value of a data line: one space behind the colon does not count."""
    return line.rstrip(b"\r\n")[5:].removeprefix(b" ")


def _check_no_list(data: bytes) -> bytes:
    """Refuse what may be a list; return what the next piece has to be looked at with."""
    if _MAYBE_LIST.search(data) is not None:
        raise _refused("a list of tools in a message larger than limits.message")
    return data[-_OVERLAP:]


def _refused(reason: str) -> TargetError:
    return TargetError(codes.TARGET_BAD_RESPONSE, reason)
