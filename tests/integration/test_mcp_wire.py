"""MCP on the wire: messages read whole and sent on byte for byte, answers cut down."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.recording import Recording, Wire
from tests.support.sidecar import BOUND, Answer, Sidecar, World, dechunk, target
from valetkey.contracts import codes

pytest_plugins = ["tests.support.wire_fixtures"]

LIMIT = 8192


def mcp(
    name: str, methods: list[str], tools: list[str] | None = None, **more: Any
) -> dict[str, Any]:
    match = {"path": "/mcp", "mcp": {"methods": methods} | ({"tools": tools} if tools else {})}
    return {"id": name, "target": "tools", "match": match, "scopes": ["s:read"], **more}


def plain(name: str, on: str, methods: list[str], path: str) -> dict[str, Any]:
    match = {"methods": methods, "path": path}
    return {"id": name, "target": on, "match": match, "scopes": ["s:read"]}


@pytest.fixture(scope="module")
def sidecar(wire_world: World, session_upstream: Recording) -> Iterator[Sidecar]:
    url = session_upstream.url
    bound = {"audience": BOUND, "credential": {"kind": "dpop"}}
    made = wire_world.sidecar(
        "mcp-wire",
        {"tools": target(url, prefix="/t"), "bound": target(url, prefix="/b", **bound)},
        routes=[
            mcp("base", ["initialize", "ping", "notifications/*", "response", "tools/list"]),
            mcp("read", ["tools/call"], ["get_*"]),
            plain("stream", "tools", ["GET", "DELETE", "HEAD"], "/mcp"),
            plain("others", "tools", ["GET", "POST"], "/{rest*}"),
            mcp("bound", ["tools/call"], ["get_*"]) | {"target": "bound"},
        ],
        limits={"message": f"{LIMIT}B", "messages": f"{3 * LIMIT}B"},
        timeouts={"stall": "1s", "first_byte": "3s"},
    )
    yield made
    assert made.defects() == []
    made.stop()


def rpc(method: str = "tools/call", **members: Any) -> bytes:
    message: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": method}
    if method == "tools/call":
        message["params"] = {"name": "get_issue", "arguments": {"number": 7, "text": "ü"}}
    return json.dumps(message | members, ensure_ascii=False).encode()


def call_of(tool: str) -> bytes:
    return rpc(params={"name": tool, "arguments": {}})


JSON = "Content-Type: application/json"


def post(body: bytes, *lines: str, path: str = "/t/mcp", version: str = "1.1") -> bytes:
    head = [f"POST {path} HTTP/{version}", "Host: h", *(lines or (JSON,))]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


def chunked(*pieces: bytes, more: tuple[str, ...] = (JSON,)) -> bytes:
    head = ["POST /t/mcp HTTP/1.1", "Host: h", *more, "Transfer-Encoding: chunked", "", ""]
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return "\r\n".join(head).encode() + body + b"0\r\n\r\n"


def get(*lines: str, method: str = "GET", path: str = "/t/mcp", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: h", *lines, "", ""]).encode()


RESULT = b'{"jsonrpc":"2.0","id":1,"result":{"content":[]}}'


def json_answer(body: bytes, *lines: str, status: str = "200 OK") -> bytes:
    head = [f"HTTP/1.1 {status}", "Content-Type: application/json", *lines]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


@pytest.fixture(autouse=True)
def _answers_json(upstream: Recording) -> None:
    upstream.answer = json_answer(RESULT)


def refused(answer: Answer, code: str) -> None:
    found = codes.by_name(code)
    assert found is not None
    assert (answer.code, answer.status) == (code, found.status)


# --- requests -------------------------------------------------------------------------------------


def test_a_message_goes_on_as_it_came(sidecar: Sidecar, upstream: Recording) -> None:
    body = b' {"method" :"tools\\/call","params":{"n\\u0061me":"get_issue","x":1.0e0},"jsonrpc":"2.0"}\n'
    fields = (JSON, "Accept: application/json, text/event-stream", "Mcp-Session-Id: a", "X-A: b")
    answer = sidecar.ask(post(body, *fields))
    assert (answer.status, answer.body, answer.chunked) == (200, RESULT, False)
    [request] = upstream.requests
    assert request.body == body
    assert request.line == b"POST /mcp HTTP/1.1"
    assert [field.decode() for field in request.fields] == [
        f"host: 127.0.0.1:{upstream.port}",
        "via: 1.1 valetkey",
        *fields,
        "accept-encoding: identity",
        f"content-length: {len(body)}",
        "authorization: Bearer",
    ]


def test_a_message_cut_at_every_position(sidecar: Sidecar, upstream: Recording) -> None:
    body = rpc()
    raw = post(body)
    with sidecar.open() as client:
        for cut in range(1, len(raw)):
            client.slowly(raw, cut)
            assert client.answer().status == 200
    assert {request.body for request in upstream.requests} == {body}
    assert len(upstream.requests) == len(raw) - 1
    assert len(upstream.wires) <= 1  # one connection, maybe of an earlier test


def test_a_chunked_message_cut_at_every_position(sidecar: Sidecar, upstream: Recording) -> None:
    body = rpc()
    raw = chunked(body[:1], body[1:40], body[40:])
    with sidecar.open() as client:
        for cut in range(1, len(raw)):
            client.slowly(raw, cut)
            assert client.answer().status == 200
    assert {dechunk(request.body) for request in upstream.requests} == {body}
    assert {*map(tuple, (r.values("transfer-encoding") for r in upstream.requests))} == {
        ("chunked",)
    }


def test_a_denied_message_cut_at_every_position(sidecar: Sidecar, upstream: Recording) -> None:
    for raw in (post(call_of("set_issue")), chunked(call_of("set_issue"))):
        with sidecar.open() as client:
            for cut in range(1, len(raw)):
                client.slowly(raw, cut)
                refused(client.answer(), "mcp.no_match")
    assert upstream.requests == []


def test_messages_one_behind_the_other(sidecar: Sidecar, upstream: Recording) -> None:
    with sidecar.open() as client:
        raw = [
            post(rpc("ping")),
            chunked(call_of("set_issue")),
            post(b"[]"),
            chunked(call_of("get_a")),
        ]
        whole = b"".join(raw) + get(path="/t/other")
        for cut in (0, len(raw[0]) + 5, len(whole) - 5):
            client.slowly(whole, *([cut] if cut else []))
            codes_ = [client.answer().code for _ in range(5)]
            assert codes_ == ["", "mcp.no_match", "mcp.batch", "", ""]
    assert len(upstream.requests) == 9


SECOND_READINGS: list[tuple[str, bytes, str]] = [
    ("a batch", b"[" + rpc() + b"]", "mcp.batch"),
    ("an allowed call and one that is not, in a batch", b"[" + rpc() + b"," + call_of("set_a") + b"]", "mcp.batch"),
    ("two methods", b'{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call","params":{"name":"set_a"}}', "mcp.malformed"),
    ("two methods, the other order", b'{"jsonrpc":"2.0","id":1,"method":"tools/call","method":"ping","params":{"name":"set_a"}}', "mcp.malformed"),
    ("two methods, one escaped", rb'{"jsonrpc":"2.0","id":1,"method":"ping","m\u0065thod":"tools/call","params":{"name":"set_a"}}', "mcp.malformed"),
    ("two names", b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"get_a","name":"set_a"}}', "mcp.malformed"),
    ("two names, the other order", b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"set_a","name":"get_a"}}', "mcp.malformed"),
    ("two params", b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"get_a"},"params":{"name":"set_a"}}', "mcp.malformed"),
    ("Method and method", b'{"jsonrpc":"2.0","id":1,"method":"ping","Method":"tools/call","params":{"name":"set_a"}}', "mcp.malformed"),
    ("Name and name", b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"get_a","Name":"set_a"}}', "mcp.malformed"),
    ("two texts", rpc("ping") + call_of("set_a"), "mcp.malformed"),
    ("two texts by line", rpc("ping") + b"\n" + call_of("set_a"), "mcp.malformed"),
    ("a byte order mark", b"\xef\xbb\xbf" + rpc(), "mcp.malformed"),
    ("UTF-16", rpc().decode().encode("utf-16"), "mcp.malformed"),
    ("half a surrogate pair", rb'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"get_a","x":"\ud800"}}', "mcp.malformed"),
    ("a NUL in the name", rb'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"get_a\u0000"}}', "mcp.malformed"),
    ("NaN", b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"get_a","x":NaN}}', "mcp.malformed"),
    ("request and response", rpc("ping", result={}), "mcp.malformed"),
    ("nothing", b"", "mcp.malformed"),
    ("a form", b"method=tools%2Fcall", "mcp.malformed"),
    ("another tool", call_of("set_a"), "mcp.no_match"),
    ("the tool in another case", call_of("Get_a"), "mcp.no_match"),
    ("another method", rpc("prompts/list"), "mcp.no_match"),
    ("the method in another case", rpc("Ping"), "mcp.no_match"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "body", "code"), SECOND_READINGS, ids=[case[0] for case in SECOND_READINGS]
)
def test_what_could_be_read_otherwise_does_not_leave(
    name: str, body: bytes, code: str, sidecar: Sidecar, upstream: Recording
) -> None:
    refused(sidecar.ask(post(body)), code)
    if body:
        with sidecar.open() as client:
            client.slowly(chunked(*(body[n : n + 1] for n in range(len(body)))), 100)
            answer = client.answer()
            refused(answer, code)
            client.send(post(rpc()))  # the body was read whole, so the connection goes on
            assert client.answer().status == 200
        assert len(upstream.requests) == 1
    else:
        refused(sidecar.ask(get(JSON, method="POST")), code)
        assert upstream.requests == []


TYPES = [
    ("none", ("X-A: b",)),
    ("text", ("Content-Type: text/plain",)),
    ("UTF-16", ("Content-Type: application/json; charset=utf-16",)),
    ("a form", ("Content-Type: multipart/form-data; boundary=x",)),
    ("gzip", (JSON, "Content-Encoding: gzip")),
    ("gzip, spelled otherwise", (JSON, "Content_Encoding: gzip")),
]


@pytest.mark.parametrize(("name", "lines"), TYPES, ids=[case[0] for case in TYPES])
def test_another_type_is_refused_before_the_body(
    name: str, lines: tuple[str, ...], sidecar: Sidecar, upstream: Recording
) -> None:
    raw = post(rpc(), *lines)
    refused(sidecar.ask(raw), "mcp.media_type")
    with sidecar.open() as client:
        client.send(
            raw.partition(b"\r\n\r\n")[0].replace(b"Host", b"Expect: 100-continue\r\nHost")
            + b"\r\n\r\n"
        )
        answer = client.answer()
        refused(answer, "mcp.media_type")
        assert answer.closes
    assert upstream.requests == []


MIRRORS = [
    ("the same", ("Mcp-Method: tools/call", "Mcp-Name: get_issue"), ""),
    ("another method", ("Mcp-Method: ping",), "mcp.header_mismatch"),
    ("another name", ("Mcp-Name: set_issue",), "mcp.header_mismatch"),
    ("another name, spelled otherwise", ("Mcp_Name: set_issue",), "mcp.header_mismatch"),
    ("twice", ("Mcp-Name: get_issue", "Mcp-Name: get_issue"), "mcp.header_mismatch"),
]


@pytest.mark.parametrize(("name", "lines", "code"), MIRRORS, ids=[case[0] for case in MIRRORS])
def test_headers_say_what_the_body_says(
    name: str, lines: tuple[str, ...], code: str, sidecar: Sidecar, upstream: Recording
) -> None:
    answer = sidecar.ask(post(rpc(), JSON, *lines))
    assert answer.code == code
    assert len(upstream.requests) == (0 if code else 1)


def padded(size: int) -> bytes:
    body = rpc(params={"name": "get_a", "arguments": {"x": ""}})
    return body.replace(b'""', b'"' + b"x" * (size - len(body)) + b'"')


def test_the_limit_of_a_message(sidecar: Sidecar, upstream: Recording) -> None:
    fits, too_large = padded(LIMIT), padded(LIMIT + 1)
    assert sidecar.ask(post(fits)).status == 200
    assert sidecar.ask(chunked(fits[:5000], fits[5000:])).status == 200
    assert [
        dechunk(r.body) if r.values("transfer-encoding") else r.body for r in upstream.requests
    ] == [fits] * 2
    upstream.requests.clear()
    refused(sidecar.ask(post(too_large)), "request.body_too_large")
    refused(sidecar.ask(chunked(too_large)), "request.body_too_large")
    with sidecar.open() as client:  # a length that is only announced
        client.send(post(b"", JSON).replace(b"Content-Length: 0", b"Content-Length: 99999999999"))
        answer = client.answer()
        refused(answer, "request.body_too_large")
        assert answer.closes
    with sidecar.open() as client:  # chunks that do not end
        client.send(chunked(b"x" * (LIMIT - 10)).removesuffix(b"0\r\n\r\n"))
        time.sleep(0.01)
        client.send(b"14\r\n" + b"x" * 20 + b"\r\n")
        answer = client.answer()
        refused(answer, "request.body_too_large")
        assert answer.closes
    assert upstream.requests == []


def test_an_expectation_is_met_here(sidecar: Sidecar, upstream: Recording) -> None:
    body = rpc()
    raw = post(body, JSON, "Expect: 100-continue")
    with sidecar.open() as client:
        client.send(raw.removesuffix(body))
        assert client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert upstream.requests == []
        client.send(body)
        assert client.answer().status == 200
        client.send(raw)  # who does not wait gets no interim answer
        assert client.answer().status == 200
    assert [request.values("expect") for request in upstream.requests] == [[], []]


def test_a_message_that_stalls(sidecar: Sidecar, upstream: Recording) -> None:
    with sidecar.open() as client:
        client.send(post(rpc())[:-5])
        answer = client.answer()
        refused(answer, "request.timeout")
        assert answer.closes
    with sidecar.open() as client:
        client.send(post(rpc())[:-5])
        client.half_close()
        assert client.ended()
    assert upstream.requests == []


def test_chunks_that_are_none_within_a_message(sidecar: Sidecar, upstream: Recording) -> None:
    with sidecar.open() as client:
        client.send(chunked(rpc())[:-7] + b"x\r\n0\r\n\r\n")
        refused(client.answer(), "request.body_malformed")
    assert upstream.requests == []


def test_a_message_of_any_size_is_sent_again_after_a_challenge(
    sidecar: Sidecar, upstream: Recording
) -> None:
    """RFC 9449 §9: the target wants a nonce; the body is still here."""
    body = padded(LIMIT)
    upstream.replies(
        b'HTTP/1.1 401 Unauthorized\r\nDPoP-Nonce: n1\r\nWWW-Authenticate: DPoP error="use_dpop_nonce"'
        b"\r\nContent-Length: 0\r\n\r\n"
    )
    upstream.replies(json_answer(RESULT))
    assert sidecar.ask(post(body, path="/b/mcp")).body == RESULT
    assert [request.body for request in upstream.requests] == [body, body]


def test_other_paths_and_methods_are_as_ever(sidecar: Sidecar, upstream: Recording) -> None:
    upstream.answer = b"HTTP/1.1 200 OK\r\nETag: a\r\nContent-Length: 9\r\n\r\n" + b'"tools":1'
    for raw in (post(b"[]", path="/t/other"), get(path="/t/other"), get(method="DELETE")):
        answer = sidecar.ask(raw.replace(b"Host: h", b"Host: h\r\nAccept-Encoding: gzip"))
        assert (answer.body, answer.values("etag")) == (b'"tools":1', ["a"])
    sent = [request.values("accept-encoding") for request in upstream.requests]
    assert sent == [["gzip"], ["gzip"], ["identity"]]
    refused(sidecar.ask(get(method="PUT")), "route.no_match")


# --- answers --------------------------------------------------------------------------------------


def listing(*names: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "result": {"tools": [{"name": name} for name in names]}}


LISTED = json.dumps(listing("get_a", "set_a", "get_b")).encode()
LIST = post(rpc("tools/list"), JSON, "Accept-Encoding: gzip", "Range: bytes=0-9")


def tools_in(body: bytes) -> list[str]:
    return [tool["name"] for tool in json.loads(body)["result"]["tools"]]


def test_a_list_in_json(sidecar: Sidecar, upstream: Recording) -> None:
    framings = [
        json_answer(LISTED, 'ETag: "a"', "Content-Digest: x", "X-A: b", "Set-Cookie: c=d"),
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (LISTED[:30], LISTED[30:]))
        + b"0\r\n\r\n",
        json_answer(LISTED, "X-A: b", status="400 Bad Request"),
    ]
    with sidecar.open() as client:
        for raw in framings:
            upstream.replies(raw)
            client.send(LIST)
            answer = client.answer()
            assert tools_in(answer.body) == ["get_a", "get_b"]
            assert answer.values("content-length") == [str(len(answer.wire))]
            assert answer.values("x-a") == ["b"]
            assert answer.values("etag") == answer.values("content-digest") == []
    assert len(upstream.wires) <= 1  # framing was read to its end, so it is used again
    for request in upstream.requests:
        assert request.values("accept-encoding") == ["identity"]
        assert request.values("range") == []


def test_a_list_that_nobody_asked_for(sidecar: Sidecar, upstream: Recording) -> None:
    """Two requests under one id: the answer to one may come as the other's."""
    upstream.replies(json_answer(LISTED))
    assert tools_in(sidecar.ask(post(rpc())).body) == ["get_a", "get_b"]
    upstream.replies(events(b"{}", LISTED), then="close")
    answer = sidecar.ask(post(rpc()))
    assert b"get_b" in answer.body
    assert b"set_a" not in answer.body


