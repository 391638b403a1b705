"""The pool: connections used again, bounded, handed on to who waits longest, each counted once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from valetkey.contracts import codes
from valetkey.contracts.errors import ConfigError, TargetError
from valetkey.proxy.core.snapshot import Target
from valetkey.proxy.http1.outbound import Place, TargetConnection
from valetkey.proxy.http1.outbox import Outbox
from valetkey.proxy.http1.pool import Pool, context_for
from valetkey.proxy.settings import CredentialSettings, PoolSettings, TargetSettings

SOON = 15.0


def target(size: int = 2, **more: Any) -> Target:
    settings = TargetSettings(
        url=more.pop("url", "http://a.example"),
        audience="a",
        credential=CredentialSettings(kind="bearer"),
        pool=PoolSettings(size=size),
        **more,
    )
    return Target("a", settings, endpoint="e", thumbprint="", subject="X-S")


class Transport:
    """The socket's side of a connection."""

    def __init__(self) -> None:
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True


class Network:
    """Dials at once, unless told to wait or to fail."""

    def __init__(self) -> None:
        self.dialled: list[tuple[str, int, Any]] = []
        self.hits: list[str] = []
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    def limit_hit(self, limit: str) -> None:
        self.hits.append(limit)

    async def dial(
        self, factory: Any, host: str, port: int, *, allowed: Any, seconds: float, context: Any
    ) -> Any:
        self.dialled.append((host, port, context))
        assert 0 < seconds <= SOON
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        connection = factory()
        connection.connection_made(Transport())
        return connection


@pytest.fixture
async def network() -> Network:
    return Network()


def pool(network: Any, size: int = 2, *, seconds: float = SOON, **more: Any) -> Pool:
    spool: Any = SimpleNamespace(on_failure=None)  # nothing is written here
    outbox = Outbox(asyncio.get_running_loop(), spool)
    of = target(size, **more)
    return Pool(of, outbox, network, context_for(of, {}), connect_timeout=seconds)


async def turns(count: int = 4) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def lose(connection: TargetConnection) -> None:
    """The connection's end, as the loop tells of it."""
    connection.transport.abort()
    connection.connection_lost(None)


async def test_the_last_one_given_back_is_the_first_one_lent(network: Network) -> None:
    made = pool(network)
    one, two = await made.connect(), await made.connect()
    assert (made.lent, made.idle) == (2, 0)
    made.give_back(one)
    made.give_back(two)
    assert (made.lent, made.idle) == (0, 2)
    assert made.take_idle() is two
    assert made.take_idle() is one
    assert made.take_idle() is None
    assert (made.lent, made.idle, made.opened) == (2, 0, 2)


@pytest.mark.parametrize(
    ("url", "dialled"),
    [("http://a.example", ("a.example", 80, None)), ("http://[::1]:81", ("::1", 81, None))],
)
async def test_the_targets_host_is_what_is_dialled(
    url: str, dialled: tuple[str, int, Any], network: Network
) -> None:
    await pool(network, url=url).connect()
    assert network.dialled == [dialled]


async def test_who_waits_longest_comes_first(network: Network) -> None:
    made = pool(network, 1)
    held = await made.connect()
    waiting = [asyncio.ensure_future(made.connect()) for _ in range(3)]
    await turns()
    for expected in waiting:
        made.give_back(held)
        # It was handed on in that moment: nobody who comes now can take it.
        assert made.take_idle() is None
        assert (made.lent, made.idle) == (1, 0)
        assert await expected is held
        assert sum(waiter.done() for waiter in waiting) == waiting.index(expected) + 1
    assert made.opened == 1


async def test_a_place_that_comes_free_is_handed_on_too(network: Network) -> None:
    made = pool(network, 1)
    held = await made.connect()
    waiting = [asyncio.ensure_future(made.connect()) for _ in range(2)]
    await turns()
    lose(held)
    late = asyncio.ensure_future(made.connect())
    fresh = await waiting[0]
    assert fresh is not held
    await turns()
    assert not late.done()
    assert (made.lent, made.opened) == (1, 2)
    lose(fresh)
    await waiting[1]
    lose(waiting[1].result())
    await late
    assert made.lent == 1


async def test_who_gave_up_is_passed_over(network: Network) -> None:
    made = pool(network, 1)
    held = await made.connect()
    gone, stays = (asyncio.ensure_future(made.connect()) for _ in range(2))
    await turns()
    gone.cancel()
    await turns()
    made.give_back(held)
    assert await stays is held


