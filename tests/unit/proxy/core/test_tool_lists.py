"""Tool lists in answers: cut down, refused where they can't be read, all else untouched."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valetkey.contracts import codes
from valetkey.contracts.errors import TargetError
from valetkey.contracts.mcp import message_patterns
from valetkey.proxy.core.headers import HeaderPolicy
from valetkey.proxy.core.mcp_routes import McpEndpoint
from valetkey.proxy.core.tool_lists import (
    AnswerFilter,
    EventStreamAnswer,
    JsonAnswer,
    NoMessage,
    answer_filter,
)

LIMIT = 2000
POLICY = HeaderPolicy.of(injected=None, subject_header="X-Subject", passed=())


def endpoint(*tools: str, limit: int = LIMIT) -> McpEndpoint[str]:
    made: McpEndpoint[str] = McpEndpoint(POLICY, POLICY, limit)
    made.add(message_patterns(["tools/list", "tools/call"], tools or ["get_*"]), "route")
    return made


def through(answer: AnswerFilter, pieces: Iterable[bytes]) -> bytes:
    return b"".join([*map(answer.feed, pieces), answer.end()])


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "description": f"about {name}", "inputSchema": {"type": "object"}, **more}


def listing(*names: str, **members: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "result": {"tools": [tool(n) for n in names], **members}}


def names_in(raw: bytes) -> list[str]:
    return [each["name"] for each in json.loads(raw)["result"]["tools"]]


# --- JSON -----------------------------------------------------------------------------------------


def test_a_list_is_cut_down_and_all_else_of_it_stays() -> None:
    raw = (
        b'{ "jsonrpc":"2.0", "id": 1.0e0,\n "result" : {"ttlMs": 1e3, "tools":[ {"name":"get_a", "n":1.50},'
        b' {"name":"set_a"}, {"name":"get_b","\\u0078":"\\u00e9"} ], "nextCursor":"c"} }'
    )
    answer = JsonAnswer(endpoint())
    assert through(answer, [raw]) == (
        b'{"jsonrpc":"2.0","id":1.0e0,"result":{"ttlMs":1e3,"tools":[{"name":"get_a", "n":1.50},'
        b'{"name":"get_b","\\u0078":"\\u00e9"}],"nextCursor":"c"}}'
    )
    assert answer.hidden == 1


UNTOUCHED: list[tuple[str, bytes]] = [
    ("a list of allowed tools", json.dumps(listing("get_a", "get_b"), indent=2).encode()),
    ("an empty list", json.dumps(listing()).encode()),
    ("an error", b'{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no \\"tools\\""}}'),
    ("a result with tools deeper", b'{"jsonrpc":"2.0","id":1,"result":{"structuredContent":{"tools":[{"name":"set_a"}]}}}'),
    ("capabilities", b'{"jsonrpc":"2.0","id":1,"result":{"capabilities":{"tools":{}}}}'),
    ("a request of the server", b'{"jsonrpc":"2.0","id":1,"method":"sampling/createMessage","params":{"tools":[{"name":"set_a"}]}}'),
    ("NaN in a result", b'{"jsonrpc":"2.0","id":1,"result":{"structuredContent":{"x":NaN}}}'),
    ("no JSON at all", b"upstream request timeout"),
    ("nothing", b""),
    ("a text about tools", b'{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"{\\"tools\\":[]}"}]}}'),
    ("a scalar", b'"tools"'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "raw"), UNTOUCHED, ids=[case[0] for case in UNTOUCHED])
def test_what_holds_no_hidden_tool_passes_byte_for_byte(name: str, raw: bytes) -> None:
    assert through(JsonAnswer(endpoint()), [raw]) == raw
    if raw:
        event = (
            b"event: message\r\nid: 7\r\ndata: " + raw.replace(b"\n", b"\r\ndata: ") + b"\r\n\r\n"
        )
        assert through(EventStreamAnswer(endpoint()), [event]) == event


REFUSED: list[tuple[str, bytes]] = [
    ("tools twice", b'{"jsonrpc":"2.0","id":1,"result":{"tools":[],"tools":[{"name":"set_a"}]}}'),
    ("result twice", b'{"jsonrpc":"2.0","id":1,"result":{"tools":[]},"result":{"tools":[{"name":"set_a"}]}}'),
    ("a tool's name twice", b'{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"get_a","name":"set_a"}]}}'),
    ("tools twice, escaped", rb'{"jsonrpc":"2.0","id":1,"result":{"tools":[],"\u0074ools":[{"name":"set_a"}]}}'),
    ("NaN beside a list", b'{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"set_a"}],"x":NaN}}'),
    ("half a list", b'{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"set_a"}'),
    ("something behind a list", b'{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"set_a"}]}} x'),
    ("tools that are no list", b'{"jsonrpc":"2.0","id":1,"result":{"tools":{"set_a":{}}}}'),
    ("a byte order mark", b'\xef\xbb\xbf{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"set_a"}]}}'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "raw"), REFUSED, ids=[case[0] for case in REFUSED])
def test_a_list_that_can_t_be_read_is_refused(name: str, raw: bytes) -> None:
    event = b"data: " + raw + b"\n\n"
    for answer, body in ((JsonAnswer(endpoint()), raw), (EventStreamAnswer(endpoint()), event)):
        with pytest.raises(TargetError) as refused:
            through(answer, [body])
        assert refused.value.code is codes.TARGET_BAD_RESPONSE
        assert "set_a" not in refused.value.reason


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-32-be"])
def test_a_list_in_another_encoding_is_refused(coding: str) -> None:
    with pytest.raises(TargetError):
        through(JsonAnswer(endpoint()), [json.dumps(listing("set_a")).encode(coding)])


HIDES: list[tuple[str, bytes, list[str]]] = [
    ("a tool without a name", b'{"result":{"tools":[{"title":"x"},{"name":"get_a"}]}}', ["get_a"]),
    ("a tool whose name is no text", b'{"result":{"tools":[{"name":["get_a"]},{"name":"get_a"}]}}', ["get_a"]),
    ("a tool that is a text", b'{"result":{"tools":["get_a",{"name":"get_b"}]}}', ["get_b"]),
    ("names are read with their escapes", rb'{"result":{"\u0074ools":[{"na\u006de":"s\u0065t_a"},{"na\u006de":"g\u0065t_a"}]}}', ["get_a"]),
    ("every tool", b'{"result":{"tools":[{"name":"set_a"}]}}', []),
]  # fmt: skip


@pytest.mark.parametrize(("name", "raw", "left"), HIDES, ids=[case[0] for case in HIDES])
def test_what_can_t_be_called_is_hidden(name: str, raw: bytes, left: list[str]) -> None:
    assert names_in(through(JsonAnswer(endpoint()), [raw])) == left


def test_each_answer_of_a_batch_is_cut_down() -> None:
    raw = json.dumps(
        [listing("get_a"), {"jsonrpc": "2.0", "id": 2, "result": {}}, listing("set_a")]
    )
    cut = json.loads(through(JsonAnswer(endpoint()), [raw.encode()]))
    assert cut == [listing("get_a"), {"jsonrpc": "2.0", "id": 2, "result": {}}, listing()]
    whole = json.dumps([listing("get_a")]).encode()
    assert through(JsonAnswer(endpoint()), [whole]) == whole


def test_json_waits_until_it_is_whole() -> None:
    raw = json.dumps(listing("get_a", "set_a")).encode()
    answer = JsonAnswer(endpoint())
    assert answer.waits
    for cut in range(len(raw)):
        answer = JsonAnswer(endpoint())
        assert answer.feed(raw[:cut]) == answer.feed(raw[cut:]) == b""
        assert answer.held == len(raw)
        assert names_in(answer.end()) == ["get_a"]


def test_a_large_answer_without_a_list_is_sent_on_as_it_comes() -> None:
    answer = JsonAnswer(endpoint())
    pieces = [b'{"result":{"content":"', *[b"x" * 999] * 4, b'"}}']
    sent = [answer.feed(piece) for piece in pieces]
    assert sent[:2] == [b"", b""]
    assert b"".join(sent) + answer.end() == b"".join(pieces)
    assert sent[3:] == pieces[3:]  # at once, from the limit on


@pytest.mark.parametrize("name", [b'"tools"', rb'"\u0074ools"', rb'"t\u006f\u006fls"'])
def test_a_large_answer_with_a_list_is_refused_wherever_it_is_cut(name: bytes) -> None:
    front = b'{"result":{"content":"' + b"x" * 2 * LIMIT + b'",'
    raw = front + name + b':[{"name":"set_a"}]}}'
    for cut in range(len(front) - 2, len(raw)):
        answer = JsonAnswer(endpoint())
        with pytest.raises(TargetError, match="larger"):
            through(answer, [raw[:cut], raw[cut:]])
    with pytest.raises(TargetError, match="larger"):
        through(JsonAnswer(endpoint()), [raw[n : n + 1] for n in range(len(raw))])


# --- event streams --------------------------------------------------------------------------------


def event(message: Any, *, end: bytes = b"\r\n", **fields: str) -> bytes:
    lines = [f"{name}: {value}".encode() for name, value in fields.items()]
    lines.append(b"data: " + json.dumps(message).encode())
    return end.join([*lines, b"", b""])


def read_events(stream: bytes) -> list[dict[str, str]]:
    """A stream as WHATWG HTML §9.2.6 says, line by line; what is not ended by a blank is dropped."""
    text = stream.decode("utf-8").removeprefix("\ufeff")
    events: list[dict[str, str]] = []
    current: dict[str, str] = {}
    data: list[str] = []
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")[:-1]:
        if not line:
            if data:
                events.append({**current, "data": "\n".join(data)})
            current, data = {}, []
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                data.append(value)
            elif name in {"event", "id", "retry"}:
                current[name] = value
    return events


def messages(stream: bytes) -> list[Any]:
    return [json.loads(each["data"]) for each in read_events(stream)]


PROGRESS = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progress": 1}}
RESULT = {"jsonrpc": "2.0", "id": 9, "result": {"content": [], "structuredContent": {"tools": [1]}}}


@pytest.mark.parametrize("end", [b"\r\n", b"\n", b"\r"])
def test_a_stream_of_events(end: bytes) -> None:
    stream = b"".join([
        b"\xef\xbb\xbf: hello" + end + end,
        b"retry: 5" + end + b"id: 1" + end + b"data" + end + end,
        event(PROGRESS, end=end, id="2"),
        event(listing("get_a", "set_a"), end=end, event="message", id="3"),
        event(RESULT, end=end),
        event(listing("set_b"), end=end),
        b": ping" + end + end,
    ])  # fmt: skip
    expected = [PROGRESS, listing("get_a"), RESULT, listing()]
    before = stream.partition(b'{"jsonrpc": "2.0", "id": 1')[0]
    for cut in range(len(stream) + 1):
        answer = EventStreamAnswer(endpoint())
        out = through(answer, [stream[:cut], stream[cut:]])
        assert out.startswith(before)
        assert [json.loads(e["data"]) for e in read_events(out) if e["data"]] == expected
        assert read_events(out)[2]["id"] == "3"
        assert out.endswith(b": ping" + end + end)
        assert answer.hidden == 2
    bytewise = through(
        EventStreamAnswer(endpoint()), [stream[n : n + 1] for n in range(len(stream))]
    )
    assert bytewise == through(EventStreamAnswer(endpoint()), [stream])


def test_data_over_many_lines_is_one_text() -> None:
    text = json.dumps(listing("get_a", "set_a"), indent=1)
    stream = b"id: 1\n" + b"".join(b"data:%b\n" % line.encode() for line in text.split("\n"))
    stream += b": between\nevent: message\n\n"
    out = through(EventStreamAnswer(endpoint()), [stream])
    [read] = read_events(out)
    assert json.loads(read["data"]) == listing("get_a")
    assert read["id"] == "1"
    assert read["event"] == "message"
    assert b": between\n" in out


def test_line_ends_may_be_mixed() -> None:
    text = json.dumps(listing("get_a", "set_a")).encode()
    head, tail = text[:20], text[20:].replace(b", ", b",", 1)
    at = text.index(b", ") + 1
    head, tail = text[:at], text[at:]
    for first in (b"\r\n", b"\n", b"\r"):
        for last in (b"\r\n", b"\n", b"\r"):
            for blank in (b"\r\n", b"\r", b"\n"):
                if last == b"\r" and blank == b"\n":
                    continue  # together these are one line end
                stream = b"data: " + head + first + b"data: " + tail + last + blank + b":x\n"
                out = through(EventStreamAnswer(endpoint()), [stream])
                assert messages(out + b"\n") == [listing("get_a")]


def test_other_events_do_not_wait() -> None:
    answer = EventStreamAnswer(endpoint())
    for piece in (
        b": ping\r\n",
        b": ping\r\n\r\n",
        b"event: message\r\n",
        b"id: 4\r\n",
        event(PROGRESS),
        b"\n",
        event(RESULT, end=b"\r"),
        event(PROGRESS, end=b"\n"),
    ):
        assert answer.feed(piece) == piece


def test_an_event_leaves_with_the_first_byte_of_its_blank_line() -> None:
    answer = EventStreamAnswer(endpoint())
    stream = event(PROGRESS)
    assert answer.feed(stream[:-1]) == stream[:-1]
    assert answer.feed(stream[-1:] + b":x\r\n") == b"\n:x\r\n"


def test_a_stream_that_ends_within_an_event() -> None:
    whole = event(listing("get_a", "set_a"))
    for cut in (2, 4):
        out = through(EventStreamAnswer(endpoint()), [whole[:-cut]])
        assert b"set_a" not in out
        assert b"get_a" in out
    assert through(EventStreamAnswer(endpoint()), [b"data: x"]) == b"data: x"
    assert through(EventStreamAnswer(endpoint()), [b": x"]) == b": x"
    with pytest.raises(TargetError):
        through(EventStreamAnswer(endpoint()), [whole[:-10]])


@pytest.mark.parametrize("end", [b"\r\n", b"\n", b"\r"])
def test_a_large_event_without_a_list_passes_and_what_follows_is_read(end: bytes) -> None:
    large = {"jsonrpc": "2.0", "id": 2, "result": {"content": "x" * 2 * LIMIT}}
    lines = b"".join(b"data: %b%b" % (b"y" * 99, end) for _ in range(50)) + b"id: 1" + end + end
    stream = event(large, end=end) + lines + event(listing("get_a", "set_a"), end=end)
    for size in (1, 7, 500, 997, len(stream)):
        pieces = [stream[n : n + size] for n in range(0, len(stream), size)]
        answer = EventStreamAnswer(endpoint())
        out = through(answer, pieces)
        assert out.startswith(event(large, end=end) + lines)
        assert json.loads(read_events(out)[2]["data"]) == listing("get_a")
    answer = EventStreamAnswer(endpoint())
    assert len(answer.feed(stream[: LIMIT + 100])) > LIMIT  # from the limit on, at once


@pytest.mark.parametrize("size", [1, 6, 7, 100, 10**6])
def test_a_large_event_with_a_list_is_refused(size: int) -> None:
    front = {"jsonrpc": "2.0", "id": 2, "x": "x" * 2 * LIMIT}
    stream = event(front | listing("get_a", "set_a"))
    with pytest.raises(TargetError, match="larger"):
        through(
            EventStreamAnswer(endpoint()),
            [stream[n : n + size] for n in range(0, len(stream), size)],
        )
    with pytest.raises(TargetError, match="larger"):
        through(EventStreamAnswer(endpoint()), [event(listing(*["get_a"] * 99))])


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_an_event_that_nothing_ends_is_cut_too(mark: bytes) -> None:
    """Some readers take it; to none is the first line another one for the mark before it."""
    whole = mark + b'data: {"result":{"tools":[{"name":"get_a"},{"name":"set_a"}]}}'
    for at in range(len(whole)):
        out = through(EventStreamAnswer(endpoint()), [whole[:at], whole[at:]])
        assert names_in(out.removeprefix(mark + b"data: ")) == ["get_a"]


def test_pieces_of_a_byte_take_linear_time_and_bounded_memory() -> None:
    limit = 1 << 20
    answer = EventStreamAnswer(endpoint(limit=limit))
    answer.feed(b"data: ")
    for _ in range(limit // 2):
        answer.feed(b"x")
    assert answer.held == limit // 2 + 6
    assert len(answer.feed(b"\n\n")) == limit // 2 + 8
    assert answer.held == 0


pieces_of_streams = st.lists(
    st.sampled_from([
        b"data: ", b"data:", b"data", b": c", b"id: 1", b"\r", b"\n", b"\r\n", b"\n\n", b"\r\n\r\n",
        b"\xef\xbb\xbf", b"x", b"event: message\n",
        b'{"result":{"tools":[{"name":"get_a"},{"name":"set_a"}]}}',
        b'{"result":{"tools":[{"name":"set_a"}]}}',
        b'{"result":\ndata:{"tools":[{"name":"set_a"}]}}',
        b'{"result":{}}',
    ]),
    max_size=12,
)  # fmt: skip


@settings(max_examples=300)
@given(pieces_of_streams, st.lists(st.integers(0, 400), max_size=4), st.sampled_from([30, LIMIT]))
def test_however_a_stream_is_made_and_cut_no_reader_finds_a_hidden_tool(
    parts: list[bytes], cuts: list[int], limit: int
) -> None:
    stream = b"".join(parts)
    at = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[a:b] for a, b in pairwise(at)]
    try:
        out = through(EventStreamAnswer(endpoint(limit=limit)), pieces)
    except TargetError:
        return
    read, before = (read_events(each + b"\n\n") for each in (out, stream))
    assert not any("set_a" in each["data"] for each in read)
    # Nothing but the lists was changed.
    assert [e for e in read if "tools" not in e["data"]] == [
        e for e in before if "tools" not in e["data"]
    ]


# --- which answers are read -----------------------------------------------------------------------

JSON, EVENTS = b"application/json", b"text/event-stream"
Which = type[AnswerFilter] | None | str
KINDS: list[tuple[str, int, list[bytes], list[bytes], bool, Which]] = [
    ("JSON", 200, [JSON], [], True, JsonAnswer),
    ("JSON with a charset", 200, [b"application/json; charset=utf-8"], [b"identity"], True, JsonAnswer),
    ("an error in JSON", 400, [JSON], [], True, JsonAnswer),
    ("JSON of a GET", 200, [JSON], [], False, JsonAnswer),
    ("events", 200, [b"Text/Event-Stream"], [], True, EventStreamAnswer),
    ("events of a GET", 200, [EVENTS], [], False, EventStreamAnswer),
    ("accepted", 202, [], [], True, NoMessage),
    ("a page", 200, [b"text/html"], [], True, NoMessage),
    ("a page for a GET", 200, [b"text/html"], [], False, None),
    ("an error page", 502, [b"text/html"], [], True, None),
    ("a problem", 403, [b"application/problem+json"], [], True, None),
    ("a problem that is none", 200, [b"application/problem+json"], [], True, "refused"),
    ("JSON in UTF-16", 200, [b"application/json; charset=utf-16"], [], True, "refused"),
    ("JSON, twice", 200, [JSON, JSON], [], True, "refused"),
    ("JSON and events", 200, [JSON, EVENTS], [], False, "refused"),
    ("JSON, encoded", 200, [JSON], [b"gzip"], True, "refused"),
    ("an error, encoded", 400, [JSON], [b"br"], True, "refused"),
    ("events, encoded", 200, [EVENTS], [b"gzip"], False, "refused"),
    ("a part of JSON", 206, [JSON], [], False, "refused"),
    ("another JSON", 200, [b"application/json-seq"], [], True, "refused"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "status", "types", "codings", "posted", "which"), KINDS, ids=[k[0] for k in KINDS]
)
def test_which_answers_are_read(
    name: str, status: int, types: list[bytes], codings: list[bytes], posted: bool, which: Which
) -> None:
    make: Callable[[], AnswerFilter | None] = lambda: answer_filter(  # noqa: E731
        endpoint(), status, types, codings, posted=posted
    )
    if which == "refused":
        with pytest.raises(TargetError):
            make()
        return
    made = make()
    assert (type(made) if made is not None else None) is which


def test_an_answer_of_no_type_of_ours_has_no_body() -> None:
    answer = NoMessage(endpoint())
    assert answer.waits
    assert answer.feed(b"") == answer.end() == b""
    with pytest.raises(TargetError):
        answer.feed(b"x")
