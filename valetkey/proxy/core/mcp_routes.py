"""Routes of one MCP endpoint: which of them a message belongs to.

All MCP routes of one path are one endpoint. A message that calls a tool belongs to the route with
the narrowest pattern of tools that matches it, any other to the route with the narrowest pattern
of methods. Where neither of two patterns is inside the other, a message could belong to both:
such a pair is refused when it is added, as with paths (`routing`). Two routes with the same
pattern of tools are told apart by their patterns of methods.

The cost of a lookup depends on the name, not on the number of routes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from valetkey.contracts.mcp import METHOD_TOOLS_CALL, MessagePattern, NamePattern
from valetkey.proxy.core.headers import HeaderPolicy
from valetkey.proxy.core.json_rpc import Message
from valetkey.proxy.core.patterns import PatternError

R = TypeVar("R")


class _Entry(Generic[R]):
    """A route by one pattern. ``methods`` tell apart routes that have the same pattern of tools."""

    __slots__ = ("methods", "pattern", "route")

    def __init__(
        self, pattern: NamePattern, methods: Sequence[NamePattern], route: R | None
    ) -> None:
        self.pattern = pattern
        self.methods = methods
        self.route = route

    def is_inside(self, other: _Entry[R]) -> bool:
        """Whether the pattern is inside the other's; of equal ones, whether the methods are."""
        if not other.pattern.includes(self.pattern):
            return False
        return self.pattern != other.pattern or all(
            any(theirs.includes(ours) for theirs in other.methods) for ours in self.methods
        )


class _Suffixes(Generic[R]):
    """Globs of one prefix, by suffix. ``lengths`` are those of the suffixes, longest first."""

    __slots__ = ("entries", "lengths")

    def __init__(self) -> None:
        self.entries: dict[str, _Entry[R]] = {}
        self.lengths: list[int] = []


class _Names(Generic[R]):
    """Routes by name. Of patterns that match a name, the narrowest wins."""

    __slots__ = ("_exact", "_globs", "_lengths", "_prefixes")

    def __init__(self) -> None:
        self._exact: dict[str, _Entry[R]] = {}
        self._globs: dict[str, _Suffixes[R]] = {}
        # The prefixes in order, and the lengths that they have, longest first.
        self._prefixes: list[str] = []
        self._lengths: list[int] = []

    def add(self, pattern: NamePattern, methods: Sequence[NamePattern], route: R) -> None:
        """Raises `PatternError` for a conflict with a pattern of another route."""
        entry = _Entry(pattern, methods, route)
        for other in self._overlapping(pattern):
            if other.route is route:
                continue
            if entry.is_inside(other) == other.is_inside(entry):
                raise PatternError(f"{pattern} and {other.pattern} could both win")
            if other.pattern == pattern and other.is_inside(entry):
                return
        self._keep(entry)

    def add_hole(self, pattern: NamePattern) -> None:
        """Names that no route has, whatever is around them, unless the very pattern is there."""
        if not any(other.pattern == pattern for other in self._overlapping(pattern)):
            self._keep(_Entry(pattern, (), None))

    def holder(self, pattern: NamePattern) -> R:
        """The route that has every name of a pattern, narrower patterns inside apart.

        Raises `PatternError` where there is none, or another route's pattern lies across.
        """
        around = [each for each in self.entries() if each.pattern.includes(pattern)]
        # The one that `match` would take for a name that is in no narrower one.
        around.sort(key=lambda each: (len(each.pattern.prefix), len(each.pattern.suffix)))
        found = next((each for each in reversed(around) if each.pattern.exact), None)
        found = found or (around[-1] if around else None)
        if found is None or found.route is None:
            raise PatternError(f"nothing has all of {pattern}")
        for other in self.entries():
            if (
                other.route is not found.route
                and other.pattern.overlaps(pattern)
                and not other.pattern.includes(pattern)
                and not pattern.includes(other.pattern)
            ):
                raise PatternError(f"{pattern} and {other.pattern} lie across")
        return found.route

    def entries(self) -> Iterator[_Entry[R]]:
        yield from self._exact.values()
        for suffixes in self._globs.values():
            yield from suffixes.entries.values()

    def match(self, name: str) -> R | None:
        """The route of the narrowest pattern.

        Patterns of different routes that match one name lie one inside the other; so the one with
        the longest prefix and, of these, the longest suffix is the narrowest.
        """
        entry = self._exact.get(name)
        if entry is not None:
            return entry.route
        size = len(name)
        for length in self._lengths:
            suffixes = self._globs.get(name[:length]) if length <= size else None
            if suffixes is None:
                continue
            for end in suffixes.lengths:
                entry = suffixes.entries.get(name[size - end :]) if length + end <= size else None
                if entry is not None:
                    return entry.route
        return None

    def _overlapping(self, pattern: NamePattern) -> Iterator[_Entry[R]]:
        """Entries that may have a name in common with the pattern and could both win.

        A name is always inside a glob that matches it, so names only meet their equals, and a
        glob only globs whose prefix begins with its own or the other way round.
        """
        prefix = pattern.prefix
        if pattern.exact:
            if prefix in self._exact:
                yield self._exact[prefix]
            return
        at = bisect_left(self._prefixes, prefix)
        behind = []
        while at < len(self._prefixes) and self._prefixes[at].startswith(prefix):
            behind.append(self._prefixes[at])
            at += 1
        for start in [*(prefix[:end] for end in range(len(prefix))), *behind]:
            suffixes = self._globs.get(start)
            if suffixes is not None:
                for entry in suffixes.entries.values():
                    if pattern.overlaps(entry.pattern):
                        yield entry

    def _keep(self, entry: _Entry[R]) -> None:
        pattern = entry.pattern
        if pattern.exact:
            self._exact[pattern.prefix] = entry
            return
        suffixes = self._globs.get(pattern.prefix)
        if suffixes is None:
            suffixes = self._globs[pattern.prefix] = _Suffixes()
            insort(self._prefixes, pattern.prefix)
            self._lengths = sorted({len(prefix) for prefix in self._prefixes}, reverse=True)
        suffixes.entries[pattern.suffix] = entry
        suffixes.lengths = sorted({len(suffix) for suffix in suffixes.entries}, reverse=True)


