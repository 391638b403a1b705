"""Users and groups as SCIM has them (RFC 7643), reduced to what decides about access.

What is held is what a decision or an administrator needs: names, addresses, `active`, roles, and
who is in which group. Anything else that a provisioning client sends (passwords, telephone
numbers, postal addresses, extensions) is left out before it is stored, as RFC 7644 §3.3 lets a
provider do; ``/Schemas`` says so.

Dialects, each as its sender documents it, and nothing beyond:

- Microsoft Entra ID: ``op`` in any case; ``active`` as the text ``"True"`` or ``"False"``; a
  ``remove`` of members that lists them in ``value``; ``emails[type eq "work"].value`` where there
  is no such address yet.
- Okta: a ``replace`` without ``path``, its ``value`` holding the attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import Field, field_validator
from scim2_models import (
    URN,
    CaseExact,
    ComplexAttribute,
    Mutability,
    Reference,
    Required,
    Resource,
    Returned,
    ScimFilter,
    ScimPolicy,
    Uniqueness,
)
from scim2_models.path import CompareOperator, Comparison, LogicalExpr, LogicalOperator

from valetkey.broker.core.scim_keys import Column, Kind, Pinned

# RFC 7643 gives no bounds. These are what directories themselves allow at most, or twice that.
MAX_TEXT: Final = 512
MAX_VALUES: Final = 64
MAX_MEMBERS: Final = 50_000

DIALECTS: Final = ScimPolicy(
    unknown=ScimPolicy.Unknown.ignore,
    remove_value_as_filter=ScimPolicy.RemoveValue.apply,
    unmatched_path_filter=ScimPolicy.UnmatchedPathFilter.create,
)

Text = Annotated[str, Field(max_length=MAX_TEXT)]


class Name(ComplexAttribute):
    """RFC 7643 §4.1.1."""

    formatted: Text | None = None
    family_name: Text | None = None
    given_name: Text | None = None


class Email(ComplexAttribute):
    """An address to show, never one to write to: its form is the client's business."""

    value: Text | None = None
    type: Text | None = None
    primary: bool | None = None


class Role(ComplexAttribute):
    """RFC 7643 §4.1.2: what policies know as a role."""

    value: Text | None = None
    display: Text | None = None
    type: Text | None = None
    primary: bool | None = None


class Membership(ComplexAttribute):
    """A group that the user is a direct member of."""

    value: Annotated[str | None, Mutability.read_only, CaseExact.true] = None
    ref: Annotated[Reference[Any] | None, Mutability.read_only] = Field(
        None, serialization_alias="$ref", validation_alias="$ref"
    )
    display: Annotated[str | None, Mutability.read_only] = None


class User(Resource[Any]):
    """RFC 7643 §4.1."""

    __schema__ = URN("urn:ietf:params:scim:schemas:core:2.0:User")

    user_name: Annotated[
        Annotated[str, Field(min_length=1, max_length=MAX_TEXT)] | None,
        Uniqueness.server,
        Required.true,
    ] = None
    external_id: Annotated[Text | None, Mutability.read_write, Returned.default, CaseExact.true] = (
        None
    )
    display_name: Text | None = None
    name: Name | None = None
    active: bool | None = None
    emails: Annotated[list[Email] | None, Field(max_length=MAX_VALUES)] = None
    roles: Annotated[list[Role] | None, Field(max_length=MAX_VALUES)] = None
    groups: Annotated[list[Membership] | None, Mutability.read_only] = None

    @field_validator("active", mode="before")
    @classmethod
    def _strictly_boolean(cls, value: Any) -> Any:
        """RFC 7643 §2.3.2, and the two texts of Entra ID; never 0, "no" or "off"."""
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in {"true", "false"}:
            return value.lower() == "true"
        raise ValueError("active must be true or false")


class Member(ComplexAttribute):
    """RFC 7643 §4.2: a user or a group of this directory, by its id."""

    value: Annotated[
        Annotated[str, Field(min_length=1, max_length=64)] | None,
        Mutability.immutable,
        Required.true,
        CaseExact.true,
    ] = None
    ref: Annotated[Reference[Any] | None, Mutability.immutable] = Field(
        None, serialization_alias="$ref", validation_alias="$ref"
    )
    type: Annotated[Text | None, Mutability.immutable] = None
    display: Text | None = None


class Group(Resource[Any]):
    """RFC 7643 §4.2. ``displayName`` is what policies know a group by, so no two share one."""

    __schema__ = URN("urn:ietf:params:scim:schemas:core:2.0:Group")

    display_name: Annotated[
        Annotated[str, Field(min_length=1, max_length=MAX_TEXT)] | None,
        Uniqueness.server,
        Required.true,
    ] = None
    external_id: Annotated[Text | None, Mutability.read_write, Returned.default, CaseExact.true] = (
        None
    )
    members: Annotated[list[Member] | None, Field(max_length=MAX_MEMBERS)] = None


# What a resource is looked up by without looking at others: id, the name that is unique, the
# client's own identifier.
_PINNABLE: Final[Mapping[Kind, Mapping[str, Column]]] = {
    "User": {"id": "id", "username": "name", "externalid": "external_id"},
    "Group": {"id": "id", "displayname": "name", "externalid": "external_id"},
}


def pinned(kind: Kind, expression: ScimFilter[Any]) -> Pinned | None:
    """An equality that everything the filter matches must fulfil, if there is one to look up by."""
    node = expression.ast
    both = isinstance(node, LogicalExpr) and node.op is LogicalOperator.and_
    for term in node.terms if isinstance(node, LogicalExpr) and both else (node,):
        if (
            isinstance(term, Comparison)
            and term.op is CompareOperator.eq
            and isinstance(term.value, str)
            and term.attr_path.sub_attr is None
        ):
            column = _PINNABLE[kind].get(term.attr_path.attr.lower())
            if column is not None:
                return Pinned(column, term.value)
    return None
