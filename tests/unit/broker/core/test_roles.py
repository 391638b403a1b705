"""Who has which role."""

from __future__ import annotations

from typing import Any

import pytest

from valetkey.broker.core.roles import Role, RoleRule, roles_of

IDP = "https://login"


def rule(role: Role, *, subjects: set[str] | None = None, **claims: set[str]) -> RoleRule:
    return RoleRule(
        role,
        IDP,
        None if subjects is None else frozenset(subjects),
        {name: frozenset(values) for name, values in claims.items()},
    )


@pytest.mark.parametrize(
    ("role", "included"),
    [
        ("viewer", {"viewer"}),
        ("approver", {"approver", "viewer"}),
        ("operator", {"operator", "viewer"}),
        ("admin", {"admin", "operator", "viewer"}),
        ("provisioner", {"provisioner"}),
    ],
)
def test_what_a_role_includes(role: Role, included: set[str]) -> None:
    assert roles_of([rule(role, subjects={"olga"})], IDP, "olga", {}) == included


@pytest.mark.parametrize(
    ("claim", "holds"),
    [
        ("ops", True),
        (["dev", "ops"], True),
        (["dev"], False),
        ("ops dev", False),  # a claim is a value or a list, never a text to be split
        ({"ops": True}, False),
        (["OPS", 1, None], False),
        (True, False),
        (None, False),
    ],
)
def test_claims(claim: Any, holds: bool) -> None:
    rules = [rule("operator", groups={"ops"})]
    assert bool(roles_of(rules, IDP, "olga", {"groups": claim})) is holds


def test_subjects_are_of_one_issuer_only() -> None:
    rules = [rule("admin", subjects={"olga"})]
    assert roles_of(rules, "https://other", "olga", {}) == frozenset()
    assert roles_of(rules, IDP, "Olga", {}) == frozenset()


def test_both_conditions_must_hold() -> None:
    rules = [rule("viewer", subjects={"olga"}, groups={"ops"})]
    assert not roles_of(rules, IDP, "olga", {"groups": "dev"})
    assert not roles_of(rules, IDP, "paul", {"groups": "ops"})
    assert roles_of(rules, IDP, "olga", {"groups": "ops"})


def test_roles_add_up() -> None:
    rules = [rule("approver", groups={"owners"}), rule("operator", groups={"ops"})]
    both = roles_of(rules, IDP, "olga", {"groups": ["ops", "owners"]})
    assert both == {"approver", "operator", "viewer"}
