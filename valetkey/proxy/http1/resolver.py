"""Names to addresses, by the system's resolver, without waiting for it on the loop.

The system's resolver knows the hosts file, the search list and whatever else the machine is set
up with, but a call of it blocks, for half a minute if the name's servers are silent. So each
lookup has a thread of its own, a name is looked up once however many ask, and a bounded number of
lookups runs at a time: a name that hangs delays nobody but those who call it. Names that callers
make up can't take all of them.

An answer is used for a few seconds. Its lifetime in the DNS is not known here, but those of names
that fail over are longer; and whatever the answer, each connect judges the addresses anew.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

# Envoy asks the DNS again every 5 s by default, whatever the answer says of itself.
_FRESH: Final = 5.0
# Threads that hang in the system's resolver. They are daemons: the process does not wait for them.
_LOOKUPS: Final = 32
# How many of them names that a caller chose (tunnels to `*.example.com`) can hold.
_CALLERS_LOOKUPS: Final = 24
_NAMES: Final = 1024

# Family and socket address without its port.
Address = tuple[int, tuple[Any, ...]]
Lookup = Callable[..., list[tuple[Any, ...]]]


class ResolveError(Exception):
    """A name has no address; ``final`` says whether the resolver is sure of it."""

    def __init__(self, reason: str, *, final: bool) -> None:
        super().__init__(reason)
        self.final = final


class _Answer:
    """What a lookup brought: addresses, or the reason why there are none."""

    __slots__ = ("addresses", "final", "good_until", "reason")

    def __init__(
        self, addresses: tuple[Address, ...], reason: str = "", *, final: bool = False
    ) -> None:
        self.addresses = addresses
        self.reason = reason
        self.final = final
        self.good_until = 0.0
        """On the monotonic clock."""


class _Queue:
    """Names under way of one origin: at most ``most`` at a time."""

    __slots__ = ("asked", "most", "running", "waiting")

    def __init__(self, most: int) -> None:
        self.most = most
        self.running = 0
        self.waiting: deque[str] = deque()
        self.asked: dict[str, asyncio.Future[_Answer]] = {}


class Resolver:
    """The names of one process. ``lookup`` is `socket.getaddrinfo`, or stands in for it."""

    def __init__(self, lookup: Lookup = socket.getaddrinfo) -> None:
        self._lookup = lookup
        self._known: dict[str, _Answer] = {}
        self._settings = _Queue(_LOOKUPS)
        self._callers = _Queue(_CALLERS_LOOKUPS)

    @property
    def running(self) -> int:
        """Lookups under way."""
        return self._settings.running + self._callers.running

    async def resolve(self, host: str, *, callers: bool = False) -> tuple[Address, ...]:
        """The addresses of a name, best first (RFC 6724). Raises `ResolveError`.

        ``host`` may be an address itself (without brackets); ``callers`` says that it is not of
        the settings but a caller's choice. The asker sets the time limit; a lookup that it gives
        up goes on, and serves the next one who asks.
        """
        literal = _literal(host)
        if literal is not None:
            return (literal,)
        answer = self._known.get(host)
        if answer is None or time.monotonic() >= answer.good_until:
            queue = self._callers if callers else self._settings
            asked = queue.asked.get(host)
            if asked is None:
                if len(queue.waiting) >= _NAMES:
                    raise ResolveError("too many names wait for the resolver", final=False)
                asked = queue.asked[host] = asyncio.get_running_loop().create_future()
                queue.waiting.append(host)
                self._start()
            answer = await asyncio.shield(asked)
        if not answer.addresses:
            raise ResolveError(answer.reason, final=answer.final)
        return answer.addresses

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        for queue in (self._settings, self._callers):
            while queue.waiting and queue.running < queue.most and self.running < _LOOKUPS:
                host = queue.waiting.popleft()
                thread = threading.Thread(
                    target=self._work, args=(loop, queue, host), name="resolver", daemon=True
                )
                queue.running += 1
                try:
                    thread.start()
                except RuntimeError:  # the system gives no more threads
                    loop.call_soon(self._arrived, queue, host, _Answer((), "no thread to ask in"))

    def _work(self, loop: asyncio.AbstractEventLoop, queue: _Queue, host: str) -> None:
        answer = self._ask(host)
        try:
            loop.call_soon_threadsafe(self._arrived, queue, host, answer)
        except RuntimeError:
            # The loop was closed in the meantime: the process is ending, and nobody waits.
            return

    def _ask(self, host: str) -> _Answer:
        try:
            found = self._lookup(host, None, 0, socket.SOCK_STREAM)
        except socket.gaierror as error:
            return _Answer((), error.strerror or "unknown", final=error.errno in _NO_SUCH_NAME)
        except OSError as error:
            return _Answer((), error.strerror or type(error).__name__)
        except UnicodeError:  # Python's idna codec: an empty label, or one of more than 63
            return _Answer((), "not a host name", final=True)
        addresses = dict.fromkeys((int(family), tuple(place)) for family, _, _, _, place in found)
        return _Answer(tuple(addresses))

    def _arrived(self, queue: _Queue, host: str, answer: _Answer) -> None:
        queue.running -= 1
        if answer.addresses:
            now = time.monotonic()
            if len(self._known) >= _NAMES:
                self._known = {name: a for name, a in self._known.items() if a.good_until > now}
            if len(self._known) < _NAMES:
                answer.good_until = now + _FRESH
                self._known[host] = answer
        queue.asked.pop(host).set_result(answer)
        self._start()


# RFC 3493 §6.1, and two of glibc's: the name, or addresses of it, do not exist.
_NO_SUCH_NAME: Final = frozenset(
    number
    for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY")
    if (number := getattr(socket, name, None)) is not None
)


def _literal(host: str) -> Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return int(socket.AF_INET), (str(address), 0)
    return int(socket.AF_INET6), (str(address), 0, 0, 0)
