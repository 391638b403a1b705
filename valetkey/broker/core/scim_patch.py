"""PATCH of users and groups (RFC 7644 §3.5.2): all operations of one request, or none.

Members are not applied to a list but to a set of ids: a group of ten thousand changes as fast as
one of ten, and what is stored is the difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import ValidationError
from scim2_models import (
    InvalidPathException,
    InvalidValueException,
    NoTargetException,
    PatchOp,
    PatchOperation,
    Path,
    SCIMException,
)
from scim2_models.path import CompareOperator, Comparison, LogicalExpr, LogicalOperator

from valetkey.broker.core.scim import DIALECTS, MAX_MEMBERS, Group, Member, User

MAX_OPERATIONS: Final = 200
# Made while the module is read: to make such a class is to read files.
_GroupPath: Final = Path[Group]
_GroupPatch: Final = PatchOp[Group]
_GroupOperation: Final = PatchOperation[Group]


def patch_user(user: User, patch: PatchOp[User]) -> User:
    """A new user. One without ``active`` is not active. Raises `SCIMException`."""
    changed = user.model_copy(deep=True)
    _check_count(patch)
    _apply(patch, changed)
    if changed.active is None:
        changed.active = False
    return changed


def patch_group(
    group: Group, members: frozenset[str], patch: PatchOp[Group]
) -> tuple[Group, frozenset[str]]:
    """The group without ``members``, and the ids of its members. Raises `SCIMException`."""
    _check_count(patch)
    changed = group.model_copy(deep=True)
    ids = set(members)
    for operation in patch.operations or ():
        if operation.path is not None and _is_members(operation.path):
            _change_members(ids, operation.op, operation.path, operation.value)
        elif operation.path is None and isinstance(operation.value, dict):
            _apply_object(changed, ids, operation, operation.value)
        else:
            _apply(_only(operation), changed)
    return changed, frozenset(ids)


def member_ids(members: Iterable[Member]) -> frozenset[str]:
    """The ids of members as a client sends them; their ``$ref`` and ``type`` are ours to say."""
    ids = frozenset(member.value for member in members if member.value)
    if len(ids) > MAX_MEMBERS:
        raise InvalidValueException(detail=f"a group has at most {MAX_MEMBERS} members")
    return ids


def _check_count(patch: PatchOp[Any]) -> None:
    if len(patch.operations or ()) > MAX_OPERATIONS:
        raise InvalidValueException(detail=f"at most {MAX_OPERATIONS} operations in one request")


def _apply(patch: PatchOp[Any], resource: User | Group) -> None:
    try:
        patch.patch(resource, scim_policy=DIALECTS)
    except ValidationError as error:
        raise InvalidValueException(detail="a value does not fit its attribute") from error


def _apply_object(
    group: Group,
    ids: set[str],
    operation: PatchOperation[Group],
    attributes: Mapping[str, Any],
) -> None:
    """An operation without a path: its value is an object of attributes."""
    rest: dict[str, Any] = {}
    for key, value in attributes.items():
        if _is_members(_path(key)):
            _change_members(ids, operation.op, _path(key), value)
        else:
            rest[key] = value
    if rest:
        _apply(_only(_GroupOperation(op=operation.op, value=rest)), group)


def _only(operation: PatchOperation[Group]) -> PatchOp[Group]:
    return _GroupPatch(Operations=[operation])


def _path(text: str) -> Path[Group] | None:
    try:
        return _GroupPath(text)
    except SCIMException:
        return None


def _is_members(path: Path[Group] | None) -> bool:
    target = path.resolve() if path is not None else None
    return target is not None and target.field_name == "members"


def _change_members(
    ids: set[str], op: PatchOperation.Op, path: Path[Group] | None, value: Any
) -> None:
    target = path.resolve() if path is not None else None
    if path is None or target is None or target.sub_field_name is not None:
        # RFC 7643 §8.7.1: what a member is, is immutable; another one is another member.
        raise InvalidPathException(path=str(path), detail="members are added and removed whole")
    if op is PatchOperation.Op.remove:
        if path.value_filter is not None:
            ids.difference_update(_selected(path.value_filter))
        elif value is None:
            ids.clear()
        else:
            ids.difference_update(member_ids(_members(value)))
        return
    if path.value_filter is not None:
        raise NoTargetException(detail="members are added by value, not by a filter")
    if op is PatchOperation.Op.replace_:
        ids.clear()
    ids.update(member_ids(_members(value)))
    if len(ids) > MAX_MEMBERS:
        raise InvalidValueException(detail=f"a group has at most {MAX_MEMBERS} members")


def _members(value: Any) -> list[Member]:
    entries = value if isinstance(value, list) else [value]
    members: list[Member] = []
    for entry in entries:
        try:
            member = Member.model_validate(entry, scim_policy=DIALECTS)
        except ValidationError as error:
            raise InvalidValueException(detail="a member is an object with a value") from error
        if not member.value:
            raise InvalidValueException(detail="a member without a value")
        members.append(member)
    return members


def _selected(node: Any) -> list[str]:
    """The ids of ``members[value eq "…"]``, and of several of those joined by ``or``."""
    either = isinstance(node, LogicalExpr) and node.op is LogicalOperator.or_
    ids: list[str] = []
    for term in node.terms if either else (node,):
        if not (
            isinstance(term, Comparison)
            and term.op is CompareOperator.eq
            and term.attr_path.attr.lower() == "value"
            and isinstance(term.value, str)
        ):
            raise InvalidPathException(
                path="members", detail='members are selected by value: members[value eq "…"]'
            )
        ids.append(term.value)
    return ids
