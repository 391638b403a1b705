"""How a connection came in, as far as decisions are concerned.

A listener makes one for all its connections, an intercepted tunnel one for itself. Whatever is
fixed here, no request on the connection can change.
"""

from __future__ import annotations

from typing import Final, Protocol

from valetkey.proxy.core.authority import DEFAULT_PORTS, split_host


class CallerCheck(Protocol):
    """Tells whether a call brought what its listener asks of callers."""

    def admits(self, presented: list[bytes]) -> bool:
        """``presented`` are the values of ``Proxy-Authorization``."""


class Entry:
    """Where the calls of a connection may go, and how they say it.

    Reverse mode: ``target``, if the listener is given to one. Forward mode: each request names
    its origin itself (absolute-form or CONNECT). A tunnel: ``origin`` is what it was opened for.
    Transparent mode: ``destination`` is where the connection was going, which fixes the port;
    without one it was not redirected, and nothing is served. Nor is one of the sidecar's ``own``.
    """

    __slots__ = (
        "caller", "default_port", "destination", "forward", "name", "origin", "own",
        "plain", "port", "target", "transparent",
    )  # fmt: skip

    def __init__(
        self,
        *,
        target: str | None = None,
        forward: bool = False,
        origin: str = "",
        caller: CallerCheck | None = None,
        transparent: bool = False,
        destination: tuple[str, int] | None = None,
        own: bool = False,
    ) -> None:
        self.target = target
        self.forward = forward
        self.origin = origin
        """``scheme://host[:port]``, as `core.authority.origin_of` makes it."""
        self.caller = caller
        self.transparent = transparent
        self.destination = destination
        """Address and port that a redirected connection was opened to."""
        self.own = own
        self.name, self.default_port = "", 80
        self.port = destination[1] if destination is not None else 0
        if origin:
            scheme, _, authority = origin.partition("://")
            self.default_port = DEFAULT_PORTS[scheme]
            self.name, port = split_host(authority)
            self.port = port or self.default_port
        self.plain = not forward and not origin and not transparent and caller is None
        """Nothing to check before the decision: reverse mode without caller tokens."""


REVERSE: Final = Entry()
