"""Claim tables: what else a token of an issuer must say before it counts.

A table names claims and for each the exact values that are accepted; it holds if every claim has
one of its values. Of several tables one has to hold. Values are compared with their type: the text
``"true"`` is not ``true``, and a list is never one of its elements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from msgspec import Meta

from valetkey.contracts.jose import TokenInvalid

ClaimName = Annotated[str, Meta(min_length=1, max_length=256)]
ClaimTable = Annotated[
    dict[ClaimName, Annotated[tuple[str | bool | int, ...], Meta(min_length=1)]], Meta(min_length=1)
]


def check_tables(claims: Mapping[str, Any], tables: Sequence[ClaimTable]) -> None:
    """Raises `TokenInvalid` unless one table holds; no tables at all is an error, not a yes."""
    if not tables:
        raise TokenInvalid("no claim tables: refusing to accept everything")
    for table in tables:
        if table and all(_holds(claims.get(name), values) for name, values in table.items()):
            return
    raise TokenInvalid("no claim table of the issuer holds")


def _holds(value: Any, accepted: Sequence[str | bool | int]) -> bool:
    """JSON's true equals 1 in Python, so the types are compared too."""
    return any(type(value) is type(one) and value == one for one in accepted)
