"""Two layers of settings: what of an owner's is taken, and that it never lets more out."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tests.unit.proxy.core.conftest import THUMBPRINT, compiled, route, tree
from tests.unit.proxy.core.test_routing import fits
from valetkey.contracts import codes
from valetkey.contracts import settings as loader
from valetkey.contracts.errors import ConfigError
from valetkey.proxy.core.decision import (
    Deny,
    NeedsCredential,
    NeedsMessage,
    Principal,
    RequestFacts,
    decide,
    decide_tunnel,
)
from valetkey.proxy.core.json_rpc import Message
from valetkey.proxy.core.narrowing import Withheld, closed, narrow
from valetkey.proxy.core.path import split_path
from valetkey.proxy.core.snapshot import Route, Snapshot
from valetkey.proxy.settings import OwnerFileSettings

BOT = Principal("https://idp.example", "bot")
HOST = "tickets.local"
Result = NeedsCredential | NeedsMessage | Deny


def owner(*routes: dict[str, Any], **more: Any) -> OwnerFileSettings:
    text = json.dumps({"routes": routes, **more})
    return loader.parse(OwnerFileSettings, text, name="routes.yaml", program="proxy")


def within(name: str, path: str | None = None, **more: Any) -> dict[str, Any]:
    match = more.pop("match", {}) | ({} if path is None else {"path": path})
    return {"within": name, **({"match": match} if match else {}), **more}


def mcp(name: str, methods: list[str], tools: list[str] | None = None, path: str = "/mcp") -> Any:
    match = {"path": path, "mcp": {"methods": methods} | ({"tools": tools} if tools else {})}
    return route(name, path) | {"match": match}


def narrowed(
    operator: Snapshot, *routes: dict[str, Any], targets: list[str] | None = None, **more: Any
) -> tuple[Snapshot, tuple[Withheld, ...]]:
    return narrow(operator, owner(*routes, **more), targets, thumbprint=THUMBPRINT)


def ask(
    snapshot: Snapshot,
    method: str,
    path: str,
    message: Message | None = None,
    protocol: str = "",
) -> Result:
    facts = RequestFacts(method, HOST, path, protocol=protocol)
    facts.message = message
    return decide(facts, snapshot, BOT)


def code_of(result: Result) -> str:
    return result.code.name if isinstance(result, Deny) else type(result).__name__


# --- named cases ----------------------------------------------------------------------------------

OPERATOR = tree(
    routes=[
        route("read", "/api/{rest*}", methods=["GET", "HEAD"], scopes=["t:read", "t:list"]),
        route("export", "/api/export/{id}", scopes=["t:export"], approval={"hold": "10s"}),
        route("write", "/api/{rest*}", methods=["POST"], scopes=["t:write"], per_request=True),
        route("any-b", "/q/{x}/b"),
        route("any", "/q/{rest*}"),
        route("live", "/live", upgrade=["websocket"], audit="durable"),
        route(
            "bounded", "/bounded",
            limits={"body_size": "1KiB", "body_rate": "1KiB", "headers": 10},
            timeouts={"first_byte": "5s"},
        ),
        route("looked-through", "/looked", scrub_answers=True, spool_full="record_gap"),
        mcp("tools", ["*"], ["*"]),
        mcp("create", ["tools/call"], ["create_*"]),
        route("pay", "/v1/{rest*}", target="pay"),
    ],
    passthrough=[
        {"host": "*.example.org"}, {"host": "a.example.org"}, {"host": "b.example.net"},
    ],
)  # fmt: skip

WIDER = {
    "no such route": (within("nobody"), "routes.0", "no route 'nobody'"),
    "a path outside": (within("read", "/other"), "routes.0.match", "nothing has all"),
    "a path that is partly outside": (within("export", "/api/{a}/{b}"), "routes.0.match", "'read'"),
    "a path around it": (within("export", "/api/{rest*}"), "routes.0.match", "'read'"),
    "a path of a narrower route": (within("read", "/api/export/7"), "routes.0.match", "'export'"),
    "of a narrower route to a lax reader": (within("read", "/api/EXPORT/{id}"), "routes.0.match", "without regard to case"),
    "its last slash": (within("read", "/api/export/{id}/"), "routes.0.match", "without regard to case"),
    "its parameters": (within("read", "/api/export;v=1/{id}"), "routes.0.match", "path parameters"),
    "across a narrower route": (within("any", "/q/a/{y}"), "routes.0.match", "lie across"),
    "another method": (within("read", match={"methods": ["GET", "DELETE"]}), "routes.0.match.methods", "DELETE"),
    "another scope": (within("read", scopes=["t:read", "t:admin"]), "routes.0.scopes", "t:admin"),
    "a longer wait for a person": (within("export", approval={"hold": "11s"}), "routes.0.approval.hold", "10 s"),
    "an upgrade": (within("any", upgrade=["websocket"]), "routes.0.upgrade", "websocket"),
    "one credential for all": (within("write", per_request=False), "routes.0.per_request", "'write' asks"),
    "a record that is not waited for": (within("live", audit="buffered"), "routes.0.audit", "'live' waits"),
    "a gap in the record": (within("read", spool_full="record_gap"), "routes.0.spool_full", "'read' denies"),
    "answers not looked through": (within("looked-through", scrub_answers=False), "routes.0.scrub_answers", "asks for it"),
    "a larger body": (within("bounded", limits={"body_size": "2KiB"}), "routes.0.limits.body_size", "1024"),
    "more headers": (within("bounded", limits={"headers": 11}), "routes.0.limits.headers", "10"),
    "a slower body": (within("bounded", limits={"body_rate": "1000B"}), "routes.0.limits.body_rate", "more"),
    "a body without a rate": (within("bounded", limits={"body_rate": "0B"}), "routes.0.limits.body_rate", "more"),
    "a longer first byte": (within("bounded", timeouts={"first_byte": "6s"}), "routes.0.timeouts.first_byte", "5 s"),
    "longer than in general": (within("read", timeouts={"stall": "61s"}), "routes.0.timeouts.stall", "60 s"),
    "another route's tool": (within("tools", match={"mcp": {"methods": ["tools/call"], "tools": ["create_issue"]}}), "routes.0.match", "'create'"),
    "more tools": (within("create", match={"mcp": {"methods": ["tools/call"], "tools": ["*"]}}), "routes.0.match", "'tools'"),
    "across another route's tools": (within("tools", match={"mcp": {"methods": ["tools/call"], "tools": ["*_issue"]}}), "routes.0.match", "lie across"),
    "more methods of MCP": (within("create", match={"mcp": {"methods": ["tools/*"], "tools": ["create_*"]}}), "routes.0.match", "'tools'"),
    "messages where there are none": (within("read", match={"mcp": {"methods": ["*"]}}), "routes.0.match.mcp", "no POST"),
}  # fmt: skip


@pytest.mark.parametrize(("item", "where", "said"), WIDER.values(), ids=WIDER)
def test_what_would_widen_is_not_taken_and_names_both_routes(
    item: dict[str, Any], where: str, said: str
) -> None:
    snapshot, withheld = narrowed(compiled(OPERATOR), item)
    assert snapshot.routes == ()
    (refused,) = withheld
    assert refused.code is codes.SETTINGS_WIDENS
    assert refused.route == "routes.0"
    assert refused.within == item["within"]
    assert refused.reason.startswith(f"{where}: ")
    assert said in refused.reason
    assert repr(item["within"]) in str(refused)


NARROWER = {
    "all of it": (within("read"), [("GET", "/api/a", "read"), ("HEAD", "/api/a/b", "read")]),
    "a path inside": (within("read", "/api/{id}"), [("GET", "/api/a", "read"), ("GET", "/api/a/b", None)]),
    "one of the methods": (within("read", match={"methods": ["GET"]}), [("GET", "/api/a", "read"), ("HEAD", "/api/a", None)]),
    "not a narrower route's paths": (within("read"), [("GET", "/api/export/7", None), ("GET", "/api/export/7/8", "read")]),
    "beneath a narrower route": (within("export", "/api/export/7"), [("GET", "/api/export/7", "export"), ("GET", "/api/export/8", None)]),
    "another route's methods": (within("write"), [("POST", "/api/a", "write"), ("GET", "/api/a", None)]),
    "another target": (within("pay"), [("GET", "/api/a", None)]),
    "beside what lies across": (within("any"), [("GET", "/q/a", "any"), ("GET", "/q/a/b", None)]),
}  # fmt: skip


@pytest.mark.parametrize(("item", "calls"), NARROWER.values(), ids=NARROWER)
def test_what_is_left(item: dict[str, Any], calls: list[tuple[str, str, str | None]]) -> None:
    snapshot, withheld = narrowed(compiled(OPERATOR), item)
    assert withheld == ()
    for method, path, name in calls:
        result = ask(snapshot, method, path)
        if name is None:
            assert code_of(result) == "route.no_match", (method, path)
        else:
            assert isinstance(result, NeedsCredential), (method, path, code_of(result))
            assert result.route.id == name


def test_demands_can_be_added() -> None:
    snapshot, withheld = narrowed(
        compiled(OPERATOR),
        within(
            "read",
            "/api/{id}",
            scopes=["t:read"],
            per_request=True,
            audit="durable",
            approval={"hold": "1s"},
            scrub_answers=True,
            timeouts={"first_byte": "1s", "stall": "2s", "stream": "3s"},
            limits={"head_size": "1KiB", "headers": 5, "body_size": "1B", "body_rate": "1MiB"},
        ),
        within("export"),
        within("live", upgrade=[], spool_full="deny"),
        within("looked-through", spool_full="deny", approval="required"),
    )
    assert withheld == ()
    read, export, live, looked = snapshot.routes
    assert (read.scopes, read.per_request, read.durable, read.hold) == (("t:read",), True, True, 1)
    assert (read.scrubs, read.first_byte, read.stall, read.stream) == (True, 1, 2, 3)
    assert read.bounds is not None
    assert (read.bounds.head_size, read.bounds.fields, read.bounds.body_size) == (1024, 5, 1)
    assert read.pace == 1 / (1 << 20)
    assert (export.hold, export.scopes) == (10, ("t:export",))
    assert (live.upgrade, live.durable) == (frozenset(), True)
    assert (looked.record_gap, looked.hold, looked.scrubs) == (False, 20, True)


MESSAGES = [
    ("tools/call", "create_issue"), ("tools/call", "get_issue"), ("tools/call", "create_"),
    ("tools/list", ""), ("ping", ""), ("response", ""),
]  # fmt: skip


def called(snapshot: Snapshot) -> dict[tuple[str, str], str]:
    found = {}
    for name, tool in MESSAGES:
        result = ask(snapshot, "POST", "/mcp", Message(name, tool))
        if isinstance(result, NeedsCredential):
            found[name, tool] = result.route.id
    return found


def test_tools_are_narrowed_with_their_holes() -> None:
    operator = compiled(OPERATOR)
    whole = {each: "create" if each[1].startswith("create_") else "tools" for each in MESSAGES}
    assert called(operator) == whole
    only, withheld = narrowed(operator, within("tools"))
    assert withheld == ()
    assert called(only) == {each: name for each, name in whole.items() if name == "tools"}
    issue = {"mcp": {"methods": ["tools/call"], "tools": ["create_issue"]}}
    both, withheld = narrowed(operator, within("tools"), within("create", match=issue))
    assert withheld == ()
    assert called(both) == called(only) | {("tools/call", "create_issue"): "create"}
    one, _ = narrowed(operator, within("create", match=issue))
    assert called(one) == {("tools/call", "create_issue"): "create"}
    nothing, _ = narrowed(operator, within("read"))
    assert code_of(ask(nothing, "POST", "/mcp")) == "NeedsMessage"
    assert called(nothing) == {}


def test_a_plain_route_can_be_narrowed_to_messages() -> None:
    item = within("write", "/api/mcp", match={"mcp": {"methods": ["ping"]}})
    snapshot, withheld = narrowed(compiled(OPERATOR), item)
    assert withheld == ()
    assert code_of(ask(snapshot, "POST", "/api/mcp", Message("ping", ""))) == "NeedsCredential"
    assert code_of(ask(snapshot, "POST", "/api/mcp", Message("pong", ""))) == "mcp.no_match"
    assert code_of(ask(snapshot, "POST", "/api/a")) == "route.no_match"


def test_beside_an_endpoint_nobody_may_use_answers_are_still_looked_through() -> None:
    operator = compiled(
        tree(routes=[mcp("tools", ["*"]), route("stream", "/mcp", upgrade=["websocket"])])
    )
    snapshot, withheld = narrowed(operator, within("stream"))
    assert withheld == ()
    for each in (operator, snapshot):
        result = ask(each, "GET", "/mcp")
        assert isinstance(result, NeedsCredential)
        assert result.endpoint is not None
        assert code_of(ask(each, "GET", "/mcp", protocol="websocket")) == "request.upgrade_denied"


def test_routes_that_could_both_win_are_not_both_taken() -> None:
    snapshot, withheld = narrowed(
        compiled(OPERATOR),
        within("read", "/api/z/{a}/b"),
        within("read", "/api/z/a/{b}"),
        within("any"),
    )
    assert [route.id for route in snapshot.routes] == ["read", "any"]
    (refused,) = withheld
    assert (refused.route, refused.code) == ("routes.1", codes.SETTINGS_INVALID)


def test_what_can_not_be_compiled_leaves_nothing_behind() -> None:
    """Some messages of a route are added before another one is found to be in two minds."""
    operator = compiled(tree(routes=[mcp("tools", ["*"]), route("read", "/a")]))
    two = within("tools", match={"mcp": {"methods": ["tools/call"], "tools": ["a", "b"]}})
    same = within("tools", match={"mcp": {"methods": ["tools/call", "ping"], "tools": ["c", "b"]}})
    snapshot, withheld = narrowed(operator, two, same)
    assert [each.route for each in withheld] == ["routes.1"]
    for tool, code in (("a", "NeedsCredential"), ("b", "NeedsCredential"), ("c", "mcp.no_match")):
        assert code_of(ask(snapshot, "POST", "/mcp", Message("tools/call", tool))) == code


def test_targets_that_the_pod_does_not_want_have_no_routes() -> None:
    operator = compiled(OPERATOR)
    for file in (None, owner(within("read"), within("pay"))):
        snapshot, withheld = narrow(operator, file, ["pay"], thumbprint=THUMBPRINT)
        assert withheld == ()
        assert {route.target.name for route in snapshot.routes} == {"pay"}
        # It is still known: a call to it may go nowhere else either.
        assert set(snapshot.targets) == set(operator.targets)
        assert code_of(ask(snapshot, "GET", "/api/a")) == "route.no_match"


def test_an_unknown_target_is_none() -> None:
    """The operator may have taken it away since the pod was made: that must hold."""
    snapshot, _ = narrow(compiled(OPERATOR), None, ["gone"], thumbprint=THUMBPRINT)
    assert snapshot.routes == ()


def test_while_the_owners_file_is_unusable_nothing_leaves() -> None:
    operator = compiled(OPERATOR | {"listeners": [{"bind": "127.0.0.1:0", "mode": "forward"}]})
    snapshot = closed(operator, thumbprint=THUMBPRINT)
    result = ask(snapshot, "GET", "/api/a")
    assert isinstance(result, Deny)
    assert result.code is codes.SETTINGS_OWNER_UNUSABLE
    tunnel = decide_tunnel("x.example.org", 443, snapshot)
    assert isinstance(tunnel, Deny)
    # Known still, so that no tunnel leads around its routes.
    assert "https://tickets.example.com" in snapshot.origins


def test_passthrough_hosts_are_kept_by_name() -> None:
    operator = compiled(OPERATOR | {"listeners": [{"bind": "127.0.0.1:0", "mode": "forward"}]})
    whole, _ = narrowed(operator, within("read"))
    assert whole.find_passthrough("b.example.net", 443) is not None
    kept, _ = narrowed(operator, within("read"), passthrough=["a.example.org"])
    assert kept.find_passthrough("a.example.org", 443) is not None
    assert kept.find_passthrough("b.example.net", 443) is None
    assert kept.find_passthrough("x.example.org", 443) is None
    for hosts, said in ((["c.example.org"], "no 'c.example.org'"), (["*.example.org"], "keep it")):
        snapshot, (refused,) = narrowed(operator, within("read"), passthrough=hosts)
        assert (refused.route, refused.code) == ("passthrough.0", codes.SETTINGS_WIDENS)
        assert said in refused.reason
        assert snapshot.find_passthrough("x.example.org", 443) is None


def test_the_digest_is_of_both_layers() -> None:
    operator, other = compiled(OPERATOR), compiled(OPERATOR | {"passthrough": []})
    digests = {
        operator.policy_digest,
        narrowed(operator, within("read"))[0].policy_digest,
        narrowed(operator, within("any"))[0].policy_digest,
        narrowed(other, within("read"), passthrough=[])[0].policy_digest,
        narrowed(operator, within("read"), passthrough=[])[0].policy_digest,
        closed(operator, thumbprint=THUMBPRINT).policy_digest,
    }
    assert len(digests) == 6
    again = narrowed(compiled(OPERATOR), within("read"))[0]
    assert again.policy_digest in digests


BAD_FILES = {
    "no routes": '{"routes": []}',
    "nothing": "",
    "a target": '{"routes": [{"within": "read", "target": "pay"}]}',
    "an id": '{"routes": [{"within": "read", "id": "mine"}]}',
    "a broker": '{"routes": [{"within": "read"}], "broker": {"url": "https://x"}}',
    "no scopes": '{"routes": [{"within": "read", "scopes": []}]}',
    "no methods": '{"routes": [{"within": "read", "match": {"methods": []}}]}',
}


@pytest.mark.parametrize("text", BAD_FILES.values(), ids=BAD_FILES)
def test_an_owners_file_holds_nothing_else(text: str) -> None:
    with pytest.raises(ConfigError):
        loader.parse(OwnerFileSettings, text, name="routes.yaml", program="proxy")


# --- whatever both say ----------------------------------------------------------------------------

# Few, so that most pairs have to do with each other: inside, across, or one to a lax reader.
PATHS = [
    "/{rest*}", "/a/{rest*}", "/A/{rest*}", "/{x}/{rest*}", "/a/{x}", "/{x}/b", "/a/b", "/A/b",
    "/a/b/", "/a/", "/a", "/{x}", "/a;p/b", "/{x}/b;p", "/a/{x}/{y}", "/{x}/b/{y}",
]  # fmt: skip
CALLS = [
    "/", "/a", "/A", "/z", "/a/", "/A/", "/z/", "/a/b", "/A/b", "/a/B", "/z/b", "/a/z", "/A/z",
    "/z/z", "/a/b/", "/A/b/", "/z/b/", "/a/z/", "/a;p/b", "/a/b;p", "/a;p/b;p", "/z/b;p",
    "/A;p/b", "/a/b/z", "/z/b/z", "/a/z/z", "/%61/b",
]  # fmt: skip
METHODS = [["GET"], ["POST"], ["GET", "POST"]]
SCOPES = [["r"], ["w"], ["r", "w"]]
DEMANDS: list[dict[str, Any]] = [{}, {"approval": "required"}, {"audit": "durable"}]
NAMES = ["*", "*", "a*", "*b", "ab", "b"]
RPC = [["tools/call"], ["*"], ["tools/*"], ["ping"], ["tools/call", "ping"]]
SENT = [
    *(Message("tools/call", tool) for tool in ("a", "ab", "b", "aab", "acb", "c")),
    *(Message(name) for name in ("ping", "tools/list", "response")),
]
EXAMPLES = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def messages(draw: st.DrawFn) -> dict[str, Any]:
    methods = draw(st.sampled_from(RPC))
    tools = draw(st.lists(st.sampled_from(NAMES), max_size=2, unique=True))
    return {"methods": methods} | ({"tools": tools} if tools and methods != ["ping"] else {})


@st.composite
def operators(draw: st.DrawFn, *, with_messages: bool) -> Snapshot:
    """Routes that compile: one that could win beside another is left out."""
    whole = tree(routes=[])
    whole["targets"]["tickets"]["tells_apart"] = draw(
        st.sampled_from([[], [], [], ["case"], ["last_slash"]])
    )
    snapshot: Snapshot | None = None
    for index in range(draw(st.integers(2, 6))):
        places = ["/mcp", "/{rest*}", "/{x}"] if with_messages else PATHS
        item = route(
            f"r{index}",
            draw(st.sampled_from(places)),
            methods=draw(st.sampled_from(METHODS)),
            scopes=draw(st.sampled_from(SCOPES)),
            **draw(st.sampled_from(DEMANDS)),
        )
        if with_messages and draw(st.integers(0, 3)):
            item["match"] = {"path": item["match"]["path"], "mcp": draw(messages())}
        whole["routes"].append(item)
        try:
            snapshot = compiled(whole)
        except ConfigError:
            whole["routes"].pop()
    assert snapshot is not None, "the first one has nothing to be in the way of"
    return snapshot


@st.composite
def layers(draw: st.DrawFn, *, with_messages: bool) -> tuple[Snapshot, list[dict[str, Any]]]:
    operator = draw(operators(with_messages=with_messages))
    own: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 4))):
        parent = draw(st.sampled_from(operator.routes))
        match: dict[str, Any] = {}
        if draw(st.integers(0, 3)):
            match["path"] = draw(st.sampled_from(["/mcp", "/{x}"] if with_messages else PATHS))
        if with_messages and draw(st.integers(0, 3)):
            match["mcp"] = draw(messages())
        elif not parent.messages and draw(st.booleans()):
            match["methods"] = draw(st.sampled_from(METHODS))
        item = within(parent.id, match=match)
        if draw(st.integers(0, 3)) == 0:
            item["scopes"] = draw(st.sampled_from(SCOPES))
        own.append(item)
    return operator, own


def allows(outer: Route, inner: Route) -> bool:
    """Whether the inner route demands no less than the outer one."""
    return (
        inner.id == outer.id
        and inner.target.name == outer.target.name
        and set(inner.scopes) <= set(outer.scopes)
        and (inner.needs_approval or not outer.needs_approval)
        and (inner.durable or not outer.durable)
        and (inner.per_request or not outer.per_request)
    )


def lets_out_no_more(operator: Snapshot, own: list[dict[str, Any]], calls: list[Any]) -> None:
    snapshot, withheld = narrowed(operator, *own)
    note(f"{[(r.id, r.methods, r.pattern, r.messages) for r in operator.routes]} {own} {withheld}")
    for method, path, message in calls:
        inner = ask(snapshot, method, path, message)
        if not isinstance(inner, NeedsCredential):
            continue
        outer = ask(operator, method, path, message)
        where = (method, path, message, code_of(outer))
        assert isinstance(outer, NeedsCredential), where
        assert allows(outer.route, inner.route), where
        # What is beside an endpoint stays looked through.
        assert outer.endpoint is None or inner.endpoint is not None, where


@EXAMPLES
@given(layers(with_messages=False))
def test_no_path_leads_further_than_the_operators(
    made: tuple[Snapshot, list[dict[str, Any]]],
) -> None:
    lets_out_no_more(*made, list(itertools.product(("GET", "POST"), CALLS, [None])))


@EXAMPLES
@given(layers(with_messages=True))
def test_no_message_leads_further_than_the_operators(
    made: tuple[Snapshot, list[dict[str, Any]]],
) -> None:
    paths = ["/mcp", "/MCP", "/z", "/z/z"]
    lets_out_no_more(*made, [("GET", path, None) for path in paths])
    lets_out_no_more(*made, list(itertools.product(["POST"], paths, [None, *SENT])))


@EXAMPLES
@given(layers(with_messages=False))
def test_what_the_owner_lists_and_the_operator_allows_is_left(
    made: tuple[Snapshot, list[dict[str, Any]]],
) -> None:
    operator, own = made
    snapshot, withheld = narrowed(operator, *own)
    out = {each.route for each in withheld}
    taken = [item for index, item in enumerate(own) if f"routes.{index}" not in out]
    note(f"{[(r.id, r.methods, r.pattern) for r in operator.routes]} {taken}")
    for method, path in itertools.product(("GET", "POST"), CALLS):
        outer, inner = ask(operator, method, path), ask(snapshot, method, path)
        if not isinstance(outer, NeedsCredential):
            continue
        listed = any(is_for(item, outer.route, method, path) for item in taken)
        if isinstance(inner, Deny):
            assert not listed or inner.code is codes.REQUEST_AMBIGUOUS_PATH, (method, path)
        else:
            assert listed, (method, path)


def is_for(item: dict[str, Any], outer: Route, method: str, path: str) -> bool:
    """Whether an owner's route, read with no tree, has a call."""
    match = item.get("match", {})
    return (
        item["within"] == outer.id
        and method in match.get("methods", outer.methods)
        and fits(match.get("path", outer.pattern), split_path(path))
    )


