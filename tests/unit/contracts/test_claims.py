"""Claim tables: exact values with their types; several tables are alternatives; none is no yes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from valetkey.contracts.claims import ClaimTable, check_tables
from valetkey.contracts.jose import TokenInvalid

MAIN: dict[str, Any] = {"repository": ("acme/shop",), "ref": ("refs/heads/main",)}
TOOLS: dict[str, Any] = {"repository": ("acme/tools", "acme/infra"), "protected": (True,)}

CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "the first table": ({"repository": "acme/shop", "ref": "refs/heads/main"}, True),
    "the second table": ({"repository": "acme/infra", "protected": True}, True),
    "more claims than asked": (
        {"repository": "acme/shop", "ref": "refs/heads/main", "actor": "eve"},
        True,
    ),
    "half of each": ({"repository": "acme/shop", "protected": True}, False),
    "a claim is missing": ({"repository": "acme/shop"}, False),
    "another value": ({"repository": "acme/shop", "ref": "refs/heads/main2"}, False),
    "another case": ({"repository": "Acme/shop", "ref": "refs/heads/main"}, False),
    "a list of the value": ({"repository": ["acme/shop"], "ref": "refs/heads/main"}, False),
    "null": ({"repository": None, "ref": "refs/heads/main"}, False),
    "1 for true": ({"repository": "acme/tools", "protected": 1}, False),
    "a text for true": ({"repository": "acme/tools", "protected": "true"}, False),
    "nothing": ({}, False),
}


@pytest.mark.parametrize(("claims", "good"), CASES.values(), ids=CASES)
def test_tables(claims: dict[str, Any], good: bool) -> None:
    if good:
        check_tables(claims, (MAIN, TOOLS))
    else:
        with pytest.raises(TokenInvalid, match="no claim table"):
            check_tables(claims, (MAIN, TOOLS))


@pytest.mark.parametrize("tables", [(), ({},)], ids=["no table", "an empty table"])
def test_nothing_to_hold_is_no_yes(tables: Any) -> None:
    with pytest.raises(TokenInvalid):
        check_tables({"repository": "acme/shop"}, tables)


@pytest.mark.parametrize("written", [{}, {"ref": []}, {"": ["x"]}, {"ref": [1.5]}, {"ref": "x"}])
def test_tables_that_are_refused_at_load(written: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(written, ClaimTable)