def test_a_list_that_ends_with_its_connection(sidecar: Sidecar, upstream: Recording) -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + LISTED
    upstream.replies(raw, then="close")
    assert tools_in(sidecar.ask(LIST).body) == ["get_a", "get_b"]
    upstream.replies(raw, then="reset")
    refused(sidecar.ask(LIST), "target.closed")


def test_a_list_for_http_1_0(sidecar: Sidecar, upstream: Recording) -> None:
    upstream.replies(json_answer(LISTED))
    answer = sidecar.ask(post(rpc("tools/list"), version="1.0"))
    assert tools_in(answer.body) == ["get_a", "get_b"]
    assert answer.closes
    upstream.replies(events(LISTED), then="close")
    answer = sidecar.ask(post(rpc("tools/list"), version="1.0"))
    assert not answer.chunked
    assert tools_in(answer.body.partition(b"data: ")[2]) == ["get_a", "get_b"]


UNREADABLE = [
    ("a twin", json_answer(b'{"result":{"tools":[],"tools":[{"name":"set_a"}]}}')),
    ("no JSON", json_answer(LISTED + b"x")),
    ("encoded", json_answer(LISTED, "Content-Encoding: gzip")),
    ("partial", json_answer(LISTED, status="206 Partial Content")),
    ("another charset", json_answer(LISTED).replace(b"/json", b"/json; charset=utf-16")),
    ("another type", json_answer(LISTED).replace(b"application/json", b"text/plain")),
    ("too large", json_answer(LISTED.ljust(LIMIT + 1))),
    ("chunks that are none", b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"),
    ("a twin in an event", b'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 58\r\n\r\ndata: {"result":{"tools":[],"tools":[{"name":"set_a"}]}}\n\n'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "raw"), UNREADABLE, ids=[case[0] for case in UNREADABLE])
def test_a_list_that_can_t_be_read_is_refused(
    name: str, raw: bytes, sidecar: Sidecar, upstream: Recording
) -> None:
    used: list[Wire] = []

    def run(wire: Wire) -> None:
        used.append(wire)
        wire.request()
        wire.send(raw)

    upstream.script(run)
    with sidecar.open() as client:
        client.send(LIST)
        answer = client.answer()
        refused(answer, "target.bad_response")
        assert b"set_a" not in answer.wire
        calls = used[0].recorded.count(b"POST /mcp")
        client.send(post(rpc()))  # nothing of it was sent, so the workload's connection goes on
        assert client.answer().status == 200
    assert used[0].recorded.count(b"POST /mcp") == calls  # the target's does not


def test_an_answer_that_stalls_before_it_is_whole(sidecar: Sidecar, upstream: Recording) -> None:
    over = threading.Event()

    def run(wire: Wire) -> None:
        wire.request()
        wire.send(json_answer(LISTED)[:-5])
        over.wait(10)

    upstream.script(run)
    refused(sidecar.ask(LIST), "target.timeout")
    over.set()


def test_a_large_answer_without_a_list_streams(sidecar: Sidecar, upstream: Recording) -> None:
    large = b'{"jsonrpc":"2.0","id":1,"result":{"content":"' + b"x" * LIMIT * 3 + b'"}}'
    gate = threading.Event()

    def run(wire: Wire) -> None:
        wire.request()
        raw = json_answer(large)
        wire.send(raw[: LIMIT * 2])
        gate.wait(10)
        wire.send(raw[LIMIT * 2 :])

    upstream.script(run)
    with sidecar.open() as client:
        client.send(post(rpc()))
        client.seen(b"x" * LIMIT)  # before the target has sent the rest
        gate.set()
        assert client.answer().body == large


def events(*messages: bytes, more: bytes = b"") -> bytes:
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n" + more
    )
    return head + b"\r\n" + b"".join(b"event: message\r\ndata: %b\r\n\r\n" % m for m in messages)


