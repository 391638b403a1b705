"""Paths: what is split, what is refused, and that nothing in between is repaired."""

from __future__ import annotations

from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.proxy.core.headers import CREDENTIAL_PARAMETERS, OVERRIDE_PARAMETERS
from valetkey.proxy.core.path import MAX_SEGMENTS, check_query, drop_parameters, split_path

GOOD = [
    ("root", "/", [""]),
    ("one segment", "/a", ["a"]),
    ("trailing slash", "/a/", ["a", ""]),
    ("three", "/api/tickets/7", ["api", "tickets", "7"]),
    ("case is kept", "/Api/TICKETS", ["Api", "TICKETS"]),
    ("all unreserved", "/aZ09-._~", ["aZ09-._~"]),
    ("all sub-delims", "/!$&'()*+,=", ["!$&'()*+,="]),
    ("colon and at", "/a:b@c", ["a:b@c"]),
    ("parameter", "/a;v=1", ["a;v=1"]),
    ("dots inside", "/a..b", ["a..b"]),
    ("three dots", "/...", ["..."]),
    ("leading dot", "/.well-known", [".well-known"]),
    ("trailing dots", "/a..", ["a.."]),
    ("two dots and more", "/..a", ["..a"]),
    ("encoded space", "/a%20b", ["a b"]),
    ("encoded letter", "/%61", ["a"]),
    ("encoded lower hex", "/%c3%a9", ["é"]),
    ("encoded upper hex", "/%C3%A9", ["é"]),
    ("encoded percent alone", "/100%25", ["100%"]),
    ("encoded percent before no hex", "/%25zz", ["%zz"]),
    ("encoded percent before one hex", "/%254", ["%4"]),
    ("encoded question mark", "/a%3Fb", ["a?b"]),
    ("encoded hash", "/a%23b", ["a#b"]),
    ("encoded quote", "/a%22b", ['a"b']),
    ("encoded plus", "/a%2Bb", ["a+b"]),
    ("four-byte character", "/%F0%9F%94%91", ["🔑"]),
    ("fullwidth letter", "/%EF%BD%81", ["ａ"]),
    ("ellipsis inside", "/a%E2%80%A6", ["a…"]),
    ("encoded space and a dot inside", "/a%20.%20b", ["a . b"]),
    ("the most segments", "/a" * MAX_SEGMENTS, ["a"] * MAX_SEGMENTS),
]

