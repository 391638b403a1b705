"""Connections to one target: opened (`http1.dial`), kept while idle, given back or thrown away."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import deque
from pathlib import Path
from typing import cast

from valetkey.contracts import codes
from valetkey.contracts.errors import ConfigError, TargetError
from valetkey.proxy.core.snapshot import Target
from valetkey.proxy.http1.dial import Dialler
from valetkey.proxy.http1.outbound import Place, TargetConnection
from valetkey.proxy.http1.outbox import Outbox


class Pool:
    """The connections to one target. The last one given back is the first one lent."""

    __slots__ = (
        "_connect_timeout",
        "_context",
        "_dialler",
        "_idle",
        "_lent",
        "_target",
        "_waiters",
        "opened",
        "outbox",
    )

    def __init__(
        self,
        target: Target,
        outbox: Outbox,
        dialler: Dialler,
        context: ssl.SSLContext | None,
        *,
        connect_timeout: float,
    ) -> None:
        self.outbox = outbox
        self._dialler = dialler
        self._target = target
        self._connect_timeout = connect_timeout
        self._context = context
        self._idle: deque[TargetConnection] = deque()
        self._lent = 0
        self._waiters: deque[asyncio.Future[TargetConnection | None]] = deque()
        """Calls that wait for a connection, or for a place (None) to open one; some gave up."""
        self.opened = 0

    @property
    def idle(self) -> int:
        return len(self._idle)

    @property
    def lent(self) -> int:
        return self._lent

    def take_idle(self) -> TargetConnection | None:
        """An idle connection, if there is one."""
        while self._idle:
            connection = self._idle.pop()
            if connection.open and not connection.transport.is_closing():
                self._lent += 1
                connection.place = Place.LENT
                return connection
        return None

    async def connect(self) -> TargetConnection:
        """A new connection, or one that comes free where the pool is at its size.

        Raises `TargetError`.
        """
        until = time.monotonic() + self._connect_timeout
        try:
            async with asyncio.timeout(self._connect_timeout):
                connection = await self._turn()
                while connection is not None and connection.place is not Place.LENT:
                    connection = await self._turn()  # it closed while it was handed over
        except TimeoutError as error:
            self._dialler.limit_hit("targets.NAME.pool.size")
            raise TargetError(
                codes.TARGET_UNREACHABLE,
                f"no connection came free in time (targets.{self._target.name}.pool.size)",
            ) from error
        if connection is not None:
            return connection
        try:
            return await self._dial(until - time.monotonic())
        except BaseException:
            self._leave_place()
            raise

    async def _turn(self) -> TargetConnection | None:
        """A connection, or a place among the pool's for a new one; first come, first served."""
        if self._lent + len(self._idle) < self._target.settings.pool.size:
            self._lent += 1
            return None
        idle = self.take_idle()
        if idle is not None:
            return idle
        waiter: asyncio.Future[TargetConnection | None]
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():  # its turn came in the moment when it gave up
                connection = waiter.result()
                if connection is not None:
                    self.give_back(connection)
                else:
                    self._leave_place()
            raise

    def give_back(self, connection: TargetConnection) -> None:
        """Return a connection on which a call ended cleanly."""
        connection.borrower = None
        if not connection.open or connection.transport.is_closing():
            return  # `lost` has counted it
        connection.used = True
        connection.asked = False
        waiter = self._next_waiter()
        if waiter is not None:
            waiter.set_result(connection)  # it stays lent
            return
        connection.idle_since = time.monotonic()
        connection.place = Place.IDLE
        self._lent -= 1
        self._idle.append(connection)

    def lost(self, connection: TargetConnection) -> None:
        """Forget a connection that closed; a second call changes nothing."""
        place, connection.place = connection.place, Place.GONE
        if place is Place.LENT:
            self._leave_place()
        elif place is Place.IDLE:
            # Nobody waits while one is idle.
            with contextlib.suppress(ValueError):  # `take_idle` may just have popped it
                self._idle.remove(connection)

    def sweep(self, now: float) -> None:
        """Close connections that were idle for too long; the longest idle stand in front."""
        limit = now - self._target.settings.pool.idle
        while self._idle and self._idle[0].idle_since < limit:
            self._idle[0].close()

    @property
    def idle_since(self) -> float:
        """Since when the longest idle connection is; there must be one."""
        return self._idle[0].idle_since

    def close_oldest(self) -> None:
        """Close the longest idle connection."""
        self._idle[0].close()

    def close(self) -> None:
        """Close what is idle; what is lent is closed by its call."""
        while self._idle:
            self._idle[0].close()

    def _leave_place(self) -> None:
        """There is room for one more connection: who waits longest may open it."""
        waiter = self._next_waiter()
        if waiter is not None:
            waiter.set_result(None)
        else:
            self._lent -= 1

    def _next_waiter(self) -> asyncio.Future[TargetConnection | None] | None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                return waiter
        return None

    async def _dial(self, seconds: float) -> TargetConnection:
        connection: TargetConnection = await self._dialler.dial(
            lambda: cast("asyncio.Protocol", TargetConnection(self)),
            self._target.host.strip("[]"),
            self._target.port,
            allowed=self._target.allowed,
            seconds=seconds,
            context=self._context,
        )
        self.opened += 1
        if not connection.open:  # lost before anybody could be told
            raise TargetError(codes.TARGET_UNREACHABLE, "closed at once")
        connection.place = Place.LENT
        return connection


def context_for(target: Target, made: dict[Path | None, ssl.SSLContext]) -> ssl.SSLContext | None:
    """What verifies a target, if it speaks TLS: chain and name; ALPN says HTTP/1.1.

    Targets with the same ``ca_file`` share one (``made``): the system's roots alone are 0.8 MiB.
    """
    if not target.tls:
        return None
    ca_file = target.settings.ca_file
    known = made.get(ca_file)
    if known is not None:
        return known
    try:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"targets.{target.name}.ca_file: {ca_file}: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # RFC 9525 §2: names are in subjectAltName; a common name is no host's.
    context.hostname_checks_common_name = False
    context.set_alpn_protocols(["http/1.1"])
    made[ca_file] = context
    return context