def test_a_stream_flows_and_its_lists_are_cut_down(sidecar: Sidecar, upstream: Recording) -> None:
    steps = [threading.Event() for _ in range(4)]
    pieces = [
        events(more=b"Transfer-Encoding: chunked\r\n"),
        b": ping\r\n\r\n",
        b'event: message\r\nid: 1\r\ndata: {"method":"notifications/progress"}\r\n\r\n',
        b"id: 2\r\ndata: " + LISTED + b"\r\n\r\n",
    ]

    def run(wire: Wire) -> None:
        upstream.requests.append(wire.request())  # type: ignore[arg-type]
        wire.send(pieces[0])
        for step, piece in zip(steps, pieces[1:], strict=False):
            step.wait(10)
            wire.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        steps[3].wait(10)
        wire.send(b"0\r\n\r\n")

    for raw in (
        LIST,
        get("Accept: text/event-stream", "Last-Event-ID: 0", "Accept-Encoding: gzip"),
    ):
        for step in steps:
            step.clear()
        upstream.script(run)
        with sidecar.open() as client:
            client.send(raw)
            head = client.until(b"\r\n\r\n")  # at once, without any event
            assert b"\r\ntransfer-encoding: chunked\r\n" in head
            for step, piece in zip(steps, pieces[1:3], strict=False):
                step.set()
                assert client.until(piece + b"\r\n").endswith(piece + b"\r\n")
            steps[2].set()
            event = client.until(b"\r\n\r\n\r\n")
            assert b"set_a" not in event
            assert b"id: 2\r\ndata: " in event
            assert tools_in(event.partition(b"data: ")[2].partition(b"\r\n")[0]) == [
                "get_a",
                "get_b",
            ]
            steps[3].set()
            assert client.until(b"0\r\n\r\n") == b"0\r\n\r\n"
            client.send(post(rpc()))
            assert client.answer().body == RESULT
    head = upstream.requests[2][0]  # type: ignore[index]
    assert head.startswith(b"GET /mcp HTTP/1.1")
    assert b"Last-Event-ID: 0" in head
    assert b"Accept-Encoding: gzip" not in head
    assert b"accept-encoding: identity" in head


