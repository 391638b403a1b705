"""Patterns of methods and tools: what they match, include and have in common."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.contracts.mcp import (
    MAX_NAME,
    MAX_PATTERNS,
    MessagePattern,
    NameInvalid,
    NamePattern,
    check_name,
    message_patterns,
)

MATCHES = [
    ("create_issue", "create_issue", True),
    ("create_issue", "create_issues", False),
    ("create_issue", "Create_issue", False),
    ("create_*", "create_issue", True),
    ("create_*", "create_", True),
    ("create_*", "create", False),
    ("create_*", "recreate_issue", False),
    ("*_issue", "create_issue", True),
    ("*_issue", "issue", False),
    ("a*a", "a", False),
    ("a*a", "aa", True),
    ("a*a", "aba", True),
    ("*", "x", True),
    ("notifications/*", "notifications/tools/list_changed", True),
    ("a.c", "abc", False),
]


@pytest.mark.parametrize(("pattern", "name", "matches"), MATCHES)
def test_what_a_pattern_matches(pattern: str, name: str, matches: bool) -> None:
    assert NamePattern.parse(pattern).matches(name) is matches
    assert str(NamePattern.parse(pattern)) == pattern


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x" * (MAX_NAME + 1),
        " a",
        "a ",
        "a\n",
        "a\x00b",
        "a\tb",
        "\u00a0a",
        "a\u202eb",
        "\ud800",
    ],
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(NameInvalid):
        check_name(text)
    with pytest.raises(NameInvalid):
        NamePattern.parse(text)
    with pytest.raises(NameInvalid):
        NamePattern.literal(text)


@pytest.mark.parametrize(
    "text", ["x" * MAX_NAME, "Get Weather", "wetter_für_köln", "天气", "a/b.c-d"]
)
def test_what_is_a_name(text: str) -> None:
    assert check_name(text) == text


def test_a_pattern_has_one_star_and_a_literal_any() -> None:
    with pytest.raises(NameInvalid, match="at most one"):
        NamePattern.parse("a*b*")
    literal = NamePattern.literal("a*b*")
    assert literal.matches("a*b*")
    assert not literal.matches("aXbX")
    assert not literal.includes(NamePattern.parse("a*b"))


# A small alphabet, so that patterns meet.
names = st.text("ab", min_size=1, max_size=4)
patterns = st.one_of(
    names, st.builds("{}*{}".format, st.text("ab", max_size=3), st.text("ab", max_size=3))
).map(NamePattern.parse)


@given(patterns, patterns, names)
def test_inclusion_and_overlap_say_what_matching_does(
    one: NamePattern, other: NamePattern, name: str
) -> None:
    if one.includes(other) and other.matches(name):
        assert one.matches(name)
    if one.matches(name) and other.matches(name):
        assert one.overlaps(other)
        assert other.overlaps(one)


@given(patterns, patterns)
def test_what_is_not_included_or_apart_has_a_witness(one: NamePattern, other: NamePattern) -> None:
    """The other direction, with the names that the patterns themselves are made of."""
    middles = ("", "x", "ab", one.prefix, one.suffix, other.suffix)
    made = [
        name
        for a in (one, other)
        for b in (one, other)
        for middle in middles
        for name in (a.prefix + middle + b.suffix, a.prefix + b.suffix, a.prefix)
        if name
    ]
    if not one.includes(other):
        assert any(other.matches(name) and not one.matches(name) for name in made)
    if one.overlaps(other):
        made += [
            one.prefix + other.prefix[len(one.prefix) :] + s for s in ("", one.suffix, other.suffix)
        ]
        made += [
            other.prefix + one.prefix[len(other.prefix) :] + s
            for s in ("", one.suffix, other.suffix)
        ]
        assert any(one.matches(name) and other.matches(name) for name in made if name)


def pairs(methods: list[str], tools: list[str], **how: bool) -> list[tuple[str, str]]:
    return [(str(p.method), str(p.tool)) for p in message_patterns(methods, tools, **how)]


def test_tools_matter_where_tools_can_be_called() -> None:
    assert pairs(["initialize", "tools/call"], ["a", "b_*"]) == [
        ("initialize", "*"),
        ("tools/call", "a"),
        ("tools/call", "b_*"),
    ]
    assert pairs(["tools/*"], ["a"]) == [("tools/*", "a")]
    assert pairs(["tools/call", "tools/call"], []) == [("tools/call", "*")]
    assert pairs(["tools/call"], ["a*"], exact=True) == [("tools/call", "a*")]


def test_patterns_are_bounded() -> None:
    many = [f"t{n}" for n in range(MAX_PATTERNS)]
    assert len(message_patterns(["tools/call"], many)) == MAX_PATTERNS
    with pytest.raises(NameInvalid, match="more than"):
        message_patterns(["tools/call", "ping"], many)


INCLUDES = [
    (("*", "*"), ("tools/call", "x"), True),
    (("tools/call", "create_*"), ("tools/call", "create_issue"), True),
    (("tools/call", "create_*"), ("tools/call", "*"), False),
    (("tools/call", "create_*"), ("tools/list", "*"), False),
    (("tools/*", "create_*"), ("tools/list", "*"), True),  # tools say nothing of a list
    (("tools/*", "create_*"), ("tools/*", "*"), False),
    (("initialize", "*"), ("*", "*"), False),
]


@pytest.mark.parametrize(("outer", "inner", "included"), INCLUDES)
def test_messages_within_messages(
    outer: tuple[str, str], inner: tuple[str, str], included: bool
) -> None:
    one, other = (
        MessagePattern(NamePattern.parse(method), NamePattern.parse(tool))
        for method, tool in (outer, inner)
    )
    assert one.includes(other) is included
