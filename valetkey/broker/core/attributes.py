"""Roles and groups: what a directory, or the claims of a token, say of somebody.

Invariants:

- Only names that the settings give count. A value that no table knows gives nothing; a claim that
  is malformed is an error, since a role that vanishes could lift a ``forbid``.
- An empty table is an error when it is made: it would never give anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

NONE: Final[frozenset[str]] = frozenset()


class AttributesInvalid(ValueError):  # noqa: N818 - reads as what it is
    """A claim that should name roles or groups and is nothing of the kind."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """What is known of a subject. One that is not ``active`` gets nothing and gives nothing.

    ``found_by`` are the claims other than ``sub`` that directories found it by, and their values.
    """

    roles: frozenset[str] = NONE
    groups: frozenset[str] = NONE
    active: bool = True
    found_by: frozenset[tuple[str, str]] = frozenset()

    def __or__(self, other: Attributes) -> Attributes:
        """Both sources together; inactive in one is inactive."""
        return Attributes(
            self.roles | other.roles,
            self.groups | other.groups,
            self.active and other.active,
            self.found_by | other.found_by,
        )


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the parties of an exchange. ``agent``: the acting workload is one.

    ``user_kind`` is what whom it acts for is to policies: a token of our own may be a workload's.
    """

    actor: Attributes = Attributes()
    agent: bool = False
    user: Attributes = Attributes()
    user_kind: Literal["User", "Workload", "Agent"] = "User"


class Directory(Protocol):
    """A source of attributes."""

    async def attributes(self, issuer: str, subject: str, claims: Mapping[str, Any]) -> Attributes:
        """What is known of the subject whose verified claims these are.

        Raises `AttributesInvalid`.
        """


@dataclass(frozen=True, slots=True)
class ClaimTable:
    """Names for the values of one claim. ``path`` leads to it (``("realm_access", "roles")``)."""

    path: tuple[str, ...]
    names: Mapping[str, str]

    def __post_init__(self) -> None:
        if not self.path or not all(self.path):
            raise ValueError("claim names no claim")
        if not self.names or not all(self.names) or not all(self.names.values()):
            raise ValueError("the table is empty, or has an empty value or name")

    def read(self, claims: Mapping[str, Any]) -> frozenset[str]:
        """The names that these claims give. Raises `AttributesInvalid`."""
        value: Any = claims
        for member in self.path:
            if not isinstance(value, Mapping):
                raise AttributesInvalid(f"claim {'.'.join(self.path)} is not where it should be")
            if member not in value:
                return NONE
            value = value[member]
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
            raise AttributesInvalid(f"claim {'.'.join(self.path)} is no text and no list of texts")
        return frozenset(self.names[item] for item in values if item in self.names)


@dataclass(frozen=True, slots=True)
class ClaimTables:
    """How the tokens of one issuer name roles and groups. One of the two may be ``None``."""

    roles: ClaimTable | None
    groups: ClaimTable | None


class ClaimDirectory:
    """Attributes from the claims of the token itself, by issuer. Who is in a token is active."""

    def __init__(self, tables: Mapping[str, ClaimTables]) -> None:
        self._tables = tables

    async def attributes(
        self,
        issuer: str,
        subject: str,  # noqa: ARG002 - the claims are the subject's
        claims: Mapping[str, Any],
    ) -> Attributes:
        tables = self._tables.get(issuer)
        if tables is None:
            return _NOTHING
        return Attributes(
            NONE if tables.roles is None else tables.roles.read(claims),
            NONE if tables.groups is None else tables.groups.read(claims),
        )


class Directories:
    """Several sources as one."""

    def __init__(self, sources: Iterable[Directory]) -> None:
        self._sources = tuple(sources)

    async def attributes(self, issuer: str, subject: str, claims: Mapping[str, Any]) -> Attributes:
        found = _NOTHING
        for source in self._sources:
            found |= await source.attributes(issuer, subject, claims)
        return found


_NOTHING: Final = Attributes()
