"""Routing: the most specific wins, a tie is refused at load, and a naive matcher agrees."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valetkey.proxy.core.patterns import PatternError, parse_pattern
from valetkey.proxy.core.routing import RouteTree

Routes = list[tuple[list[str], str]]


def tree(*routes: tuple[list[str] | str, str]) -> RouteTree[str]:
    made: RouteTree[str] = RouteTree()
    for methods, pattern in routes:
        made.add([methods] if isinstance(methods, str) else methods, pattern, pattern)
    return made


def split(path: str) -> list[str]:
    return path[1:].split("/")


# --- an independent reading of the patterns -------------------------------------------------------


def fits(pattern: str, segments: Sequence[str]) -> bool:
    """Whether a pattern matches, tried segment by segment, with no tree."""
    parts = pattern[1:].split("/")
    if parts[-1].endswith("*}"):
        parts.pop()
        if len(segments) <= len(parts):
            return False
        segments = segments[: len(parts)]
    return len(parts) == len(segments) and all(
        bool(segment) if part.startswith("{") else part == segment
        for part, segment in zip(parts, segments, strict=True)
    )


# Enough to tell any two patterns over the alphabet of the strategy below apart.
SAMPLES = [
    list(segments)
    for size in range(1, 6)
    for segments in itertools.product(["a", "b", "z", ""], repeat=size)
    if all(segments[:-1])
]


def extent(pattern: str) -> frozenset[int]:
    return frozenset(n for n, segments in enumerate(SAMPLES) if fits(pattern, segments))


LOOKUPS: list[tuple[str, list[Any], str, str, str | None]] = [
    ("literal", [("GET", "/a/b")], "GET", "/a/b", "/a/b"),
    ("literal, other case", [("GET", "/a/b")], "GET", "/a/B", None),
    ("other method", [("GET", "/a")], "POST", "/a", None),
    ("method in lower case", [("GET", "/a")], "get", "/a", None),
    ("one of several methods", [(["GET", "HEAD"], "/a")], "HEAD", "/a", "/a"),
    ("root", [("GET", "/")], "GET", "/", "/"),
    ("root is not a wildcard", [("GET", "/")], "GET", "/a", None),
    ("trailing slash is another path", [("GET", "/a")], "GET", "/a/", None),
    ("trailing slash", [("GET", "/a/")], "GET", "/a/", "/a/"),
    ("wildcard", [("GET", "/a/{id}")], "GET", "/a/7", "/a/{id}"),
    ("wildcard is never empty", [("GET", "/a/{id}")], "GET", "/a/", None),
    ("wildcard is one segment", [("GET", "/a/{id}")], "GET", "/a/7/8", None),
    ("rest", [("GET", "/a/{rest*}")], "GET", "/a/b/c", "/a/{rest*}"),
    ("rest of one empty segment", [("GET", "/a/{rest*}")], "GET", "/a/", "/a/{rest*}"),
    ("rest needs a segment", [("GET", "/a/{rest*}")], "GET", "/a", None),
    ("rest of everything", [("GET", "/{rest*}")], "GET", "/", "/{rest*}"),
    ("literal before wildcard", [("GET", "/{x}"), ("GET", "/a")], "GET", "/a", "/a"),
    ("wildcard before rest", [("GET", "/{x*}"), ("GET", "/{x}")], "GET", "/a", "/{x}"),
    ("longer rest before shorter", [("GET", "/{x*}"), ("GET", "/a/{x*}")], "GET", "/a/b", "/a/{x*}"),
    ("back from a literal to a wildcard", [("GET", "/a/b"), ("GET", "/{x}/c")], "GET", "/a/c", "/{x}/c"),
    ("back from two literals", [("GET", "/a/b/c"), ("GET", "/{x}/b/d")], "GET", "/a/b/d", "/{x}/b/d"),
    ("back from a wildcard to rest", [("GET", "/a/{x}/c"), ("GET", "/a/{r*}")], "GET", "/a/b/d", "/a/{r*}"),
    ("back to a rest far above", [("GET", "/a/b/c/d"), ("GET", "/{r*}")], "GET", "/a/b/c/e", "/{r*}"),
    ("back for the method's sake", [("POST", "/a/b"), ("GET", "/a/{x}")], "GET", "/a/b", "/a/{x}"),
    ("rest, for the method's sake", [("POST", "/a/b"), ("GET", "/{r*}")], "GET", "/a/b", "/{r*}"),
    ("encoded literal of a pattern", [("GET", "/a%20b")], "GET", "/a b", "/a%20b"),
    ("literal with braces encoded", [("GET", "/%7Bid%7D")], "GET", "/{id}", "/%7Bid%7D"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "routes", "method", "path", "winner"), LOOKUPS, ids=[case[0] for case in LOOKUPS]
)
def test_lookups(name: str, routes: list[Any], method: str, path: str, winner: str | None) -> None:
    for order in (routes, routes[::-1]):
        assert tree(*order).match(method, split(path)) == winner


def test_a_lookup_can_start_behind_a_prefix() -> None:
    assert tree(("GET", "/b/{x}")).match("GET", ["a", "b", "c"], 1) == "/b/{x}"
    assert tree(("GET", "/a/b")).match("GET", ["a", "b"], 1) is None


CONFLICTS = [
    ("the same twice", "/a", "/a", True),
    ("the same but for the name", "/{x}", "/{y}", True),
    ("the same rest", "/a/{x*}", "/a/{y*}", True),
    ("crossing", "/a/{x}", "/{x}/b", True),
    ("crossing through rest", "/a/{r*}", "/{x}/b", True),
    ("crossing through rest, deep", "/a/b/{r*}", "/{x}/{y}/c/d", True),
    ("crossing behind a literal", "/s/a/{x}", "/s/{x}/b", True),
    ("the same literal in two encodings", "/%61", "/a", True),
    ("inside", "/a/b", "/a/{x}", False),
    ("inside rest", "/a/{x}/b", "/{r*}", False),
    ("rest inside rest", "/a/{r*}", "/{r*}", False),
    ("disjoint literals", "/a/{x}", "/b/{x}", False),
    ("disjoint lengths", "/a/{x}", "/a/{x}/{y}", False),
    ("a wildcard is not the empty segment", "/a/{x}", "/a/", False),
    ("rest needs what is before it", "/a", "/a/{r*}", False),
    ("wildcards everywhere, inside", "/a/{x}/c", "/{x}/{y}/{z}", False),
]


@pytest.mark.parametrize(
    ("name", "one", "two", "conflict"), CONFLICTS, ids=[case[0] for case in CONFLICTS]
)
def test_conflicts(name: str, one: str, two: str, conflict: bool) -> None:
    for first, second in ((one, two), (two, one)):
        if conflict:
            with pytest.raises(PatternError, match="could both win"):
                tree(("GET", first), (["HEAD", "GET"], second))
        else:
            tree(("GET", first), ("GET", second))
        tree(("GET", first), ("POST", second))  # never between methods


REFUSED = [
    ("no slash", "a", "does not start with /"),
    ("empty segment", "/a//b", "has an empty segment"),
    ("empty first segment", "//a", "has an empty segment"),
    ("dot segment", "/a/../b", "not a plain"),
    ("encoded slash", "/a%2fb", "encoded delimiter"),
    ("half a wildcard", "/a{x}", "neither a literal"),
    ("open brace", "/{x", "neither a literal"),
    ("closing brace", "/x}", "neither a literal"),
    ("no name", "/{}", "neither a literal"),
    ("name with a dash", "/{a-b}", "neither a literal"),
    ("two in one segment", "/{a}{b}", "neither a literal"),
    ("name twice", "/{a}/{a}", "occurs twice"),
    ("name twice with rest", "/{a}/{a*}", "occurs twice"),
    ("rest before the end", "/{a*}/b", "must be the last"),
    ("rest before a trailing slash", "/{a*}/", "must be the last"),
    ("space", "/a b", "not a plain"),
    ("query", "/a?b", "not a plain"),
]


@pytest.mark.parametrize(("name", "pattern", "message"), REFUSED, ids=[c[0] for c in REFUSED])
def test_unusable_patterns(name: str, pattern: str, message: str) -> None:
    with pytest.raises(PatternError, match=message):
        parse_pattern(pattern)


SEGMENTS = st.sampled_from(["a", "b", "{x}"])
PATTERNS = st.builds(
    lambda parts, end: _named("/" + "/".join([*parts, *end])),
    st.lists(SEGMENTS, max_size=3),
    st.sampled_from([["a"], ["{x}"], ["{x*}"], [""]]),
)


def _named(pattern: str) -> str:
    """Each wildcard its own name."""
    return "/".join(
        part.replace("x", f"x{n}") if part.startswith("{") else part
        for n, part in enumerate(pattern.split("/"))
    )


@given(st.lists(st.tuples(st.sampled_from(["GET", "POST"]), PATTERNS), max_size=12))
@settings(max_examples=150, deadline=None)
def test_accepted_patterns_are_ordered_and_lookup_is_the_naive_one(
    routes: list[tuple[str, str]],
) -> None:
    made: RouteTree[str] = RouteTree()
    accepted: list[tuple[str, str, frozenset[int]]] = []
    for method, pattern in routes:
        covers = extent(pattern)
        tie = any(
            other_method == method and covers & others and not (covers < others or others < covers)
            for other_method, _, others in accepted
        )
        try:
            made.add([method], pattern, pattern)
        except PatternError:
            assert tie, f"{pattern} was refused and ties with none of {accepted}"
            continue
        # Any two accepted patterns have a strict order on each path that they share.
        assert not tie, f"{pattern} was accepted and ties with one of {accepted}"
        accepted.append((method, pattern, covers))
    for method in ("GET", "POST"):
        for number, segments in enumerate(SAMPLES):
            fitting = [
                (len(covers), pattern)
                for own, pattern, covers in accepted
                if own == method and number in covers
            ]
            expected = min(fitting)[1] if fitting else None
            assert made.match(method, segments) == expected


# --- what a lax reader makes of it ----------------------------------------------------------------

BOTH: dict[str, bool] = {}
CASE_COUNTS = {"ignores_case": False}
SLASH_COUNTS = {"ignores_last_slash": False}
NOTHING_IGNORED = CASE_COUNTS | SLASH_COUNTS

SHADOWED: list[tuple[str, list[str], str, dict[str, bool], bool]] = [
    ("another case", ["/{r*}", "/admin"], "/Admin", BOTH, True),
    ("the case of the pattern", ["/{r*}", "/Admin"], "/admin", BOTH, True),
    ("case further down", ["/v1/{r*}", "/v1/users/{id}/keys"], "/v1/users/7/KEYS", BOTH, True),
    ("case above a wildcard", ["/{r*}", "/users/{id}"], "/Users/Bob", BOTH, True),
    ("one segment for one", ["/{x}", "/admin"], "/ADMIN", BOTH, True),
    ("case counts", ["/{r*}", "/admin"], "/Admin", CASE_COUNTS, False),
    ("case counts, and the slash does not", ["/{r*}", "/admin"], "/Admin/", CASE_COUNTS, False),
    ("case of a wildcard's segment", ["/{r*}", "/users/{id}"], "/users/Bob", BOTH, False),
    ("a last slash", ["/{r*}", "/admin"], "/admin/", BOTH, True),
    ("a last slash that the pattern has", ["/{r*}", "/admin/"], "/admin", BOTH, True),
    ("a last slash behind a wildcard", ["/{r*}", "/users/{id}"], "/users/7/", BOTH, True),
    ("the slash counts", ["/{r*}", "/admin"], "/admin/", SLASH_COUNTS, False),
    ("the slash counts, and case does not", ["/{r*}", "/admin/"], "/ADMIN/", SLASH_COUNTS, True),
    ("both count", ["/{r*}", "/admin"], "/ADMIN/", NOTHING_IGNORED, False),
    ("both count, and a parameter", ["/{r*}", "/admin"], "/admin;x", NOTHING_IGNORED, True),
    ("what is above rest", ["/files", "/files/{r*}"], "/files/", BOTH, True),
    ("what is above rest, and no slash", ["/files", "/files/{r*}"], "/files/a", BOTH, False),
    ("across an empty rest", ["/{x}", "/files/{r*}"], "/files/", BOTH, True),
    ("across, and not there", ["/{x}", "/files/{r*}"], "/files/a", BOTH, False),
    ("across, through the slash", ["/{x}/b", "/a/{y}/"], "/a/b/", BOTH, True),
    ("across an empty rest, and it counts", ["/{x}", "/files/{r*}"], "/files/", SLASH_COUNTS, False),
    ("a parameter", ["/{r*}", "/admin"], "/admin;x", BOTH, True),
    ("a parameter and case", ["/{r*}", "/admin"], "/Admin;x=y", BOTH, True),
    ("a parameter beneath case", ["/{r*}", "/a/b"], "/A;x/b;y", BOTH, True),
    ("the root", ["/{r*}", "/"], "/", BOTH, False),
    ("the long s", ["/{r*}", "/users"], "/u\u017fers", BOTH, True),
    ("the Kelvin sign", ["/{r*}", "/keys"], "/\u212aeys", BOTH, True),
    ("the dotless i", ["/{r*}", "/admin"], "/adm\u0131n", BOTH, True),
    ("fullwidth letters", ["/{r*}", "/admin"], "/\uff41dmin", BOTH, True),
    ("sharp s", ["/{r*}", "/STRASSE"], "/stra\xdfe", BOTH, True),
    ("another word", ["/{r*}", "/admin"], "/admins", BOTH, False),
    ("nothing narrower", ["/{r*}"], "/Admin/", BOTH, False),
    ("itself", ["/{r*}", "/admin"], "/admin", BOTH, False),
    ("two spellings, each with its route", ["/{r*}", "/a", "/A"], "/A", BOTH, False),
    ("two spellings and a third", ["/{r*}", "/ab", "/AB"], "/Ab", BOTH, True),
    ("with and without the slash", ["/{r*}", "/a", "/a/"], "/a/", BOTH, False),
    ("narrower under another spelling", ["/A/{x}", "/a/b"], "/A/b", BOTH, True),
    ("three deep, the middle one", ["/{r*}", "/a/{r*}", "/a/b"], "/a/B", BOTH, True),
    ("three deep, the outer one", ["/{r*}", "/a/{r*}", "/a/b"], "/A/c", BOTH, True),
    ("three deep, and none", ["/{r*}", "/a/{r*}", "/a/b"], "/a/c", BOTH, False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "routes", "path", "how", "shadowed"), SHADOWED, ids=[case[0] for case in SHADOWED]
)
def test_shadowed_paths(
    name: str, routes: list[str], path: str, how: dict[str, bool], shadowed: bool
) -> None:
    for order in (routes, routes[::-1]):
        made: RouteTree[str] = RouteTree(**how)
        for pattern in order:
            made.add(["GET", "PUT"], pattern, pattern)
        for start, segments in ((0, split(path)), (1, ["prefix", *split(path)])):
            found = made.match("GET", segments, start)
            assert found is not None
            assert made.shadows("GET", segments, start, found) is shadowed


def test_only_routes_of_the_same_method_shadow() -> None:
    made = tree((["GET", "POST"], "/{r*}"), ("POST", "/admin"))
    assert not made.shadows("GET", ["Admin"], 0, "/{r*}")
    assert made.shadows("POST", ["Admin"], 0, "/{r*}")


def test_who_would_get_the_path_of_a_lax_reader() -> None:
    made = tree(("GET", "/{r*}"), ("GET", "/a/{x}"), ("GET", "/A/{x}/"), ("POST", "/a/b"))
    assert list(made.read_laxly("GET", ["A", "b;x", ""])) == ["/a/{x}", "/A/{x}/"]
    assert list(made.read_laxly("GET", ["p", "z"], 1)) == ["/{r*}"]
    assert list(made.read_laxly("PUT", ["a", "b"])) == []


LAX_SAMPLES = [
    [*segments, *end]
    for size in range(4)
    for segments in itertools.product(["a", "A", "b", "z"], repeat=size)
    for end in ([], [""], ["q"], ["q", ""], ["q", "q"], ["q", "q", ""])
    if size or end
]


def laxly(segments: Sequence[str]) -> tuple[str, ...]:
    return tuple("/".join(segments).lower().removesuffix("/").split("/"))


@given(
    st.lists(st.sampled_from(["a", "A", "b", "{x}"]), max_size=3).flatmap(
        lambda parts: st.lists(
            st.sampled_from([["a"], ["A"], ["{x}"], ["{x*}"], [""]]).map(
                lambda end: _named("/" + "/".join([*parts, *end]))
            ),
            max_size=2,
        )
    ),
    st.lists(PATTERNS, max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_shadows_are_those_of_a_naive_reading(some: list[str], more: list[str]) -> None:
    """Whoever lies not around the route that matches, and has the path in another spelling too."""
    made: RouteTree[str] = RouteTree()
    extents: dict[str, frozenset[tuple[str, ...]]] = {}
    for pattern in dict.fromkeys([*some, *more]):
        try:
            made.add(["GET"], pattern, pattern)
        except PatternError:
            continue
        extents[pattern] = frozenset(laxly(path) for path in LAX_SAMPLES if fits(pattern, path))
    for path in LAX_SAMPLES:
        found = made.match("GET", path)
        if found is None:
            continue
        read = laxly(path)
        expected = any(
            read in extent and not extents[found] <= extent for extent in extents.values()
        )
        assert made.shadows("GET", path, 0, found) == expected, (found, path, list(extents))


SHAPES = [
    ("distinct literals", lambda n: f"/svc{n}/items/{{id}}"),
    ("one literal, then many", lambda n: f"/api/v1/things/thing{n}/{{rest*}}"),
    ("behind a wildcard", lambda n: f"/{{tenant}}/item{n}"),
    ("two levels", lambda n: f"/a{n % 100}/b{n // 100}/{{id}}/c"),
]


@pytest.mark.parametrize(("name", "shape"), SHAPES, ids=[case[0] for case in SHAPES])
def test_ten_thousand_routes_compile_and_look_up_as_ten_do(name: str, shape: Any) -> None:
    large: RouteTree[int] = RouteTree()
    begun = time.process_time()
    for n in range(10_000):
        large.add(["GET", "POST"], shape(n), n)
    assert time.process_time() - begun < 5
    paths = {
        n: split(shape(n).replace("{", "").replace("*}", "").replace("}", ""))
        for n in (0, 77, 9_999)
    }
    for n, segments in paths.items():
        assert large.match("GET", segments) == n
    small: RouteTree[int] = RouteTree()
    for n in range(10):
        small.add(["GET"], shape(n), n)

    def cost(made: RouteTree[int]) -> float:
        best = 1.0
        for _ in range(20):
            begun = time.perf_counter()
            for _ in range(500):
                made.match("GET", paths[0])
            best = min(best, time.perf_counter() - begun)
        return best

    # Generous: the machine is shared. A scan over the routes would be 1,000 times as much.
    assert cost(large) < 20 * cost(small)


def test_a_thousand_wildcards_beside_literals_compile_too() -> None:
    """The costly shape for the conflict check: every wildcard lies beside every literal."""
    made: RouteTree[int] = RouteTree()
    begun = time.process_time()
    for n in range(500):
        made.add(["GET"], f"/lit{n}/x", n)
    for n in range(500):
        made.add(["GET"], f"/{{w}}/y{n}", n)
    assert time.process_time() - begun < 5
