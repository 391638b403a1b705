"""SPIFFE IDs: one way to write each, everything else refused (SPIFFE-ID §2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.contracts.spiffe_id import SpiffeId, SpiffeIdInvalid

GOOD = {
    "a workload": ("spiffe://example.org/ns/a/sa/bot", "spiffe://example.org", "/ns/a/sa/bot"),
    "a trust domain": ("spiffe://example.org", "spiffe://example.org", ""),
    "underscores and digits": ("spiffe://a_b-1.c/x_Y-9.z", "spiffe://a_b-1.c", "/x_Y-9.z"),
    "three dots": ("spiffe://a/...", "spiffe://a", "/..."),
    "an address": ("spiffe://127.0.0.1/x", "spiffe://127.0.0.1", "/x"),
}
BAD = {
    "empty": "",
    "no trust domain": "spiffe://",
    "no trust domain but a path": "spiffe:///x",
    "another scheme": "https://example.org/x",
    "the scheme in capitals": "SPIFFE://example.org/x",
    "the trust domain in capitals": "spiffe://Example.org/x",
    "a port": "spiffe://example.org:8443/x",
    "a user": "spiffe://me@example.org/x",
    "an IPv6 address": "spiffe://[::1]/x",
    "an encoded trust domain": "spiffe://ex%61mple.org/x",
    "a query": "spiffe://example.org/x?y=z",
    "an empty query": "spiffe://example.org/x?",
    "a fragment": "spiffe://example.org/x#y",
    "a query without a path": "spiffe://example.org?x",
    "a slash at the end": "spiffe://example.org/x/",
    "nothing but a slash": "spiffe://example.org/",
    "an empty segment": "spiffe://example.org/x//y",
    "a dot": "spiffe://example.org/./x",
    "two dots": "spiffe://example.org/x/../y",
    "an encoded path": "spiffe://example.org/%78",
    "a space": "spiffe://example.org/x y",
    "a newline": "spiffe://example.org/x\n",
    "a letter that is not ASCII": "spiffe://example.org/ü",
    "a star": "spiffe://example.org/*",
    "too long": "spiffe://example.org/" + "x" * 2048,
    "too long a trust domain": "spiffe://" + "x" * 256,
}


@pytest.mark.parametrize(("text", "domain", "path"), GOOD.values(), ids=GOOD)
def test_ids(text: str, domain: str, path: str) -> None:
    identity = SpiffeId.parse(text)
    assert (identity.trust_domain, identity.path, str(identity)) == (domain, path, text)


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_what_is_no_id(text: str) -> None:
    with pytest.raises(SpiffeIdInvalid) as refused:
        SpiffeId.parse(text)
    assert not text or text not in str(refused.value)


@given(st.text(max_size=40))
def test_what_is_read_is_what_was_written(rest: str) -> None:
    try:
        identity = SpiffeId.parse("spiffe://" + rest)
    except SpiffeIdInvalid:
        return
    assert str(identity) == "spiffe://" + rest
    assert rest.isascii()
    assert not set(rest) & set("%?#@: \n\\")