@EXAMPLES
@given(operators(with_messages=False) | operators(with_messages=True))
def test_all_of_the_operators_routes_are_what_they_were(operator: Snapshot) -> None:
    snapshot, withheld = narrowed(operator, *(within(each.id) for each in operator.routes))
    if withheld:
        # Two routes of MCP with one pattern of tools: it is the one's whose methods are narrower.
        assert all(each.messages for each in operator.routes if each.id == withheld[0].within)
        return
    for method, path in itertools.product(("GET", "POST"), [*CALLS, "/mcp"]):
        for message in [None, *SENT] if method == "POST" else [None]:
            inner = ask(snapshot, method, path, message)
            outer = ask(operator, method, path, message)
            assert code_of(inner) == code_of(outer), (method, path, message)
            if isinstance(inner, NeedsCredential) and isinstance(outer, NeedsCredential):
                assert inner.route.id == outer.route.id


def test_a_thousand_routes_are_narrowed_in_time() -> None:
    many = [route(f"r{n}", f"/s{n}/{{rest*}}", methods=["GET", "POST"]) for n in range(1000)]
    operator = compiled(tree(routes=many))
    own = [within(f"r{n}", f"/s{n}/{{id}}", match={"methods": ["GET"]}) for n in range(1000)]
    began = time.process_time()
    snapshot, withheld = narrowed(operator, *own)
    assert time.process_time() - began < 5
    assert (len(snapshot.routes), withheld) == (1000, ())
    assert code_of(ask(snapshot, "POST", "/s1/a")) == "route.no_match"