def test_a_stream_with_a_list_that_can_t_be_read_is_cut(
    sidecar: Sidecar, upstream: Recording
) -> None:
    twin = b'{"result":{"tools":[],"tools":[{"name":"set_a"}]}}'
    for raw in (LIST, get("Accept: text/event-stream")):

        def run(wire: Wire) -> None:
            wire.request()
            wire.send(events(b"{}"))
            time.sleep(0.02)
            wire.send(b"data: " + twin + b"\r\n\r\n")

        upstream.script(run)
        with sidecar.open() as client:
            client.send(raw)
            assert client.broken()
            assert b"set_a" not in client.recorded
            assert b"data: {}" in client.recorded


@pytest.mark.parametrize("kind", ["json", "events", "large"])
def test_a_credential_that_is_sent_back_is_overwritten(
    kind: str, sidecar: Sidecar, upstream: Recording
) -> None:
    tokens: list[bytes] = []

    def run(wire: Wire) -> None:
        head, _ = wire.request()
        token = head.partition(b"authorization: Bearer ")[2].partition(b"\r\n")[0]
        tokens.append(token)
        body = b'{"error":"what do you mean by %b?","x":"%b"}' % (
            token, b"y" * (2 * LIMIT if kind == "large" else 0),
        )  # fmt: skip
        raw = events(body) if kind == "events" else json_answer(body)
        cut = raw.index(token) + 20
        wire.send(raw[:cut])
        time.sleep(0.01)
        wire.send(raw[cut:])
        if kind == "events":
            wire.close()

    upstream.script(run)
    answer = sidecar.ask(post(rpc()))
    [token] = tokens
    assert len(token) > 100
    assert b"what do you mean by %b?" % (b"*" * len(token)) in answer.body
    assert token not in answer.wire


