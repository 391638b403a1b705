from __future__ import annotations

import pytest

from valetkey.cli.doctor import no_proxy

EXCLUDED = [
    ("the host", "api.example.com", "api.example.com", 443, "api.example.com"),
    ("in capitals", "API.Example.COM", "api.example.com", 443, "API.Example.COM"),
    ("its domain", "example.com", "api.example.com", 443, "example.com"),
    ("its domain with a dot", ".example.com", "api.example.com", 443, ".example.com"),
    ("the host with a dot", ".example.com", "example.com", 443, ".example.com"),
    ("a wildcard", "*.example.com", "api.example.com", 443, "*.example.com"),
    ("a trailing dot", "example.com.", "api.example.com.", 443, "example.com."),
    ("among others", "localhost, 127.0.0.1,example.com", "a.example.com", 443, "example.com"),
    ("divided by spaces", "localhost example.com", "a.example.com", 443, "example.com"),
    ("with its port", "example.com:8443", "api.example.com", 8443, "example.com:8443"),
    ("an address", "10.1.2.3", "10.1.2.3", 80, "10.1.2.3"),
    ("a network", "10.0.0.0/8", "10.1.2.3", 80, "10.0.0.0/8"),
    ("a network with host bits", "10.1.2.3/8", "10.9.9.9", 80, "10.1.2.3/8"),
    ("an IPv6 address", "::1", "[::1]", 80, "::1"),
    ("an IPv6 address in brackets", "[::1]", "::1", 80, "[::1]"),
    ("an IPv6 address with a port", "[::1]:8080", "::1", 8080, "[::1]:8080"),
    ("an IPv6 network", "fd00::/8", "fd00::7", 80, "fd00::/8"),
    ("the first that does", "other,example.com,com", "a.example.com", 443, "example.com"),
]
KEPT = [
    ("nothing", "", "api.example.com", 443),
    ("another host", "localhost,127.0.0.1", "api.example.com", 443),
    ("an end that is no domain", "ample.com", "example.com", 443),
    ("another port", "example.com:8443", "api.example.com", 443),
    ("another network", "192.168.0.0/16", "10.1.2.3", 80),
    ("a network for a name", "0.0.0.0/0", "api.example.com", 443),
    ("IPv4 for IPv6", "0.0.0.0/0", "::1", 80),
    ("a domain for an address", "3", "10.1.2.3", 80),
    ("a bare dot", ".", "api.example.com", 443),
    ("everything, which is judged apart", "*", "api.example.com", 443),
    ("commas", ",, ,", "api.example.com", 443),
]


@pytest.mark.parametrize(
    ("name", "value", "host", "port", "entry"), EXCLUDED, ids=[case[0] for case in EXCLUDED]
)
def test_what_is_excluded(name: str, value: str, host: str, port: int, entry: str) -> None:
    assert no_proxy.excluding(value, host, port) == entry


@pytest.mark.parametrize(("name", "value", "host", "port"), KEPT, ids=[case[0] for case in KEPT])
def test_what_is_not(name: str, value: str, host: str, port: int) -> None:
    assert no_proxy.excluding(value, host, port) == ""


def test_entries() -> None:
    assert no_proxy.entries(" a, b c,,*") == ["a", "b", "c", "*"]
