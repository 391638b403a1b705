"""Roles and groups from claims: exact tables, and claims that are none."""

from __future__ import annotations

from typing import Any

import pytest

from valetkey.broker.core.attributes import (
    Attributes,
    AttributesInvalid,
    ClaimDirectory,
    ClaimTable,
    ClaimTables,
    Directories,
)

ROLES = ClaimTable(("realm_access", "roles"), {"Lead": "lead", "Support": "support"})


@pytest.mark.parametrize(
    ("name", "claims", "expected"),
    [
        ("one text", {"realm_access": {"roles": "Lead"}}, {"lead"}),
        ("a list", {"realm_access": {"roles": ["Lead", "Support"]}}, {"lead", "support"}),
        ("an unknown value", {"realm_access": {"roles": ["lead", "LEAD", "x"]}}, set()),
        ("an empty list", {"realm_access": {"roles": []}}, set()),
        ("no claim", {}, set()),
        ("no member", {"realm_access": {}}, set()),
    ],
)
def test_names_of_values(name: str, claims: dict[str, Any], expected: set[str]) -> None:
    assert ROLES.read(claims) == expected, name


@pytest.mark.parametrize(
    "claims",
    [
        {"realm_access": "Lead"},
        {"realm_access": ["Lead"]},
        {"realm_access": {"roles": None}},
        {"realm_access": {"roles": {"Lead": True}}},
        {"realm_access": {"roles": ["Lead", 1]}},
        {"realm_access": {"roles": 7}},
    ],
)
def test_a_malformed_claim_is_an_error(claims: dict[str, Any]) -> None:
    with pytest.raises(AttributesInvalid, match=r"realm_access\.roles"):
        ROLES.read(claims)


@pytest.mark.parametrize(
    ("path", "names"),
    [((), {"a": "b"}), (("",), {"a": "b"}), (("a",), {}), (("a",), {"": "b"}), (("a",), {"a": ""})],
)
def test_an_empty_table_is_an_error(path: tuple[str, ...], names: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"empty|names no claim"):
        ClaimTable(path, names)


async def test_tables_are_of_their_issuer() -> None:
    directory = ClaimDirectory({"https://a": ClaimTables(ROLES, None)})
    claims = {"realm_access": {"roles": ["Lead"]}}
    assert await directory.attributes("https://a", "alice", claims) == Attributes(
        roles=frozenset({"lead"})
    )
    assert await directory.attributes("https://b", "alice", claims) == Attributes()


async def test_sources_add_up_and_inactive_in_one_is_inactive() -> None:
    class Fixed:
        def __init__(self, *roles: str, active: bool = True) -> None:
            self.found = Attributes(frozenset(roles), active=active)

        async def attributes(self, issuer: str, subject: str, claims: Any) -> Attributes:
            return self.found

    both = Directories([Fixed("a"), Fixed("b", active=False), Fixed("c")])
    assert await both.attributes("i", "s", {}) == Attributes(
        frozenset({"a", "b", "c"}), active=False
    )
