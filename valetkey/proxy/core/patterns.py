"""Patterns of paths: how they are read, and how the sets of paths of two lie to each other.

A pattern is a list of segments: a literal, ``{name}`` (exactly one non-empty segment) or, at the
end, ``{rest*}`` (one segment or more, the last of which may be empty).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from typing import Final

from valetkey.contracts.errors import CallerError
from valetkey.proxy.core.path import split_path

_NAME: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(\*?)\}")


class PatternError(ValueError):
    """A pattern that can't be used, or a pair that could both win."""


class Wild(Enum):
    ONE = "{}"
    REST = "{*}"


Segment = str | Wild


def parse_pattern(pattern: str) -> tuple[Segment, ...]:
    """Read a pattern. Raises `PatternError`."""
    if not pattern.startswith("/"):
        raise PatternError(f"{pattern!r} does not start with /")
    segments: list[Segment] = []
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
        segments.append(Wild.REST if match[2] else Wild.ONE)
    return tuple(segments)


class Relation(Enum):
    """How the set of paths of one pattern lies to that of another."""

    EQUAL = 0
    INSIDE = 1
    AROUND = 2
    CROSSING = 3
    DISJOINT = 4


def relation(p: Sequence[Segment], q: Sequence[Segment], *, empty_rest: bool = False) -> Relation:
    """How ``p`` lies to ``q``. ``empty_rest``: ``{rest*}`` matches no segment at all, too."""
    inside = around = False
    for i in range(max(len(p), len(q))):
        a = p[i] if i < len(p) else None
        b = q[i] if i < len(q) else None
        if a is Wild.REST or b is Wild.REST:
            if (a is None or b is None) and not empty_rest:
                return Relation.DISJOINT
            if a is not b:
                inside, around = inside or b is Wild.REST, around or a is Wild.REST
            break
        if a is None or b is None:
            return Relation.DISJOINT
        if a == b:
            continue
        if a is Wild.ONE and b:
            around = True
        elif b is Wild.ONE and a:
            inside = True
        else:
            return Relation.DISJOINT
    if inside and around:
        return Relation.CROSSING
    return Relation.INSIDE if inside else Relation.AROUND if around else Relation.EQUAL
