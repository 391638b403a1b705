"""PostgreSQL that does not answer: every wait has an end, and what comes after it works."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.support.postgres import Postgres
from tests.support.relay import Relay, relaying
from tests.support.waiting import until
from valetkey.broker.store import database as module
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database, StoreError
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.settings import Duration
from valetkey.sql import postgres as driver
from valetkey.sql.settings import PostgresSettings

SHORT = PostgresSettings(
    connect=Duration(3),
    acquire=Duration(2),
    statement=Duration(2),
    lock=Duration(0.5),
    idle_in_transaction=Duration(1),
)
# More than all that can come one after the other, on a machine that has other things to do.
ENDS_WITHIN = 40.0
ROW = text("INSERT INTO revocations VALUES ('jti', :value, 1, 2, NULL)")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_LOOK", 1.0)
    monkeypatch.setattr(driver, "_BEYOND", 0.5)
    monkeypatch.setattr(driver, "_HEARTBEAT", 0.5)


@pytest.fixture
def url(postgres: Postgres, request: pytest.FixtureRequest) -> str:
    return postgres.database(template=request.getfixturevalue("_migrated"))


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    database = await Database.open(url, SHORT)
    try:
        yield database
    finally:
        async with asyncio.timeout(ENDS_WITHIN):
            await database.close()


@asynccontextmanager
async def through_a_relay(url: str) -> AsyncIterator[tuple[Database, Relay]]:
    port = int(url.rpartition(":")[2].partition("/")[0])
    async with (
        relaying(port) as relay,
        opened(url.replace(f":{port}/", f":{relay.port}/")) as database,
    ):
        yield database, relay


async def write(database: Database, value: str) -> None:
    async with database.write() as connection:
        await connection.execute(ROW, {"value": value})


async def read(database: Database) -> int:
    async with database.read() as connection:
        return int(
            (await connection.execute(text("SELECT count(*) FROM revocations"))).scalar_one()
        )


async def fails(work: Awaitable[object]) -> str:
    """That it ends in time, and as what depends on the database ends: what the log says of it."""
    async with asyncio.timeout(ENDS_WITHIN):
        with pytest.raises(StoreError) as raised:
            await work
    assert raised.value.code.status == 503
    return raised.value.reason


async def works(database: Database) -> bool:
    try:
        await read(database)
    except StoreError:
        return False
    return True


async def test_a_way_that_swallows_everything(url: str) -> None:
    async with through_a_relay(url) as (database, relay):
        await write(database, "a")
        relay.stall()
        await fails(write(database, "b"))
        await fails(read(database))
        async with asyncio.timeout(module.ANSWERS_WITHIN + 5):
            assert not await database.answers()
        relay.flow()
        await until(lambda: works(database), "reads succeed again", ENDS_WITHIN)
        await write(database, "c")


async def test_a_way_that_forgets_its_connections(url: str) -> None:
    """Of all that lie in the pool, the first that is looked at costs a moment, and no request."""
    async with through_a_relay(url) as (database, relay):
        await asyncio.gather(*(_held(database) for _ in range(5)))
        relay.forget()
        async with asyncio.timeout(ENDS_WITHIN):
            assert await read(database) == 0
            await asyncio.gather(*(read(database) for _ in range(5)))


async def _held(database: Database) -> None:
    async with database.read() as connection:
        await connection.execute(text("SELECT pg_sleep(0.2)"))


async def test_a_connection_that_is_lost_in_the_middle(url: str) -> None:
    async with through_a_relay(url) as (database, relay):

        async def interrupted() -> None:
            async with database.write() as connection:
                await connection.execute(ROW, {"value": "a"})
                relay.forget()
                await connection.execute(ROW, {"value": "b"})

        await fails(interrupted())
        assert await read(database) == 0


async def test_a_lock_that_nobody_releases(url: str) -> None:
    async with opened(url) as database, _locked(url, "LOCK TABLE revocations"):
        assert "LockNotAvailable" in await fails(write(database, "a"))
        assert await database.answers()


async def test_a_turn_that_never_ends(url: str) -> None:
    turn = f"SELECT pg_advisory_xact_lock({module._ORDER_LOCK})"
    async with opened(url) as database, _locked(url, turn):
        changes = Changes(database)

        async def announce() -> None:
            async with database.write() as connection:
                await changes.publish(connection, "topic", "key")

        assert "LockNotAvailable" in await fails(announce())


@asynccontextmanager
async def _locked(url: str, statement: str) -> AsyncIterator[None]:
    """Another session holds a lock."""
    engine = create_async_engine(url)
    try:
        async with engine.connect() as other:
            await other.execute(text(statement))
            yield
    finally:
        await engine.dispose()


async def test_a_statement_that_takes_for_ever(url: str) -> None:
    async with opened(url) as database:

        async def slow() -> None:
            async with database.read() as connection:
                await connection.execute(text("SELECT pg_sleep(60)"))

        assert "QueryCanceled" in await fails(slow())
        assert await read(database) == 0


async def test_who_holds_locks_and_does_nothing_loses_them(url: str) -> None:
    async with opened(url) as one, opened(url) as other:

        async def forgetful() -> None:
            async with one.write() as connection:
                await one.take_turn(connection)
                await asyncio.sleep(4)
                await connection.execute(ROW, {"value": "a"})

        async def served() -> bool:
            try:
                async with other.write_in_turn():
                    return True
            except StoreError:
                return False

        held = asyncio.ensure_future(forgetful())
        await asyncio.sleep(0.3)
        await until(served, "the other one has its turn", ENDS_WITHIN)
        await fails(held)
        assert await read(one) == 0


async def test_a_pool_that_is_all_taken(url: str) -> None:
    async with opened(url) as database:
        async with asyncio.TaskGroup() as work:
            ends = asyncio.Event()
            holds = [work.create_task(_holds(database, ends)) for _ in range(16)]
            await asyncio.sleep(0.5)
            assert await fails(read(database)) == "database: TimeoutError"
            assert not await database.answers()
            ends.set()
        assert all(task.done() for task in holds)
        assert await read(database) == 0


async def _holds(database: Database, ends: asyncio.Event) -> None:
    async with database.engine.connect():
        await ends.wait()


async def test_a_server_that_is_stopped_and_goes_on(postgres: Postgres, url: str) -> None:
    async with opened(url) as database:
        await write(database, "a")
        with postgres.stopped():
            await fails(write(database, "b"))
            await fails(read(database))
            async with asyncio.timeout(module.ANSWERS_WITHIN + 5):
                assert not await database.answers()
        await until(lambda: works(database), "reads succeed again", ENDS_WITHIN)
        await write(database, "c")
        assert await database.answers()


async def test_it_closes_beside_a_server_that_is_stopped(postgres: Postgres, url: str) -> None:
    database = await Database.open(url, SHORT)
    await asyncio.gather(*(_held(database) for _ in range(3)))
    with postgres.stopped():
        async with asyncio.timeout(ENDS_WITHIN):
            await database.close()


async def test_a_start_beside_a_server_that_is_stopped(postgres: Postgres, url: str) -> None:
    with postgres.stopped():
        async with asyncio.timeout(ENDS_WITHIN):
            with pytest.raises(ConfigError, match="TimeoutError"):
                await Database.open(url, SHORT)


async def test_a_migration_takes_as_long_as_it_takes(url: str) -> None:
    """Another replica that migrates is waited for, for longer than anything else is."""
    async with _locked(url, f"SELECT pg_advisory_xact_lock({module._MIGRATION_LOCK})"):
        opening = asyncio.ensure_future(Database.open(url, SHORT))
        await asyncio.sleep(3)
        assert not opening.done()
    async with asyncio.timeout(ENDS_WITHIN):
        await (await opening).close()


@pytest.mark.parametrize(
    "query",
    [
        "ssl=prefer&prepared_statement_cache_size=0",
        "command_timeout=5",
    ],
)
async def test_the_url_is_read_in_one_way_for_all_connections(url: str, query: str) -> None:
    async with opened(f"{url}?{query}") as database, _heard(database) as heard:
        async with database.write() as connection:
            await Changes(database).publish(connection, "topic", "key")
        await until(heard.is_set, "the change was told", ENDS_WITHIN)


@pytest.mark.parametrize("query", ["nonsense=1", "prepared_statement_cache_size=many"])
async def test_a_url_with_what_the_driver_does_not_know(url: str, query: str) -> None:
    with pytest.raises(ConfigError, match="can't be opened"):
        await Database.open(f"{url}?{query}")


async def test_what_listens_notices_that_nothing_comes_any_more(url: str) -> None:
    async with through_a_relay(url) as (database, relay):
        heard = asyncio.Event()
        hearing = asyncio.ensure_future(database.hear("valetkey_changes", heard.set))
        async with asyncio.timeout(ENDS_WITHIN):
            await heard.wait()
        relay.forget()
        await fails(hearing)


async def test_the_kernel_looks_after_connections(url: str) -> None:
    async with opened(url) as database, database.engine.connect() as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        own = raw._transport.get_extra_info("socket")
        assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000


async def test_a_pooler_that_refuses_parameters_gets_none(url: str) -> None:
    limits = PostgresSettings(session_limits=False, statement=Duration(1), lock=Duration(1))
    database = await Database.open(url, limits)
    try:
        async with database.read() as connection:
            shown = await connection.execute(text("SHOW statement_timeout"))
            assert shown.scalar_one() == "0"

            async def slow() -> None:
                await connection.execute(text("SELECT pg_sleep(60)"))

            with pytest.raises(TimeoutError):  # the driver's own limit holds all the same
                await slow()
    finally:
        await database.close()


@asynccontextmanager
async def _heard(database: Database) -> AsyncIterator[asyncio.Event]:
    """Set when something is told after this has begun."""
    heard, began = asyncio.Event(), asyncio.Event()

    def call() -> None:
        event = heard if began.is_set() else began
        event.set()

    task = asyncio.ensure_future(database.hear("valetkey_changes", call))
    try:
        async with asyncio.timeout(ENDS_WITHIN):
            await began.wait()
        yield heard
    finally:
        task.cancel()
        await asyncio.wait([task])
