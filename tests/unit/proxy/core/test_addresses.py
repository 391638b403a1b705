"""Addresses: public ones, allowed ones, and the many spellings of those that never are."""

from __future__ import annotations

import pytest

from valetkey.proxy.core.addresses import parse_networks, refusal

NONE = ()
LOOPBACK = ("127.0.0.0/8", "::1/128")
PRIVATE = ("10.0.0.0/8", "fd00::/8")
ALL = ("0.0.0.0/0", "::/0")
METADATA, LOCAL, CLOSED = "a metadata service", "link-local", "not public"

CASES = [
    ("public v4", "93.184.216.34", NONE, ""),
    ("public v6", "2606:2800:220:1::1", NONE, ""),
    ("loopback", "127.0.0.1", NONE, CLOSED),
    ("loopback, allowed", "127.0.0.1", LOOPBACK, ""),
    ("loopback elsewhere in its network", "127.9.9.9", LOOPBACK, ""),
    ("loopback v6", "::1", NONE, CLOSED),
    ("loopback v6, allowed", "::1", LOOPBACK, ""),
    ("private 10", "10.1.2.3", NONE, CLOSED),
    ("private 10, allowed", "10.1.2.3", PRIVATE, ""),
    ("private 172.16", "172.16.0.1", NONE, CLOSED),
    ("private 192.168", "192.168.1.1", PRIVATE, CLOSED),
    ("unique local", "fd12::1", NONE, CLOSED),
    ("unique local, allowed", "fd12::1", PRIVATE, ""),
    ("carrier-grade NAT", "100.64.0.1", NONE, CLOSED),
    ("documentation", "192.0.2.1", NONE, CLOSED),
    ("documentation v6", "2001:db8::1", NONE, CLOSED),
    ("benchmarking", "198.18.0.1", NONE, CLOSED),
    ("reserved", "240.0.0.1", NONE, CLOSED),
    ("broadcast", "255.255.255.255", NONE, CLOSED),
    ("this network", "0.1.2.3", NONE, CLOSED),
    ("site-local", "fec0::1", NONE, CLOSED),
    ("not given out by IANA", "4000::1", NONE, CLOSED),
    ("discard", "100::1", NONE, CLOSED),
    ("Teredo", "2001::1", NONE, CLOSED),
    ("unspecified", "0.0.0.0", ALL, LOCAL),
    ("unspecified v6", "::", ALL, LOCAL),
    ("multicast", "224.0.0.1", ALL, LOCAL),
    ("multicast v6", "ff02::1", ALL, LOCAL),
    ("link-local", "169.254.1.1", ALL, LOCAL),
    ("link-local v6", "fe80::1", ALL, LOCAL),
    ("link-local v6 with zone", "fe80::1%eth0", ALL, LOCAL),
    ("metadata", "169.254.169.254", ALL, METADATA),
    ("metadata of container tasks", "169.254.170.2", ALL, METADATA),
    ("metadata v6", "fd00:ec2::254", ALL, METADATA),
    ("metadata v6, other cloud", "fd20:ce::254", ALL, METADATA),
    ("metadata v6, spelled out", "fd00:0ec2:0:0:0:0:0:254", ALL, METADATA),
    ("metadata in CGN space", "100.100.100.200", ALL, METADATA),
    ("metadata that looks public", "168.63.129.16", NONE, METADATA),
    ("metadata that looks public, second", "192.0.0.192", NONE, METADATA),
    ("v4-mapped loopback", "::ffff:127.0.0.1", NONE, CLOSED),
    ("v4-mapped loopback, allowed", "::ffff:127.0.0.1", LOOPBACK, ""),
    ("v4-mapped loopback, v6 allowed only", "::ffff:127.0.0.1", ("::/0",), CLOSED),
    ("v4-mapped metadata", "::ffff:169.254.169.254", ALL, METADATA),
    ("v4-mapped metadata in hex", "::ffff:a9fe:a9fe", ALL, METADATA),
    ("v4-mapped public", "::ffff:93.184.216.34", NONE, ""),
    ("v4-mapped private", "::ffff:10.0.0.1", NONE, CLOSED),
    ("v4-compatible loopback", "::127.0.0.1", NONE, CLOSED),
    ("v4-compatible metadata", "::169.254.169.254", ALL, METADATA),
    ("NAT64 public", "64:ff9b::5db8:d822", NONE, ""),
    ("NAT64 loopback", "64:ff9b::7f00:1", NONE, CLOSED),
    ("NAT64 metadata", "64:ff9b::a9fe:a9fe", ALL, METADATA),
    ("NAT64 private, allowed", "64:ff9b::a00:1", PRIVATE, ""),
    ("NAT64 for local use", "64:ff9b:1::5db8:d822", NONE, CLOSED),
    ("6to4 loopback", "2002:7f00:1::1", NONE, CLOSED),
    ("6to4 metadata", "2002:a9fe:a9fe::1", ALL, METADATA),
    ("6to4 private", "2002:a00:1::1", NONE, CLOSED),
    ("no address", "localhost", ALL, "not an address"),
    ("empty", "", ALL, "not an address"),
    ("octal", "0177.0.0.1", ALL, "not an address"),
    ("one number", "2130706433", ALL, "not an address"),
    ("hexadecimal", "0x7f.1", ALL, "not an address"),
]


@pytest.mark.parametrize(("name", "text", "allowed", "reason"), CASES, ids=[c[0] for c in CASES])
def test_addresses(name: str, text: str, allowed: tuple[str, ...], reason: str) -> None:
    answer = refusal(text, parse_networks(allowed))
    assert answer.startswith(reason)
    assert bool(answer) == bool(reason)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0/33", "everything", ""])
def test_networks_must_be_exact(text: str) -> None:
    with pytest.raises(ValueError):
        parse_networks([text])
