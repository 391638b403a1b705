"""Hosts: one form for each, and what is none."""

from __future__ import annotations

import pytest

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.proxy.core.authority import host_of, settled_host

GOOD = [
    ("name", "api.example.com", "api.example.com"),
    ("upper case", "API.Example.COM", "api.example.com"),
    ("trailing dot", "api.example.com.", "api.example.com"),
    ("port", "api.example.com:8443", "api.example.com:8443"),
    ("trailing dot and port", "api.example.com.:8443", "api.example.com:8443"),
    ("default port", "api.example.com:80", "api.example.com"),
    ("trailing dot and default port", "api.example.com.:80", "api.example.com"),
    ("a port that ends in 80", "api.example.com:8080", "api.example.com:8080"),
    ("a port that ends in :80 not", "api.example.com:180", "api.example.com:180"),
    ("highest port", "a:65535", "a:65535"),
    ("address", "127.0.0.1:7070", "127.0.0.1:7070"),
    ("IPv6", "[::1]", "[::1]"),
    ("IPv6 with port", "[::1]:7070", "[::1]:7070"),
    ("IPv6 with default port", "[::1]:80", "[::1]"),
    ("IPv6 that ends in 80", "[::80]", "[::80]"),
    ("A-label", "XN--Bcher-Kva.example", "xn--bcher-kva.example"),
    ("underscore", "my_service", "my_service"),
    ("one letter", "a", "a"),
]

BAD = [
    ("empty", ""),
    ("dot", "."),
    ("two trailing dots", "a.."),
    ("userinfo", "user@api.example.com"),
    ("userinfo with password", "user:pass@api.example.com"),
    ("space", "a b"),
    ("space behind", "a "),
    ("tab behind", "a\t"),
    ("list", "a, b"),
    ("slash", "a/b"),
    ("backslash", "a\\b"),
    ("query", "a?b"),
    ("fragment", "a#b"),
    ("percent", "a%2eb"),
    ("empty port", "a:"),
    ("port 0", "a:0"),
    ("port beyond", "a:65536"),
    ("long port", "a:000080"),
    ("port with sign", "a:+80"),
    ("port in words", "a:http"),
    ("two ports", "a:80:80"),
    ("IPv6 without brackets", "::1"),
    ("open bracket", "[::1"),
    ("zone", "[fe80::1%25eth0]"),
    ("leading dash", "-a"),
    ("leading dot", ".a"),
    ("not ASCII", "bücher.example"),
    ("newline", "a\n"),
    ("NUL", "a\0"),
    ("scheme", "http://a"),
]


@pytest.mark.parametrize(("name", "text", "host"), GOOD, ids=[case[0] for case in GOOD])
def test_one_form(name: str, text: str, host: str) -> None:
    assert host_of(text) == host
    assert host_of(host) == host


@pytest.mark.parametrize(("name", "text"), BAD, ids=[case[0] for case in BAD])
def test_no_host(name: str, text: str) -> None:
    with pytest.raises(CallerError) as refused:
        host_of(text)
    assert refused.value.code is codes.REQUEST_AMBIGUOUS_HOST


# --- hosts of the settings ------------------------------------------------------------------------

SETTLED = [
    ("api.example.com", "api.example.com"),
    ("localhost", "localhost"),
    ("my_service", "my_service"),
    ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ("1and1.example", "1and1.example"),
    ("127.0.0.1", "127.0.0.1"),
    ("[::1]", "[::1]"),
    ("[0:0:0:0:0:0:0:1]", "[::1]"),
    ("[2001:db8:0::7]", "[2001:db8::7]"),
    (".".join(["a" * 63] * 3 + ["b" * 61]), ".".join(["a" * 63] * 3 + ["b" * 61])),
]


@pytest.mark.parametrize(("name", "form"), SETTLED)
def test_a_host_of_the_settings_has_one_form(name: str, form: str) -> None:
    assert settled_host(name) == form


UNSETTLED = [
    "", ".", "a.", ".a", "a..b", "-a", "a-", "a-.b", "a b", "a" * 64,
    ".".join(["a" * 63] * 3 + ["b" * 62]), "127.1", "0177.0.0.1", "2130706433", "0x7f.0.0.0x1",
    "0x7f000001", "1.2.3.4.5", "256.0.0.1", "a.1", "[::1", "[fe80::1%eth0]", "[::g]", "[127.0.0.1]",
]  # fmt: skip


@pytest.mark.parametrize("name", UNSETTLED)
def test_what_is_no_host_of_the_settings(name: str) -> None:
    with pytest.raises(ValueError):
        settled_host(name)