BAD = [
    ("empty", ""),
    ("no slash", "a/b"),
    ("star", "*"),
    ("double slash in front", "//a"),
    ("double slash inside", "/a//b"),
    ("double slash at the end", "/a//"),
    ("two slashes alone", "//"),
    ("dot", "/."),
    ("dot inside", "/a/./b"),
    ("dot at the end", "/a/."),
    ("dot-dot", "/.."),
    ("dot-dot inside", "/a/../b"),
    ("dot-dot at the end", "/a/.."),
    ("dot-dot with slash", "/a/../"),
    ("dot-dot with parameter", "/a/..;x/b"),
    ("dot-dot with empty parameter", "/a/..;/b"),
    ("dot with parameter", "/a/.;x/b"),
    ("nothing but a parameter", "/a/;x/b"),
    ("nothing but a semicolon", "/;"),
    ("encoded dot", "/a/%2e/b"),
    ("encoded dot upper", "/a/%2E/b"),
    ("encoded dot-dot", "/a/%2e%2e/b"),
    ("half encoded dot-dot, first", "/a/%2e./b"),
    ("half encoded dot-dot, second", "/a/.%2e/b"),
    ("encoded dot-dot at the end", "/a/%2e%2e"),
    ("encoded dot-dot with parameter", "/a/%2e%2e;x/b"),
    ("dot-dot with encoded semicolon", "/a/..%3bx/b"),
    ("plain dot-dot in a path with escapes", "/%61/../b"),
    ("plain empty segment in a path with escapes", "/%61//b"),
    ("nothing but an encoded parameter", "/a/%3bx/b"),
    ("doubly encoded dot", "/a/%252e%252e/b"),
    ("doubly encoded slash", "/a%252fb"),
    ("doubly encoded letter", "/%2561"),
    ("triply encoded dot", "/%25252e"),
    ("encoded slash", "/a%2fb"),
    ("encoded slash upper", "/a%2Fb"),
    ("encoded backslash", "/a%5cb"),
    ("encoded backslash upper", "/a%5Cb"),
    ("encoded NUL", "/a%00"),
    ("encoded NUL alone", "/%00"),
    ("encoded CR", "/a%0d"),
    ("encoded LF", "/a%0a"),
    ("encoded tab", "/a%09"),
    ("encoded escape", "/a%1b"),
    ("encoded DEL", "/a%7f"),
    ("encoded C1 control", "/a%c2%85"),
    ("backslash", "/a\\b"),
    ("backslash dot-dot", "/a\\..\\b"),
    ("overlong slash", "/a%c0%afb"),
    ("overlong dot", "/%c0%ae%c0%ae/b"),
    ("surrogate", "/%ed%a0%80"),
    ("lone continuation", "/%80"),
    ("Latin-1", "/%e9"),
    ("beyond Unicode", "/%f4%90%80%80"),
    ("encoded space behind dot-dot", "/a/..%20/b"),
    ("encoded space before a dot", "/a/%20./b"),
    ("encoded space behind dot-dot with parameter", "/a/..%20;x/b"),
    ("fullwidth slash", "/a%EF%BC%8Fb"),
    ("fullwidth backslash", "/a%EF%BC%BCb"),
    ("fullwidth dot-dot", "/a/%EF%BC%8E%EF%BC%8E/b"),
    ("fullwidth dot-dot with parameter", "/a/%EF%BC%8E.;x/b"),
    ("two dot leader", "/a/%E2%80%A5/b"),
    ("one dot leader", "/a/%E2%80%A4/b"),
    ("a slash in a ligature", "/a/%E2%84%80/b"),
    ("percent alone", "/a%"),
    ("percent and one digit", "/a%2"),
    ("percent and no hex", "/a%zz"),
    ("UTF-16 escape", "/a%u002f"),
    ("space", "/a b"),
    ("fragment", "/a#b"),
    ("question mark", "/a?b"),
    ("quote", '/a"b'),
    ("angle bracket", "/a<b"),
    ("brace", "/a{b}"),
    ("bar", "/a|b"),
    ("caret", "/a^b"),
    ("backtick", "/a`b"),
    ("square bracket", "/[a]"),
    ("not ASCII", "/é"),
    ("fullwidth full stops", "/．．/a"),
    ("newline", "/a\n"),
    ("newline alone at the end of a good path", "/a/b\n"),
    ("NUL", "/a\0"),
    ("one segment too many", "/a" * (MAX_SEGMENTS + 1)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "path", "segments"), GOOD, ids=[case[0] for case in GOOD])
def test_good_paths_are_split(name: str, path: str, segments: list[str]) -> None:
    assert split_path(path) == segments


@pytest.mark.parametrize(("name", "path"), BAD, ids=[case[0] for case in BAD])
def test_bad_paths_are_refused_as_ambiguous(name: str, path: str) -> None:
    with pytest.raises(CallerError) as refused:
        split_path(path)
    assert refused.value.code is codes.REQUEST_AMBIGUOUS_PATH
    assert refused.value.reason


@settings(deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=6))
@example(["..", "a"])
@example(["a;b", ";"])
def test_what_is_accepted_is_what_every_reader_sees(texts: list[str]) -> None:
    """Encode anything: it is refused, or split into exactly the segments that were meant."""
    try:
        path = "/" + "/".join(quote(text, safe="") for text in texts)
        segments = split_path(path)
    except (CallerError, UnicodeEncodeError):
        return
    assert segments == texts
    for segment in segments:
        assert segment.partition(";")[0] not in {"", ".", ".."}
        assert not set(segment) & set("/\\\0\r\n")
        assert unquote(segment) == segment


