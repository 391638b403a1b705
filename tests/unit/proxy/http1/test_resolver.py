"""The resolver: one lookup per name, nobody waits for another's name, answers kept for a moment."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from valetkey.proxy.http1 import resolver
from valetkey.proxy.http1.resolver import ResolveError, Resolver

V4 = (int(socket.AF_INET), ("192.0.2.7", 0))
V6 = (int(socket.AF_INET6), ("2001:db8::7", 0, 0, 0))
SOON = 15.0


def info(place: tuple[int, tuple[Any, ...]]) -> tuple[Any, ...]:
    return place[0], socket.SOCK_STREAM, socket.IPPROTO_TCP, "", place[1]


class Names:
    """A resolver's other side: answers by name; names in ``held`` hang until `release`."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.held: set[str] = set()
        self.asked: list[str] = []
        self.entered = threading.Semaphore(0)
        self.release = threading.Event()

    def __call__(self, host: str, port: None, family: int, kind: int) -> list[tuple[Any, ...]]:
        assert (port, family, kind) == (None, 0, socket.SOCK_STREAM)
        self.asked.append(host)
        self.entered.release()
        if host in self.held:
            assert self.release.wait(SOON)
        answer = self.answers.get(host, [V4])
        if isinstance(answer, BaseException):
            raise answer
        return [info(place) for place in answer]


@pytest.fixture
def names() -> Iterator[Names]:
    made = Names()
    yield made
    made.release.set()


async def entered(names: Names, count: int) -> None:
    """Wait until that many more lookups have begun."""
    for _ in range(count):
        assert await asyncio.to_thread(names.entered.acquire, timeout=SOON)


async def test_addresses_come_in_the_resolvers_order_and_once(names: Names) -> None:
    names.answers["a.example"] = [V6, V4, V6]
    assert await Resolver(names).resolve("a.example") == (V6, V4)


@pytest.mark.parametrize(
    ("host", "place"),
    [
        ("192.0.2.7", V4),
        ("2001:db8::7", V6),
        ("2001:0DB8:0::7", V6),
        ("::ffff:192.0.2.7", (int(socket.AF_INET6), ("::ffff:c000:207", 0, 0, 0))),
    ],
)
async def test_an_address_is_not_looked_up(
    host: str, place: tuple[int, tuple[Any, ...]], names: Names
) -> None:
    assert await Resolver(names).resolve(host) == (place,)
    assert names.asked == []


@pytest.mark.parametrize("host", ["0177.0.0.1", "2130706433", "0x7f.1", "127.1"])
async def test_other_spellings_of_addresses_are_names(host: str, names: Names) -> None:
    """What they lead to, the resolver says, and that is judged."""
    assert await Resolver(names).resolve(host) == (V4,)
    assert names.asked == [host]


async def test_a_name_is_looked_up_once_for_all_who_ask(names: Names) -> None:
    names.held.add("a.example")
    made = Resolver(names)
    asking = [asyncio.ensure_future(made.resolve("a.example")) for _ in range(20)]
    await entered(names, 1)
    assert made.running == 1
    names.release.set()
    assert await asyncio.gather(*asking) == [(V4,)] * 20
    assert (names.asked, made.running) == (["a.example"], 0)


async def test_an_answer_is_good_for_a_moment(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Resolver(names)
    for _ in range(3):
        await made.resolve("a.example")
    assert names.asked == ["a.example"]
    monkeypatch.setattr(resolver, "_FRESH", 0.0)
    await Resolver(names).resolve("a.example")
    old = Resolver(names)
    await old.resolve("a.example")
    names.answers["a.example"] = [V6]
    assert await old.resolve("a.example") == (V6,)
    assert names.asked == ["a.example"] * 4


FAILURES = [
    (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), True),
    (socket.gaierror(socket.EAI_NODATA, "No address associated with hostname"), True),
    (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), False),
    (socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure"), False),
    (OSError(24, "Too many open files"), False),
    (UnicodeError("label empty or too long"), True),
]


