"""Which workloads and which paths a pattern means."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.broker.core.patterns import PathPattern, PatternInvalid, WorkloadPattern, patterns_of

BOT = "spiffe://demo.example/ns/*/sa/bot"


@pytest.mark.parametrize(
    ("name", "pattern", "subject", "expected"),
    [
        ("exact", "spiffe://a/b", "spiffe://a/b", True),
        ("exact, longer", "spiffe://a/b", "spiffe://a/b/c", False),
        ("exact, case", "spiffe://a/b", "spiffe://a/B", False),
        ("one segment", BOT, "spiffe://demo.example/ns/agents/sa/bot", True),
        ("two segments", BOT, "spiffe://demo.example/ns/a/b/sa/bot", False),
        ("no segment", BOT, "spiffe://demo.example/ns//sa/bot", False),
        ("segment missing", BOT, "spiffe://demo.example/ns/sa/bot", False),
        ("dot", BOT, "spiffe://demo.example/ns/./sa/bot", False),
        ("two dots", BOT, "spiffe://demo.example/ns/../sa/bot", False),
        ("colon in the segment", BOT, "spiffe://demo.example/ns/a:b/sa/bot", False),
        ("escape in the segment", BOT, "spiffe://demo.example/ns/a%2fb/sa/bot", False),
        ("line feed in the segment", BOT, "spiffe://demo.example/ns/a\n/sa/bot", False),
        ("line feed at the end", BOT, "spiffe://demo.example/ns/a/sa/bot\n", False),
        ("another trust domain", BOT, "spiffe://evil.example/ns/a/sa/bot", False),
        ("kubernetes", "system:serviceaccount:*:bot", "system:serviceaccount:agents:bot", True),
        (
            "kubernetes, slash",
            "system:serviceaccount:*:bot",
            "system:serviceaccount:a/b:bot",
            False,
        ),
        ("star at the end", "spiffe://a/ns/*", "spiffe://a/ns/x", True),
        ("star at the end, empty", "spiffe://a/ns/*", "spiffe://a/ns/", False),
        ("star is no star in a subject", "spiffe://a/b", "spiffe://a/*", False),
        ("overlap of prefix and suffix", "a/*/a", "a/a", False),
    ],
)
def test_workload(name: str, pattern: str, subject: str, expected: bool) -> None:
    assert WorkloadPattern.parse(pattern).matches(subject) is expected, name


@pytest.mark.parametrize(
    "text", ["", " a", "a ", "*", "*/a", "a/*/*", "a/b*", "a/*b/c", "a/**", "spiffe://a/n*s/b"]
)
def test_no_workload_pattern(text: str) -> None:
    with pytest.raises(PatternInvalid):
        WorkloadPattern.parse(text)


_NEAR = st.text(alphabet="ab/:.*", max_size=6)


@given(subject=_NEAR, pattern=_NEAR)
def test_the_patterns_of_a_subject_are_those_that_match_it(subject: str, pattern: str) -> None:
    try:
        matches = WorkloadPattern.parse(pattern).matches(subject)
    except PatternInvalid:
        matches = False
    patterns = list(patterns_of(subject))
    assert (pattern in patterns) is (matches or (pattern == subject and "*" not in subject))
    assert len(set(patterns)) == len(patterns)


@given(st.from_regex(r"[a/:.]{1,3}(a|b|\.){1,2}[/:ab.]{0,6}", fullmatch=True))
def test_every_pattern_of_a_subject_matches_it(subject: str) -> None:
    first, *wild = patterns_of(subject)
    assert first == subject
    assert all(WorkloadPattern.parse(pattern).matches(subject) for pattern in wild)


@given(st.text(alphabet="ab/:.*", max_size=12))
def test_a_star_is_never_more_than_one_segment(subject: str) -> None:
    pattern = WorkloadPattern.parse("a/*:b")
    expected = re.fullmatch(r"a/[ab.]+:b", subject) is not None and subject not in {
        "a/.:b",
        "a/..:b",
    }
    assert pattern.matches(subject) is expected


@pytest.mark.parametrize(
    ("name", "condition", "asked", "expected"),
    [
        ("same literal", "/a/b", "/a/b", True),
        ("another literal", "/a/b", "/a/c", False),
        ("case", "/a/b", "/a/B", False),
        ("escape is another spelling", "/a/b", "/a/%62", False),
        ("variable takes a literal", "/a/{id}", "/a/b", True),
        ("variable takes a variable", "/a/{id}", "/a/{name}", True),
        ("literal does not take a variable", "/a/b", "/a/{id}", False),
        ("variable is one segment", "/a/{id}", "/a/b/c", False),
        ("variable is not empty", "/a/{id}", "/a/", False),
        ("trailing slash is another path", "/a", "/a/", False),
        ("rest takes more", "/a/{rest*}", "/a/b/c", True),
        ("rest takes one", "/a/{rest*}", "/a/b", True),
        ("rest takes nothing after the slash", "/a/{rest*}", "/a/", True),
        ("rest needs the slash", "/a/{rest*}", "/a", False),
        ("rest takes a rest", "/a/{rest*}", "/a/{tail*}", True),
        ("rest takes a deeper rest", "/a/{rest*}", "/a/b/{tail*}", True),
        ("a deeper rest is not enough", "/a/b/{rest*}", "/a/{tail*}", False),
        ("variable does not take a rest", "/a/{id}", "/a/{rest*}", False),
        ("root rest takes all", "/{rest*}", "/a/{id}", True),
        ("root rest takes the root", "/{rest*}", "/", True),
        ("root", "/", "/", True),
        ("literal before the rest differs", "/a/{rest*}", "/b/c", False),
        ("variable before the rest", "/{x}/b/{rest*}", "/a/b/c", True),
    ],
)
def test_inclusion(name: str, condition: str, asked: str, expected: bool) -> None:
    assert PathPattern.parse(condition).includes(PathPattern.parse(asked)) is expected, name


@pytest.mark.parametrize(
    "text",
    [
        "", "a", "a/b", "//", "/a//b", "/./a", "/a/..", "/a/%2e%2e/b", "/a/.%2E", "/a/..;x=1/b",
        "/a%2fb", "/a%5Cb", "/a%00", "/a%252e", "/a\\b", "/a?x", "/a#x", "/a b", "/é", "/a%2",
        "/{a}b", "/{}", "/{rest*}/a", "/{a b}", "/" + "a" * 3000, "/a\n",
    ],
)  # fmt: skip
def test_no_path_pattern(text: str) -> None:
    with pytest.raises(PatternInvalid):
        PathPattern.parse(text)


@pytest.mark.parametrize("text", ["/{id}", "/a/{rest*}", "/a/../b"])
def test_an_exact_path_has_no_variables_or_dots(text: str) -> None:
    with pytest.raises(PatternInvalid):
        PathPattern.literal(text)


SEGMENT = st.sampled_from(["a", "b", "{x}", "{y}"])
PATTERN = st.builds(
    lambda parts, rest: "/" + "/".join([*parts, *(["{r*}"] if rest else [])]),
    st.lists(SEGMENT, min_size=1, max_size=3),
    st.booleans(),
)
CONCRETE = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4).map(
    lambda parts: "/" + "/".join(parts)
)


@given(condition=PATTERN, asked=PATTERN, path=CONCRETE)
def test_what_is_included_matches_nothing_more(condition: str, asked: str, path: str) -> None:
    """The law behind `includes`: a path of the asked pattern is one of the condition's."""
    own, other = PathPattern.parse(condition), PathPattern.parse(asked)
    concrete = PathPattern.literal(path)
    if own.includes(other) and other.includes(concrete):
        assert own.includes(concrete)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("/a/{id}", "/a/7", True),
        ("/a/{id}", "/{x}/b", True),
        ("/a/{id}", "/b/7", False),
        ("/a/{id}", "/a/7/c", False),
        ("/a/{rest*}", "/a/b/c", True),
        ("/a/{rest*}", "/{x}/{y}", True),
        ("/a/{rest*}", "/b/{rest*}", False),
        ("/{rest*}", "/a", True),
        ("/a/b", "/A/b", True),
        ("/a/b", "/a/b/", True),
        ("/a/{rest*}", "/a", True),
        ("/a/b", "/a;v=1/b;w", True),
        ("/a/b", "/%61/b", True),
        ("/a/b", "/a/b%3bx", True),
        ("/a/s", "/a/%C5%BF", True),  # the long s
        ("/a/b", "/a/c", False),
        ("/a/b", "/a/b/c", False),
    ],
)
def test_paths_that_two_patterns_may_share(one: str, other: str, expected: bool) -> None:
    first, second = PathPattern.parse(one), PathPattern.parse(other)
    assert first.may_meet(second) is expected
    assert second.may_meet(first) is expected


@given(PATTERN, PATTERN, CONCRETE)
def test_patterns_that_share_a_path_may_meet(one: str, other: str, path: str) -> None:
    first, second, concrete = map(PathPattern.parse, (one, other, path))
    assert first.may_meet(first)
    if first.includes(concrete) and second.includes(concrete):
        assert first.may_meet(second)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/a/", "/a/"),
        ("/a%20b", "/a%20b"),
        ("/a/{id}", None),
        ("/a/{rest*}", None),
        ("/%61", None),
        ("/a%7E", None),
        ("/a;b", None),
    ],
)
def test_the_plain_path(pattern: str, expected: str | None) -> None:
    assert PathPattern.parse(pattern).plain == expected