def metric(sidecar: Sidecar, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{sidecar.admin}/metrics") as page:
        metrics = page.read().decode()
    return float(metrics.partition(f"\n{name} ")[2].split()[0])


def test_hidden_tools_are_counted(sidecar: Sidecar, upstream: Recording) -> None:
    before = metric(sidecar, "valetkey_mcp_hidden_tools_total")
    upstream.replies(json_answer(LISTED))
    sidecar.ask(LIST)
    assert metric(sidecar, "valetkey_mcp_hidden_tools_total") == before + 1


def test_messages_are_bounded_all_together(sidecar: Sidecar, upstream: Recording) -> None:
    """Requests that come slowly, an answer that does: all count, and all are given free."""
    size, over = LIMIT - 100, threading.Event()

    def held() -> float:
        return metric(sidecar, "valetkey_mcp_message_bytes")

    def slowly(wire: Wire) -> None:
        wire.request()
        wire.send(json_answer(b"x" * LIMIT)[: size + 100])
        over.wait(10)

    assert held() == 0
    waiting = [sidecar.open() for _ in range(2)]
    for client in waiting:
        client.send(post(padded(LIMIT))[: size + 100])
    upstream.script(slowly)
    third = sidecar.open()
    third.send(post(rpc()))
    upstream.wait_for(lambda: held() > 2.9 * size)
    for raw in (post(padded(size)), chunked(padded(size))):
        answer = sidecar.ask(raw)
        refused(answer, "proxy.overloaded")
        assert answer.values("retry-after") == ["1"]
    assert sidecar.ask(get(path="/t/other")).status == 200  # other calls are not concerned
    for client in waiting:
        client.close()
    over.set()
    third.close()
    upstream.wait_for(lambda: held() == 0)
    assert sidecar.ask(post(padded(size))).status == 200
    assert held() == 0
