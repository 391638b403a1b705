"""From a request to questions: patterns, tools and routes can't be used to get round a policy."""

from __future__ import annotations

import json

import cedarpy
import pytest

from tests.unit.broker.core.cedar_support import (
    AGENT,
    ALICE,
    BOT,
    NOW,
    READ,
    SCOPE,
    ask,
    call,
    compiled,
    outcome,
)
from valetkey.broker.core import permission as module
from valetkey.broker.core.cedar import Principal
from valetkey.broker.core.cedar_schema import SCHEMA
from valetkey.broker.core.grants import Call
from valetkey.broker.core.permission import Asking, Permission

ALL = f'@id("all") permit {SCOPE};'
NO_ADMIN = ALL + f'@id("no") forbid {SCOPE} when {{ context.path like "/admin/*" }};'
NO_DELETE = ALL + '@id("no") forbid (principal, action, resource in Tool::"tickets/delete_repo");'
NO_CLOSE = ALL + '@id("no") forbid (principal, action, resource in Route::"tickets/close");'
ONLY_CLOSE = '@id("a") permit (principal, action, resource in Route::"tickets/close");'
POSTS = (
    ALL
    + f'@id("no") forbid {SCOPE} when {{ context.method == "POST" && context.mcp_tool == "x" }};'
)


@pytest.mark.parametrize(
    ("name", "text", "calls", "expected"),
    [
        ("no call named", ALL, (), "permit all"),
        ("a plain path", NO_ADMIN, (READ,), "permit all"),
        ("a plain path that is forbidden", NO_ADMIN, (call("GET", "/admin/x"),), "deny no"),
        ("a pattern where a policy reads the path", NO_ADMIN, (call("GET", "/{a}/x"),), "open"),
        ("rest of a path", NO_ADMIN, (call("GET", "/{all*}"),), "open"),
        ("no call named where a policy reads the path", NO_ADMIN, (), "open"),
        ("one good call, one bad", NO_ADMIN, (READ, call("GET", "/admin/x")), "deny no"),
        ("in the route", NO_CLOSE, (call("POST", "/tickets/7/close"),), "deny no"),
        ("the route's own pattern", NO_CLOSE, (call("POST", "/tickets/{id}/close"),), "deny no"),
        ("another method", NO_CLOSE, (call("GET", "/tickets/7/close"),), "permit all"),
        ("wider than the route", NO_CLOSE, (call("POST", "/tickets/{rest*}"),), "open"),
        ("no call named where a policy names a route", NO_CLOSE, (), "open"),
        ("in the route to a lax reader: case", NO_CLOSE, (call("POST", "/tickets/7/Close"),), "open"),
        ("in the route to a lax reader: last slash", NO_CLOSE, (call("POST", "/tickets/7/close/"),), "open"),
        ("in the route to a lax reader: parameters", NO_CLOSE, (call("POST", "/tickets/7;v=1/close;x"),), "open"),
        ("in the route to a lax reader: escapes", NO_CLOSE, (call("POST", "/tickets/7/cl%6fse"),), "open"),
        ("a prefix without its slash", ALL + '@id("no") forbid (principal, action, resource in Route::"tickets/admin");', (call("GET", "/admin"),), "open"),
        ("another path", NO_CLOSE, (call("POST", "/tickets/7/closed"),), "permit all"),
        ("an escape that needs not be", NO_ADMIN, (call("GET", "/%61dmin/x"),), "open"),
        ("parameters", NO_ADMIN, (call("GET", "/admin;a/x"),), "open"),
        ("an escape that has to be", NO_ADMIN, (call("GET", "/a%20b/x"),), "permit all"),
        ("permitted in the route", ONLY_CLOSE, (call("POST", "/tickets/7/close"),), "permit a"),
        ("permitted in the route only", ONLY_CLOSE, (READ,), "deny"),
        ("wider than what is permitted", ONLY_CLOSE, (call("POST", "/tickets/{rest*}"),), "open"),
        ("a tool that is forbidden", NO_DELETE, (call("POST", "/mcp", ["tools/call"], ["delete_repo"]),), "deny no"),
        ("another tool", NO_DELETE, (call("POST", "/mcp", ["tools/call"], ["get_repo"]),), "permit all"),
        ("tools by a pattern", NO_DELETE, (call("POST", "/mcp", ["tools/call"], ["delete_*"]),), "deny no"),
        ("any tool", NO_DELETE, (call("POST", "/mcp", ["tools/call"]),), "deny no"),
        ("any message", NO_DELETE, (call("POST", "/mcp", ["*"]),), "deny no"),
        ("whatever it carries", NO_DELETE, (call("POST", "/mcp"),), "deny no"),
        ("no call named where a policy names a tool", NO_DELETE, (), "deny no"),
        ("a pattern without the tool", NO_DELETE, (call("POST", "/mcp", ["tools/call"], ["get_*"]),), "permit all"),
        ("another message", NO_DELETE, (call("POST", "/mcp", ["tools/list"]),), "permit all"),
        ("a stream carries none", NO_DELETE, (call("GET", "/mcp"),), "permit all"),
        ("a tool that may be one", POSTS, (call("POST", "/mcp", ["tools/call"], ["*"]),), "open"),
        ("a tool that is none", POSTS, (call("POST", "/mcp", ["tools/list"]),), "permit all"),
        ("another method than the policy's", POSTS, (call("GET", "/mcp"),), "permit all"),
    ],
)  # fmt: skip
def test_requests_for_many_calls(
    name: str, text: str, calls: tuple[Call, ...], expected: str
) -> None:
    assert outcome(text, *calls) == expected, name


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("both permitted", ALL, "permit all"),
        ("the user is forbidden", ALL + '@id("no") forbid (principal is User, action, resource);', "deny no"),
        ("the workload is forbidden", ALL + '@id("no") forbid (principal is Workload, action, resource);', "deny no"),
        ("only the user is permitted", '@id("a") permit (principal is User, action, resource);', "deny"),
        ("only the workload is permitted", '@id("a") permit (principal is Workload, action, resource);', "deny"),
        ("each by its own policy", '@id("a") permit (principal is Workload, action, resource); @id("b") permit (principal in Role::"support", action, resource);', "permit a b"),
        ("the user in the context", ALL + f'@id("no") forbid {SCOPE} when {{ context has user && context.user.subject == "alice" }};', "deny no"),
    ],
)  # fmt: skip
def test_both_are_asked_where_a_workload_acts_for_a_user(
    name: str, text: str, expected: str
) -> None:
    assert outcome(text, READ, user=ALICE) == expected, name


