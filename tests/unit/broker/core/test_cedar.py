"""One question to the policies: permits, forbids, errors, approvals, and what is remembered."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.broker.core.cedar_support import (
    ALICE,
    BOT,
    NOW,
    OTHER,
    READ,
    SCOPE,
    TICKETS,
    ask,
    call,
    compiled,
    outcome,
)
from valetkey.broker.core.cedar import Policies
from valetkey.broker.core.cedar_text import ApprovalRule, PoliciesInvalid
from valetkey.broker.core.permission import Permission
from valetkey.broker.core.places import TargetFacts

ALL = f'@id("all") permit {SCOPE};'
# A Cedar Long has 64 bits, and arithmetic that leaves them is an error.
OVERFLOW = "context.weekday + 9223372036854775807 > 0"
APPROVED = "context.approved"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("built in", None, "permit grants-decide"),
        ("nothing applies", '@id("a") permit (principal is User, action, resource);', "deny"),
        ("permitted", ALL, "permit all"),
        ("by role", '@id("a") permit (principal in Role::"robots", action, resource);', "permit a"),
        ("by group", '@id("a") permit (principal in Group::"night", action, resource);', "permit a"),
        ("another role", '@id("a") permit (principal in Role::"x", action, resource);', "deny"),
        ("by name", '@id("a") permit (principal == Workload::"https://idp.example|bot", action, resource);', "permit a"),
        ("of another issuer", '@id("a") permit (principal == Workload::"https://x|bot", action, resource);', "deny"),
        ("forbidden", ALL + f'@id("no") forbid {SCOPE};', "deny no"),
        ("two forbid", ALL + f'@id("n2") forbid {SCOPE}; @id("n1") forbid {SCOPE};', "deny n1 n2"),
        ("two permit", ALL + f'@id("b") permit {SCOPE};', "permit all b"),
        ("forbidden elsewhere", ALL + '@id("no") forbid (principal, action, resource in Target::"other");', "permit all"),
        ("permitted elsewhere", '@id("a") permit (principal, action, resource in Target::"other");', "deny"),
        ("an erring forbid does not vanish", ALL + f'@id("no") forbid {SCOPE} when {{ {OVERFLOW} }};', "error"),
        ("an erring permit beside a permit", ALL + f'@id("b") permit {SCOPE} when {{ {OVERFLOW} }};', "error"),
        ("an erring permit alone", f'@id("b") permit {SCOPE} when {{ {OVERFLOW} }};', "error"),
        ("an error beside a forbid", f'@id("no") forbid {SCOPE}; @id("b") permit {SCOPE} when {{ {OVERFLOW} }};', "error"),
        ("an error elsewhere", ALL + f'@id("b") forbid (principal, action, resource in Target::"other") when {{ {OVERFLOW} }};', "permit all"),
        ("facts of the target", f'@id("a") permit {SCOPE} when {{ context.environment == "production" && context.risk == "high" }};', "permit a"),
        ("time", f'@id("a") permit {SCOPE} when {{ context.now == datetime("2027-01-15T08:00:00Z") }};', "permit a"),
        ("time of day", f'@id("a") permit {SCOPE} when {{ context.now.toTime() >= duration("8h") && context.weekday == 5 }};', "permit a"),
        ("too late", f'@id("a") permit {SCOPE} when {{ context.now < datetime("2027-01-15T08:00:00Z") }};', "deny"),
        ("the actor", f'@id("a") permit {SCOPE} when {{ context.actor.roles.contains("robots") && !context.actor.agent }};', "permit a"),
    ],
)  # fmt: skip
def test_outcomes(name: str, text: str, expected: str) -> None:
    assert outcome(text, READ) == expected, name


@pytest.mark.parametrize(
    ("name", "text", "expected", "rules"),
    [
        ("a forbid that an approval lifts", ALL + f'@id("a") forbid {SCOPE} unless {{ {APPROVED} }};', "approve a all", [ApprovalRule()]),
        ("a permit that needs one", f'@id("a") @approval_roles("lead") permit {SCOPE} when {{ {APPROVED} }};', "approve a", [ApprovalRule(1, ("lead",))]),
        ("permitted without one", ALL + f'@id("a") permit {SCOPE} when {{ {APPROVED} }};', "permit all", []),
        ("forbidden with one too", ALL + f'@id("a") forbid {SCOPE} unless {{ {APPROVED} }}; @id("no") forbid {SCOPE};', "deny a no", []),
        ("an error with one", ALL + f'@id("a") forbid {SCOPE} unless {{ {APPROVED} }}; @id("e") forbid {SCOPE} when {{ {APPROVED} && {OVERFLOW} }};', "error", []),
        ("lifted, but permitted by nothing", f'@id("a") forbid {SCOPE} unless {{ {APPROVED} }};', "deny a", []),
        (
            "two that lift",
            ALL + f'@id("a") @approval_quorum("2") forbid {SCOPE} unless {{ {APPROVED} }}; @id("b") @approval_groups("sec") forbid {SCOPE} unless {{ {APPROVED} }};',
            "approve a all b", [ApprovalRule(2), ApprovalRule(1, (), ("sec",))],
        ),
        (
            "one that lifts, one that permits",
            f'@id("a") @approval_quorum("2") forbid {SCOPE} unless {{ {APPROVED} }}; @id("b") permit {SCOPE} when {{ {APPROVED} }};',
            "approve a b", [ApprovalRule(2), ApprovalRule()],
        ),
        ("with one it is forbidden", ALL + f'@id("a") forbid {SCOPE} when {{ {APPROVED} }};', "permit all", []),
    ],
)  # fmt: skip
def test_approvals(name: str, text: str, expected: str, rules: list[ApprovalRule]) -> None:
    assert outcome(text, READ) == expected, name
    found = ask(text, READ)
    assert list(found.approvals) == rules, name


@pytest.mark.parametrize(
    "place",
    [
        'Target::"tickts"',
        'Route::"tickets/clos"',
        'Route::"close"',
        'Tool::"x/y"',
        'Tool::"tickets/"',
        'Target::"tickets/close"',
    ],
)
def test_a_place_that_settings_do_not_have_is_refused(place: str) -> None:
    with pytest.raises(PoliciesInvalid, match=r"p\.cedar:2: "):
        compiled(f'{ALL}\n@id("b") forbid {SCOPE} when {{ resource in {place} }};')


# Conditions, each with what it is for the question: true, false, or an error.
CONDITIONS = [
    ("true", True), ("false", False), (OVERFLOW, None), (f"!({OVERFLOW})", None),
    ("context.weekday == 5", True), ("context.weekday < 5", False),
    ("context.weekday - 9223372036854775807 - 10 < 0", None),
    ('context.path == "/x"', None), ('context.mcp_tool == "x"', None),
    ('false && context.path == "/x"', False), ('true || context.mcp_method == ""', True),
    (f"if context.weekday == 5 then {OVERFLOW} else true", None),
    ('context.actor.subject == "bot"', True), ('principal.subject == "mallory"', False),
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["permit", "forbid"]), st.sampled_from(CONDITIONS)),
        min_size=1, max_size=6,
    )
)  # fmt: skip
def test_any_error_is_a_deny(rules: list[tuple[str, tuple[str, bool | None]]]) -> None:
    """Our reading of a policy set, against Cedar's: no permit with an error anywhere."""
    text = "".join(
        f'@id("p{number}") {effect} {SCOPE} when {{ {condition} }};\n'
        for number, (effect, (condition, _)) in enumerate(rules)
    )
    found = ask(text)  # a request without details: its calls are left open
    errs = any(value is None for _, (_, value) in rules)
    permitted = any(effect == "permit" and value for effect, (_, value) in rules)
    forbidden = any(effect == "forbid" and value for effect, (_, value) in rules)
    assert isinstance(found, Permission) == (permitted and not forbidden and not errs)
    if errs:
        assert found.outcome in {"error", "open"}  # type: ignore[union-attr]
        assert found.errors  # type: ignore[union-attr]


