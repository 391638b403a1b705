"""What grants give: each case with its result and code."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from valetkey.broker.core.grants import (
    Call,
    Granted,
    GrantSettings,
    GrantsFile,
    OpenWindow,
    Policy,
    PolicyInvalid,
    Target,
)
from valetkey.broker.core.grants.form import document_of
from valetkey.contracts.codes import Code
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.oauth import HttpCallDetails, McpDetails
from valetkey.contracts.settings import convert, parse

IDP = "https://idp.example"
BOT = "spiffe://a/ns/x/sa/bot"
NOW = 1_800_000_000.0
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
    return Policy.compile(
        file_of(list(grants)),
        targets,
        issuers=frozenset({IDP, "https://two"}),
        deployers=frozenset({"https://ci"}),
    )


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
        now=NOW,
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
        TICKETS,
        issuer=IDP,
        workload=BOT,
        for_user=False,
        scopes=("read", "write"),
        calls=(),
        now=NOW,
    )
    assert not isinstance(granted, Code), name
    assert granted.ttl == expected


def test_an_unused_grant_does_not_shorten() -> None:
    grants = [grant("g"), grant("h", scopes=["write"], ttl="30s")]
    granted = policy_of(*grants).grant(
        TICKETS, issuer=IDP, workload=BOT, for_user=False, scopes=("read",), calls=(), now=NOW
    )
    assert not isinstance(granted, Code)
    assert granted.ttl is None


WINDOW = {"opened_by": [{"issuer": "https://ci", "claims": {"ref": "main"}}], "longest": "30m"}
DEPLOYMENT = {"use": "deployment", "window": WINDOW}


def at(seconds: float) -> datetime:
    """So long after `NOW`."""
    return datetime.fromtimestamp(NOW + seconds, UTC)


def asked(policy: Policy, *scopes: str, now: float = NOW, **changes: Any) -> Granted | str:
    granted = policy.grant(
        TICKETS,
        issuer=IDP,
        workload=BOT,
        for_user=False,
        scopes=scopes or ("read",),
        calls=changes.get("calls", ()),
        now=now,
    )
    return granted.name if isinstance(granted, Code) else granted


def opened(policy: Policy, name: str = "win:1", grant_id: str = "g", until: float = 60) -> None:
    policy.live.open(OpenWindow(name, grant_id, NOW + until))


@pytest.mark.parametrize(
    ("name", "after", "expected"),
    [
        ("just before", -0.001, "grant.outside_window"),
        ("not_before itself", 0, 10.0),
        ("in between", 8.5, 1.5),
        ("the last whole second", 9, 1.0),
        ("less than a second is left", 9.001, "grant.ended"),
        ("not_after itself", 10, "grant.ended"),
        ("long after", 1000, "grant.ended"),
    ],
)
def test_a_time_box(name: str, after: float, expected: float | str) -> None:
    policy = policy_of(grant("g", not_before=at(0), not_after=at(10)))
    granted = asked(policy, now=NOW + after)
    left = granted if isinstance(granted, str) else granted.until - (NOW + after)
    assert left == pytest.approx(expected) if isinstance(expected, float) else left == expected


def test_uses() -> None:
    policy = policy_of(grant("g", max_uses=2))
    granted = asked(policy)
    assert isinstance(granted, Granted)
    assert granted.limited == (("g", 2),)
    policy.live.count("g", 1)
    assert isinstance(asked(policy), Granted)
    policy.live.count("g", 2)
    policy.live.count("g", 1)  # news that came late undo nothing
    assert asked(policy) == "grant.used_up"


def test_a_window() -> None:
    policy = policy_of(grant("g", **DEPLOYMENT), targets=(TICKETS,))
    assert asked(policy) == "grant.outside_window"
    opened(policy, "win:other", grant_id="another")
    assert asked(policy) == "grant.outside_window"
    opened(policy, "win:short", until=30)
    opened(policy, "win:long", until=60)
    granted = asked(policy)
    assert isinstance(granted, Granted)
    assert (granted.windows, granted.until) == (("win:long",), NOW + 60)
    assert policy.live.windows == 3
    policy.live.close("win:long")
    granted = asked(policy)
    assert isinstance(granted, Granted)
    assert (granted.windows, granted.until) == (("win:short",), NOW + 30)
    assert isinstance(asked(policy, now=NOW + 29), Granted)
    assert asked(policy, now=NOW + 29.5) == "grant.outside_window"
    assert asked(policy, now=NOW + 30) == "grant.outside_window"
    policy.live.sweep(NOW + 30)
    assert policy.live.windows == 1  # the other grant's
    policy.live.close("win:short")
    policy.live.close("win:none")


def test_a_window_does_not_outlive_its_grant() -> None:
    policy = policy_of(grant("g", **DEPLOYMENT, not_after=at(20)))
    opened(policy)
    granted = asked(policy)
    assert isinstance(granted, Granted)
    assert granted.until == NOW + 20
    assert asked(policy, now=NOW + 20) == "grant.ended"


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("what may pass by itself first", [{"not_before": at(1)}, {"not_after": at(-1)}],
         "grant.outside_window"),
        ("used up rather than ended", [{"max_uses": 1}, {"not_after": at(-1)}], "grant.used_up"),
        ("one that is in force", [{}, {"not_after": at(-1)}], ("g0",)),
        ("nothing bounded is used beside what is not",
         [{"not_after": at(9)}, {"max_uses": 9}, {}], ("g2",)),
        ("of bounded ones the longest", [{"not_after": at(9)}, {"not_after": at(10)}], ("g1",)),
        ("time before uses", [{"not_after": at(9)}, {"max_uses": 9}], ("g0",)),
        ("all that are unbounded", [{}, {"ttl": "60s"}], ("g0", "g1")),
    ],
)  # fmt: skip
def test_which_grants_a_token_rests_on(
    name: str, changes: list[dict[str, Any]], expected: tuple[str, ...] | str
) -> None:
    policy = policy_of(*(grant(f"g{number}", **each) for number, each in enumerate(changes)))
    for number, each in enumerate(changes):
        if each.get("max_uses") == 1:
            policy.live.count(f"g{number}", 1)
    granted = asked(policy)
    assert (granted if isinstance(granted, str) else granted.grant_ids) == expected, name


def test_the_scope_that_ended_is_told_and_another_is_given() -> None:
    policy = policy_of(grant("g"), grant("h", scopes=["write"], not_after=at(-1)))
    assert asked(policy, "write") == "grant.ended"
    granted = asked(policy, "read", "write")
    assert isinstance(granted, Granted)
    assert granted.scopes == ("read",)


def test_grants_made_by_api_count_beside_those_of_the_file() -> None:
    policy = policy_of(grant("g"))
    made = policy.rules.compile(file_of([grant("made", scopes=["write"])]).grants[0])
    policy.live.made.put(made)
    granted = asked(policy, "read", "write")
    assert isinstance(granted, Granted)
    assert granted.grant_ids == ("g", "made")
    assert policy.find("made") is made
    policy.live.made.put(replace(made, ended=True))
    assert asked(policy, "write") == "grant.ended"
    policy.live.forget("made")
    assert asked(policy, "write") == "grant.scope"


@pytest.mark.parametrize(
    ("name", "ids", "expected"),
    [
        ("nothing", [], True),
        ("of the file", ["g"], True),
        ("unknown", ["g", "x"], False),
        ("expired", ["old"], False),
        ("revoked", ["revoked"], False),
        ("used up: the tokens of its uses live on", ["used"], True),
        ("an open window", ["deploy", "win:1"], True),
        ("a window past its deadline", ["deploy", "win:2"], False),
        ("an unknown window", ["deploy", "win:3"], False),
    ],
)
def test_what_stands(name: str, ids: list[str], expected: bool) -> None:
    policy = policy_of(
        grant("g"),
        grant("old", not_after=at(0)),
        grant("used", max_uses=1),
        grant("deploy", **DEPLOYMENT),
    )
    policy.live.count("used", 1)
    policy.live.made.put(
        replace(policy.rules.compile(policy.written["g"]), id="revoked", ended=True)
    )
    opened(policy, "win:1", "deploy")
    opened(policy, "win:2", "deploy", until=0)
    assert policy.stands(ids, NOW) is expected, name


def test_an_id_is_not_the_file_s_and_the_api_s() -> None:
    policy = policy_of(grant("g"))
    policy.live.made.put(policy.rules.compile(file_of([grant("made")]).grants[0]))
    file = file_of([grant("made")])
    with pytest.raises(PolicyInvalid, match="made by API has this id"):
        Policy.compile(file, (TICKETS,), issuers=frozenset({IDP}), live=policy.live)


@pytest.mark.parametrize(
    ("name", "opener", "expected"),
    [
        ("subject", {"subject": "job"}, True),
        ("another subject", {"subject": "job2"}, False),
        ("a pattern is no subject", {"subject": "*"}, False),
        ("claims", {"claims": {"ref": "main", "env": "prod"}}, True),
        ("one claim differs", {"claims": {"ref": "main", "env": "dev"}}, False),
        ("a claim is missing", {"claims": {"ref": "main", "x": "y"}}, False),
        ("a claim that is no text", {"claims": {"run": "7"}}, False),
        ("subject and claims", {"subject": "job", "claims": {"ref": "main"}}, True),
        ("subject and another claim", {"subject": "job", "claims": {"ref": "x"}}, False),
        ("another issuer", {"issuer": "https://ci2", "subject": "job"}, False),
    ],
)
def test_who_opens_a_window(name: str, opener: dict[str, Any], expected: bool) -> None:
    written = grant("g", use="deployment", window={
        "opened_by": [{"issuer": "https://ci", **opener}], "longest": "1h",
    })  # fmt: skip
    policy = Policy.compile(
        file_of([written]),
        (TICKETS,),
        issuers=frozenset({IDP}),
        deployers=frozenset({"https://ci", "https://ci2"}),
    )
    found = policy.find("g")
    assert found is not None
    assert found.opening is not None
    assert found.opening.longest == 3600
    claims = {"ref": "main", "env": "prod", "run": 7}
    assert found.opening.admits("https://ci", "job", claims) is expected, name


def test_the_form_of_a_grant_is_read_back_as_it_was() -> None:
    (written,) = file_of([
        grant("g", ttl="90s", not_before="2026-11-29T10:00:00+02:00", max_uses=3, reason="r",
              conditions=[condition("/a", "GET")], **DEPLOYMENT),
    ]).grants  # fmt: skip
    document = document_of(written)
    assert document["not_before"] == "2026-11-29T08:00:00Z"
    assert (document["ttl"], document["window"]["longest"]) == ("90s", "30m")
    assert "not_after" not in document
    assert document_of(convert(GrantSettings, document)) == document


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
        grant("g", not_before=at(0)),
        grant("g", not_after=at(0)),
        grant("g", max_uses=1),
        grant("g", **DEPLOYMENT),
        grant("g", conditions=[condition("/a", "GET")]),
        mcp_grant("g", "tools/call"),
        grant("other"),
    ],
)
def test_the_digest_changes_with_every_grant_key(changed: dict[str, Any]) -> None:
    assert policy_of(grant("g")).digest != policy_of(changed).digest


def test_the_digest_is_not_of_what_people_note() -> None:
    noted = grant("g", reason="r", ticket="t", owner="o")
    assert policy_of(grant("g")).digest == policy_of(noted).digest


def test_the_digest_tells_windows_apart() -> None:
    def window(**changes: Any) -> str:
        return policy_of(grant("g", use="deployment", window=WINDOW | changes)).digest

    opener = {"issuer": "https://ci", "subject": "s"}
    assert len({window(), window(longest="1h"), window(opened_by=[opener])}) == 3


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
        ([grant("g", issuer="https://three")], "trust for workloads"),
        (
            [
                grant(
                    "g",
                    use="deployment",
                    window=WINDOW | {"opened_by": [{"issuer": "https://three", "subject": "s"}]},
                )
            ],
            "trust for deployments",
        ),
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
        ({"not_before": "2026-11-29T10:00:00"}, "timezone"),
        ({"not_before": 1_793_500_000}, "datetime"),
        ({"not_before": at(1), "not_after": at(1)}, "earlier than"),
        ({"max_uses": 0}, "at least 1"),
        ({"max_uses": True}, "bool"),
        ({"use": "deployment"}, "come together"),
        ({"window": WINDOW}, "come together"),
        ({"reason": "two\nlines"}, "one line"),
        ({**DEPLOYMENT, "window": WINDOW | {"opened_by": []}}, "opened_by is empty"),
        ({**DEPLOYMENT, "window": WINDOW | {"longest": "25h"}}, "between 1s and 24h"),
        ({**DEPLOYMENT, "window": WINDOW | {"opened_by": [{"issuer": "i"}]}}, "subject or claims"),
        (
            {**DEPLOYMENT, "window": WINDOW | {"opened_by": [{"issuer": "i", "claims": {}}]}},
            "at least one claim",
        ),
        (
            {
                **DEPLOYMENT,
                "window": WINDOW | {"opened_by": [{"issuer": "i", "claims": {"a": ""}}]},
            },
            "non-empty text",
        ),
        (
            {**DEPLOYMENT, "window": WINDOW | {"opened_by": [{"issuer": "", "subject": "s"}]}},
            "issuer must not be empty",
        ),
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