@settings(deadline=None)
@given(st.text(alphabet="/.%;\\25efcab0", max_size=24))
def test_no_mutation_leaves_two_readings(text: str) -> None:
    path = "/" + text
    try:
        segments = split_path(path)
    except CallerError:
        return
    assert "".join(segments) == unquote("".join(path.split("/")))
    assert unquote(unquote(path)) == unquote(path)
    assert not {".", ".."} & {segment.partition(";")[0] for segment in segments}


QUERIES = [
    ("empty", "", True),
    ("usual", "a=1&b=2", True),
    ("everything printable", "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) != "#"), True),
    ("space", "a=1 2", False),
    ("hash", "a#b", False),
    ("control", "a\x01", False),
    ("newline", "a\n", False),
    ("DEL", "a\x7f", False),
    ("not ASCII", "é", False),
]


@pytest.mark.parametrize(("name", "query", "good"), QUERIES, ids=[case[0] for case in QUERIES])
def test_queries(name: str, query: str, good: bool) -> None:
    if good:
        check_query(query)
        return
    with pytest.raises(CallerError) as refused:
        check_query(query)
    assert refused.value.code is codes.REQUEST_MALFORMED


PARAMETERS = [
    ("none", "a=1&b=2", "a=1&b=2", []),
    ("empty", "", "", []),
    ("alone", "access_token=x", "", ["access_token"]),
    ("first", "access_token=x&b=2", "b=2", ["access_token"]),
    ("last", "a=1&api_key=x", "a=1", ["api_key"]),
    ("twice", "apikey=1&a=1&apikey=2", "a=1", ["apikey", "apikey"]),
    ("upper case", "ACCESS_TOKEN=x", "", ["access_token"]),
    ("encoded name", "access%5Ftoken=x&a", "a", ["access_token"]),
    ("encoded letter", "%61ccess_token=x", "", ["access_token"]),
    ("plus around it", "+access_token+=x", "", ["access_token"]),
    ("no value", "a&x-api-key", "a", ["x_api_key"]),
    ("with a hyphen", "access-token=x", "", ["access_token"]),
    ("as PHP reads a dot", "access.token=x", "", ["access_token"]),
    ("as PHP reads a space", "access%20token=x", "", ["access_token"]),
    ("as PHP reads an array", "access_token[]=x&a", "a", ["access_token"]),
    ("as PHP reads a NUL", "access_token%00b=x", "", ["access_token"]),
    ("a signature", "X-Amz-Signature=x&X-Amz-Date=y", "X-Amz-Date=y", ["x_amz_signature"]),
    ("semicolon separator", "a=1;access_token=x&b", "b", ["access_token"]),
    ("client secret", "client_secret=x", "", ["client_secret"]),
    ("a name that only begins so", "access_tokens=x", "access_tokens=x", []),
    ("a value that looks so", "q=access_token", "q=access_token", []),
    ("empty parts stay", "a&&b", "a&&b", []),
]


@pytest.mark.parametrize(
    ("name", "query", "kept", "dropped"), PARAMETERS, ids=[case[0] for case in PARAMETERS]
)
def test_credentials_in_queries_are_dropped(
    name: str, query: str, kept: str, dropped: list[str]
) -> None:
    assert drop_parameters(query, CREDENTIAL_PARAMETERS, OVERRIDE_PARAMETERS) == (kept, dropped)


@pytest.mark.parametrize(
    "query",
    [
        "_method=DELETE",
        "a&_METHOD=x",
        "a;_method",
        "%5fmethod=x",
        "_method[]=x",
        ".method=x",
        "+_method=x",
    ],
)
def test_a_parameter_that_stands_for_the_method_is_refused(query: str) -> None:
    with pytest.raises(CallerError) as refused:
        drop_parameters(query, CREDENTIAL_PARAMETERS, OVERRIDE_PARAMETERS)
    assert refused.value.code is codes.REQUEST_OVERRIDE
    assert drop_parameters(query, CREDENTIAL_PARAMETERS, frozenset()) == (query, [])


@pytest.mark.parametrize("query", ["method=x", "a=_method", "_methods=x", "__method=x"])
def test_other_parameters_stand_for_nothing(query: str) -> None:
    assert drop_parameters(query, CREDENTIAL_PARAMETERS, OVERRIDE_PARAMETERS) == (query, [])
