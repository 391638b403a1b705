"""What users and groups are found and told apart by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from unicodedata import normalize

Kind = Literal["User", "Group"]
Column = Literal["id", "name", "external_id"]


@dataclass(frozen=True, slots=True)
class Pinned:
    """One value that leads to at most one resource of a kind."""

    column: Column
    value: str


def name_key(name: str) -> str:
    """What two names are compared by (RFC 7643 §2.2: not case-exact), as filters compare them."""
    return normalize("NFC", normalize("NFC", name).lower())
