"""Which addresses a target's name may lead to.

A name is resolved once, every address of the answer is judged here, and the address that was
judged is the one that is dialled, so that neither a hostile resolver nor a rebinding name can
lead a credential to a metadata service or to a neighbour.

An IPv6 address can stand for an IPv4 one. It is judged as everything that it can lead to.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Cloud metadata services: never a target, whatever the settings allow around them.
_METADATA: Final = frozenset(
    ipaddress.ip_address(text)
    for text in ("169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254",
                 "fd00:ec2::23", "fd20:ce::254", "fd00:42::42", "100.100.100.200", "168.63.129.16",
                 "192.0.0.192")
)  # fmt: skip
# What IANA has given out for use on the Internet (RFC 4291 §2.4). The interpreter's `is_global`
# counts everything outside a list of exceptions as global, site-local addresses for one.
_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
# Not globally reachable by IANA's registries (RFC 6890), and global to some releases of Python, to
# others not. 6to4 has no meaning of its own there; RFC 7526 has ended it.
_SPECIAL: Final[tuple[Network, ...]] = tuple(
    ipaddress.ip_network(text)
    for text in ("192.0.0.0/24", "2001::/23", "2002::/16", "3fff::/20", "5f00::/16")
)
# RFC 4291 §2.5.5.1 and RFC 2765 §2.1: deprecated forms that some stacks still take.
_COMPATIBLE: Final = ipaddress.IPv6Network("::/96")
_TRANSLATED: Final = ipaddress.IPv6Network("::ffff:0:0:0/96")
# RFC 6052 §2.1, and RFC 8215: in the latter, prefixes of every length are somebody's NAT64.
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_NAT64_LOCAL: Final = ipaddress.IPv6Network("64:ff9b:1::/48")
# RFC 6052 §2.2.
_NAT64_LENGTHS: Final = (32, 40, 48, 56, 64, 96)
# RFC 7050 §2.2: what `ipv4only.arpa` has for addresses.
_WELL_KNOWN: Final = frozenset(
    {ipaddress.IPv4Address("192.0.0.170"), ipaddress.IPv4Address("192.0.0.171")}
)


class Translation:
    """The NAT64 prefixes of the network that calls leave by.

    ``stated`` ones are of the settings: an address in one is the IPv4 address that it stands for.
    ``found`` ones were asked for (RFC 7050), and nobody vouches for the answer: an address in one
    must be fit as it is, and as the IPv4 address.
    """

    __slots__ = ("found", "stated")

    def __init__(
        self,
        stated: tuple[ipaddress.IPv6Network, ...] = (),
        found: tuple[ipaddress.IPv6Network, ...] = (),
    ) -> None:
        self.stated = stated
        self.found = found


NO_TRANSLATION: Final = Translation()


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """CIDRs from settings. Raises `ValueError` naming the bad one."""
    return tuple(ipaddress.ip_network(text) for text in texts)


def parse_nat64(texts: Iterable[str]) -> tuple[ipaddress.IPv6Network, ...]:
    """NAT64 prefixes from settings. Raises `ValueError` naming the bad one."""
    prefixes = tuple(ipaddress.IPv6Network(text) for text in texts)
    for prefix in prefixes:
        if prefix.prefixlen not in _NAT64_LENGTHS:
            raise ValueError(f"{prefix}: a NAT64 prefix has 32, 40, 48, 56, 64 or 96 bits")
    return prefixes


def find_nat64(answers: Iterable[str]) -> tuple[ipaddress.IPv6Network, ...]:
    """The NAT64 prefixes behind addresses of ``ipv4only.arpa`` (RFC 7050 §3).

    Where more than one length could be meant, all are taken: what is found here only forbids.
    """
    found: dict[ipaddress.IPv6Network, None] = {}
    for text in answers:
        address = ipaddress.IPv6Address(text)
        for length in _NAT64_LENGTHS:
            if _embedded(address, length) in _WELL_KNOWN:
                found[ipaddress.IPv6Network((address, length), strict=False)] = None
    return tuple(found)


def needs_translation(text: str, allowed: tuple[Network, ...]) -> bool:
    """Whether it depends on the network's NAT64 prefixes if this address may be dialled.

    It does for public IPv6 addresses that nobody vouches for in ``allowed``.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return address in _UNICAST and not _is_within(address, allowed)


def refusal(
    text: str, allowed: tuple[Network, ...], translation: Translation = NO_TRANSLATION
) -> str:
    """Why this address may not be dialled; empty if it may."""
    try:
        # A zone (RFC 4007 §11) chooses among links; addresses that need one are refused below.
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return "not an address"
    for form in _forms(address, translation):
        if form in _METADATA:
            return "a metadata service"
        if form.is_link_local or form.is_multicast or form.is_unspecified:
            return "link-local, multicast or unspecified"
        if not _is_public(form) and not _is_within(form, allowed):
            return "not public and not in allow_networks"
    return "a metadata service" if _may_lead_to_metadata(address) else ""


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address not in _UNICAST:
        return False
    return address.is_global and not _is_within(address, _SPECIAL)


def _is_within(address: Address, allowed: tuple[Network, ...]) -> bool:
    return any(address in network for network in allowed if network.version == address.version)


def _forms(address: Address, translation: Translation) -> list[Address]:
    """What an address can lead to: itself, or the IPv4 address that it stands for, or either.

    IPv4-mapped (RFC 4291 §2.5.5.2), -compatible and -translated, NAT64 (RFC 6052), 6to4 (RFC 3056
    §2), Teredo (RFC 4380 §4: server and client).
    """
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped:
        return [address.ipv4_mapped]
    if address in _NAT64:
        return [_embedded(address, 96)]
    for prefix in translation.stated:
        if address in prefix:
            return [_embedded(address, prefix.prefixlen)]
    forms: list[Address] = [address]
    if (address in _COMPATIBLE and int(address) > 1) or address in _TRANSLATED:
        forms.append(_embedded(address, 96))
    if address.sixtofour:
        forms.append(address.sixtofour)
    if address.teredo:
        forms.extend(address.teredo)
    forms.extend(
        _embedded(address, prefix.prefixlen) for prefix in translation.found if address in prefix
    )
    return forms


def _embedded(address: ipaddress.IPv6Address, length: int) -> ipaddress.IPv4Address:
    """The IPv4 address behind a prefix of that length; bits 64 to 71 hold none of it (RFC 6052)."""
    packed = address.packed
    octets = packed[12:] if length == 96 else packed[length // 8 : 8] + packed[9:]
    return ipaddress.IPv4Address(octets[:4])


def _may_lead_to_metadata(address: Address) -> bool:
    """RFC 8215: only its operator knows how long a local prefix is, so every reading counts."""
    if isinstance(address, ipaddress.IPv4Address) or address not in _NAT64_LOCAL:
        return False
    forms = [_embedded(address, length) for length in _NAT64_LENGTHS if length >= 48]
    return any(form in _METADATA or form.is_link_local for form in forms)
