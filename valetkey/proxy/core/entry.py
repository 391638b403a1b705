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
    """

    __slots__ = ("caller", "default_port", "forward", "name", "origin", "plain", "port", "target")

    def __init__(
        self,
        *,
        target: str | None = None,
        forward: bool = False,
        origin: str = "",
        caller: CallerCheck | None = None,
    ) -> None:
        self.target = target
        self.forward = forward
        self.origin = origin
        """``scheme://host[:port]``, as `core.authority.origin_of` makes it."""
        self.caller = caller
        self.name, self.port, self.default_port = "", 0, 80
        if origin:
            scheme, _, authority = origin.partition("://")
            self.default_port = DEFAULT_PORTS[scheme]
            self.name, port = split_host(authority)
            self.port = port or self.default_port
        self.plain = not forward and not origin and caller is None
        """Nothing to check before the decision: reverse mode without caller tokens."""


REVERSE: Final = Entry()
