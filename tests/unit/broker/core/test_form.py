"""Forms have one reading or none."""

from __future__ import annotations

import contextlib
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.broker.core.form import Form
from valetkey.contracts.errors import CallerError


@pytest.mark.parametrize(
    ("name", "body", "field", "expected"),
    [
        ("plain", b"a=b", "a", "b"),
        ("plus", b"a=b+c", "a", "b c"),
        ("escaped plus", b"a=b%2Bc", "a", "b+c"),
        ("utf-8", b"a=%C3%A9", "a", "é"),
        ("equals in a value", b"a=b=c", "a", "b=c"),
        ("empty", b"a=", "a", ""),
        ("missing", b"a=b", "c", ""),
        ("nothing", b"", "a", ""),
        ("escaped name", b"%61=b", "a", "b"),
    ],
)
def test_reads(name: str, body: bytes, field: str, expected: str) -> None:
    assert Form.decode(body).get(field) == expected, name


@pytest.mark.parametrize(
    "body",
    [
        b"a", b"a&b=c", b"=b", b"a=b&", b"&a=b", b"a=b&&c=d", b"a=%", b"a=%4", b"a=%zz", b"a=%ff",
        b"a=\xc3\xa9", b"a=%00", b"a=%0d%0a", b"a=b\nc", b"a%0a=b", b"a=1&a=2", b"a=1&%61=2",
        b"a=&a=", b"&".join(b"a%d=1" % n for n in range(33)),
    ],
)  # fmt: skip
def test_refuses(body: bytes) -> None:
    with pytest.raises(CallerError) as refused:
        Form.decode(body)
    assert refused.value.code.name == "service.bad_request"


def test_what_may_repeat_is_kept_in_order() -> None:
    form = Form.decode(b"audience=b&resource=&audience=a&resource=r")
    assert form.all("audience") == ["b", "a"]
    assert form.all("resource") == ["r"]
    assert form.all("scope") == ()


def test_required() -> None:
    form = Form.decode(b"a=&b=c")
    assert form.required("b") == "c"
    for name in ("a", "x"):
        with pytest.raises(CallerError):
            form.required(name)


FIELD = st.text(
    alphabet=st.characters(codec="utf-8", min_codepoint=0x20, exclude_characters="\x7f"), min_size=1
)


@given(st.dictionaries(FIELD, FIELD, max_size=8))
def test_what_a_client_encodes_is_what_is_read(fields: dict[str, str]) -> None:
    form = Form.decode(urlencode(fields).encode())
    for name, value in fields.items():
        assert (form.get(name) or "".join(form.all(name))) == value


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with contextlib.suppress(CallerError):
        Form.decode(body)
