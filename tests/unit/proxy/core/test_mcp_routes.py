"""Routes of one MCP endpoint: who wins, and which pairs can't be."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.contracts.mcp import NamePattern, message_patterns
from valetkey.proxy.core.headers import HeaderPolicy
from valetkey.proxy.core.json_rpc import Message
from valetkey.proxy.core.mcp_routes import McpEndpoint
from valetkey.proxy.core.patterns import PatternError

POLICY = HeaderPolicy.of(injected=None, subject_header="X-Subject", passed=())
Routes = dict[str, tuple[list[str], list[str]]]


def endpoint(routes: Routes) -> McpEndpoint[str]:
    made: McpEndpoint[str] = McpEndpoint(POLICY, POLICY, 1000)
    for name, (methods, tools) in routes.items():
        made.add(message_patterns(methods, tools), name)
    return made


ROUTES: Routes = {
    "base": (["initialize", "ping", "notifications/*", "tools/list", "response"], []),
    "rest": (["*"], []),
    "resources": (["resources/*"], []),
    "read": (["tools/call"], ["get_*", "list_*"]),
    "secret": (["tools/call"], ["get_secret*"]),
    "one": (["tools/call"], ["get_secret_name"]),
    "gets": (["tools/call"], ["get_*_all"]),
}

WINS = [
    ("ping", "", "base"),
    ("notifications/cancelled", "", "base"),
    ("response", "", "base"),
    ("resources/read", "", "resources"),
    ("resources/templates/list", "", "resources"),
    ("prompts/get", "", "rest"),
    ("tools/call", "get_issue", "read"),
    ("tools/call", "list_issues", "read"),
    ("tools/call", "get_secret", "secret"),
    ("tools/call", "get_secret_name", "one"),
    ("tools/call", "get_issues_all", "gets"),
    ("tools/call", "delete_issue", "rest"),
    ("tools/call", "ping", "rest"),  # a tool's name is no method
    ("Ping", "", "rest"),
]


@pytest.mark.parametrize(("method", "tool", "route"), WINS)
def test_the_narrowest_wins_in_whatever_order_they_came(method: str, tool: str, route: str) -> None:
    # `gets` and `secret` cross, so one of them at a time.
    for left_out in ("gets", "secret"):
        routes = {name: what for name, what in ROUTES.items() if name != left_out}
        if route == left_out:
            continue
        for order in (routes, dict(reversed(routes.items()))):
            assert endpoint(order).match(Message(method, tool)) == route


def test_what_no_route_names_has_none() -> None:
    made = endpoint({"read": (["tools/call"], ["get_*"]), "base": (["ping"], [])})
    assert made.match(Message("tools/call", "set_issue")) is None
    assert made.match(Message("tools/list")) is None
    assert made.match(Message("ping")) == "base"
    assert made.allows_tool("get_issue")
    assert not made.allows_tool("set_issue")
    assert not made.allows_tool("ping")


CONFLICTS: list[tuple[str, Routes]] = [
    ("the same method", {"a": (["ping"], []), "b": (["ping"], [])}),
    ("the same glob", {"a": (["notifications/*"], []), "b": (["notifications/*"], [])}),
    ("methods that cross", {"a": (["tools/*"], []), "b": (["*/list"], [])}),
    ("the same tool", {"a": (["tools/call"], ["x"]), "b": (["tools/call"], ["x"])}),
    ("all tools", {"a": (["tools/call"], []), "b": (["tools/call"], [])}),
    ("all tools, once by name", {"a": (["tools/call"], []), "b": (["tools/call"], ["*"])}),
    ("tools that cross", {"a": (["tools/call"], ["get_*"]), "b": (["tools/call"], ["*_all"])}),
    ("prefixes that cross", {"a": (["tools/call"], ["ge*_all"]), "b": (["tools/call"], ["get_*"])}),
    ("of several tools, one pair", {"a": (["tools/call"], ["x", "get_*"]), "b": (["tools/call"], ["y", "*_all"])}),
    ("tools of globs that cross", {"a": (["tools/c*"], ["x"]), "b": (["*/call"], ["x"])}),
    ("tools of one glob", {"a": (["tools/*"], ["x"]), "b": (["tools/*", "ping"], ["x"])}),
    ("a method that one has twice", {"a": (["tools/call", "*"], []), "b": (["tools/call"], [])}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "routes"), CONFLICTS, ids=[case[0] for case in CONFLICTS])
def test_two_that_could_both_win_are_refused(name: str, routes: Routes) -> None:
    for order in (routes, dict(reversed(routes.items()))):
        with pytest.raises(PatternError, match="could both win"):
            endpoint(order)


FINE: list[tuple[str, Routes]] = [
    ("a literal in a glob", {"a": (["ping"], []), "b": (["*"], [])}),
    ("a call by name and by glob", {"a": (["tools/call"], []), "b": (["*"], [])}),
    ("globs apart", {"a": (["tools/call"], ["get_*"]), "b": (["tools/call"], ["set_*"])}),
    ("suffixes apart", {"a": (["tools/call"], ["*_x"]), "b": (["tools/call"], ["*_y"])}),
    ("one route crosses itself", {"a": (["tools/call"], ["get_*", "*_all"])}),
    ("one inside both of those", {"a": (["tools/call"], ["get_*", "*_all"]), "b": (["tools/call"], ["get_*_all"])}),
    ("a tool narrower, its method wider", {"a": (["*"], ["x"]), "b": (["tools/call"], ["*"])}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "routes"), FINE, ids=[case[0] for case in FINE])
def test_two_of_which_one_is_narrower_are_not(name: str, routes: Routes) -> None:
    for order in (routes, dict(reversed(routes.items()))):
        assert endpoint(order).match(Message("no/such", "")) in {None, "a", "b"}


def test_of_the_same_tools_the_narrower_method_wins() -> None:
    routes: Routes = {"wide": (["*"], []), "tools": (["tools/*"], []), "call": (["tools/call"], [])}
    for order in (routes, dict(reversed(routes.items()))):
        made = endpoint(order)
        assert made.match(Message("tools/call", "x")) == "call"
        assert made.match(Message("tools/list")) == "tools"
        assert made.match(Message("ping")) == "wide"


def test_of_tools_the_narrower_wins_whatever_its_methods_are() -> None:
    made = endpoint({"a": (["*"], ["x"]), "b": (["tools/call"], ["*"])})
    assert made.match(Message("tools/call", "x")) == "a"
    assert made.match(Message("tools/call", "y")) == "b"
    assert made.match(Message("ping")) == "a"


# --- against a reading of the rule without any index ----------------------------------------------

parts = st.text("ab", max_size=3)
globs = st.builds("{}*{}".format, parts, parts)
tool_lists = st.lists(
    st.one_of(globs, st.text("ab", min_size=1, max_size=4)), min_size=1, max_size=3
)


def brute(routes: Sequence[list[str]], name: str) -> int | None:
    matching = [
        (NamePattern.parse(text), number)
        for number, texts in enumerate(routes)
        for text in texts
        if NamePattern.parse(text).matches(name)
    ]
    for pattern, number in matching:
        if all(
            other == number or theirs.includes(pattern) for theirs, other in matching
        ) and not any(
            other != number and pattern.includes(theirs) and not theirs.includes(pattern)
            for theirs, other in matching
        ):
            return number
    return None


@given(st.lists(tool_lists, min_size=1, max_size=4), st.text("ab", min_size=1, max_size=6))
def test_a_lookup_finds_what_the_rule_says(routes: list[list[str]], name: str) -> None:
    made: McpEndpoint[int] = McpEndpoint(POLICY, POLICY, 1000)
    try:
        for number, tools in enumerate(routes):
            made.add(message_patterns(["tools/call"], tools), number)
    except PatternError:
        return
    assert made.match(Message("tools/call", name)) == brute(routes, name)


def test_a_lookup_does_not_ask_every_route() -> None:
    """A thousand patterns whose prefixes and suffixes are of a few lengths: a few look-ups."""
    made = endpoint({f"p{n}": (["tools/call"], [f"tool_{n:04}_*"]) for n in range(1000)})
    looked: list[str] = []

    class Counting(dict[str, object]):
        def get(self, key: str, default: object = None) -> object:
            looked.append(key)
            return super().get(key, default)

    made._tools._globs = Counting(made._tools._globs)  # type: ignore[assignment]
    assert made.match(Message("tools/call", "tool_0999_x")) == "p999"
    assert len(looked) == 1
    assert made.match(Message("tools/call", "other_0999_x")) is None
