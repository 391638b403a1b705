"""The decision where the body decides too: what is asked for, and what comes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.proxy.core.conftest import compiled, route, tree
from valetkey.contracts import codes
from valetkey.contracts.codes import Code
from valetkey.proxy.core.decision import (
    Deny,
    NeedsCredential,
    NeedsMessage,
    Principal,
    RequestFacts,
    decide,
)
from valetkey.proxy.core.json_rpc import Message
from valetkey.proxy.core.snapshot import Snapshot

BOT = Principal("https://idp.example", "bot", 3)


def mcp(
    name: str, methods: list[str], tools: list[str] | None = None, **more: Any
) -> dict[str, Any]:
    path = more.pop("path", "/mcp")
    match = {"path": path, "mcp": {"methods": methods} | ({"tools": tools} if tools else {})}
    return route(name, path, **more) | {"match": match}


ROUTES = [
    mcp("base", ["initialize", "notifications/*", "tools/list"]),
    mcp("create", ["tools/call"], ["create_*", "get_issue"], per_request=True),
    mcp("two", ["ping"], path="/{name}/mcp"),
    route("stream", "/mcp"),
    route("end", "/{rest*}", methods=["DELETE", "POST"]),
]


@pytest.fixture
def endpoints() -> Snapshot:
    return compiled(tree(routes=ROUTES))


def ask(
    snapshot: Snapshot, method: str, path: str, message: Message | None = None
) -> NeedsCredential | NeedsMessage | Deny:
    path, mark, query = path.partition("?")
    facts = RequestFacts(method, "tickets.local", path, query if mark else None)
    facts.message = message
    return decide(facts, snapshot, BOT)


def test_the_message_is_asked_for_before_anything_else(endpoints: Snapshot) -> None:
    asked = ask(endpoints, "POST", "/mcp?access_token=x")
    assert isinstance(asked, NeedsMessage)
    assert (asked.path, asked.target.name) == ("/mcp", "tickets")
    assert asked.endpoint.limit == 1 << 20
    assert asked.facts.path == "/mcp"


ALLOWED = [
    ("POST", "/mcp", Message("initialize"), "base", True),
    ("POST", "/mcp", Message("notifications/cancelled"), "base", True),
    ("POST", "/mcp", Message("tools/call", "create_issue"), "create", True),
    ("POST", "/%6dcp", Message("tools/call", "get_issue"), "create", True),
    ("POST", "/x/mcp", Message("ping"), "two", True),
    ("POST", "/other", None, "end", False),
    ("GET", "/mcp", None, "stream", True),
    ("DELETE", "/mcp", None, "end", True),
    ("DELETE", "/x/mcp", None, "end", True),
    ("DELETE", "/other", None, "end", False),
]


@pytest.mark.parametrize(("method", "path", "message", "route_id", "on_endpoint"), ALLOWED)
def test_which_route_it_is(
    method: str,
    path: str,
    message: Message | None,
    route_id: str,
    on_endpoint: bool,
    endpoints: Snapshot,
) -> None:
    needs = ask(endpoints, method, path, message)
    assert isinstance(needs, NeedsCredential)
    assert needs.route.id == route_id
    assert (needs.endpoint is not None) is on_endpoint


DENIED: list[tuple[str, str, Message | None, Code]] = [
    ("POST", "/mcp", Message("tools/call", "delete_issue"), codes.MCP_NO_MATCH),
    ("POST", "/mcp", Message("ping"), codes.MCP_NO_MATCH),  # of the other endpoint
    ("POST", "/x/mcp", Message("initialize"), codes.MCP_NO_MATCH),
    ("POST", "/mcp", Message("response"), codes.MCP_NO_MATCH),
    ("POST", "/mcp;x", None, codes.REQUEST_AMBIGUOUS_PATH),
    ("POST", "/mcp?a\x01", Message("initialize"), codes.REQUEST_MALFORMED),
    ("PUT", "/mcp", None, codes.ROUTE_NO_MATCH),
]


@pytest.mark.parametrize(("method", "path", "message", "code"), DENIED)
def test_what_is_refused(
    method: str, path: str, message: Message | None, code: Code, endpoints: Snapshot
) -> None:
    deny = ask(endpoints, method, path, message)
    assert isinstance(deny, Deny)
    assert deny.code is code
    assert deny.target is not None


def test_details_name_what_the_route_allows(endpoints: Snapshot) -> None:
    by_id = {each.id: json.loads(each.details)[0] for each in endpoints.routes}
    assert by_id["base"]["actions"] == ["POST"]
    assert by_id["base"]["mcp"] == {"methods": ["initialize", "notifications/*", "tools/list"]}
    assert by_id["create"]["mcp"] == {"methods": ["tools/call"], "tools": ["create_*", "get_issue"]}
    assert "mcp" not in by_id["stream"]
    every = compiled(tree(routes=[mcp("a", ["*"])])).routes[0]
    assert json.loads(every.details)[0]["mcp"] == {"methods": ["*"], "tools": ["*"]}


def test_details_of_one_request_name_the_tool(endpoints: Snapshot) -> None:
    needs = ask(endpoints, "POST", "/mcp", Message("tools/call", "create_issue"))
    assert isinstance(needs, NeedsCredential)
    [details] = json.loads(needs.key.details)
    assert details["mcp"] == {"methods": ["tools/call"], "tools": ["create_issue"]}
    assert (details["exact"], details["path"], details["actions"]) == (True, "/mcp", ["POST"])
    listed = compiled(tree(routes=[mcp("a", ["tools/list"], per_request=True)]))
    needs = ask(listed, "POST", "/mcp", Message("tools/list"))
    assert isinstance(needs, NeedsCredential)
    assert json.loads(needs.key.details)[0]["mcp"] == {"methods": ["tools/list"]}


def test_headers_of_calls_on_an_endpoint(endpoints: Snapshot) -> None:
    asked = ask(endpoints, "POST", "/mcp")
    assert isinstance(asked, NeedsMessage)
    usual, endpoint = asked.target.headers, asked.endpoint
    hidden = {"accept-encoding", "range", "if-range"}
    assert endpoint.stream_headers.dropped == usual.dropped | hidden
    assert endpoint.headers.dropped == usual.dropped | hidden | {"expect"}
    assert endpoint.headers.managed == usual.managed
    assert endpoint.headers.refused == usual.refused
    assert endpoint.headers.subject == usual.subject


def test_one_endpoint_for_one_path_however_it_is_written() -> None:
    routes = [mcp("a", ["ping"], path="/{x}/mcp"), mcp("b", ["initialize"], path="/{y}/mcp")]
    made = compiled(tree(routes=routes))
    for method, route_id in (("ping", "a"), ("initialize", "b")):
        needs = ask(made, "POST", "/t/mcp", Message(method))
        assert isinstance(needs, NeedsCredential)
        assert needs.route.id == route_id


def test_the_narrower_path_decides_alone() -> None:
    routes = [mcp("wide", ["*"], path="/{x}/mcp"), mcp("narrow", ["ping"], path="/a/mcp")]
    made = compiled(tree(routes=routes))
    assert isinstance(ask(made, "POST", "/b/mcp", Message("tools/call", "x")), NeedsCredential)
    deny = ask(made, "POST", "/a/mcp", Message("tools/call", "x"))
    assert isinstance(deny, Deny)
    assert deny.code is codes.MCP_NO_MATCH


@pytest.mark.parametrize(("method", "route_id"), [("POST", None), ("GET", "socket")])
def test_nothing_is_switched_where_answers_are_looked_through(
    method: str, route_id: str | None
) -> None:
    """Neither by a message nor on a route beside the endpoint that lists the protocol."""
    routes = [mcp("base", ["ping"]), route("socket", "/mcp", upgrade=["websocket"])]
    facts = RequestFacts(method, "tickets.local", "/mcp", protocol="websocket")
    verdict = decide(facts, compiled(tree(routes=routes)), BOT)
    assert isinstance(verdict, Deny)
    assert verdict.code is codes.REQUEST_UPGRADE
    assert (verdict.route.id if verdict.route else None) == route_id


@pytest.mark.parametrize(
    ("method", "path", "denied"),
    [
        ("POST", "/MCP", True),
        ("POST", "/mcp/", True),
        ("GET", "/MCP", True),  # an event stream whose lists of tools nobody would look through
        ("DELETE", "/mcp/", True),
        ("GET", "/mcp;x=1", True),
        ("DELETE", "/mcp%3Bx", True),
        ("GET", "/mcp", False),
        ("GET", "/mcps", False),
    ],
)
@pytest.mark.parametrize("wide", [["GET", "DELETE"], ["GET", "DELETE", "POST"]])
@pytest.mark.parametrize("tells_apart", [[], ["case"], ["last_slash"], ["case", "last_slash"]])
def test_no_way_around_an_endpoint_by_another_spelling(
    method: str, path: str, denied: bool, wide: list[str], tells_apart: list[str]
) -> None:
    """Of a spelling that the target takes for the same; a path parameter is one to all of them."""
    document = tree(routes=[mcp("base", ["initialize"]), route("all", "/{rest*}", methods=wide)])
    document["targets"]["tickets"]["tells_apart"] = tells_apart
    denied = (
        denied
        and not (path == "/MCP" and "case" in tells_apart)
        and not (path == "/mcp/" and "last_slash" in tells_apart)
    )
    if not denied and method not in wide:
        assert ask(compiled(document), method, path).code is codes.ROUTE_NO_MATCH
        return
    verdict = ask(compiled(document), method, path)
    if not denied:
        assert isinstance(verdict, NeedsCredential)
        return
    assert isinstance(verdict, Deny)
    lax = method != "POST" or "POST" in wide
    assert verdict.code is (codes.REQUEST_AMBIGUOUS_PATH if lax else codes.ROUTE_NO_MATCH)


def test_another_spelling_is_another_path_where_the_target_says_so() -> None:
    document = tree(routes=[mcp("base", ["initialize"]), route("all", "/{rest*}")])
    document["targets"]["tickets"]["tells_apart"] = ["case"]
    assert isinstance(ask(compiled(document), "GET", "/MCP"), NeedsCredential)
    assert isinstance(ask(compiled(document), "GET", "/mcp/"), Deny)
