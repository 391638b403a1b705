"""Routes of one target, compiled into a tree.

A pattern is a list of segments: a literal, ``{name}`` (exactly one non-empty segment) or, at the
end, ``{rest*}`` (one segment or more, the last of which may be empty). Of two patterns that match
a path, the one that matches fewer paths wins. Where neither is inside the other, a path could
belong to both: such a pair with a method in common is refused when it is added, so a lookup never
has to guess. (The rule of Go's ServeMux, and for the same reason.)

The cost of a lookup depends on the number of segments, not on the number of routes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Final, Generic, TypeVar

from valetkey.contracts.errors import CallerError
from valetkey.proxy.core.path import split_path

R = TypeVar("R")

_NAME: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(\*?)\}")


class PatternError(ValueError):
    """A pattern that can't be used, or a pair that could both win."""


class _Wild(Enum):
    ONE = "{}"
    REST = "{*}"


_Segment = str | _Wild


def parse_pattern(pattern: str) -> tuple[_Segment, ...]:
    """Read a pattern. Raises `PatternError`."""
    if not pattern.startswith("/"):
        raise PatternError(f"{pattern!r} does not start with /")
    segments: list[_Segment] = []
    names: set[str] = set()
    parts = pattern[1:].split("/")
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        if "{" not in part and "}" not in part:
            try:
                literal = split_path("/" + part)
            except CallerError as error:
                raise PatternError(f"{pattern!r}: {error.reason}") from error
            if not literal[0] and not last:
                raise PatternError(f"{pattern!r} has an empty segment")
            segments.append(literal[0])
            continue
        match = _NAME.fullmatch(part)
        if match is None:
            raise PatternError(f"{pattern!r}: {part!r} is neither a literal nor {{name}}")
        if match[1] in names:
            raise PatternError(f"{pattern!r}: {{{match[1]}}} occurs twice")
        names.add(match[1])
        if match[2] and not last:
            raise PatternError(f"{pattern!r}: {part!r} must be the last segment")
        segments.append(_Wild.REST if match[2] else _Wild.ONE)
    return tuple(segments)


class _Relation(Enum):
    """How the set of paths of one pattern lies to that of another."""

    EQUAL = 0
    INSIDE = 1
    AROUND = 2
    CROSSING = 3
    DISJOINT = 4


def _relation(p: Sequence[_Segment], q: Sequence[_Segment]) -> _Relation:
    inside = around = False
    for i in range(max(len(p), len(q))):
        a = p[i] if i < len(p) else None
        b = q[i] if i < len(q) else None
        if a is _Wild.REST or b is _Wild.REST:
            if a is None or b is None:
                return _Relation.DISJOINT
            if a is not b:
                inside, around = inside or b is _Wild.REST, around or a is _Wild.REST
            break
        if a is None or b is None:
            return _Relation.DISJOINT
        if a == b:
            continue
        if a is _Wild.ONE and b:
            around = True
        elif b is _Wild.ONE and a:
            inside = True
        else:
            return _Relation.DISJOINT
    if inside and around:
        return _Relation.CROSSING
    return _Relation.INSIDE if inside else _Relation.AROUND if around else _Relation.EQUAL


class _Leaf(Generic[R]):
    __slots__ = ("pattern", "route", "segments")

    def __init__(self, pattern: str, segments: tuple[_Segment, ...], route: R) -> None:
        self.pattern = pattern
        self.segments = segments
        self.route = route


class _Node(Generic[R]):
    __slots__ = ("here", "literals", "one", "rest")

    def __init__(self) -> None:
        self.literals: dict[str, _Node[R]] = {}
        self.one: _Node[R] | None = None
        self.here: dict[str, _Leaf[R]] = {}
        self.rest: dict[str, _Leaf[R]] = {}


class RouteTree(Generic[R]):
    """Routes by method and path. `add` them all, then only `match`."""

    __slots__ = ("_root",)

    def __init__(self) -> None:
        self._root: _Node[R] = _Node()

    def add(self, methods: Sequence[str], pattern: str, route: R) -> None:
        """Add a route. Raises `PatternError` for a conflict with one that is there."""
        segments = parse_pattern(pattern)
        for method, other in self._overlapping(self._root, segments, 0):
            if method not in methods:
                continue
            relation = _relation(segments, other.segments)
            if relation in {_Relation.EQUAL, _Relation.CROSSING}:
                raise PatternError(f"{method} {pattern!r} and {other.pattern!r} could both win")
        node = self._root
        leaf = _Leaf(pattern, segments, route)
        for segment in segments:
            if isinstance(segment, str):
                node = node.literals.setdefault(segment, _Node())
            elif segment is _Wild.ONE:
                node.one = node.one or _Node()
                node = node.one
            else:
                node.rest.update(dict.fromkeys(methods, leaf))
                return
        node.here.update(dict.fromkeys(methods, leaf))

    def match(self, method: str, segments: Sequence[str], start: int = 0) -> R | None:
        """The most specific route for a method and the decoded segments from ``start`` on."""
        leaf = _match(self._root, method, segments, start, len(segments))
        return None if leaf is None else leaf.route

    def _overlapping(
        self, node: _Node[R], segments: tuple[_Segment, ...], depth: int
    ) -> Iterator[tuple[str, _Leaf[R]]]:
        """Routes that may share a path with the pattern: a superset, judged by `_relation`."""
        if depth == len(segments):
            yield from node.here.items()
            return
        yield from node.rest.items()
        segment = segments[depth]
        if segment is _Wild.REST:
            yield from _below(node)
            return
        if isinstance(segment, str):
            children = [node.literals[segment]] if segment in node.literals else []
        else:
            children = list(node.literals.values())
        if node.one is not None:
            children.append(node.one)
        for child in children:
            yield from self._overlapping(child, segments, depth + 1)


def _below(node: _Node[R]) -> Iterator[tuple[str, _Leaf[R]]]:
    for child in (*node.literals.values(), *((node.one,) if node.one else ())):
        yield from child.here.items()
        yield from child.rest.items()
        yield from _below(child)


def _match(node: _Node[R], method: str, segments: Sequence[str], i: int, n: int) -> _Leaf[R] | None:
    """Literal before ``{name}`` before ``{rest*}``, one step back where a branch ends."""
    while i < n:
        segment = segments[i]
        literal = node.literals.get(segment)
        one = node.one if segment else None
        rest = node.rest
        i += 1
        if literal is not None:
            if one is None and not rest:
                node = literal
                continue
            found = _match(literal, method, segments, i, n)
            if found is not None:
                return found
        if one is not None:
            if not rest:
                node = one
                continue
            found = _match(one, method, segments, i, n)
            if found is not None:
                return found
        return rest.get(method)
    return node.here.get(method)
