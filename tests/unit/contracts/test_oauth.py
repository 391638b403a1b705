"""Exchange messages: strict about details, lenient about a response's further members."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.contracts import oauth
from valetkey.contracts.oauth import HttpCallDetails, TokenError, TokenResponse

DETAILS = {
    "type": oauth.DETAILS_HTTP_CALL,
    "locations": ["https://t.test.example"],
    "actions": ["GET"],
    "identifier": "r1",
    "path": "/a/{id}",
}


def test_details_have_no_unknown_member() -> None:
    assert msgspec.convert(DETAILS, HttpCallDetails).exact is False
    with pytest.raises(msgspec.ValidationError, match="unknown field `datatypes`"):
        msgspec.convert({**DETAILS, "datatypes": []}, HttpCallDetails)


@pytest.mark.parametrize("member", sorted(DETAILS))
def test_details_need_each_member(member: str) -> None:
    rest = {name: value for name, value in DETAILS.items() if name != member}
    with pytest.raises(msgspec.ValidationError, match=f"missing required field `{member}`"):
        msgspec.convert(rest, HttpCallDetails)


def test_a_response_may_say_more() -> None:
    body = (
        b'{"access_token":"t","issued_token_type":"i","token_type":"Bearer","expires_in":60,'
        b'"more":1}'
    )
    assert msgspec.json.decode(body, type=TokenResponse).expires_in == 60


@pytest.mark.parametrize(
    "body",
    [b"{}", b'{"access_token":"t"}', b'{"access_token":1}', b"[]"],
)
def test_half_a_response_is_none(body: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(body, type=TokenResponse)


def test_an_error_without_our_code_is_still_an_error() -> None:
    assert msgspec.json.decode(b'{"error":"invalid_scope"}', type=TokenError).code == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=10,
)


def _reversed(value: object) -> object:
    if isinstance(value, dict):
        return {name: _reversed(value[name]) for name in reversed(value)}
    return [_reversed(item) for item in value] if isinstance(value, list) else value


@given(JSON)
def test_canonical_details_do_not_depend_on_the_order_of_members(value: object) -> None:
    text = oauth.canonical_details(value)
    assert oauth.canonical_details(_reversed(value)) == text
    assert msgspec.json.decode(text) == value
