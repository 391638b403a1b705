"""PATCH of groups: the members are a set, whatever operations change it, and all of them or none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scim2_models import Context, PatchOp, SCIMException

from valetkey.broker.core import scim_patch
from valetkey.broker.core.scim import DIALECTS, Group, User, pinned
from valetkey.broker.core.scim_keys import Pinned, name_key
from valetkey.broker.core.scim_patch import MAX_OPERATIONS, patch_group, patch_user

SCHEMA = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
IDS = st.sampled_from(["a", "b", "c", 'x"] or value pr'])


def read(kind: Any, *operations: Any) -> Any:
    document = {"schemas": [SCHEMA], "Operations": list(operations)}
    context = Context.RESOURCE_PATCH_REQUEST
    return PatchOp[kind].model_validate(document, scim_ctx=context, scim_policy=DIALECTS)


def changed(members: set[str], *operations: Any) -> frozenset[str]:
    return patch_group(Group(display_name="g"), frozenset(members), read(Group, *operations))[1]


def values(ids: list[str]) -> list[dict[str, str]]:
    return [{"value": id_} for id_ in ids]


OPERATION = st.one_of(
    st.tuples(st.just("add"), st.lists(IDS, min_size=1)),
    st.tuples(st.just("replace"), st.lists(IDS)),
    st.tuples(st.just("remove"), st.lists(IDS, min_size=1)),
    st.tuples(st.just("select"), st.lists(IDS, min_size=1)),
    st.tuples(st.just("object"), st.lists(IDS)),
    st.tuples(st.just("clear"), st.just([])),
)


def written(verb: str, ids: list[str]) -> dict[str, Any]:
    match verb:
        case "select":
            terms = " or ".join(f"value eq {json.dumps(id_)}" for id_ in ids)
            return {"op": "remove", "path": f"members[{terms}]"}
        case "clear":
            return {"op": "Remove", "path": "members"}
        case "object":
            return {"op": "replace", "value": {"members": values(ids), "displayName": "h"}}
        case _:
            return {"op": verb, "path": "members", "value": values(ids)}


@given(st.sets(IDS), st.lists(OPERATION, max_size=6))
def test_members_are_a_set(members: set[str], operations: list[tuple[str, list[str]]]) -> None:
    model = set(members)
    for verb, ids in operations:
        match verb:
            case "add":
                model |= set(ids)
            case "replace" | "object":
                model = set(ids)
            case "clear":
                model = set()
            case _:
                model -= set(ids)
    if operations:
        assert changed(members, *(written(*one) for one in operations)) == model


def test_a_group_is_patched_beside_its_members() -> None:
    group = Group(display_name="g", external_id="1")
    patch = read(Group, written("object", ["a"]), {"op": "remove", "path": "externalId"})
    after, members = patch_group(group, frozenset(), patch)
    assert (after.display_name, after.external_id, members) == ("h", None, {"a"})
    assert (group.display_name, group.external_id) == ("g", "1")


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scim_patch, "MAX_MEMBERS", 3)
    assert changed({"a", "b"}, written("add", ["c"])) == {"a", "b", "c"}
    with pytest.raises(SCIMException):
        changed({"a", "b"}, written("add", ["c", "d"]))
    many = [{"op": "replace", "path": "active", "value": True}] * (MAX_OPERATIONS + 1)
    with pytest.raises(SCIMException):
        patch_user(User(user_name="a"), read(User, *many))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ('userName eq "a"', Pinned("name", "a")),
        ('active eq true and externalId eq "a"', Pinned("external_id", "a")),
        ('id eq "a" and (active eq true or emails pr)', Pinned("id", "a")),
        ('userName eq "a" or active eq true', None),
        ('not (userName eq "a")', None),
        ('userName ne "a"', None),
        ('displayName eq "a"', None),
        ('emails.value eq "a"', None),
    ],
)
def test_what_a_filter_pins(expression: str, expected: Pinned | None) -> None:
    from scim2_models import ScimFilter

    assert pinned("User", ScimFilter[User](expression)) == expected


def test_names_are_compared_as_filters_compare_them() -> None:
    assert name_key("Ångström") == name_key("A\u030angstro\u0308m") == name_key("ÅNGSTRÖM")
    assert name_key("straße") != name_key("strasse")
