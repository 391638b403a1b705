"""Roles of administrators: who may look, decide on approvals, operate, administer.

Invariants:

- Nobody has a role that no rule names; a rule without a condition is an error, never "everybody".
- ``admin`` does not approve: who can change the rules of approval does not also vote by them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Role = Literal["viewer", "approver", "operator", "admin", "provisioner"]

# What each role may do besides its own. `provisioner` is for directories that write to us (SCIM):
# it reads nothing else.
_INCLUDES: Final[Mapping[Role, frozenset[Role]]] = {
    "viewer": frozenset({"viewer"}),
    "approver": frozenset({"approver", "viewer"}),
    "operator": frozenset({"operator", "viewer"}),
    "admin": frozenset({"admin", "operator", "viewer"}),
    "provisioner": frozenset({"provisioner"}),
}


@dataclass(frozen=True, slots=True)
class RoleRule:
    """Gives ``role`` to tokens of ``issuer`` for which every condition holds.

    ``subjects``: the token's subject is one of these (``None``: any). ``claims``: each claim named
    has one of these values, or is a list that contains one.
    """

    role: Role
    issuer: str
    subjects: frozenset[str] | None
    claims: Mapping[str, frozenset[str]]

    def holds(self, issuer: str, subject: str, claims: Mapping[str, Any]) -> bool:
        return (
            issuer == self.issuer
            and (self.subjects is None or subject in self.subjects)
            and all(_values(claims.get(name)) & allowed for name, allowed in self.claims.items())
        )


def roles_of(
    rules: Iterable[RoleRule], issuer: str, subject: str, claims: Mapping[str, Any]
) -> frozenset[Role]:
    """What the rules give to the holder of these verified claims, with what that includes."""
    roles: frozenset[Role] = frozenset()
    for rule in rules:
        if rule.holds(issuer, subject, claims):
            roles |= _INCLUDES[rule.role]
    return roles


def _values(claim: Any) -> frozenset[str]:
    """A claim's values: a string is one, a list gives its strings, anything else none."""
    if isinstance(claim, str):
        return frozenset({claim})
    if isinstance(claim, list):
        return frozenset(value for value in claim if isinstance(value, str))
    return frozenset()
