"""Opening a connection to a name: resolved once, judged, dialled at an address that was judged.

So neither a hostile resolver nor a rebinding name can lead a call elsewhere than `core.addresses`
allows. TLS then verifies the name. The environment's proxy settings have no say.

Of several addresses, those of the two families take turns, each with a head start of 250 ms
(RFC 8305, through aiohappyeyeballs); what loses is closed. The sockets that it hands over are
connected ones: protocol and TLS are ours.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import Callable
from ipaddress import IPv6Network
from typing import Any, Final
from weakref import WeakValueDictionary

import aiohappyeyeballs
from aiohappyeyeballs import AddrInfoType

from valetkey.contracts import codes
from valetkey.contracts.errors import TargetError
from valetkey.contracts.logs import Log
from valetkey.proxy.core.addresses import (
    NO_TRANSLATION,
    Network,
    Translation,
    find_nat64,
    needs_translation,
    refusal,
)
from valetkey.proxy.http1.resolver import Address, ResolveError, Resolver
from valetkey.proxy.http1.unsent import bound
from valetkey.proxy.limits import DESCRIPTORS, NO_DESCRIPTOR, Capacity

# RFC 8305 §8: Connection Attempt Delay, First Address Family Count.
_ATTEMPT_DELAY: Final = 0.25
_FAMILY_COUNT: Final = 1
# RFC 7050 §3, RFC 8880: the name whose AAAA records show the network's NAT64 prefixes.
_NAT64_NAME: Final = "ipv4only.arpa"
# RFC 7050 §3 has it asked again before the record's lifetime ends, which is not known here.
_NAT64_FRESH: Final = 600.0
_NAT64_RETRY: Final = 10.0
# How often an idle connection is given up for a descriptor before a call is refused.
_MAKE_ROOM: Final = 3


class Dialler:
    """Opens the connections of one process to names outside."""

    def __init__(self, resolver: Resolver, capacity: Capacity) -> None:
        self._resolver = resolver
        self._capacity = capacity
        self.limit_hit = capacity.hits.hit
        self._log = Log("dial")
        self._translation = NO_TRANSLATION
        self._translation_known = False
        self._translation_until = 0.0
        self._finds_translation = True
        self._own: WeakValueDictionary[tuple[str, int], socket.socket] = WeakValueDictionary()

    def opened(self, address: str, port: int) -> bool:
        """Whether a connection that was opened here, and is still open, comes from this place."""
        sock = self._own.get((address, port))
        return sock is not None and sock.fileno() >= 0

    def use_nat64(self, prefixes: tuple[IPv6Network, ...] | None) -> None:
        """The network's NAT64 prefixes as stated; ``None``: they are found out when needed."""
        if prefixes is not None:
            self._translation = Translation(stated=prefixes)
            self._translation_known = True
            self._finds_translation = False
        elif not self._finds_translation:
            self._translation = NO_TRANSLATION
            self._translation_known = False
            self._translation_until = 0.0
            self._finds_translation = True

    async def dial(
        self,
        factory: Callable[[], Any],
        host: str,
        port: int,
        *,
        allowed: tuple[Network, ...],
        seconds: float,
        context: ssl.SSLContext | None = None,
        callers: bool = False,
    ) -> Any:
        """A connected protocol made by ``factory``; ``host`` is a name, or an unbracketed address.

        ``allowed`` are networks that the name may lead to besides public ones, ``seconds`` the
        time for all of it. The name that TLS asks for (RFC 6066 §3) and verifies is ``host`` and
        no other. ``callers``: see `Resolver.resolve`. Raises `TargetError`.
        """
        step = "resolving the name"
        try:
            async with asyncio.timeout(seconds):
                addresses = await self._judged(host, allowed, callers=callers)
                step = "connecting"
                return await self._open(factory, host, port, addresses, context)
        except TimeoutError as error:
            self.limit_hit("timeouts.connect")
            raise TargetError(codes.TARGET_UNREACHABLE, f"{step} took too long") from error

    async def _open(
        self,
        factory: Callable[[], Any],
        host: str,
        port: int,
        addresses: list[Address],
        context: ssl.SSLContext | None,
    ) -> Any:
        infos: list[AddrInfoType] = [
            (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (place[0], port, *place[2:]))
            for family, place in addresses
        ]
        failure: Exception | None = None
        patience = _MAKE_ROOM
        while infos:
            sockets = _Sockets(self._capacity)
            try:
                sock = await aiohappyeyeballs.start_connection(
                    infos,
                    happy_eyeballs_delay=_ATTEMPT_DELAY,
                    interleave=_FAMILY_COUNT,
                    socket_factory=sockets.make,
                )
            except (OSError, RuntimeError) as error:  # uvloop raises both
                failure = error
                if not sockets.short:
                    break
                patience -= 1
                if not patience or not self._capacity.make_room():
                    self.limit_hit(DESCRIPTORS)
                    raise TargetError(codes.PROXY_OVERLOADED, "no descriptor to spare") from error
                await asyncio.sleep(0)  # the loop closes what was given up
                continue
            self._own[sock.getsockname()[:2]] = sock
            try:
                return await _hand_over(sock, factory, context, host)
            except ssl.SSLError as error:
                # OpenSSL's own words: what of the certificate did not hold, or the alert.
                reason = getattr(error, "verify_message", "") or error.reason
                raise TargetError(codes.TARGET_TLS, reason or type(error).__name__) from error
            except OSError as error:
                failure = error  # lost in the handshake: another address may do better
            infos.remove(sockets.made[sock])
        raise TargetError(codes.TARGET_UNREACHABLE, "no address accepts connections") from failure

    async def _judged(
        self, host: str, allowed: tuple[Network, ...], *, callers: bool = False
    ) -> list[Address]:
        """The addresses of a name, all of them fit to be dialled. Raises `TargetError`."""
        try:
            addresses = list(await self._resolver.resolve(host, callers=callers))
        except ResolveError as error:
            raise TargetError(
                codes.TARGET_UNREACHABLE, f"the name does not resolve: {error}"
            ) from error
        translated = [address for address in addresses if needs_translation(address[1][0], allowed)]
        if translated:
            await self._find_translation()
        # Every address must be fit: an answer that mixes public and private ones is an attack.
        for _, place in addresses:
            reason = refusal(place[0], allowed, self._translation)
            if reason:
                raise TargetError(codes.TARGET_ADDRESS_DENIED, f"{place[0]}: {reason}")
        if translated and not self._translation_known:
            # What a NAT64 would make of these nobody can say; others can still be dialled.
            addresses = [address for address in addresses if address not in translated]
            if not addresses:
                raise TargetError(
                    codes.TARGET_ADDRESS_DENIED,
                    f"whether the network has a NAT64 is not known: {_NAT64_NAME} does not "
                    "resolve, and the settings do not say (network.nat64)",
                )
        return addresses

    async def _find_translation(self) -> None:
        """Ask for the network's NAT64 prefixes, if that was not done lately."""
        now = time.monotonic()
        if not self._finds_translation or now < self._translation_until:
            return
        try:
            answers = await self._resolver.resolve(_NAT64_NAME)
        except ResolveError as error:
            # Without a NAT64 the name has no IPv6 address; a resolver may also deny all of it.
            found: tuple[IPv6Network, ...] = ()
            known = error.final
        else:
            found = find_nat64(place[0] for family, place in answers if family == socket.AF_INET6)
            known = True
        if not known and self._translation_known:
            self._translation_until = now + _NAT64_RETRY
            return  # what was found before still counts
        self._translation = Translation(found=found)
        self._translation_known = known
        self._translation_until = now + (_NAT64_FRESH if known else _NAT64_RETRY)
        if not known:
            self._log.warning("nat64_unknown", reason=f"{_NAT64_NAME} does not resolve")