@pytest.mark.parametrize(("failure", "final"), FAILURES, ids=[repr(f) for f, _ in FAILURES])
async def test_a_name_without_addresses(failure: Exception, final: bool, names: Names) -> None:
    names.answers["a.example"] = failure
    made = Resolver(names)
    for _ in range(2):
        with pytest.raises(ResolveError) as refused:
            await made.resolve("a.example")
        assert refused.value.final is final
    assert names.asked == ["a.example"] * 2  # a failure is not kept
    names.answers["a.example"] = [V4]
    assert await made.resolve("a.example") == (V4,)


async def test_a_name_that_pythons_codec_refuses() -> None:
    with pytest.raises(ResolveError, match="not a host name"):
        await Resolver().resolve("a..example")


async def test_names_that_hang_delay_nobody_else(names: Names) -> None:
    made = Resolver(names)
    names.held |= {f"h{n}.example" for n in range(resolver._LOOKUPS - 1)}
    hanging = [asyncio.ensure_future(made.resolve(host)) for host in names.held]
    await entered(names, len(hanging))
    for n in range(3):
        assert await made.resolve(f"good{n}.example") == (V4,)
    names.release.set()
    await asyncio.gather(*hanging)
    assert made.running == 0


async def test_lookups_at_a_time_are_bounded_and_what_waits_gets_its_turn(names: Names) -> None:
    made = Resolver(names)
    names.held |= {f"h{n}.example" for n in range(resolver._LOOKUPS)}
    hanging = [asyncio.ensure_future(made.resolve(host)) for host in names.held]
    await entered(names, len(hanging))
    late = asyncio.ensure_future(made.resolve("late.example"))
    await asyncio.sleep(0)
    assert made.running == resolver._LOOKUPS
    assert "late.example" not in names.asked
    names.release.set()
    assert await late == (V4,)
    await asyncio.gather(*hanging)
    assert made.running == 0


async def test_names_that_callers_make_up_leave_room_for_those_of_the_settings(
    names: Names,
) -> None:
    made = Resolver(names)
    names.held |= {f"h{n}.example" for n in range(resolver._LOOKUPS * 2)}
    hanging = [asyncio.ensure_future(made.resolve(host, callers=True)) for host in names.held]
    await entered(names, resolver._CALLERS_LOOKUPS)
    assert made.running == resolver._CALLERS_LOOKUPS < resolver._LOOKUPS
    assert await made.resolve("good.example") == (V4,)
    names.release.set()
    await asyncio.gather(*hanging)
    assert made.running == 0


async def test_names_that_wait_are_bounded(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "_LOOKUPS", 1)
    monkeypatch.setattr(resolver, "_NAMES", 3)
    made = Resolver(names)
    names.held.add("h.example")
    asking = [
        asyncio.ensure_future(made.resolve(host))
        for host in ("h.example", "a.example", "b.example", "c.example")
    ]
    await entered(names, 1)
    with pytest.raises(ResolveError, match="too many names"):
        await made.resolve("d.example")
    names.release.set()
    await asyncio.gather(*asking)


async def test_who_gives_up_leaves_the_lookup_to_the_next(names: Names) -> None:
    names.held.add("a.example")
    made = Resolver(names)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(made.resolve("a.example"), 0.01)
    again = asyncio.ensure_future(made.resolve("a.example"))
    await entered(names, 1)
    names.release.set()
    assert await again == (V4,)
    assert names.asked == ["a.example"]


async def test_answers_kept_are_bounded(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "_NAMES", 2)
    made = Resolver(names)
    for host in ("a.example", "b.example", "c.example"):
        assert await made.resolve(host) == (V4,)
    assert len(made._known) == 2
    await made.resolve("c.example")
    assert names.asked.count("c.example") == 2


async def test_no_thread_to_be_had(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    made = Resolver(names)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(ResolveError, match="no thread"):
            await made.resolve("a.example")
    assert await made.resolve("a.example") == (V4,)
    assert made.running == 0


def test_a_lookup_that_outlives_the_loop_is_nobodys_error() -> None:
    names = Names()
    names.held.add("a.example")

    async def ask() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(Resolver(names).resolve("a.example"), 0.01)

    before = set(threading.enumerate())
    asyncio.run(ask())
    [thread] = [t for t in threading.enumerate() if t not in before and t.name == "resolver"]
    assert thread.daemon  # and so the process would not wait for it
    names.release.set()
    thread.join(SOON)
    assert not thread.is_alive()
