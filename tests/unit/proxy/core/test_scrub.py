"""Scrubbing: whole, at every boundary, in each form; what is none goes on, and nothing moves."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.proxy.core.scrub import Scrubber, blank, holds, needles_of

JWT = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJib3QifQ.c2lnbmF0dXJl"
OPAQUE = "ab+c/d=="

FORMS = [
    ("", ()),
    (JWT, (JWT.encode(),)),
    (OPAQUE, (b"ab+c/d==", b"ab%2Bc%2Fd%3D%3D", b"ab%2bc%2fd%3d%3d", b"ab+c\\/d==")),
    ("a/b", (b"a/b", b"a%2Fb", b"a%2fb", b"a\\/b")),
    ("~x._-", (b"~x._-",)),
]


@pytest.mark.parametrize(("token", "forms"), FORMS)
def test_the_forms_of_a_token(token: str, forms: tuple[bytes, ...]) -> None:
    assert needles_of(token) == forms
    assert all(len(form) >= len(token) for form in forms)


@pytest.mark.parametrize(
    ("text", "blanked"),
    [
        (b"nothing", b"nothing"),
        (b"ab+c/d==", b"********"),
        (b"Bearer ab+c/d==, ab+c/d==.", b"Bearer ********, ********."),
        (b"?t=ab%2Bc%2Fd%3D%3D&", b"?t=****************&"),
        (b"?t=ab%2bc%2fd%3d%3d&", b"?t=****************&"),
        (b'"ab+c\\/d=="', b'"*********"'),
        (b"ab+c/d=", b"ab+c/d="),
    ],
)
def test_what_is_found_is_overwritten_in_place(text: bytes, blanked: bytes) -> None:
    needles = needles_of(OPAQUE)
    assert blank(text, needles) == blanked
    assert holds(text, needles, len(text)) is (text != blanked)
    assert len(blanked) == len(text)


def test_only_what_is_before_the_end_counts() -> None:
    needles = needles_of("token")
    assert holds(b"a token", needles, 7)
    assert not holds(b"a token", needles, 6)


@pytest.mark.parametrize(
    "text", [b"x" + OPAQUE.encode() + b"y", b"ab%2Bc%2Fd%3D%3D", b"aab+c/d==ab"]
)
def test_at_every_boundary(text: bytes) -> None:
    needles = needles_of(OPAQUE)
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            scrubber = Scrubber(needles)
            pieces = (text[:first], text[first:second], text[second:])
            out = b"".join(map(scrubber.feed, pieces)) + scrubber.end()
            assert out == blank(text, needles)
            assert scrubber.found


def test_only_what_could_be_the_beginning_is_held_back() -> None:
    scrubber = Scrubber(needles_of("secret"))
    assert scrubber.feed(b"data: x\n\n") == b"data: x\n\n"
    assert scrubber.feed(b"a sec") == b"a "
    assert scrubber.feed(b"ond") == b"second"
    assert scrubber.feed(b"ses") == b"se"
    assert scrubber.feed(b"ecre") == b""
    assert scrubber.feed(b"t.") == b"******."
    assert scrubber.feed(b"s") == b""
    assert scrubber.end() == b"s"
    assert scrubber.end() == b""


def test_nothing_to_look_for_changes_nothing() -> None:
    scrubber = Scrubber(())
    assert scrubber.feed(b"abc") + scrubber.end() == b"abc"
    assert not scrubber.found


@given(
    token=st.text("ab/+=", min_size=1, max_size=5),
    parts=st.lists(st.text("ab/+=%2BFD\\", max_size=8), max_size=6),
    cuts=st.lists(st.integers(0, 60), max_size=8),
)
def test_pieces_hide_nothing_and_change_no_length(
    token: str, parts: list[str], cuts: list[int]
) -> None:
    needles = needles_of(token)
    text = token.join(parts).encode()
    places = sorted({0, len(text), *(cut for cut in cuts if cut <= len(text))})
    scrubber = Scrubber(needles)
    out = b"".join(scrubber.feed(text[a:b]) for a, b in pairwise(places)) + scrubber.end()
    assert len(out) == len(text)
    assert not any(needle in out for needle in needles)
    assert all(a in (b, ord("*")) for a, b in zip(out, text, strict=True))
