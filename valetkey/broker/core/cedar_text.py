"""Cedar policies as written: split, parsed, checked one by one against the schema.

Every refusal names file and line. What a policy reads and names is taken from its syntax tree
(Cedar's JSON policy format), so that `cedar` can ask each policy only what concerns it.

Invariants:

- A policy has an id of its own, no slots, and annotations from a closed list: a misspelt one would
  silently demand nothing.
- ``context`` is read attribute by attribute, never whole, so that what a policy reads is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import cedarpy
import msgspec

from valetkey.broker.core.cedar_schema import APPROVED, OPTIONAL, SCHEMA

MAX_QUORUM: Final = 10
# Levels of a policy's syntax tree, of which each `&&` or `||` takes two. Whoever goes through it by
# recursion is far from Python's limit of 1,000 then, wherever that begins.
MAX_DEPTH: Final = 500
_TOO_DEEP: Final = "nested too deeply: make several policies of it, or one set of many terms"
_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_NAME: Final = re.compile(r"[^\s,]{1,256}")
_ANNOTATIONS: Final = frozenset(
    {"id", "description", "approval_quorum", "approval_roles", "approval_groups"}
)
# A string or a comment is skipped whole, so that a semicolon in it ends nothing.
_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*|;|\s+|[^"\s;/]+|.', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong, and where. ``line`` counts from 1."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


class PoliciesInvalid(ValueError):  # noqa: N818 - reads as what it is
    """Policies that can't be used, with everything that is wrong with them."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("\n".join(map(str, mistakes)))
        self.mistakes = mistakes


@dataclass(frozen=True, slots=True)
class ApprovalRule:
    """Who has to say yes: ``quorum`` people, each with one of the roles or in one of the groups."""

    quorum: int = 1
    roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WrittenPolicy:
    """One policy.

    ``reads`` are the attributes of ``context`` that it reads, ``names`` the entities (type, id)
    that it names. ``within`` is the target that its scope confines it to, or empty.
    """

    id: str
    file: str
    line: int
    effect: str
    reads: frozenset[str]
    names: frozenset[tuple[str, str]]
    within: str
    approval: ApprovalRule
    tree: Mapping[str, Any] = field(repr=False)

    @property
    def awaits_approval(self) -> bool:
        return APPROVED in self.reads

    @property
    def annotations(self) -> Mapping[str, str]:
        """All but ``@id``."""
        written = self.tree.get("annotations") or {}
        return {name: value or "" for name, value in written.items() if name != "id"}


def read_policies(files: Mapping[str, str]) -> tuple[WrittenPolicy, ...]:
    """All policies of all files (name to text). Raises `PoliciesInvalid`."""
    mistakes: list[Mistake] = []
    policies: dict[str, WrittenPolicy] = {}
    for file, text in files.items():
        for line, piece in _split(text):
            try:
                policy = _read(file, line, piece)
            except RecursionError:
                mistakes.append(Mistake(file, line, _TOO_DEEP))
                continue
            except ValueError as error:
                mistakes += [Mistake(file, line, message) for message in str(error).split("\n")]
                continue
            first = policies.setdefault(policy.id, policy)
            if first is not policy:
                where = f"{first.file}:{first.line}"
                mistakes.append(Mistake(file, line, f"the id {policy.id} is taken by {where}"))
    if not policies and not mistakes:
        name = next(iter(files), "policies")
        mistakes.append(Mistake(name, 1, "no policies: nothing would ever be permitted"))
    if mistakes:
        raise PoliciesInvalid(mistakes)
    return tuple(policies.values())


def _split(text: str) -> Iterator[tuple[int, str]]:
    """Each policy with the line on which it begins. Only a policy ends with a semicolon."""
    line, begun, piece = 1, 0, ""
    for token in _TOKEN.findall(text):
        if not begun and not token.isspace() and not token.startswith("//"):
            begun = line
        line += token.count("\n")
        piece += token
        if token == ";":  # noqa: S105 - of the text, not of a session
            yield begun, piece
            begun, piece = 0, ""
    if begun:
        yield begun, piece  # no semicolon: the parser says what is missing


_SCHEMA: Final = cedarpy.Schema.from_str(SCHEMA)


