from __future__ import annotations

import asyncio
import random

import pytest
from sqlalchemy import func, select, text

from tests.support.chain import Chain, batch
from tests.support.collector import ON_BOTH
from valetkey.collector.core.batch import Contradiction, read_batch
from valetkey.collector.store import queries
from valetkey.collector.store.queries import Filters
from valetkey.collector.store.schema import BOOTS, CONFLICTS, EVENTS, HOLES, SOURCES
from valetkey.collector.store.writer import Identity, Writer
from valetkey.contracts import codes, events
from valetkey.contracts.errors import AuditError, CallerError, PolicyError

pytestmark = ON_BOTH

AGENT = Identity("https://idp", "agent")
A, B = "00000000000000a1", "00000000000000b2"


@pytest.fixture
def writer(database):
    return Writer(database)


@pytest.fixture
def ask(database):
    async def rows(statement):
        async with database.reader.connect() as connection:
            return [dict(row) for row in (await connection.execute(statement)).mappings()]

    return rows


def chain(calls: int = 5) -> Chain:
    made = Chain(boot=A)
    made.boot_event()
    return made.calls(calls)


async def store(writer, raws, identity=AGENT, now=1000):
    return await writer.store(read_batch(batch(raws)), identity, now=now)


async def test_everything_in_order(writer, ask):
    made = chain()
    done = await store(writer, made.events)
    assert (done.boot, done.acked, done.stored, done.duplicates) == (A, 11, 11, 0)
    (boot,) = await ask(queries.sources(after=0, limit=10))
    assert boot["count"] == boot["acked"] == boot["head_seq"] == 11
    assert boot["head_hash"] == made.head
    stored = await ask(select(EVENTS).order_by(EVENTS.c.seq))
    assert [row["raw"] for row in stored] == made.events
    assert [row["hash"] for row in stored] == [events.digest(raw) for raw in made.events]


async def test_copies_are_counted_and_change_nothing(writer, ask):
    made = chain()
    await store(writer, made.events[:6])
    done = await store(writer, [*made.events[3:], made.events[8]])
    assert (done.acked, done.stored, done.duplicates) == (11, 5, 4)
    assert (await store(writer, made.events)).duplicates == 11
    assert (await ask(select(func.count().label("n")).select_from(EVENTS)))[0]["n"] == 11


async def test_a_hole_is_not_acknowledged_and_is_closed_when_filled(writer, ask):
    made = chain()
    await store(writer, made.events[:2])
    done = await store(writer, made.events[6:], now=2000)
    assert (done.acked, done.gaps_opened) == (2, 1)
    done = await store(writer, made.events[3:5], now=3000)
    assert (done.acked, done.gaps_opened, done.gaps_closed) == (2, 0, 0)
    (gap,) = await ask(queries.gaps(Filters()))
    assert (gap["first"], gap["last"], gap["opened"], gap["closed"]) == (3, 6, 2000, None)
    assert (gap["missing"], gap["state"]) == (2, "open")
    done = await store(writer, [made.events[5], made.events[2]], now=4000)
    assert (done.acked, done.gaps_closed, done.breaks) == (11, 1, 0)
    (gap,) = await ask(queries.gaps(Filters()))
    assert (gap["closed"], gap["missing"], gap["state"]) == (4000, 0, "filled")
    assert await ask(select(HOLES)) == []


async def test_a_declared_loss_is_skipped_and_stays_on_record(writer, ask):
    made = chain()
    await store(writer, [*made.events[:2], *made.events[4:]])
    made.gap(A, 3, 4)
    done = await store(writer, made.events[-1:])
    assert (done.acked, done.gaps_closed) == (12, 1)
    (gap,) = await ask(queries.gaps(Filters()))
    assert (gap["state"], gap["lost"]) == ("declared", 2)
    (stated,) = await ask(queries.declarations(Filters()))
    assert (stated["first"], stated["last"], stated["lost"]) == (3, 4, 2)
    assert stated["event"] == events.event_id(A, 12)
    # A copy of the declaration declares nothing again.
    await store(writer, made.events[-1:])
    assert len(await ask(queries.declarations(Filters()))) == 1


async def test_a_loss_of_an_earlier_boot(writer, ask):
    first = chain()
    await store(writer, first.events[:9])
    second = Chain(boot=B)
    second.boot_event(first)
    done = await store(writer, second.events)
    # The boot event says that two more exist.
    assert (done.acked, done.gaps_opened) == (1, 1)
    second.gap(A, 10, 11)
    await store(writer, second.events[1:])
    earlier = next(b for b in await ask(queries.sources(after=0, limit=9)) if b["boot"] == A)
    assert (earlier["acked"], earlier["gaps"], earlier["lost"]) == (11, 0, 2)


async def test_a_loss_without_numbers_is_on_record(writer, ask):
    made = chain()
    made.gap(A, 0, 0, lost=40)
    assert (await store(writer, made.events)).acked == 12
    (boot,) = await ask(queries.sources(after=0, limit=10))
    assert (boot["lost"], boot["gaps"]) == (40, 0)


async def test_an_event_that_was_declared_lost_may_still_come(writer, ask):
    made = chain()
    late = made.events[2]
    made.gap(A, 3, 3)
    await store(writer, made.events[:2] + made.events[3:])
    done = await store(writer, [late])
    assert (done.stored, done.acked, done.breaks) == (1, 12, 0)


async def test_a_source_belongs_to_who_wrote_it_first(writer, ask):
    made = chain()
    await store(writer, made.events[:3])
    for other in (Identity("https://idp", "mallory"), Identity("https://other", "agent")):
        with pytest.raises(PolicyError) as refused:
            await store(writer, made.events[3:], other)
        assert refused.value.code is codes.AUDIT_SOURCE_TAKEN
    assert (await ask(queries.sources(after=0, limit=10)))[0]["count"] == 3
    assert [row["subject"] for row in await ask(select(SOURCES))] == ["agent"]


