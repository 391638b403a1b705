"""One message of MCP: what it is taken for, what is refused, and that all readers agree."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.contracts import codes
from valetkey.contracts.codes import Code
from valetkey.contracts.errors import CallerError
from valetkey.proxy.core.json_rpc import check_media_type, check_mirrors, read_message


def rpc(method: str = "tools/call", **members: Any) -> dict[str, Any]:
    message: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": method}
    if method == "tools/call":
        message["params"] = {"name": "create_issue", "arguments": {"title": "x"}}
    return message | members


def raw(message: Any) -> bytes:
    return message if isinstance(message, bytes) else json.dumps(message).encode()


READ: list[tuple[str, Any, str, str]] = [
    ("a call", rpc(), "tools/call", "create_issue"),
    ("a call, escaped", rb'{"jsonrpc":"2.0","id":1,"\u006dethod":"tools\/call","params":{"n\u0061me":"cre\u0061te"}}', "tools/call", "create"),
    ("a call as a notification", {"jsonrpc": "2.0", "method": "tools/call", "params": {"name": "a"}}, "tools/call", "a"),
    ("a call with a text as id", rpc(id="x"), "tools/call", "create_issue"),
    ("a list", rpc("tools/list"), "tools/list", ""),
    ("a list with a cursor", rpc("tools/list", params={"cursor": "a"}), "tools/list", ""),
    ("a notification", {"jsonrpc": "2.0", "method": "notifications/initialized"}, "notifications/initialized", ""),
    ("params by position", rpc("eth_call", params=[1, 2]), "eth_call", ""),
    ("a prompt", rpc("prompts/get", params={"name": "p"}), "prompts/get", ""),
    ("a name elsewhere", rpc("x", params={"name": "create_issue"}), "x", ""),
    ("names in arguments are free", rpc(params={"name": "a", "arguments": {"Name": 1, "method": 2, "jsonrpc": 3}}), "tools/call", "a"),
    ("a result", {"jsonrpc": "2.0", "id": 1, "result": {"tools": []}}, "response", ""),
    ("an error", {"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": ""}}, "response", ""),
    ("an error to nothing", {"jsonrpc": "2.0", "id": None, "error": {"code": 1, "message": ""}}, "response", ""),
    ("members of other extensions", rpc("x", extra=1), "x", ""),
    ("a name with a space inside", rpc(params={"name": "Get Weather"}), "tools/call", "Get Weather"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "message", "method", "tool"), READ, ids=[c[0] for c in READ])
def test_read(name: str, message: Any, method: str, tool: str) -> None:
    read = read_message(raw(message))
    assert (read.method, read.tool) == (method, tool)


M, B = codes.MCP_MALFORMED, codes.MCP_BATCH
REFUSED: list[tuple[str, Any, Code, str]] = [
    ("nothing", b"", M, "not JSON"),
    ("a batch", [rpc()], B, "array"),
    ("an empty batch", [], B, "array"),
    ("a batch of one response", [{"jsonrpc": "2.0", "id": 1, "result": {}}], B, "array"),
    ("a text", "tools/call", M, "not an object"),
    ("null", None, M, "not an object"),
    ("no version", {"id": 1, "method": "ping"}, M, "jsonrpc"),
    ("version 1.0", rpc(jsonrpc="1.0"), M, "jsonrpc"),
    ("the version as a number", rpc(jsonrpc=2.0), M, "jsonrpc"),
    ("two methods", b'{"jsonrpc":"2.0","method":"ping","method":"tools/call"}', M, "twice"),
    ("two names", b'{"jsonrpc":"2.0","method":"tools/call","params":{"name":"a","name":"b"}}', M, "twice"),
    ("two names, escaped", rb'{"jsonrpc":"2.0","method":"tools/call","params":{"name":"a","\u006eame":"b"}}', M, "twice"),
    ("two params", b'{"jsonrpc":"2.0","method":"tools/call","params":{"name":"a"},"params":{"name":"b"}}', M, "twice"),
    ("a twin deep in the arguments", b'{"jsonrpc":"2.0","method":"tools/call","params":{"name":"a","arguments":{"x":[{"y":1,"y":2}]}}}', M, "twice"),
    ("Method beside method", rpc("ping", Method="tools/call"), M, "differs"),
    ("Method alone", {"jsonrpc": "2.0", "id": 1, "Method": "tools/call"}, M, "differs"),
    ("METHOD", rpc("ping", METHOD="tools/call"), M, "differs"),
    ("Params", rpc("ping", Params={}), M, "differs"),
    ("params with a long s", rpc("ping") | {"param\u017f": {}}, M, "differs"),
    ("jsonrpc with a NUL behind", rpc("ping", **{"jsonrpc\0": "2.0"}), M, "differs"),
    ("method with a NUL and more", rpc("ping", **{"method\0x": "tools/call"}), M, "differs"),
    ("method with a space", rpc("ping", **{" method": "tools/call"}), M, "differs"),
    ("Result", rpc("ping", Result={}), M, "differs"),
    ("Name beside name", rpc(params={"name": "a", "Name": "b"}), M, "differs"),
    ("name with a NUL", rpc(params={"name": "a", "name\0": "b"}), M, "differs"),
    ("Uri beside uri", rpc("resources/read", params={"uri": "a", "URI": "b"}), M, "differs"),
    ("request and result", rpc("ping", result={}), M, "at once"),
    ("request and error", rpc("ping", error=None), M, "at once"),
    ("neither", {"jsonrpc": "2.0", "id": 1}, M, "neither"),
    ("result and error", {"jsonrpc": "2.0", "id": 1, "result": 1, "error": {}}, M, "neither"),
    ("params and result", {"jsonrpc": "2.0", "id": 1, "result": 1, "params": {"name": "a"}}, M, "neither"),
    ("a result to nothing", {"jsonrpc": "2.0", "result": 1}, M, "without an id"),
    ("an error to an object", {"jsonrpc": "2.0", "id": {}, "error": {}}, M, "without an id"),
    ("null as id", rpc(id=None), M, "id is"),
    ("true as id", rpc(id=True), M, "id is"),
    ("a fraction as id", rpc(id=1.5), M, "id is"),
    ("null as method", rpc(None), M, "method is not a string"),  # type: ignore[arg-type]
    ("a list as method", rpc(["tools/call"]), M, "method is not a string"),  # type: ignore[arg-type]
    ("an empty method", rpc(""), M, "1 to 256"),
    ("a method with a NUL", rpc("tools/call\0"), M, "printable"),
    ("a method with a space", rpc(" tools/call"), M, "outer spaces"),
    ("a method in capitals", rpc("Tools/Call"), M, "another case"),
    ("the pseudo method", rpc("response"), M, "no method"),
    ("null as params", rpc("ping", params=None), M, "params"),
    ("a text as params", rpc("ping", params="a"), M, "params"),
    ("a call without params", {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}, M, "params.name is not"),
    ("a call by position", rpc(params=["create_issue"]), M, "params is not an object"),
    ("a call of nothing", rpc(params={"arguments": {}}), M, "params.name is not"),
    ("a call of a number", rpc(params={"name": 1}), M, "params.name is not"),
    ("a call of the empty name", rpc(params={"name": ""}), M, "params.name"),
    ("a name with a line end", rpc(params={"name": "a\n"}), M, "params.name"),
    ("a name that is turned round", rpc(params={"name": "a\u202eb"}), M, "params.name"),
    ("half a surrogate pair", rb'{"jsonrpc":"2.0","method":"tools/call","params":{"name":"a\ud800"}}', M, "surrogate"),
    ("a byte order mark", b"\xef\xbb\xbf" + raw(rpc()), M, "byte order"),
    ("two messages", raw(rpc("ping")) + raw(rpc()), M, "not JSON"),
    ("two messages by line", raw(rpc("ping")) + b"\n" + raw(rpc()), M, "not JSON"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message", "code", "reason"), REFUSED, ids=[case[0] for case in REFUSED]
)
def test_refused(name: str, message: Any, code: Code, reason: str) -> None:
    with pytest.raises(CallerError) as refused:
        read_message(raw(message))
    assert refused.value.code is code
    assert reason in refused.value.reason


def test_no_reason_holds_what_the_body_does() -> None:
    for body in (b'{"canary-of-the-body', b'{"a":"canary-of-the-body\\x"}', b"canary-of-the-body"):
        with pytest.raises(CallerError) as refused:
            read_message(body)
        assert "canary" not in str(refused.value)


# --- types and codings ----------------------------------------------------------------------------

TYPES: list[tuple[list[bytes], list[bytes], bool]] = [
    ([b"application/json"], [], True),
    ([b"Application/JSON"], [], True),
    ([b" application/json "], [b"identity"], True),
    ([b"application/json;charset=UTF-8"], [b" Identity "], True),
    ([b'application/json ; charset="utf-8"'], [], True),
    ([], [], False),
    ([b""], [], False),
    ([b"application/json", b"application/json"], [], False),
    ([b"application/json, text/plain"], [], False),
    ([b"text/plain"], [], False),
    ([b"application/jsonp"], [], False),
    ([b"application/json-rpc"], [], False),
    ([b"application/json;charset=utf-16"], [], False),
    ([b"application/json;charset=utf8"], [], False),
    ([b'application/json;charset="utf-8'], [], False),
    ([b"application/json;charset=utf-8;charset=utf-16"], [], False),
    ([b"application/json;boundary=x"], [], False),
    ([b"application/j son"], [], False),
    ([b"application/json"], [b"gzip"], False),
    ([b"application/json"], [b"identity", b"identity"], False),
    ([b"application/json"], [b"identity, gzip"], False),
    ([b"application/json"], [b""], False),
]


@pytest.mark.parametrize(("types", "codings", "taken"), TYPES)
def test_what_a_body_may_be(types: list[bytes], codings: list[bytes], taken: bool) -> None:
    if taken:
        check_media_type(types, codings)
        return
    with pytest.raises(CallerError) as refused:
        check_media_type(types, codings)
    assert refused.value.code is codes.MCP_MEDIA_TYPE


# --- headers that mirror the body -----------------------------------------------------------------


def sentinel(text: str) -> bytes:
    return b"=?base64?" + base64.b64encode(text.encode()) + b"?="


MIRRORS: list[tuple[str, Any, list[bytes], list[bytes], bool]] = [
    ("none", rpc(), [], [], True),
    ("both", rpc(), [b"tools/call"], [b"create_issue"], True),
    ("with spaces around", rpc(), [b" tools/call "], [b"\tcreate_issue "], True),
    ("encoded", rpc(), [], [sentinel("create_issue")], True),
    ("encoded, beyond ASCII", rpc(params={"name": "wetter_für_köln"}), [], [sentinel("wetter_für_köln")], True),
    ("a name that looks encoded", rpc(params={"name": "=?base64?YQ==?="}), [], [sentinel("=?base64?YQ==?=")], True),
    ("a uri", rpc("resources/read", params={"uri": "file:///a"}), [b"resources/read"], [b"file:///a"], True),
    ("of another method it may be anything", rpc("tasks/get", params={"taskId": "7"}), [], [b"7"], True),
    ("another method", rpc(), [b"tools/list"], [], False),
    ("the method in another case", rpc(), [b"Tools/Call"], [], False),
    ("the method twice", rpc(), [b"tools/call", b"tools/call"], [], False),
    ("two methods in one", rpc(), [b"tools/call, tools/list"], [], False),
    ("another name", rpc(), [], [b"get_issue"], False),
    ("another name, encoded", rpc(), [], [sentinel("get_issue")], False),
    ("the name twice", rpc(), [], [b"create_issue"] * 2, False),
    ("an empty name", rpc(), [], [b""], False),
    ("broken base64", rpc(), [], [b"=?base64?Y3JlYXRlX2lzc3Vl=?="], False),
    ("base64 with bits left over", rpc(params={"name": "a"}), [], [b"=?base64?YR==?="], False),
    ("base64 of no UTF-8", rpc(), [], [b"=?base64?/w==?="], False),
    ("a name that looks encoded, raw", rpc(params={"name": "=?base64?YQ==?="}), [], [b"=?base64?YQ==?="], False),
    ("another uri", rpc("resources/read", params={"uri": "file:///a"}), [], [b"file:///b"], False),
    ("a prompt without a name", rpc("prompts/get", params={}), [], [b"p"], False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message", "methods", "names", "agrees"), MIRRORS, ids=[case[0] for case in MIRRORS]
)
def test_mirrors(
    name: str, message: Any, methods: list[bytes], names: list[bytes], agrees: bool
) -> None:
    read = read_message(raw(message))
    if agrees:
        check_mirrors(read, methods, names)
        return
    with pytest.raises(CallerError) as refused:
        check_mirrors(read, methods, names)
    assert refused.value.code is codes.MCP_HEADER_MISMATCH


# --- all readers agree ----------------------------------------------------------------------------

keys = st.sampled_from(
    [
        "jsonrpc",
        "id",
        "method",
        "params",
        "result",
        "error",
        "Method",
        "METHOD",
        "name",
        "Name",
        "x",
    ]
)
scalars = st.sampled_from(["2.0", "tools/call", "ping", "a", "b", "", 1, None, True])


def written(pairs: list[tuple[str, Any]]) -> str:
    """An object as text, with names that come twice."""
    return "{" + ",".join(f"{spelt(key)}:{value}" for key, value in pairs) + "}"


def spelt(key: str) -> str:
    text = json.dumps(key)
    return text.replace("a", "\\u0061") if len(key) % 2 else text


inner = st.lists(st.tuples(keys, scalars.map(json.dumps)), max_size=4).map(written)
messages = st.lists(
    st.one_of(
        st.tuples(keys, scalars.map(json.dumps) | inner),
        st.just(("jsonrpc", '"2.0"')),
        st.tuples(st.just("method"), st.sampled_from(['"tools/call"', '"ping"'])),
        st.tuples(st.just("params"), st.sampled_from(['{"name":"a"}', '{"name":"b"}'])),
    ),
    max_size=6,
).map(written)


def _first(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


def _folded(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """As Go's encoding/json reads into a struct: without case, the last one wins."""
    return {key.casefold(): value for key, value in pairs}


@given(messages)
def test_whatever_is_read_every_reader_reads_so(text: str) -> None:
    body = text.encode()
    try:
        message = read_message(body)
    except CallerError:
        return
    readings = [
        json.loads(body),
        json.loads(body, object_pairs_hook=_first),
        msgspec.json.decode(body),
        json.loads(body, object_pairs_hook=_folded),
    ]
    for reading in readings:
        method = reading.get("method", "response")
        tool = reading["params"]["name"] if method == "tools/call" else ""
        assert (method, tool) == (message.method, message.tool)