def test_values_that_json_does_not_take_are_an_error() -> None:
    from dataclasses import replace

    broken = replace(BOT, subject="\ud800")
    assert outcome(ALL, READ, actor=broken) == "error"
    assert (
        outcome(
            f'@id("a") permit {SCOPE} when {{ context.actor.agent == false }};', READ, actor=broken
        )
        == "error"
    )


def test_the_digest_names_policies_schema_and_targets() -> None:
    one = compiled(ALL + f'@id("b") forbid {SCOPE} when {{ context.weekday == 7 }};')
    same = Policies.compile(
        {"b": f'@id("b")   forbid {SCOPE}\n// x\nwhen {{ context.weekday == 7 }};', "a": ALL},
        [OTHER, TICKETS],
    )
    assert one.digest == same.digest
    others = [
        compiled(ALL),
        compiled(ALL + f'@id("c") forbid {SCOPE} when {{ context.weekday == 7 }};'),
        compiled(ALL + f'@id("b") forbid {SCOPE} when {{ context.weekday == 6 }};'),
        Policies.compile({"a": ALL}, [TargetFacts("tickets"), OTHER]),
        Policies.compile({"a": ALL}, [TargetFacts("tickets", routes={"r": call("GET", "/")}), OTHER]),
    ]  # fmt: skip
    assert len({one.digest, *(other.digest for other in others)}) == 6


def test_remembered_answers_are_told_apart_by_all_that_they_depend_on() -> None:
    policies = compiled(f"""@id("a") permit {SCOPE} when {{
        context.scope == "s" && context.method == "GET" && context.weekday == 5 }};
        @id("u") forbid (principal is User, action, resource);""")
    from valetkey.broker.core.permission import Asking, permission

    def outcome_of(scope: str, method: str, now: float, user: bool) -> bool:
        asking = Asking(
            "tickets", BOT, ALICE if user else None, (scope,), (call(method, "/"),), now
        )
        return isinstance(permission(policies, asking), Permission)

    for _ in range(2):
        assert outcome_of("s", "GET", NOW, False)
        assert not outcome_of("t", "GET", NOW, False)
        assert not outcome_of("s", "POST", NOW, False)
        assert not outcome_of("s", "GET", NOW + 86_400, False)
        assert not outcome_of("s", "GET", NOW, True)
