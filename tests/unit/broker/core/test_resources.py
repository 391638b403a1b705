"""Resource indicators: what is one, and whose it is."""

from __future__ import annotations

import pytest

from valetkey.broker.core.resources import ResourceInvalid, parse_resource, resource_belongs


@pytest.mark.parametrize(
    "text",
    [
        "", "/a", "a", "//host/a", "https://", "https:", "https://a#", "https://a/#x", "https://a?",
        "https://a/?x=1", "https://user@a", "https://a:b@c", "https://a:99999", "https://a b",
        "https://a/\x7f", "https://é", "https://[::1", "https://a:0",
    ],
)  # fmt: skip
def test_not_a_resource(text: str) -> None:
    with pytest.raises(ResourceInvalid):
        parse_resource(text)


@pytest.mark.parametrize(
    "text", ["https://a", "https://a:8443/b", "urn:example:api", "spiffe://a/b"]
)
def test_a_resource(text: str) -> None:
    assert parse_resource(text).scheme


@pytest.mark.parametrize(
    ("name", "resource", "target", "expected"),
    [
        ("same", "https://a/b", "https://a/b", True),
        ("below", "https://a/b/c", "https://a/b", True),
        ("below a host", "https://a/b", "https://a", True),
        ("slash after the host", "https://a/", "https://a", True),
        ("slash after the path", "https://a/b/", "https://a/b", True),
        ("above", "https://a", "https://a/b", False),
        ("beside", "https://a/bc", "https://a/b", False),
        ("another host", "https://b/b", "https://a/b", False),
        ("another scheme", "http://a/b", "https://a/b", False),
        ("another port", "https://a:8443/b", "https://a/b", False),
        ("default port is another spelling", "https://a:443/b/c", "https://a/b", False),
        ("host as prefix", "https://a.evil/b", "https://a", False),
        ("dots", "https://a/b/../c", "https://a/b", False),
        ("encoded dots", "https://a/b/%2e%2e/c", "https://a/b", False),
        ("encoded slash", "https://a/b/..%2fc", "https://a/b", False),
        ("urn", "urn:x:a", "urn:x:a", True),
        ("another urn", "urn:x:a:b", "urn:x:a", False),
    ],
)
def test_belongs(name: str, resource: str, target: str, expected: bool) -> None:
    assert resource_belongs(resource, target) is expected, name
