"""Switching a connection to another protocol (RFC 9110 §7.8), from the request to the 101.

Nobody gets a tunnel by saying so: the request is checked before it goes on, the lines of the
handshake are written anew, and only a 101 that answers exactly this request makes both
connections a tunnel. Any other answer is an ordinary one, and the connections stay HTTP.
"""

from __future__ import annotations

from typing import Final

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError, TargetError
from valetkey.proxy.core.websocket import VERSION, accept_key, check_handshake, split_subprotocols
from valetkey.proxy.http1.head import RequestHead, ResponseHead

WEBSOCKET: Final = "websocket"


class Upgrade:
    """One request's wish to switch. ``protocol`` is in lower case, as routes list it.

    It is made before the decision, `prepare` checks the rest once a route has allowed it.
    """

    __slots__ = ("_accept", "_offered", "_spelled", "dropped", "lines", "protocol")

    def __init__(self, head: RequestHead) -> None:
        spelled = head.block.upgrade
        assert spelled is not None
        # A list of several is no name that a route could list: nobody chooses for the target.
        self._spelled = spelled
        self.protocol = spelled.decode("latin-1").lower()
        self.lines = b""
        """Header lines for the request that goes on."""
        self.dropped = False
        """Whether a credential among the subprotocols was left out."""
        self._accept = b""
        self._offered: list[str] = []

    def prepare(self, head: RequestHead) -> None:
        """Check the request, and write the handshake for the target. Raises `CallerError`."""
        block = head.block
        if block.chunked or block.length:
            # RFC 9110 §7.8 would allow it; then, for a while, it would depend on the target where
            # the request ends and the other protocol begins.
            raise CallerError(codes.REQUEST_UPGRADE_INVALID, "an upgrade with a body")
        lines = b"connection: upgrade\r\nupgrade: %b\r\n" % self._spelled
        if self.protocol == WEBSOCKET:
            key = check_handshake(
                head.method, block.value("sec-websocket-key"), block.value("sec-websocket-version")
            )
            self._accept = accept_key(key)
            self._offered, self.dropped = split_subprotocols(block.value("sec-websocket-protocol"))
            lines += b"sec-websocket-key: %b\r\nsec-websocket-version: %b\r\n" % (key, VERSION)
            if self._offered:
                lines += b"sec-websocket-protocol: %b\r\n" % ", ".join(self._offered).encode()
            extensions = block.value("sec-websocket-extensions")
            if extensions:
                lines += b"sec-websocket-extensions: %b\r\n" % b", ".join(extensions)
        self.lines = lines

    def accepted(self, head: ResponseHead) -> bytes:
        """Lines of the 101 for the workload, if this is one that answers the request.

        Raises `TargetError`: a target that says it switched, but not how it was asked to, speaks
        a protocol that nobody knows.
        """
        block = head.block
        # RFC 9110 §15.2.2: the 101 names what comes next; §8.6 and RFC 9112 §6.1: it has no body.
        if head.version == 0 or block.chunked or block.length is not None:
            raise _wrong("a 101 of HTTP/1.0, or with a body")
        if (block.upgrade or b"").lower() != self.protocol.encode("latin-1"):
            raise _wrong("a 101 to another protocol")
        if self.protocol == WEBSOCKET:
            # RFC 6455 §4.1, what a client checks: without it, any peer that echoes could be one.
            if block.value("sec-websocket-accept") != [self._accept]:
                raise _wrong("Sec-WebSocket-Accept does not answer the key")
            chosen = [value.decode("latin-1") for value in block.value("sec-websocket-protocol")]
            if len(chosen) > 1 or not set(chosen) <= set(self._offered):
                raise _wrong("a subprotocol that was not offered")
        return head.lines + b"connection: upgrade\r\nupgrade: %b\r\n" % self._spelled


def _wrong(reason: str) -> TargetError:
    return TargetError(codes.TARGET_BAD_RESPONSE, reason)
