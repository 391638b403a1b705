"""Addresses: public ones, allowed ones, and the many spellings of those that never are."""

from __future__ import annotations

import pytest

from valetkey.proxy.core.addresses import (
    Translation,
    find_nat64,
    needs_translation,
    parse_nat64,
    parse_networks,
    refusal,
)

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
    ("Teredo with a metadata client", "2001:0:5db8:d822:0:ffff:5601:5601", ALL, METADATA),
    ("Teredo with a private client", "2001:0:5db8:d822:0:ffff:f5ff:fffe", ("::/0",), CLOSED),
    ("Teredo with a private server", "2001:0:a00:1:0:ffff:a247:27dd", ("::/0",), CLOSED),
    ("Teredo of public addresses, allowed", "2001:0:5db8:d822:0:ffff:a247:27dd", ALL, ""),
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
    ("metadata v6, third cloud", "fd00:42::42", ALL, METADATA),
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
    ("v4-compatible private", "::10.0.0.1", ("::/0",), CLOSED),
    ("v4-translated metadata", "::ffff:0:169.254.169.254", ALL, METADATA),
    ("v4-translated private", "::ffff:0:10.0.0.1", ("::/0",), CLOSED),
    ("v4-translated public", "::ffff:0:93.184.216.34", NONE, CLOSED),
    ("NAT64 public", "64:ff9b::5db8:d822", NONE, ""),
    ("NAT64 loopback", "64:ff9b::7f00:1", NONE, CLOSED),
    ("NAT64 metadata", "64:ff9b::a9fe:a9fe", ALL, METADATA),
    ("NAT64 private, allowed", "64:ff9b::a00:1", PRIVATE, ""),
    ("NAT64 for local use", "64:ff9b:1::5db8:d822", NONE, CLOSED),
    ("NAT64 for local use, allowed", "64:ff9b:1::5db8:d822", ALL, ""),
    ("NAT64 for local use to metadata, /96", "64:ff9b:1::a9fe:a9fe", ALL, METADATA),
    ("NAT64 for local use to metadata, /64", "64:ff9b:1:7:a9:fea9:fe00:0", ALL, METADATA),
    ("NAT64 for local use to metadata, /56", "64:ff9b:1:a9:fe:a9fe::", ALL, METADATA),
    ("NAT64 for local use to metadata, /48", "64:ff9b:1:a9fe:a9:fe00::", ALL, METADATA),
    ("6to4 loopback", "2002:7f00:1::1", NONE, CLOSED),
    ("6to4 metadata", "2002:a9fe:a9fe::1", ALL, METADATA),
    ("6to4 private", "2002:a00:1::1", NONE, CLOSED),
    ("6to4 of a public one", "2002:5db8:d822::1", NONE, CLOSED),
    ("6to4, allowed", "2002:5db8:d822::1", ALL, ""),
    ("protocol assignments", "192.0.0.9", NONE, CLOSED),
    ("protocol assignments, IPv6", "2001:1::1", NONE, CLOSED),
    ("documentation, the newer one", "3fff::1", NONE, CLOSED),
    ("segment routing", "5f00::1", NONE, CLOSED),
    ("beside what is special", "2001:200::1", NONE, ""),
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


# --- NAT64 prefixes of the network itself ---------------------------------------------------------

# RFC 6052 §2.4: the table's own addresses for 192.0.2.33, with another IPv4 address in them.
EMBEDDED = [
    ("2001:db8::/32", "2001:db8:{a}{b}:{c}{d}::"),
    ("2001:db8:100::/40", "2001:db8:1{a}:{b}{c}:{d}::"),
    ("2001:db8:122::/48", "2001:db8:122:{a}{b}:{c}:{d}00::"),
    ("2001:db8:122:300::/56", "2001:db8:122:3{a}:{b}:{c}{d}::"),
    ("2001:db8:122:344::/64", "2001:db8:122:344:{a}:{b}{c}:{d}00::"),
    ("2001:db8:122:344::/96", "2001:db8:122:344::{a}{b}:{c}{d}"),
]
GLOBAL = "2600:db8"  # the documentation prefix is not public, which would decide every case


