"""Strict JSON: what is refused, and that the rest is read by everybody alike."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from valetkey.proxy.core.strict_json import MAX_DEPTH, NotStrict, read_strict

REFUSED = [
    ("nothing", b"", "not JSON"),
    ("white space", b" \n", "not JSON"),
    ("two values", b"{}{}", "not JSON"),
    ("something behind", b"{} x", "not JSON"),
    ("a NUL behind", b"{}\0", "not JSON"),
    ("a byte order mark", b"\xef\xbb\xbf{}", "byte order mark"),
    ("UTF-16", '{"a":1}'.encode("utf-16"), "not UTF-8"),
    ("UTF-16 without a mark", '{"a":1}'.encode("utf-16-le"), "not JSON"),
    ("UTF-32 without a mark", '{"a":1}'.encode("utf-32-be"), "not JSON"),
    ("Latin-1", b'{"a":"\xe9"}', "not UTF-8"),
    ("overlong UTF-8", b'{"\xc1\xad":1}', "not UTF-8"),
    ("a surrogate in UTF-8", b'{"a":"\xed\xa0\x80"}', "not UTF-8"),
    ("half a pair", rb'{"a":"\ud800"}', "surrogate"),
    ("half a pair in a name", rb'{"\udc00":1}', "surrogate"),
    ("half a pair in a list", rb'[["\uD83D"]]', "surrogate"),
    ("a pair the wrong way round", rb'["\ude00\ud83d"]', "surrogate"),
    ("a name twice", b'{"a":1,"a":1}', "twice"),
    ("a name twice, escaped", rb'{"method":1,"\u006dethod":2}', "twice"),
    ("a name twice, deep", b'{"a":[{"b":{"c":1,"c":2}}]}', "twice"),
    ("the empty name twice", b'{"":1,"":2}', "twice"),
    ("NaN", b'{"a":NaN}', "NaN"),
    ("Infinity", b"[Infinity]", "NaN"),
    ("-Infinity", b"[-Infinity]", "NaN"),
    ("single quotes", b"{'a':1}", "not JSON"),
    ("a name without quotes", b"{a:1}", "not JSON"),
    ("a comma at the end", b"[1,]", "not JSON"),
    ("a comment", b"[1]/* */", "not JSON"),
    ("a control character", b'["a\nb"]', "not JSON"),
    ("an unknown escape", rb'["\x41"]', "not JSON"),
    ("a zero in front", b"[01]", "not JSON"),
    ("a plus", b"[+1]", "not JSON"),
    ("digits of another script", "[1\u0662]".encode(), "not JSON"),
    ("a no-break space", "\u00a0{}".encode(), "not JSON"),
    ("capitals", b"[True]", "not JSON"),
    ("an integer of 5,000 digits", b"[" + b"9" * 5000 + b"]", "too long"),
    ("too deep", b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "too deep"),
    ("too deep, mixed", b'{"a":[' * 33 + b"]}" * 33, "too deep"),
    ("far too deep", b"[" * 200_000 + b"]" * 200_000, "too deep"),
    ("far too deep, open", b"[" * 200_000, "too deep"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "raw", "reason"), REFUSED, ids=[case[0] for case in REFUSED])
def test_refused(name: str, raw: bytes, reason: str) -> None:
    with pytest.raises(NotStrict, match=reason) as refused:
        read_strict(raw)
    assert not any(part in str(refused.value) for part in ("method", "ethod", "\\u"))


READ = [
    ("escapes", rb'{"\u006dethod":"\ud83d\ude00\n"}', {"method": "\U0001f600\n"}),
    ("escaped backslash before u", rb'["\\ud800"]', ["\\ud800"]),
    ("one name in two objects", b'[{"a":1},{"a":{"a":2}}]', [{"a": 1}, {"a": {"a": 2}}]),
    ("names that differ by case", b'{"a":1,"A":2}', {"a": 1, "A": 2}),
    ("white space", b" \t\r\n[ 1 , 2 ]\n", [1, 2]),
    ("brackets in strings", b'["' + b"[{" * 100 + b'\\"[",1]', ["[{" * 100 + '"[', 1]),
    ("wide, not deep", b"[" + b"[]," * 500 + b"{}]", [*([[]] * 500), {}]),
    ("as deep as it gets", b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, None),
    ("a scalar", b'"a"', "a"),
    ("large numbers", b"[1e400,123456789012345678901234567890]", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "raw", "value"), READ, ids=[case[0] for case in READ])
def test_read(name: str, raw: bytes, value: Any) -> None:
    read = read_strict(raw)
    assert value is None or read == value


def test_the_check_of_the_depth_takes_linear_time() -> None:
    """A text in which every quote could begin a string that never ends (seconds, if quadratic)."""
    raw = b"[" * 65 + b'"' + b'\\"' * 300_000
    with pytest.raises(NotStrict):
        read_strict(raw)
    raw = b"[" * 65 + b'"' + b'\\"' * 300_000 + b'"' + b"]" * 65
    with pytest.raises(NotStrict, match="too deep"):
        read_strict(raw)


# --- every reader alike ---------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """JSON texts, many of them damaged: a piece repeated, replaced or left out."""
    text = json.dumps(
        draw(values), ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1]))
    )
    raw = text.encode("utf-8", "surrogatepass")
    for _ in range(draw(st.integers(0, 2))):
        at, end = sorted(draw(st.tuples(*[st.integers(0, len(raw))] * 2)))
        piece = draw(
            st.sampled_from(
                [b"", raw[at:end] * 2, b'"a":1,', b'"\\ud800"', b"\\", b'"', b"\xff", b"NaN"]
            )
        )
        raw = raw[:at] + piece + raw[end:]
    return raw


def _first(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


@given(texts())
@example(b'{"a":1,"a":2}')
@example(b'"\\ud800"')
def test_what_is_read_is_read_by_others_alike(raw: bytes) -> None:
    try:
        value = read_strict(raw)
    except NotStrict:
        return
    assert json.loads(raw) == value
    assert json.loads(raw, object_pairs_hook=_first) == value
    assert msgspec.json.decode(raw) == value
    assert msgspec.json.decode(msgspec.json.encode(value)) == value  # no lone surrogate in it