def test_agents_are_principals_of_their_own() -> None:
    text = '@id("a") permit (principal is Agent, action, resource) when { context.actor.agent };'
    assert outcome(text, READ, actor=AGENT) == "permit a"
    assert outcome(text, READ, actor=BOT) == "deny"


def test_scopes_are_permitted_one_by_one() -> None:
    found = ask(
        ALL + f'@id("no") forbid {SCOPE} when {{ context.scope like "*:write" }};',
        READ, scopes=("a:read", "a:write", "b:read"),
    )  # fmt: skip
    assert isinstance(found, Permission)
    assert found.scopes == ("a:read", "b:read")


def test_a_window_is_of_its_scope() -> None:
    text = ALL + f'@id("no") forbid {SCOPE} unless {{ context.window }};'
    asking = Asking("tickets", BOT, None, ("a", "b", "c"), (READ,), NOW, frozenset({"b"}))
    found = module.permission(compiled(text), asking)
    assert isinstance(found, Permission)
    assert found.scopes == ("b",)


def test_questions_are_bounded() -> None:
    calls = [call("GET", f"/{number}") for number in range(4096)]
    assert outcome(ALL, *calls) == "permit all"  # no policy tells them apart: one question
    assert outcome(NO_ADMIN, *calls) == "open"


def test_what_is_asked_fits_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """The context is made by us and not checked at run time: with nothing open, it is whole."""
    asked = []
    plain = cedarpy.is_authorized

    def validating(request: dict[str, str], policies: object, entities: str) -> cedarpy.AuthzResult:
        result = plain(request, policies, entities, schema=SCHEMA)  # type: ignore[arg-type]
        asked.append((json.loads(request["context"]).keys(), result.diagnostics.errors))
        return result

    names = [
        'context.environment == ""', "context.actor.agent", 'context.scope == ""', 'context.risk == ""',
        "context.window", 'context.now == datetime("2020-01-01")', "context.weekday == 1", "context.approved",
        'context.method == ""', 'context.path == ""', 'context.mcp_method == ""', 'context.mcp_tool == ""',
        "(context has user && context.user.agent)",
    ]  # fmt: skip
    text = ALL + f'@id("b") permit {SCOPE} when {{ {" || ".join(names)} }};'
    policies = compiled(text)
    monkeypatch.setattr(cedarpy, "is_authorized", validating)
    for user in (None, ALICE):
        for actor in (BOT, AGENT, Principal("Workload", "https://i", 'w"\\|\n')):
            asking = Asking(
                "tickets",
                actor,
                user,
                ("s",),
                (READ, call("POST", "/m", ["tools/call"], ["t"])),
                NOW,
            )
            assert isinstance(module.permission(policies, asking), Permission)
    assert len(asked) > 10
    assert all(errors == [] for _, errors in asked), asked
    assert max(len(context) for context, _ in asked) == 13
