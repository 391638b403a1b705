"""Which addresses a target's name may lead to.

A name is resolved once, every address of the answer is judged here, and the address that was
judged is the one that is dialled, so that neither a hostile resolver nor a rebinding name can
lead a credential to a metadata service or to a neighbour.
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
                 "fd00:ec2::23", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
)  # fmt: skip
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE: Final = ipaddress.ip_network("::/96")
# What IANA has given out for use on the Internet (RFC 4291 §2.4). The interpreter's `is_global`
# counts everything outside a list of exceptions as global, site-local addresses for one.
_UNICAST: Final = ipaddress.ip_network("2000::/3")


def parse_networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """CIDRs from settings. Raises `ValueError` naming the bad one."""
    return tuple(ipaddress.ip_network(text) for text in texts)


def refusal(text: str, allowed: tuple[Network, ...]) -> str:
    """Why this address may not be dialled; empty if it may."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return "not an address"
    for form in _forms(address):
        if form in _METADATA:
            return "a metadata service"
        if form.is_link_local or form.is_multicast or form.is_unspecified:
            return "link-local, multicast or unspecified"
        if not _is_public(form) and not any(
            form in network for network in allowed if network.version == form.version
        ):
            return "not public and not in allow_networks"
    return ""


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address not in _UNICAST:
        return False
    return address.is_global


def _forms(address: Address) -> list[Address]:
    """What an address can lead to: itself, or the IPv4 address that it stands for.

    IPv4-mapped and -compatible (RFC 4291 §2.5.5), NAT64 (RFC 6052 §2.1), 6to4 (RFC 3056 §2). The
    local-use NAT64 prefix (RFC 8215) puts IPv4 where its operator wants: it is never public.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped:
        return [address.ipv4_mapped]
    if address in _NAT64:
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    if address in _COMPATIBLE and int(address) > 1:
        return [address, ipaddress.IPv4Address(int(address))]
    if address.sixtofour:
        return [address, address.sixtofour]
    return [address]
