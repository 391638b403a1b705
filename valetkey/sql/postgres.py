"""PostgreSQL, and that nobody waits for it for ever.

What could keep somebody waiting, and what ends that:

- a server that takes no connection, or says nothing after it took one: ``connect``;
- a pool whose connections are all taken: ``acquire``;
- a connection whose other side has vanished, without a word: each is looked at before it is used
  (`_LOOK`), and then all that are as old are replaced; a command that it is lost under is ended by
  the driver; the kernel ends one that carries nothing (keepalives);
- a statement that takes for ever: ``statement``, by the server, and a little later by the driver;
- a lock that nobody releases: ``lock``; and whoever holds one without doing anything loses it after
  ``idle_in_transaction``.

Migrations and what else takes as long as it takes have the first and the kernel's alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any, Final

import asyncpg
from sqlalchemy import URL, Pool, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from valetkey.sql.settings import PostgresSettings

# How long a connection may take to show that it is there, seconds: a round trip, and much room.
_LOOK: Final = 2.0
# How long the driver waits beyond the server, which leaves a connection to go on with.
_BEYOND: Final = 2.0
# How long a connection that is closed may take to say goodbye.
_GOODBYE: Final = 1.0
# How often a connection that only listens is looked at.
_HEARTBEAT: Final = 10.0
# Linux, macOS: after 10 s of silence, every 5 s, three times. Where a name is missing the system's
# own value holds.
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
# What was sent and is not acknowledged for so long, milliseconds, ends the connection (RFC 5482).
_USER_TIMEOUT: Final = 15_000
_NEW: Final = "valetkey_new"

LOST: Final = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
"""What the driver raises by itself, beside what SQLAlchemy makes of it; a timeout is an OSError."""


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    """One whose socket notices that the other side is gone, and that closes in time."""

    __slots__ = ()

    def __init__(self, protocol: Any, transport: Any, *more: Any) -> None:
        super().__init__(protocol, transport, *more)
        keep_alive(transport.get_extra_info("socket"))

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 - its signature
        with contextlib.suppress(TimeoutError):  # closed all the same: by the driver, at once
            await super().close(timeout=_GOODBYE if timeout is None else timeout)


def keep_alive(connection: socket.socket) -> None:
    """Have the kernel look whether the other side of a TCP connection is there."""
    if connection.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (*_KEEPALIVE, ("TCP_USER_TIMEOUT", _USER_TIMEOUT)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def pooled(
    url: URL, limits: PostgresSettings, *, size: int = 8, read_only: bool = False
) -> AsyncEngine:
    """A pool for what requests wait for: ``size`` connections, and in need twice as many."""
    engine = create_async_engine(
        url,
        connect_args=_limited(url, limits),
        pool_size=size,
        max_overflow=size,
        execution_options={"postgresql_readonly": read_only},
        pool_timeout=float(limits.acquire),
    )
    event.listen(engine.sync_engine, "handle_error", _not_used_again)
    pool: Pool = engine.sync_engine.pool
    event.listen(pool, "connect", _is_new)
    event.listen(pool, "checkout", _look_at)
    return engine


def unlimited(url: URL, limits: PostgresSettings) -> AsyncEngine:
    """Single connections, for what takes as long as it takes."""
    return create_async_engine(url, connect_args=_patient(limits), poolclass=NullPool)


def listening(url: URL, limits: PostgresSettings) -> AsyncEngine:
    """Single connections, for `hear`."""
    return create_async_engine(url, connect_args=_limited(url, limits), poolclass=NullPool)


async def hear(engine: AsyncEngine, channel: str, call: Callable[[], None]) -> None:
    """Have ``call`` called once the connection listens, and at each NOTIFY, until it is lost.

    Raises what SQLAlchemy does, and `LOST`.
    """
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        lost = asyncio.Event()
        driver.add_termination_listener(lambda *_: lost.set())
        await driver.add_listener(channel, lambda *_: call())
        call()  # what happened before we listened
        while not lost.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HEARTBEAT):
                    await lost.wait()
                    return
            await driver.execute("SELECT 1", timeout=_LOOK)


def _patient(limits: PostgresSettings) -> dict[str, Any]:
    return {"connection_class": _Connection, "timeout": float(limits.connect)}


def _limited(url: URL, limits: PostgresSettings) -> dict[str, Any]:
    arguments = _patient(limits)
    if "command_timeout" not in url.query:
        arguments["command_timeout"] = limits.statement + _BEYOND
    if limits.session_limits:
        arguments["server_settings"] = {
            "statement_timeout": _milliseconds(limits.statement),
            "lock_timeout": _milliseconds(limits.lock),
            "idle_in_transaction_session_timeout": _milliseconds(limits.idle_in_transaction),
        }
    return arguments


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))


def _not_used_again(context: ExceptionContext) -> None:
    """A command that got no answer in time: its connection has an unknown state, if it has any."""
    if isinstance(context.original_exception, TimeoutError):
        context.is_disconnect = True


def _is_new(_connection: Any, record: Any) -> None:
    record.info[_NEW] = True


def _look_at(connection: Any, record: Any, _proxy: Any) -> None:
    """Before a connection of the pool is used: that it answers. Otherwise another is made.

    One round trip, and one with an end; SQLAlchemy's own look takes three and has none.
    """
    if record.info.pop(_NEW, False):
        return
    try:
        connection.run_async(lambda driver: driver.execute("SELECT 1", timeout=_LOOK))
    except LOST as error:
        raise InvalidatePoolError from error
