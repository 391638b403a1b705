"""Routes of one target, compiled into a tree.

Of two patterns (`patterns`) that match a path, the one that matches fewer paths wins. Where neither
is inside the other, a path could belong to both: such a pair with a method in common is refused
when it is added, so a lookup never has to guess. (The rule of Go's ServeMux, and for the same
reason.)

A second tree holds the same routes as a target may read paths that ignores path parameters, and
case and the last slash where it is not known to tell them apart. By it a wide route is told not to
answer for a path that a narrower one would get there: the operation would be the narrow route's,
the scopes the wide one's.

The cost of a lookup depends on the number of segments, not on the number of routes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Generic, TypeVar

from valetkey.proxy.core.path import lax_segment
from valetkey.proxy.core.patterns import (
    PatternError,
    Relation,
    Segment,
    Wild,
    parse_pattern,
    relation,
)

R = TypeVar("R")

_WITHIN: Final = frozenset({Relation.EQUAL, Relation.INSIDE})


class _Leaf(Generic[R]):
    __slots__ = ("pattern", "route", "segments")

    def __init__(self, pattern: str, segments: tuple[Segment, ...], route: R | None) -> None:
        self.pattern = pattern
        self.segments = segments
        self.route = route


class _Reading(Generic[R]):
    """What one or more patterns are to a lax reader, for one method."""

    __slots__ = ("crossing", "routes", "segments", "shadowed")

    def __init__(self, segments: tuple[Segment, ...]) -> None:
        self.segments = segments
        self.routes: list[R] = []
        self.shadowed = False
        """Whether another reading may match what this one does, and is not around it."""
        self.crossing: set[_Reading[R]] | None = None
        """Readings of which neither is inside the other."""


L = TypeVar("L")


class _Node(Generic[L]):
    """A place in a tree. What it leads to, by method: for paths that end here, and that go on."""

    __slots__ = ("here", "literals", "one", "rest")

    def __init__(self) -> None:
        self.literals: dict[str, _Node[L]] = {}
        self.one: _Node[L] | None = None
        self.here: dict[str, L] = {}
        self.rest: dict[str, L] = {}


class RouteTree(Generic[R]):
    """Routes by method and path. `add` them all, each once, then only look up.

    ``ignores_case`` and ``ignores_last_slash``: what the target may do, for all that is known.
    """

    __slots__ = ("_case", "_inside", "_last_slash", "_lax", "_root")

    def __init__(self, *, ignores_case: bool = True, ignores_last_slash: bool = True) -> None:
        self._root: _Node[_Leaf[R]] = _Node()
        self._case = ignores_case
        self._last_slash = ignores_last_slash
        self._lax: _Node[_Reading[R]] = _Node()
        # By method: the routes that another one can shadow. Most can't be, and cost no second look.
        self._inside: dict[str, dict[R, _Reading[R]]] = {}

    def add(self, methods: Sequence[str], pattern: str, route: R | None) -> None:
        """Add a route. Raises `PatternError` for a conflict with one that is there.

        ``None`` is a hole: paths that `match` finds nothing for, whatever is around them.
        """
        segments = parse_pattern(pattern)
        for method, other in _overlapping(self._root, segments, 0):
            if method not in methods:
                continue
            if relation(segments, other.segments) in {Relation.EQUAL, Relation.CROSSING}:
                raise PatternError(f"{method} {pattern!r} and {other.pattern!r} could both win")
        leaf = _Leaf(pattern, segments, route)
        leaves = _place(self._root, segments)
        leaves.update(dict.fromkeys(methods, leaf))
        # Also where the target ignores neither: path parameters are cut by any lax reader.
        self._add_reading(frozenset(methods), segments, route)

    def holder(self, method: str, pattern: str) -> R:
        """The route that is asked for every path of a pattern, narrower routes inside apart.

        Raises `PatternError` where there is none: no route has all the paths, a route lies across,
        or to a lax reader another route may have some.
        """
        segments = parse_pattern(pattern)
        found: _Leaf[R] | None = None
        for other_method, other in _overlapping(self._root, segments, 0):
            if other_method != method:
                continue
            how = relation(segments, other.segments)
            if how is Relation.CROSSING:
                raise PatternError(f"{method} {pattern!r} and {other.pattern!r} lie across")
            # Those around it lie one inside the other, or `add` had refused one.
            if how in _WITHIN and (
                found is None or relation(other.segments, found.segments) is Relation.INSIDE
            ):
                found = other
        if found is None or found.route is None:
            raise PatternError(f"nothing has all of {method} {pattern!r}")
        read, own = self._as_read(segments), self._as_read(found.segments)
        for other_method, reading in _overlapping(self._lax, read, 0):
            if (
                other_method == method
                and self._read_within(read, reading)
                and not self._read_within(own, reading)
            ):
                raise PatternError(
                    f"{method} {pattern!r}, read without regard to case, last slash or path "
                    f"parameters, is not of {found.pattern!r} alone"
                )
        return found.route

    def _read_within(self, segments: tuple[Segment, ...], reading: _Reading[R]) -> bool:
        return relation(segments, reading.segments, empty_rest=self._last_slash) in _WITHIN

    def entries(self) -> Iterator[tuple[str, str, R | None]]:
        """Method, pattern and route of all that was added, once per method."""
        for method, leaf in _below(self._root):
            yield method, leaf.pattern, leaf.route
        for table in (self._root.here, self._root.rest):
            for method, leaf in table.items():
                yield method, leaf.pattern, leaf.route

    def has(self, method: str, pattern: str) -> bool:
        """Whether something was added for the method under a pattern of the same paths."""
        segments = parse_pattern(pattern)
        return any(
            other_method == method and other.segments == segments
            for other_method, other in _overlapping(self._root, segments, 0)
        )

    def match(self, method: str, segments: Sequence[str], start: int = 0) -> R | None:
        """The most specific route for a method and the decoded segments from ``start`` on."""
        leaf = _match(self._root, method, segments, start, len(segments))
        return None if leaf is None else leaf.route

    def shadows(self, method: str, segments: Sequence[str], start: int, route: R) -> bool:
        """Whether a lax reader may give a path to another route than the one that matches it.

        ``route`` is what `match` said. It may be one that is narrower, or one that lies across.
        """
        inside = self._inside.get(method)
        if inside is None:
            return False
        reading = inside.get(route)
        if reading is None:
            return False
        read = self._read(segments, start)
        if _match(self._lax, method, read, 0, len(read)) is not reading:
            return True
        # No narrower one, or it would have come first. Those that are around it may be there.
        crossing = reading.crossing
        return crossing is not None and any(
            other in crossing for other in _all(self._lax, method, read, 0)
        )

    def read_laxly(self, method: str, segments: Sequence[str], start: int = 0) -> Sequence[R]:
        """The routes that a lax reader may give a path to: those of the narrowest reading."""
        read = self._read(segments, start)
        reading = _match(self._lax, method, read, 0, len(read))
        return () if reading is None else reading.routes

    def _read(self, segments: Sequence[str], start: int) -> list[str]:
        end = len(segments)
        if self._last_slash and not segments[-1]:
            end -= 1
        return [lax_segment(segments[i], self._case) for i in range(start, end)]

    def _as_read(self, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
        """A pattern as a lax reader takes it."""
        if self._last_slash and segments[-1] == "":
            segments = segments[:-1]
        return tuple(
            lax_segment(segment, self._case) if isinstance(segment, str) else segment
            for segment in segments
        )

    def _add_reading(
        self, methods: frozenset[str], segments: tuple[Segment, ...], route: R | None
    ) -> None:
        read = self._as_read(segments)
        others = {
            (method, other)
            for method, other in _overlapping(self._lax, read, 0)
            if method in methods
        }
        made = {method: other for method, other in others if other.segments == read}
        for method in methods:
            if method not in made:
                made[method] = self._place_reading(method, read)
        for method, other in others:
            self._relate(method, made[method], other)
        if route is None:
            return  # a hole shadows others, and is never asked whether it is
        for method, reading in made.items():
            reading.routes.append(route)
            if reading.shadowed:
                self._inside.setdefault(method, {})[route] = reading

    def _place_reading(self, method: str, read: tuple[Segment, ...]) -> _Reading[R]:
        reading: _Reading[R] = _Reading(read)
        _place(self._lax, read)[method] = reading
        if self._last_slash and read and read[-1] is Wild.REST:
            # `/a/` is below `/a/{rest*}`, and without its last slash it is `/a`.
            _place(self._lax, read[:-1]).setdefault(method, reading)
        return reading

    def _relate(self, method: str, reading: _Reading[R], other: _Reading[R]) -> None:
        how = relation(reading.segments, other.segments, empty_rest=self._last_slash)
        if how is Relation.CROSSING:
            for one, two in ((reading, other), (other, reading)):
                one.crossing = one.crossing or set()
                one.crossing.add(two)
        if how in {Relation.CROSSING, Relation.INSIDE}:
            self._shade(method, other)
        if how in {Relation.CROSSING, Relation.AROUND}:
            self._shade(method, reading)

    def _shade(self, method: str, reading: _Reading[R]) -> None:
        if not reading.shadowed:
            reading.shadowed = True
            self._inside.setdefault(method, {}).update(dict.fromkeys(reading.routes, reading))


def _place(node: _Node[L], segments: tuple[Segment, ...]) -> dict[str, L]:
    """What a pattern leads to, by method; made where it is not there yet."""
    for segment in segments:
        if isinstance(segment, str):
            below = node.literals.get(segment)
            if below is None:
                below = node.literals[segment] = _Node()
            node = below
        elif segment is Wild.ONE:
            node.one = node.one or _Node()
            node = node.one
        else:
            return node.rest
    return node.here


def _overlapping(
    node: _Node[L], segments: tuple[Segment, ...], depth: int
) -> Iterator[tuple[str, L]]:
    """What may share a path with the pattern: a superset, judged by `relation`."""
    yield from node.rest.items()
    if depth == len(segments):
        yield from node.here.items()
        return
    segment = segments[depth]
    if segment is Wild.REST:
        yield from node.here.items()
        yield from _below(node)
        return
    if isinstance(segment, str):
        children = [node.literals[segment]] if segment in node.literals else []
    else:
        children = list(node.literals.values())
    if node.one is not None:
        children.append(node.one)
    for child in children:
        yield from _overlapping(child, segments, depth + 1)


def _below(node: _Node[L]) -> Iterator[tuple[str, L]]:
    for child in (*node.literals.values(), *((node.one,) if node.one else ())):
        yield from child.here.items()
        yield from child.rest.items()
        yield from _below(child)


def _match(node: _Node[L], method: str, segments: Sequence[str], i: int, n: int) -> L | None:
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


def _all(node: _Node[L], method: str, segments: Sequence[str], i: int) -> Iterator[L]:
    """All that match, the narrowest first; what it finds by `_Node.here` may come again."""
    if i < len(segments):
        for child in (node.literals.get(segments[i]), node.one if segments[i] else None):
            if child is not None:
                yield from _all(child, method, segments, i + 1)
    elif method in node.here:
        yield node.here[method]
    if method in node.rest:
        yield node.rest[method]