async def test_other_bytes_under_a_known_id(writer, ask):
    made = chain()
    await store(writer, made.events[:5])
    forged = made.events[3].replace(b"tickets:read", b"tickets:rEad")
    for now in (2000, 3000):
        with pytest.raises(CallerError) as refused:
            await store(writer, [forged, *made.events[4:]], now=now)
        assert refused.value.code is codes.AUDIT_CONFLICT
    assert [row["raw"] for row in await ask(select(EVENTS.c.raw))] == made.events[:5]
    (conflict,) = await ask(queries.conflicts(Filters()))
    assert (conflict["boot"], conflict["seq"], conflict["times"]) == (A, 4, 2)
    assert conflict["kept_hash"] == events.digest(made.events[3])
    assert conflict["refused_hash"] == events.digest(forged)
    assert (conflict["first_seen"], conflict["last_seen"]) == (2000, 3000)


async def test_a_batch_that_contradicts_itself_is_on_record(writer, ask):
    made = chain()
    forged = made.events[3].replace(b"tickets:read", b"tickets:rEad")
    with pytest.raises(Contradiction) as found:
        read_batch(batch([*made.events, forged]))
    await writer.contradiction(found.value, AGENT, now=5)
    assert [row["seq"] for row in await ask(select(CONFLICTS))] == [4]
    assert await ask(select(EVENTS)) == []


async def test_a_stranger_can_not_put_a_conflict_on_a_source(writer, ask):
    made = chain()
    await store(writer, made.events[:3])
    forged = made.events[2].replace(b"tickets:read", b"tickets:rEad")
    with pytest.raises(PolicyError):
        await store(writer, [forged], Identity("https://idp", "mallory"))
    assert await ask(select(CONFLICTS)) == []


async def test_a_broken_link_is_on_record_and_the_events_are_kept(writer, ask):
    made = chain(2)
    other = Chain(boot=A)
    other.heartbeat()
    other.calls(3)
    done = await store(writer, made.events)
    assert done.breaks == 0
    done = await store(writer, other.events[5:])
    assert (done.stored, done.breaks, done.acked) == (2, 1, 7)
    (broken,) = await ask(queries.breaks(Filters()))
    assert broken["seq"] == 6


async def test_a_break_shows_when_a_hole_is_filled(writer, ask):
    made, other = chain(3), Chain(boot=A)
    other.heartbeat()
    other.calls(3)
    await store(writer, [*made.events[:3], *made.events[4:]])
    done = await store(writer, other.events[3:4])
    assert (done.acked, done.breaks) == (7, 2)
    assert {row["seq"] for row in await ask(queries.breaks(Filters()))} == {4, 5}


async def test_a_first_event_without_genesis(writer):
    made = Chain(boot=A)
    made.add(events.TYPE_HEARTBEAT, {}, prevhash="ab" * 32)
    assert (await store(writer, made.events)).breaks == 1


async def test_too_many_holes_are_refused_and_leave_nothing(writer, ask):
    made = chain(1100)
    with pytest.raises(CallerError) as refused:
        await store(writer, made.events[1::2])
    assert refused.value.code is codes.AUDIT_BATCH_INVALID
    assert await ask(select(BOOTS)) == []


async def test_boots_of_two_sources_do_not_mix(writer, ask):
    one = chain()
    two = Chain(instance="agent-1", boot=A)
    two.calls(1)
    await store(writer, one.events)
    done = await store(writer, two.events, Identity("https://idp", "other"))
    assert (done.acked, done.stored) == (2, 2)
    assert [b["count"] for b in await ask(queries.sources(after=0, limit=10))] == [11, 2]


@pytest.mark.parametrize("seed", range(5))
async def test_any_order_with_repeats_and_overlaps_ends_whole(writer, ask, seed):
    dice = random.Random(seed)
    made = chain(30)
    pieces = [
        made.events[first : first + dice.randint(1, 12)]
        for first in (dice.randrange(len(made.events)) for _ in range(60))
    ]
    pieces += [made.events[first : first + 10] for first in range(0, len(made.events), 10)]
    dice.shuffle(pieces)
    seen: set[bytes] = set()
    for piece in pieces:
        dice.shuffle(piece)
        done = await store(writer, piece)
        seen.update(piece)
        expected = next(n for n in range(99) if n == len(made.events) or made.events[n] not in seen)
        assert done.acked == expected
    assert done.acked == 61
    (boot,) = await ask(queries.sources(after=0, limit=10))
    assert (boot["count"], boot["gaps"], boot["breaks"]) == (61, 0, 0)
    assert all(gap["state"] == "filled" for gap in await ask(queries.gaps(Filters())))


async def test_a_database_that_fails_is_no_fault_of_the_sidecar(writer, database):
    def break_it(connection):
        connection.execute(text("DROP TABLE breaks"))
        connection.execute(text("DROP TABLE events"))

    await database.write(break_it)
    with pytest.raises(AuditError) as refused:
        await store(writer, chain().events)
    assert refused.value.code is codes.SERVICE_UNAVAILABLE
    assert "tickets" not in refused.value.reason


async def test_batches_that_come_at_once_are_stored_one_after_the_other(writer):
    made = chain(50)
    pieces = [made.events[first : first + 7] for first in range(0, len(made.events), 7)]
    done = await asyncio.gather(*(store(writer, piece) for piece in pieces))
    assert sum(one.stored for one in done) == 101
    assert max(one.acked for one in done) == 101