def embed(shape: str, address: str) -> str:
    octets = [f"{int(part):02x}" for part in address.split(".")]
    return shape.format(**dict(zip("abcd", octets, strict=True))).replace("2001:db8", GLOBAL)


@pytest.mark.parametrize(("prefix", "shape"), EMBEDDED, ids=[p for p, _ in EMBEDDED])
def test_a_stated_prefix_is_read_as_the_ipv4_address(prefix: str, shape: str) -> None:
    stated = Translation(stated=parse_nat64([prefix.replace("2001:db8", GLOBAL)]))
    private = parse_networks(["10.0.0.0/8"])
    assert refusal(embed(shape, "93.184.216.34"), (), stated) == ""
    assert refusal(embed(shape, "10.0.0.7"), (), stated).startswith(CLOSED)
    assert refusal(embed(shape, "10.0.0.7"), private, stated) == ""
    assert refusal(embed(shape, "169.254.169.254"), parse_networks(ALL), stated) == METADATA
    # And without it, nobody could know.
    assert refusal(embed(shape, "10.0.0.7"), ()) == ""


@pytest.mark.parametrize(("prefix", "shape"), EMBEDDED, ids=[p for p, _ in EMBEDDED])
def test_a_prefix_is_found_and_only_forbids(prefix: str, shape: str) -> None:
    answers = [embed(shape, "192.0.0.170"), embed(shape, "192.0.0.171")]
    found = find_nat64(answers)
    assert parse_networks([prefix.replace("2001:db8", GLOBAL)])[0] in found
    translation = Translation(found=found)
    assert refusal(embed(shape, "93.184.216.34"), (), translation) == ""
    assert refusal(embed(shape, "10.0.0.7"), (), translation).startswith(CLOSED)
    assert refusal(embed(shape, "169.254.169.254"), parse_networks(ALL), translation) == METADATA


def test_a_found_prefix_makes_nothing_public() -> None:
    """Who forges the answer of `ipv4only.arpa` must not open private networks with it."""
    found = find_nat64(["fd12:3456::c000:aa"])
    assert str(found[0]) == "fd12:3456::/96"
    address = "fd12:3456::5db8:d822"
    assert refusal(address, (), Translation(found=found)).startswith(CLOSED)
    assert refusal(address, (), Translation(stated=parse_nat64(["fd12:3456::/96"]))) == ""


@pytest.mark.parametrize("answers", [[], ["2606:2800:220:1::1"], ["64:ff9b::5db8:d822"]])
def test_no_prefix_is_found_where_there_is_none(answers: list[str]) -> None:
    assert find_nat64(answers) == ()


NEEDS = [
    ("2606:2800:220:1::1", NONE, True),
    ("2606:2800:220:1::1", ("2606:2800::/32",), False),  # vouched for
    ("2606:2800:220:1::1", ("0.0.0.0/0",), True),
    ("93.184.216.34", NONE, False),
    ("::1", NONE, False),
    ("fd12::1", NONE, False),
    ("64:ff9b::5db8:d822", NONE, False),
    ("no address", NONE, False),
]


@pytest.mark.parametrize(("text", "allowed", "needs"), NEEDS)
def test_whether_the_networks_prefixes_matter(
    text: str, allowed: tuple[str, ...], needs: bool
) -> None:
    assert needs_translation(text, parse_networks(allowed)) is needs


@pytest.mark.parametrize("text", ["64:ff9b::/95", "64:ff9b::1/96", "10.0.0.0/8", "x", ""])
def test_nat64_prefixes_must_be_ones(text: str) -> None:
    with pytest.raises(ValueError):
        parse_nat64([text])