class McpEndpoint(Generic[R]):
    """One path that takes MCP messages. `add` its routes, then only `match`.

    ``headers`` is for calls with a message, ``stream_headers`` for others on this path (GET, for
    an event stream). ``limit`` is the size in bytes of the largest message that is read.
    """

    __slots__ = ("_methods", "_tools", "headers", "limit", "stream_headers")

    def __init__(self, headers: HeaderPolicy, stream_headers: HeaderPolicy, limit: int) -> None:
        self.headers = headers
        self.stream_headers = stream_headers
        self.limit = limit
        self._methods: _Names[R] = _Names()
        self._tools: _Names[R] = _Names()

    def add(self, patterns: Sequence[MessagePattern], route: R) -> None:
        """All patterns of one route. Raises `PatternError` for a conflict with another route."""
        methods = {pattern.method for pattern in patterns if pattern.calls_tools}
        # A route that names tools/call does not name it less by a glob beside it.
        calling = [
            method
            for method in methods
            if not any(method.includes(other) for other in methods - {method})
        ]
        for names, pattern in self._parts(patterns):
            names.add(pattern, calling if names is self._tools else (), route)

    def holders(self, patterns: Sequence[MessagePattern]) -> set[R]:
        """The routes that have all messages of these patterns, narrower patterns inside apart.

        Raises `PatternError` where some are nobody's, or a route's pattern lies across.
        """
        return {names.holder(pattern) for names, pattern in self._parts(patterns)}

    def add_holes(self, other: McpEndpoint[R], of: R, patterns: Sequence[MessagePattern]) -> None:
        """What ``other`` gives to routes but ``of`` is nobody's here, where ``patterns`` have it.

        Call it when all routes were added.
        """
        for ours, theirs in ((self._tools, other._tools), (self._methods, other._methods)):
            own = [pattern for names, pattern in self._parts(patterns) if names is ours]
            for entry in theirs.entries():
                if entry.route is not of and any(each.includes(entry.pattern) for each in own):
                    ours.add_hole(entry.pattern)

    def _parts(self, patterns: Sequence[MessagePattern]) -> Iterator[tuple[_Names[R], NamePattern]]:
        """The names that messages of these patterns are looked up by, and among which."""
        for pattern in patterns:
            if pattern.calls_tools:
                yield self._tools, pattern.tool
            if not (pattern.calls_tools and pattern.method.exact):
                yield self._methods, pattern.method

    def match(self, message: Message) -> R | None:
        if message.method == METHOD_TOOLS_CALL:
            return self._tools.match(message.tool)
        return self._methods.match(message.method)

    def allows_tool(self, name: str) -> bool:
        """Whether some route lets this tool be called."""
        return self._tools.match(name) is not None
