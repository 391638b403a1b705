"""Signals and the streams that follow them, on both databases."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools

import msgspec
import pytest

from valetkey.broker.core.feed import Audience, Stream
from valetkey.broker.store import signals as module
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database
from valetkey.broker.store.signals import KEPT, Signals
from valetkey.broker.store.streams import IDLE, FeedStreams
from valetkey.contracts.signals import Signal, StreamUpdated, Verification

IDP = "https://idp.example"


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def signals(database: Database, changes: Changes, clock: Clock) -> Signals:
    numbers = itertools.count(1)
    audience = Audience("https://broker.example", frozenset({IDP}))
    return Signals(
        database, changes, audience, clock=clock, random_id=lambda: f"jti-{next(numbers)}"
    )


@pytest.fixture
def streams(database: Database, changes: Changes, clock: Clock) -> FeedStreams:
    return FeedStreams(database, changes, clock=clock)


def signal(value: str, **more) -> Signal:
    return Signal(kind="txn", value=value, at=1.5, **more)


async def publish(database: Database, signals: Signals, *events: Signal) -> None:
    async with database.write() as connection:
        for event in events:
            await signals.publish(connection, event)


async def begin(streams: FeedStreams, name: str, subject: str = "bot", **more) -> Stream:
    stream = await streams.create(Stream(name, IDP, subject, "", 0, 0, **more), most=10)
    assert stream is not None
    return stream


async def acknowledged(signals: Signals, txn: str) -> dict[str, float | None]:
    return {one.stream: one.acknowledged_at for one in await signals.progress(txn)}


async def test_what_was_published_comes_back_in_order(database: Database, signals: Signals) -> None:
    full = Signal(
        kind="subject", value="bot", issuer=IDP, at=2.25, txn="inc-1", reason="exposed", epoch=4
    )
    await publish(database, signals, signal("a"), full)
    async with database.write() as connection:
        await signals.publish_to(connection, Verification("s-1", "state"))
        await signals.publish_to(connection, StreamUpdated("s-2", "paused", "why"))
    found = await signals.after(0, limit=10)
    assert [one.event for one in found] == [
        signal("a"), full, Verification("s-1", "state"), StreamUpdated("s-2", "paused", "why"),
    ]  # fmt: skip
    assert [one.jti for one in found] == ["jti-1", "jti-2", "jti-3", "jti-4"]
    assert [one.stream for one in found] == ["", "", "s-1", "s-2"]
    assert [one.seq for one in found] == sorted(one.seq for one in found)
    assert await signals.after(found[1].seq, limit=1) == found[2:3]
    assert await signals.newest(2) == found[2:]
    assert await signals.head() == found[-1].seq


async def test_a_transaction_that_fails_has_told_nothing(
    database: Database, signals: Signals, changes: Changes
) -> None:
    heard: list[str] = []

    async def note(jti: str) -> None:
        heard.append(jti)

    signals.on_publish(note)

    async def fail() -> None:
        async with database.write() as connection:
            await signals.publish(connection, signal("a"))
            raise RuntimeError("the change that it tells of failed")

    with pytest.raises(RuntimeError):
        await fail()
    await publish(database, signals, signal("b"))
    await changes.catch_up()
    assert heard == ["jti-2"]
    assert [one.event for one in await signals.after(0, limit=9)] == [signal("b")]


async def test_numbers_are_in_the_order_of_the_commits(
    database: Database, signals: Signals
) -> None:
    """Whoever reads up to a number has seen all before it, however many write at once."""
    seen: list[int] = []
    done = asyncio.Event()

    async def follow() -> None:
        while not (done.is_set() and len(seen) == 40):
            seen.extend(one.seq for one in await signals.after(seen[-1] if seen else 0, limit=9))
            await asyncio.sleep(0)

    async with asyncio.timeout(30):
        reader = asyncio.ensure_future(follow())
        for part in range(4):
            await asyncio.gather(
                *(publish(database, signals, signal(f"{part}-{n}")) for n in range(10))
            )
        done.set()
        await reader
    assert len(set(seen)) == 40


async def test_a_stream_begins_behind_what_was_published(
    database: Database, signals: Signals, streams: FeedStreams
) -> None:
    await publish(database, signals, signal("a"))
    stream = await begin(streams, "s-1", description="agent-0")
    assert stream.start == stream.position == await signals.head()
    assert await streams.find("s-1") == stream
    assert await streams.find("s-2") is None
    assert await streams.owned_by(IDP, "bot") == [stream]
    assert await streams.owned_by(IDP, "other") == []


async def test_an_owner_has_so_many_streams_at_most(streams: FeedStreams) -> None:
    fresh = [Stream(f"s-{n}", IDP, "bot", "", 0, 0) for n in range(3)]
    assert await streams.create(fresh[0], most=2)
    assert await streams.create(fresh[1], most=2)
    assert await streams.create(fresh[2], most=2) is None
    await begin(streams, "s-9", subject="other")


async def test_a_position_only_grows(streams: FeedStreams) -> None:
    for name in ("s-1", "s-2"):
        await begin(streams, name)
    await streams.advance({"s-1": 7, "s-2": 5})
    await streams.advance({"s-1": 5, "s-2": 6})
    found = await streams.owned_by(IDP, "bot")
    assert {one.id: one.position for one in found} == {"s-1": 7, "s-2": 6}


async def test_progress_of_what_an_incident_told(
    database: Database, signals: Signals, streams: FeedStreams
) -> None:
    assert await acknowledged(signals, "inc-1") == {}
    for name in ("s-1", "s-2"):
        await begin(streams, name, description=f"agent {name}")
    await publish(
        database, signals, signal("a", txn="inc-1"), signal("b"), signal("c", txn="inc-1")
    )
    await begin(streams, "s-late")
    first, _, last = await signals.after(0, limit=3)
    assert await acknowledged(signals, "inc-1") == {"s-1": None, "s-2": None}
    await signals.acknowledge([(first.seq, "s-1", 5.0)])
    assert await acknowledged(signals, "inc-1") == {"s-1": None, "s-2": None}
    await signals.acknowledge([(last.seq, "s-1", 6.0), (first.seq, "s-1", 9.0)])  # twice: the first
    assert await acknowledged(signals, "inc-1") == {"s-1": 6.0, "s-2": None}
    assert [one.description for one in await signals.progress("inc-1")] == [
        "agent s-1",
        "agent s-2",
    ]


SIEM = (IDP, "siem")
OTHER_IDP = "https://other.example"


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize(
    "event",
    [
        signal("a", txn="inc-1"),
        Signal(kind="subject", value="bot", issuer=IDP, at=1.5, txn="inc-1"),
        Signal(kind="subject", value="nobody", issuer=IDP, at=1.5, txn="inc-1"),
        Signal(kind="subject", value="alice", issuer=OTHER_IDP, at=1.5, txn="inc-1"),
    ],
    ids=["to all", "to its own", "of a workload without a stream", "of a user"],
)
async def test_it_is_contained_once_everybody_concerned_has_it(
    database: Database, signals: Signals, streams: FeedStreams, event: Signal, chained: bool,
    monkeypatch,
) -> None:  # fmt: skip
    """Whoever acknowledges, in whichever order: as what is reported of each says."""
    monkeypatch.setattr(module, "_LOOKED_AT", 2)
    signals.audience = dataclasses.replace(
        signals.audience, receivers=frozenset({SIEM}), chained=chained
    )
    assert await signals.containment("inc-1") == (True, None)
    for name in ("s-1", "s-4", "s-5"):
        await begin(streams, name)
    for name in ("s-2", "s-3"):
        await begin(streams, name, subject="other")
    await begin(streams, "s-6", subject="siem", events_requested=())
    await begin(streams, "s-7", subject="siem")
    await publish(database, signals, event, msgspec.structs.replace(event, value="bot"))
    await begin(streams, "s-8")  # knew it from the start
    both = await signals.after(0, limit=2)
    for at, name in enumerate(("s-5", "s-7", "s-1", "s-2", "s-4", "s-3"), 10):
        for one in both:
            stream = await streams.find(name)
            assert stream is not None
            told = await acknowledged(signals, "inc-1")
            assert "s-6" not in told
            assert "s-8" not in told
            times = [time for time in told.values() if time is not None]
            complete = len(times) == len(told)
            expected = (True, max(times, default=None)) if complete else (False, None)
            assert await signals.containment("inc-1") == expected
            if signals.audience.concerns(one, stream):
                await signals.acknowledge([(one.seq, name, float(at))])
    complete, at = await signals.containment("inc-1")
    assert complete
    assert at == max(time or 0.0 for time in (await acknowledged(signals, "inc-1")).values())


async def test_many_streams_at_once_and_no_more_than_each_may_have(
    database: Database, streams: FeedStreams, signals: Signals
) -> None:
    await publish(database, signals, signal("a"))
    head = await signals.head()
    commits = 0
    write = database.write

    def counted():
        nonlocal commits
        commits += 1
        return write()

    database.write = counted  # type: ignore[method-assign]
    wanted = [Stream(f"s-{n}", IDP, f"bot-{n % 20}", "", 0, 0) for n in range(200)]
    made = await asyncio.gather(*(streams.create(one, most=3) for one in wanted))
    database.write = write  # type: ignore[method-assign]
    assert commits <= 2, "the first by itself, perhaps, and all others together"
    there = [one for one in made if one is not None]
    assert [one.id for one in there] == [f"s-{n}" for n in range(60)]
    assert {one.position for one in there} == {head}
    assert await asyncio.gather(*(streams.find(one.id) for one in there)) == there
    assert await streams.create(wanted[199], most=3) is None


async def test_old_signals_go_and_take_along_who_is_behind_them(
    database: Database, signals: Signals, streams: FeedStreams, clock: Clock
) -> None:
    for name in ("s-behind", "s-current"):
        await begin(streams, name)
    await publish(database, signals, signal("old", txn="inc-1"))
    old = await signals.head()
    await signals.acknowledge([(old, "s-current", clock.now)])
    clock.now += KEPT - 10
    await publish(database, signals, signal("young"))
    await streams.advance({"s-current": old, "s-behind": 0})
    assert await signals.sweep() == 0
    assert await streams.sweep(0) == 0
    clock.now += 20
    gone = await signals.sweep()
    assert gone == old
    assert await streams.sweep(gone) == 1
    assert [one.id for one in await streams.owned_by(IDP, "bot")] == ["s-current"]
    assert [one.event for one in await signals.after(0, limit=9)] == [signal("young")]
    assert await acknowledged(signals, "inc-1") == {}


async def test_a_stream_that_nobody_follows_ends_and_replicas_are_told(
    streams: FeedStreams, changes: Changes, clock: Clock
) -> None:
    ended: list[str] = []

    async def note(stream: str) -> None:
        ended.append(stream)

    streams.on_change(note)
    for name in ("s-1", "s-2"):
        await begin(streams, name)
    await begin(streams, "s-push", push_url="https://siem.example/events")
    clock.now += IDLE - 1
    await streams.advance({"s-2": 0})
    clock.now += 2
    assert await streams.sweep(0) == 1
    await changes.catch_up()
    assert ended == ["s-1"]
    assert {one.id for one in await streams.owned_by(IDP, "bot")} == {"s-2", "s-push"}


async def test_one_replica_pushes_at_a_time(streams: FeedStreams, clock: Clock) -> None:
    await begin(streams, "s-1", push_url="https://siem.example/events")
    assert await streams.lease("s-1", "replica-a", seconds=10)
    assert not await streams.lease("s-1", "replica-b", seconds=10)
    assert await streams.lease("s-1", "replica-a", seconds=10)
    clock.now += 11
    assert await streams.lease("s-1", "replica-b", seconds=10)
    assert not await streams.lease("s-1", "replica-a", seconds=10)
    assert [one.id for one in await streams.pushing()] == ["s-1"]


async def test_many_acknowledgements_at_once(
    database: Database, signals: Signals, streams: FeedStreams
) -> None:
    """As many as a fleet has sidecars; more than a statement has parameters."""
    for name in ("s-0", "s-6999", "s-7000"):
        await begin(streams, name)
    await publish(database, signals, signal("a", txn="inc-1"))
    seq = await signals.head()
    await signals.acknowledge([(seq, f"s-{n}", float(n)) for n in range(35_000)])
    await signals.acknowledge([(seq, "s-0", 9.0)])  # again: the first counts
    await signals.acknowledge([])
    assert await acknowledged(signals, "inc-1") == {"s-0": 0.0, "s-6999": 6999.0, "s-7000": 7000.0}


@pytest.fixture
def heard(changes: Changes) -> list[str]:
    """Changes of another topic, as they are applied."""
    keys: list[str] = []

    async def note(key: str) -> None:
        keys.append(key)

    changes.subscribe("other", note)
    return keys


async def test_a_replica_that_is_behind_catches_up_with_who_was_told(
    database: Database, signals: Signals, changes: Changes, heard: list[str]
) -> None:
    async with database.write() as connection:
        jti = await signals.publish(connection, signal("a"))
        await changes.publish(connection, "other", "of the same transaction")
    assert heard == []
    await signals.reach(jti)
    assert heard == ["of the same transaction"]
    async with database.write() as connection:
        await changes.publish(connection, "other", "later")
    await signals.reach(jti)  # known: nothing is read again
    assert heard == ["of the same transaction"]


async def test_an_id_that_no_replica_knows_is_caught_up_for_once(
    database: Database, signals: Signals, changes: Changes, heard: list[str]
) -> None:
    """Who begins afresh has missed something, and can't say what."""
    for number, begun in enumerate(("made-up", "made-up-later")):
        async with database.write() as connection:
            await changes.publish(connection, "other", f"missed {number}")
        await signals.reach(begun)
        assert heard[-1] == f"missed {number}"
    async with database.write() as connection:
        await changes.publish(connection, "other", "later")
    await signals.reach("made-up")
    await signals.reach("made-up-later")
    assert heard == ["missed 0", "missed 1"]
