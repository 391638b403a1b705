"""The database: SQLite beside one broker, or PostgreSQL beneath many. Migrated before it is used.

Both take the same schema and the same statements; what differs is said here. A write is one
transaction that begins as one (SQLite: IMMEDIATE), so that what it reads first is still so when
it writes. Nobody waits for a database that does not answer for longer than settings say
(`sql.postgres`; SQLite: for a lock, 5 s).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Table, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from valetkey.contracts import codes
from valetkey.contracts.errors import ConfigError, ValetkeyError
from valetkey.sql import postgres
from valetkey.sql.settings import PostgresSettings

T = TypeVar("T")

MIGRATIONS: Final = Path(__file__).parent / "migrations"
_SQLITE: Final = "sqlite+aiosqlite"
READ: Final = "valetkey_read"
_POSTGRES: Final = "postgresql+asyncpg"
# How long a probe waits for the database, seconds: those who probe wait for little longer.
ANSWERS_WITHIN: Final = 2.0
_FAILED: Final = (SQLAlchemyError, *postgres.LOST)
# Any number that is ours: who holds it migrates, the others wait (PostgreSQL §13.3.5).
_MIGRATION_LOCK: Final = 0x76616C65
# Who holds this one writes to what is in one order for all replicas.
_ORDER_LOCK: Final = 0x76616C66
# Parameters of one statement: SQLite takes 32,766, PostgreSQL's protocol 65,535.
_PART: Final = 10_000


class StoreError(ValetkeyError):
    """The database did not take a write: nothing that depends on it may be answered with yes."""

    def __init__(self, error: Exception) -> None:
        # The database's own message may quote the row; its type says enough.
        named: BaseException = error
        if type(error) is DBAPIError and error.orig is not None:
            named = error.orig.__cause__ or error.orig  # a lock timeout, say: the driver's word
        super().__init__(codes.SERVICE_UNAVAILABLE, f"database: {type(named).__name__}")
        self.error = error


class Database:
    """One pool of connections, with the schema at its newest. Made by `open`, ended by `close`."""

    def __init__(self, engine: AsyncEngine, ears: AsyncEngine | None) -> None:
        self.engine = engine
        self._ears = ears
        self._answering: asyncio.Task[bool] | None = None
        self.postgres = engine.dialect.name == "postgresql"
        # What is to be called after the commit, by the connection that a write is under way on.
        self._after_commit: dict[int, list[Callable[[], None]]] = {}

    @classmethod
    async def open(cls, url: str, limits: PostgresSettings | None = None) -> Self:
        """Connect and migrate. Raises `ConfigError`."""
        limits = PostgresSettings() if limits is None else limits
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise ConfigError("database is not an SQLAlchemy URL") from error
        try:
            # Alembic reads its scripts from files and runs once: a thread and a loop of its own.
            await asyncio.to_thread(_migrate, parsed, limits)
            return cls(*await asyncio.to_thread(_engines, parsed, limits))
        except (*_FAILED, CommandError, TypeError, ValueError) as error:
            # The last two: the URL's query says something that the driver does not understand.
            raise ConfigError(
                f"database {parsed.database}: can't be opened or migrated ({type(error).__name__})"
            ) from error

    async def close(self) -> None:
        if self._answering is not None:
            if self.postgres:  # SQLite's driver can't be left in the middle of a statement
                self._answering.cancel()
            await asyncio.wait([self._answering])
        await self.engine.dispose()
        if self._ears is not None:
            await self._ears.dispose()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """One transaction, committed at its end. Raises `StoreError`."""
        calls: list[Callable[[], None]] = []
        try:
            async with self.engine.begin() as connection:
                self._after_commit[id(connection)] = calls
                try:
                    yield connection
                finally:
                    del self._after_commit[id(connection)]
        except _FAILED as error:
            raise StoreError(error) from error
        for call in calls:
            call()

    @asynccontextmanager
    async def write_in_turn(self) -> AsyncIterator[AsyncConnection]:
        """As `write`, for what is announced or numbered: `take_turn` comes before any row.

        Who took rows first and the turn then could wait for one who has the turn and wants the
        rows; PostgreSQL would end one of the two. Raises `StoreError`.
        """
        async with self.write() as connection:
            await self.take_turn(connection)
            yield connection

    def after_commit(self, connection: AsyncConnection, call: Callable[[], None]) -> None:
        """Have ``call`` called once the transaction at hand is committed, and not otherwise.

        ``connection`` is one of `write`; ``call`` is quick and raises nothing.
        """
        self._after_commit[id(connection)].append(call)

    @asynccontextmanager
    async def read(self, *, within: float | None = None) -> AsyncIterator[AsyncConnection]:
        """A connection to read with. Raises `StoreError`.

        ``within``: all of it takes at most so many seconds, for what must not wait even as long as
        settings let others. (SQLite's driver can't be left in the middle of a statement.)
        """
        try:
            async with (
                asyncio.timeout(within if self.postgres else None),
                self.engine.connect() as connection,
            ):
                await connection.execution_options(**{READ: True})
                yield connection
        except _FAILED as error:
            raise StoreError(error) from error

    async def hear(self, channel: str, call: Callable[[], None]) -> None:
        """Have ``call`` called at what is told on a channel of PostgreSQL, until that is lost.

        Raises `StoreError`.
        """
        if self._ears is None:
            raise ValueError("SQLite tells nothing")
        try:
            await postgres.hear(self._ears, channel, call)
        except _FAILED as error:
            raise StoreError(error) from error

    async def take_turn(self, connection: AsyncConnection) -> None:
        """Wait until no other transaction is writing what has one order, and be the one that does.

        It lasts to the end of the transaction, so that what is read after it (the number or hash
        before ours) is what will stand before ours. SQLite has one writer at a time anyway.
        """
        if self.postgres:
            lock = text("SELECT pg_advisory_xact_lock(:lock)")
            await connection.execute(lock, {"lock": _ORDER_LOCK})

    async def answers(self) -> bool:
        """Whether the database is there now; it is not if that takes `ANSWERS_WITHIN` seconds.

        Who comes meanwhile is told the same: probes of a database that hangs do not pile up.
        """
        if self._answering is None or self._answering.done():
            self._answering = asyncio.create_task(self._answers(), name="database answers")
        asked = self._answering
        await asyncio.wait([asked], timeout=ANSWERS_WITHIN)
        return asked.done() and not asked.cancelled() and asked.result()

    async def _answers(self) -> bool:
        try:
            async with self.read(within=ANSWERS_WITHIN) as connection:
                await connection.execute(text("SELECT 1"))
        except StoreError:
            return False
        return True

    def insert(self, table: Table) -> Any:
        """An insert that knows ``on_conflict_do_update`` and ``on_conflict_do_nothing``."""
        return postgresql.insert(table) if self.postgres else sqlite.insert(table)


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Run work on the database that a cancellation must not cut: it is waited for, then raised.

    A connection that is left in the middle of a statement can't be closed properly (aiosqlite).
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen; the cancellation is what goes on
        raise


def in_parts(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """So many at once as one statement takes as parameters."""
    for begin in range(0, len(values), _PART):
        yield values[begin : begin + _PART]


def _engines(url: URL, limits: PostgresSettings) -> tuple[AsyncEngine, AsyncEngine | None]:
    """What requests are answered from, and what is only listened to."""
    if url.drivername == _POSTGRES:
        return postgres.pooled(url, limits), postgres.listening(url, limits)
    return make_engine(url, limits), None


def make_engine(url: URL, limits: PostgresSettings) -> AsyncEngine:
    """An engine for what may take long: without an end for a statement. Raises `ConfigError`."""
    if url.drivername == _POSTGRES and url.database:
        return postgres.unlimited(url, limits)
    if url.drivername != _SQLITE or not url.database or url.database == ":memory:":
        # In memory, a restart would bring revoked tokens back to life.
        raise ConfigError(f"database must be {_SQLITE}:///FILE or {_POSTGRES}://…/NAME")
    engine = create_async_engine(url)
    event.listen(engine.sync_engine, "connect", _pragmas)
    event.listen(engine.sync_engine, "begin", _begin)
    return engine


def _migrate(url: URL, limits: PostgresSettings) -> None:
    if url.drivername == _SQLITE:
        _migrate_file(url)
        return
    engine = make_engine(url, limits)

    async def work() -> None:
        try:
            async with engine.connect() as connection:
                await connection.run_sync(_migrate_locked)
        finally:
            await engine.dispose()

    asyncio.run(work())


def _migrate_file(url: URL) -> None:
    engine = create_engine(url.set(drivername="sqlite"))
    event.listen(engine, "connect", _pragmas)
    event.listen(engine, "begin", _begin)
    try:
        with engine.connect() as connection:
            migrate(connection, "head")
    finally:
        engine.dispose()


def _migrate_locked(connection: Connection) -> None:
    """Replicas start together: one migrates, the others find it done."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
    migrate(connection, "head")


def migrate(connection: Connection, revision: str) -> None:
    """Bring the schema up or down to ``revision`` (``head``, ``base`` or an id), and commit.

    All of it is one transaction: a start that is killed in between has changed nothing.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    if revision == "base":
        command.downgrade(config, revision)
    else:
        command.upgrade(config, revision)
    connection.commit()


def _pragmas(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself
    cursor = connection.cursor()
    try:
        cursor.execute("PRAGMA journal_mode=WAL")
        # FULL: a revocation that was acknowledged survives power loss.
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA busy_timeout=5000")
    finally:
        cursor.close()


def _begin(connection: Connection) -> None:
    reads = connection.get_execution_options().get(READ, False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