def _read(file: str, line: int, text: str) -> WrittenPolicy:
    parsed = msgspec.json.decode(cedarpy.policies_to_json_str(text))
    if parsed["templates"]:
        raise ValueError("slots (?principal, ?resource) are not for here: grants are given per use")
    (tree,) = parsed["staticPolicies"].values()
    if _is_too_deep(tree):
        raise ValueError(_TOO_DEEP)
    annotations = tree.get("annotations") or {}
    identifier = annotations.get("id") or ""
    if not _ID.fullmatch(identifier):
        raise ValueError('a policy needs @id("…") of lower-case letters, digits, ".", "_" and "-"')
    if unknown := annotations.keys() - _ANNOTATIONS:
        raise ValueError(f"unknown annotation @{min(unknown)}")
    checked = cedarpy.validate_policies(text, _SCHEMA)
    if not checked.validation_passed:
        raise ValueError("\n".join(_one_line(error.error) for error in checked.errors))
    reads, names = _walk(tree["conditions"])
    for part in ("principal", "action", "resource"):
        names |= _walk(tree[part])[1]
    if any(kind == "Call" for kind, _ in names):
        raise ValueError("name a Target, a Route or a Tool: a Call has no name of its own")
    approval = _approval(annotations)
    if approval is None:
        approval = ApprovalRule()
    elif APPROVED not in reads:
        raise ValueError("annotations about approval, but context.approved is not read")
    return WrittenPolicy(
        id=identifier,
        file=file,
        line=line,
        effect=tree["effect"],
        reads=frozenset(reads),
        names=frozenset(names),
        within=_within(tree["resource"]),
        approval=approval,
        tree=tree,
    )


def _is_too_deep(tree: Any) -> bool:
    level = [tree]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return False
    return True


def _one_line(message: str) -> str:
    return " ".join(message.split()).removeprefix("for policy `policy0`, ")


def _approval(annotations: Mapping[str, str | None]) -> ApprovalRule | None:
    if not any(name.startswith("approval_") for name in annotations):
        return None
    quorum = annotations.get("approval_quorum", "1") or ""
    if not quorum.isascii() or not quorum.isdigit() or not 1 <= int(quorum) <= MAX_QUORUM:
        raise ValueError(f"@approval_quorum is a number from 1 to {MAX_QUORUM}")
    return ApprovalRule(
        int(quorum),
        _list(annotations, "approval_roles"),
        _list(annotations, "approval_groups"),
    )


def _list(annotations: Mapping[str, str | None], name: str) -> tuple[str, ...]:
    if name not in annotations:
        return ()
    items = [item.strip() for item in (annotations[name] or "").split(",")]
    if not all(_NAME.fullmatch(item) for item in items):
        raise ValueError(f"@{name} is a list of names, separated by commas")
    return tuple(dict.fromkeys(items))


def _walk(tree: Any) -> tuple[set[str], set[tuple[str, str]]]:
    """Attributes of ``context`` read, and entities named, anywhere in a tree."""
    reads: set[str] = set()
    names: set[tuple[str, str]] = set()
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, list):
            todo += node
        elif isinstance(node, dict):
            if node.keys() == {"type", "id"} and isinstance(node["id"], str):
                names.add((node["type"], node["id"]))
                continue
            if node == {"Var": "context"}:
                raise ValueError("read context by its attributes (context.method), never whole")
            for operator in (".", "has"):
                access = node.get(operator)
                if isinstance(access, dict) and access.get("left") == {"Var": "context"}:
                    _check_has(operator, access["attr"])
                    reads.add(access["attr"])
                    node = {key: value for key, value in node.items() if key != operator}
            todo += node.values()
    return reads, names


def _check_has(operator: str, attribute: str) -> None:
    if operator == "has" and attribute not in OPTIONAL:
        raise ValueError(
            f"context has {attribute}: read it without has; where a request leaves it open, "
            "reading it is a deny"
        )


def _within(resource: Mapping[str, Any]) -> str:
    """The one target that a scope confines a policy to (``resource in Target::"t"``)."""
    place = resource.get("in", resource) if resource.get("op") == "is" else resource
    entity = place.get("entity") if isinstance(place, dict) else None
    return entity["id"].partition("/")[0] if isinstance(entity, dict) else ""