class _Sockets:
    """Makes the sockets of one attempt, as long as descriptors last."""

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self.made: dict[socket.socket, AddrInfoType] = {}
        """What each was made for."""
        self.short = False
        """Whether one could not be had."""

    def make(self, info: AddrInfoType) -> socket.socket:
        """A socket for one address. Raises `OSError`."""
        try:
            sock = socket.socket(info[0], info[1], info[2])
        except OSError as error:
            self.short = self.short or error.errno in NO_DESCRIPTOR
            raise
        if sock.fileno() >= self._capacity.ceiling and not self._capacity.make_room():
            sock.close()
            self.short = True
            raise OSError(errno.EMFILE, "the rest is a reserve")
        bound(sock)
        self.made[sock] = info
        return sock


async def _hand_over(
    sock: socket.socket, factory: Callable[[], Any], context: ssl.SSLContext | None, host: str
) -> Any:
    """Our protocol, and TLS under it, on a connected socket; closed if that fails."""
    try:
        _, protocol = await asyncio.get_running_loop().create_connection(
            factory, sock=sock, ssl=context, server_hostname=host if context else None
        )
    except asyncio.CancelledError:
        # The loop has the descriptor, and closes it: so must nobody else, by then it may be
        # another's. Before uvloop knows the socket as its own, it would.
        sock.detach()
        raise
    except BaseException:
        sock.close()
        raise
    return protocol
