"""What grants give: each case with its result and code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from valetkey.broker.core.grants import Call, GrantsFile, Policy, PolicyInvalid, Target
from valetkey.contracts.codes import Code
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.oauth import HttpCallDetails, McpDetails
from valetkey.contracts.settings import parse

IDP = "https://idp.example"
BOT = "spiffe://a/ns/x/sa/bot"
TICKETS = Target("tickets", "https://t.example", "https://t.example", "bearer", 120.0)
FILES = Target("files", "https://f.example", "https://f.example", "dpop", 120.0)


def grant(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": name,
        "workload": BOT,
        "issuer": IDP,
        "target": "tickets",
        "scopes": ["read"],
        **changes,
    }


def condition(path: str, *methods: str, mcp: Any = None) -> dict[str, Any]:
    return {"methods": list(methods), "path": path} | ({"mcp": mcp} if mcp is not None else {})


def file_of(grants: list[dict[str, Any]]) -> GrantsFile:
    text = msgspec.yaml.encode({"grants": grants}).decode()
    return parse(GrantsFile, text, name="grants.yaml", program="broker")


def policy_of(*grants: dict[str, Any], targets: tuple[Target, ...] = (TICKETS, FILES)) -> Policy:
    return Policy.compile(file_of(list(grants)), targets, issuers=frozenset({IDP, "https://two"}))


def calls(path: str, *methods: str, exact: bool = False) -> tuple[Call, ...]:
    return Call.all_of(HttpCallDetails("t", ("l",), methods, "r", path, exact))


def messages(*methods: str, tools: tuple[str, ...] = (), exact: bool = False) -> tuple[Call, ...]:
    """POST to /mcp with such messages."""
    mcp = McpDetails(methods, tools)
    return Call.all_of(HttpCallDetails("t", ("l",), ("POST",), "r", "/mcp", exact, mcp))


@dataclass(frozen=True)
class Case:
    name: str
    grants: list[dict[str, Any]]
    scopes: tuple[str, ...]
    expected: tuple[tuple[str, ...], tuple[str, ...]] | str
    calls: tuple[Call, ...] = ()
    user: bool = False
    workload: str = BOT
    issuer: str = IDP
    target: Target = field(default=TICKETS)


READ_GET = grant("read", conditions=[condition("/a/{id}", "GET")])
WRITE_POST = grant("write", scopes=["write"], conditions=[condition("/a/{id}", "POST")])


def mcp_grant(name: str, *methods: str, tools: Any = None) -> dict[str, Any]:
    mcp = {"methods": list(methods)} | ({"tools": tools} if tools is not None else {})
    return grant(name, conditions=[condition("/mcp", "POST", mcp=mcp)])


CREATE = mcp_grant("create", "tools/call", tools=["create_*"])
BASE = mcp_grant("base", "initialize", "notifications/*", "tools/list")
GIVEN = (("read",), ("create",))

CASES = [
    Case("granted", [grant("g")], ("read",), (("read",), ("g",))),
    Case("narrowed", [grant("g")], ("read", "write"), (("read",), ("g",))),
    Case("union of grants", [grant("g"), grant("h", scopes=["write"])], ("write", "read"),
         (("write", "read"), ("h", "g"))),
    Case("asked twice", [grant("g")], ("read", "read"), (("read",), ("g",))),
    Case("no scope of it", [grant("g")], ("write",), "grant.scope"),
    Case("another workload", [grant("g")], ("read",), "grant.missing", workload=BOT + "2"),
    Case("another issuer", [grant("g")], ("read",), "grant.missing", issuer="https://two"),
    Case("another target", [grant("g")], ("read",), "grant.missing", target=FILES),
    Case("wildcard", [grant("g", workload="spiffe://a/ns/*/sa/bot")], ("read",),
         (("read",), ("g",))),
    Case("wildcard of another issuer",
         [grant("g", workload="spiffe://a/ns/*/sa/bot", issuer="https://two")], ("read",),
         "grant.missing"),
    Case("exact and wildcard", [grant("g"), grant("h", workload="spiffe://a/ns/*/sa/bot",
         scopes=["write"])], ("read", "write"), (("read", "write"), ("g", "h"))),
    Case("for a user, not allowed", [grant("g")], ("read",), "grant.missing", user=True),
    Case("for a user", [grant("g", on_behalf_of="users")], ("read",), (("read",), ("g",)),
         user=True),
    Case("users does not exclude itself", [grant("g", on_behalf_of="users")], ("read",),
         (("read",), ("g",))),
    Case("only the part for users counts", [grant("g"), grant("h", scopes=["write"],
         on_behalf_of="users")], ("read", "write"), (("write",), ("h",)), user=True),
    Case("condition holds", [READ_GET], ("read",), (("read",), ("read",)),
         calls("/a/7", "GET", exact=True)),
    Case("condition without details", [READ_GET], ("read",), "grant.condition"),
    Case("another method", [READ_GET], ("read",), "grant.condition", calls("/a/{id}", "PUT")),
    Case("one method more", [READ_GET], ("read",), "grant.condition",
         calls("/a/{id}", "GET", "PUT")),
    Case("methods from two grants", [READ_GET, grant("head",
         conditions=[condition("/a/{id}", "HEAD")])], ("read",), (("read",), ("read", "head")),
         calls("/a/{id}", "GET", "HEAD")),
    Case("methods from two conditions", [grant("g", conditions=[condition("/a/{id}", "GET"),
         condition("/{rest*}", "HEAD")])], ("read",), (("read",), ("g",)),
         calls("/a/{id}", "GET", "HEAD")),
    Case("wider than the condition", [READ_GET], ("read",), "grant.condition",
         calls("/a/{rest*}", "GET")),
    Case("details of one grant with the scope of another", [READ_GET, WRITE_POST], ("write",),
         "grant.condition", calls("/a/{id}", "GET")),
    Case("both scopes, only one fits the call", [READ_GET, WRITE_POST], ("read", "write"),
         (("write",), ("write",)), calls("/a/{id}", "POST")),
    Case("two calls, no scope fits both", [READ_GET, WRITE_POST], ("read", "write"),
         "grant.condition", calls("/a/{id}", "GET") + calls("/a/{id}", "POST")),
    Case("an unconditional grant covers what a conditional one does not", [READ_GET, grant("g")],
         ("read",), (("read",), ("g",)), calls("/b", "PUT")),
    Case("without details only the unconditional grant counts", [READ_GET, grant("g")], ("read",),
         (("read",), ("g",))),
    Case("a tool", [CREATE], ("read",), GIVEN, messages("tools/call", tools=("create_issue",))),
    Case("the same glob", [CREATE], ("read",), GIVEN, messages("tools/call", tools=("create_*",))),
    Case("a narrower glob", [CREATE], ("read",), GIVEN,
         messages("tools/call", tools=("create_*_draft",))),
    Case("one exact call", [CREATE], ("read",), GIVEN,
         messages("tools/call", tools=("create_issue",), exact=True)),
    Case("another tool", [CREATE], ("read",), "grant.condition",
         messages("tools/call", tools=("delete_issue",))),
    Case("a wider glob", [CREATE], ("read",), "grant.condition",
         messages("tools/call", tools=("c*",))),
    Case("any tool", [CREATE], ("read",), "grant.condition", messages("tools/call")),
    Case("any method", [CREATE], ("read",), "grant.condition",
         messages("*", tools=("create_issue",))),
    Case("one tool too many", [CREATE], ("read",), "grant.condition",
         messages("tools/call", tools=("create_issue", "delete_issue"))),
    Case("a star that is a name", [CREATE], ("read",), "grant.condition",
         messages("tools/call", tools=("*",), exact=True)),
    Case("any message at all", [CREATE], ("read",), "grant.condition",
         calls("/mcp", "POST")),
    Case("another method of JSON-RPC", [CREATE], ("read",), "grant.condition",
         messages("tools/list")),
    Case("a message on another path", [grant("g", conditions=[condition("/mcp2", "POST",
         mcp={"methods": ["*"]})])], ("read",), "grant.condition", messages("tools/list")),
    Case("messages of two grants", [CREATE, BASE], ("read",), (("read",), ("base", "create")),
         messages("tools/list", "tools/call", tools=("create_issue",))),
    Case("a condition that says nothing of messages", [grant("g", conditions=[condition("/mcp",
         "POST")])], ("read",), (("read",), ("g",)), messages("tools/call", tools=("x",))),
    Case("every message", [mcp_grant("g", "*")], ("read",), (("read",), ("g",)),
         messages("tools/call", "ping")),
    Case("every message is not every call", [mcp_grant("g", "*")], ("read",), "grant.condition",
         calls("/mcp", "POST")),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_grant(case: Case) -> None:
    granted = policy_of(*case.grants).grant(
        case.target,
        issuer=case.issuer,
        workload=case.workload,
        for_user=case.user,
        scopes=case.scopes,
        calls=case.calls,
    )
    if isinstance(case.expected, str):
        assert isinstance(granted, Code)
        assert granted.name == case.expected
    else:
        assert not isinstance(granted, Code)
        assert (granted.scopes, granted.grant_ids) == case.expected


@pytest.mark.parametrize(
    ("name", "ttls", "expected"),
    [
        ("none", [None, None], None),
        ("one", ["60s", None], 60.0),
        ("the shortest", ["60s", "30s"], 30.0),
    ],
)
def test_the_shortest_ttl_of_the_grants_used(
    name: str, ttls: list[str | None], expected: float | None
) -> None:
    grants = [grant("g", ttl=ttls[0]), grant("h", scopes=["write"], ttl=ttls[1])]
    granted = policy_of(*grants).grant(
        TICKETS, issuer=IDP, workload=BOT, for_user=False, scopes=("read", "write"), calls=()
    )
    assert not isinstance(granted, Code), name
    assert granted.ttl == expected


def test_an_unused_grant_does_not_shorten() -> None:
    grants = [grant("g"), grant("h", scopes=["write"], ttl="30s")]
    granted = policy_of(*grants).grant(
        TICKETS, issuer=IDP, workload=BOT, for_user=False, scopes=("read",), calls=()
    )
    assert not isinstance(granted, Code)
    assert granted.ttl is None


def test_the_digest_is_of_the_meaning_not_the_writing() -> None:
    one = policy_of(grant("g", scopes=["a", "b"]), grant("h"))
    two = policy_of(grant("h"), grant("g", scopes=["b", "a"]))
    assert one.digest == two.digest
    assert len(one.digest) == 43


@pytest.mark.parametrize(
    "changed",
    [
        grant("g", scopes=["read", "write"]),
        grant("g", workload=BOT + "2"),
        grant("g", issuer="https://two"),
        grant("g", target="files"),
        grant("g", on_behalf_of="users"),
        grant("g", ttl="60s"),
        grant("g", conditions=[condition("/a", "GET")]),
        mcp_grant("g", "tools/call"),
        grant("other"),
    ],
)
def test_the_digest_changes_with_every_grant_key(changed: dict[str, Any]) -> None:
    assert policy_of(grant("g")).digest != policy_of(changed).digest


def test_the_digest_tells_messages_apart() -> None:
    plain = grant("g", conditions=[condition("/mcp", "POST")])
    different = [plain, mcp_grant("g", "*"), mcp_grant("g", "tools/call"), CREATE | {"id": "g"}]
    assert len({policy_of(one).digest for one in different}) == len(different)
    same = [mcp_grant("g", "a", "tools/call"), mcp_grant("g", "tools/call", "a", tools=["*"])]
    assert len({policy_of(one).digest for one in same}) == 1


@pytest.mark.parametrize(
    "changed",
    [
        Target("tickets", "https://t2.example", "https://t.example", "bearer", 120.0),
        Target("tickets", "https://t.example", "https://t2.example", "bearer", 120.0),
        Target("tickets", "https://t.example", "https://t.example", "dpop", 120.0),
        Target("tickets", "https://t.example", "https://t.example", "bearer", 60.0),
    ],
)
def test_the_digest_changes_with_every_target_key(changed: Target) -> None:
    before = policy_of(grant("g"), targets=(TICKETS,))
    assert before.digest != policy_of(grant("g"), targets=(changed,)).digest


@pytest.mark.parametrize(
    ("grants", "message"),
    [
        ([], "grants is empty"),
        ([grant("g"), grant("g")], "used twice"),
        ([grant("g", target="nowhere")], "no target 'nowhere'"),
        ([grant("g", issuer="https://three")], "no issuer that settings trust"),
    ],
)
def test_contradictions_are_refused(grants: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(PolicyInvalid, match=message):
        policy_of(*grants)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "Not An Id"}, "id must be"),
        ({"workload": ""}, "workload"),
        ({"workload": "spiffe://a/b*"}, "whole segment"),
        ({"scopes": []}, "scopes must be"),
        ({"scopes": ["a b"]}, "scopes must be"),
        ({"conditions": []}, "conditions is empty"),
        ({"conditions": [condition("/a")]}, "methods must be"),
        ({"conditions": [condition("/a", "get")]}, "methods must be"),
        ({"conditions": [condition("a", "GET")]}, "begins with /"),
        ({"conditions": [condition("/a", "POST", mcp={})]}, "methods"),
        ({"conditions": [condition("/a", "POST", mcp={"methods": []})]}, "non-empty"),
        ({"conditions": [condition("/a", "POST", mcp={"methods": ["*"], "tools": []})]}, "empty"),
        ({"conditions": [condition("/a", "POST", mcp={"methods": ["a*b*"]})]}, "at most one"),
        (
            {"conditions": [condition("/a", "POST", mcp={"methods": ["a"], "tools": ["x"]})]},
            "without tools/call",
        ),
        ({"conditions": [condition("/a/../b", "GET")]}, "dot segments"),
        ({"ttl": "500ms"}, "at least 1s"),
        ({"ttl": 60}, "duration with a unit"),
        ({"on_behalf_of": "everybody"}, "everybody"),
        ({"aproval": {}}, "unknown key"),
        ({"approval": "required"}, "Expected `object"),
        ({"approval": {"quorum": 0}}, "quorum is between 1 and 10"),
        ({"approval": {"quorum": 11}}, "quorum is between 1 and 10"),
        ({"approval": {"roles": [""]}}, "roles and groups are names"),
        ({"approval": {"uses": 0}}, "uses is between 1 and 10000"),
        ({"approval": {"valid": "8d"}}, "expires and valid are between 1s and 7d"),
        ({"approval": {"expires": "500ms"}}, "expires and valid are between 1s and 7d"),
    ],
)
def test_grants_that_are_none(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        file_of([grant("g", **changes)])