@pytest.mark.parametrize("free", ["connection", "place"])
async def test_who_gives_up_in_the_moment_of_its_turn_hands_it_on(
    free: str, network: Network
) -> None:
    made = pool(network, 1)
    held = await made.connect()
    gone, stays = (asyncio.ensure_future(made.connect()) for _ in range(2))
    await turns()
    if free == "connection":
        made.give_back(held)
    else:
        lose(held)
    gone.cancel()
    got = await stays
    assert (got is held) == (free == "connection")
    assert gone.cancelled()
    assert made.lent == 1
    made.give_back(got)
    assert (made.lent, made.idle) == (0, 1)


async def test_a_connection_that_closes_while_it_is_handed_over(network: Network) -> None:
    made = pool(network, 1)
    held = await made.connect()
    waiting = asyncio.ensure_future(made.connect())
    await turns()
    made.give_back(held)
    lose(held)
    got = await waiting
    assert got is not held
    assert (made.lent, made.idle, made.opened) == (1, 0, 2)


async def test_a_full_pool_is_not_waited_for_for_ever(network: Network) -> None:
    made = pool(network, 1, seconds=0.02)
    await made.connect()
    with pytest.raises(TargetError, match=r"targets\.a\.pool\.size") as error:
        await made.connect()
    assert error.value.code is codes.TARGET_UNREACHABLE
    assert made.lent == 1
    assert network.hits == ["targets.NAME.pool.size"]


async def test_a_dial_that_fails_leaves_its_place(network: Network) -> None:
    made = pool(network, 1)
    network.failure = TargetError(codes.TARGET_TLS, "no")
    with pytest.raises(TargetError):
        await made.connect()
    assert made.lent == 0
    network.failure = None
    network.gate.clear()
    dialling = asyncio.ensure_future(made.connect())
    waiting = asyncio.ensure_future(made.connect())
    await turns()
    assert made.lent == 1
    dialling.cancel()
    network.gate.set()
    assert (await waiting).place is Place.LENT
    assert made.lent == 1


async def test_a_connection_that_is_lost_at_once(network: Network) -> None:
    made = pool(network, 1)

    class Hasty(Network):
        async def dial(self, factory: Any, *_args: Any, **_more: Any) -> Any:
            connection = factory()
            connection.connection_made(Transport())
            lose(connection)
            return connection

    made._dialler = Hasty()  # type: ignore[assignment]
    with pytest.raises(TargetError, match="closed at once"):
        await made.connect()
    assert made.lent == 0


async def test_lost_twice_counts_once(network: Network) -> None:
    made = pool(network)
    one = await made.connect()
    made.lost(one)
    made.lost(one)
    assert made.lent == 0
    two = await made.connect()
    made.give_back(two)
    two.close()
    two.connection_lost(None)
    assert (made.lent, made.idle) == (0, 0)


async def test_an_idle_connection_that_speaks_is_closed(network: Network) -> None:
    made = pool(network)
    one = await made.connect()
    made.give_back(one)
    one.data_received(b"HTTP/1.1 200 OK\r\n\r\n")
    assert (made.take_idle(), made.idle) == (None, 0)


async def test_idle_for_too_long(network: Network) -> None:
    made = pool(network)
    one, two = await made.connect(), await made.connect()
    made.give_back(one)
    made.give_back(two)
    two.idle_since += 10
    limit = one.idle_since + made._target.settings.pool.idle
    made.sweep(limit - 0.001)
    assert made.idle == 2
    made.sweep(limit + 1)
    assert made.take_idle() is two
    assert not one.open


async def test_a_pool_that_closes_lets_go_of_what_is_idle(network: Network) -> None:
    made = pool(network)
    one, two = await made.connect(), await made.connect()
    made.give_back(one)
    made.close()
    assert (made.idle, made.lent, one.open, two.open) == (0, 1, False, True)


async def test_a_ca_file_that_is_none(tmp_path: Any, network: Network) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("nothing")
    with pytest.raises(ConfigError, match=r"targets\.a\.ca_file"):
        pool(network, url="https://a.example", ca_file=file)


async def test_tls_verifies_names_and_speaks_http1(network: Network) -> None:
    await pool(network, url="https://a.example").connect()
    [(host, port, context)] = network.dialled
    assert (host, port) == ("a.example", 443)
    assert context.check_hostname
    assert not context.hostname_checks_common_name
