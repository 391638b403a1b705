"""Collectors over one PostgreSQL, as processes: to a sidecar and to a reader they are one."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from click.testing import CliRunner

from tests.support.chain import Chain, batch
from tests.support.collector import CollectorBench
from tests.support.postgres import Postgres
from tests.support.procs import Program
from tests.support.waiting import until
from valetkey.cli.main import main

BOOT = "00000000000000a1"


class Replica:
    """One collector process, and what can be asked of it."""

    def __init__(self, bench: CollectorBench, program: Program, session: aiohttp.ClientSession):
        self.bench, self.program, self.session = bench, program, session
        self.url = ""

    async def deliver(self, raws, subject="agent"):
        headers = self.bench.sidecar(subject)
        async with self.session.post(
            f"{self.url}/v1/events", data=batch(raws), headers=headers
        ) as response:
            answer = await response.json(content_type=None)
            assert response.status == 200, answer
            return answer["acked"]

    async def ask(self, path):
        async with self.session.get(self.url + path, headers=self.bench.reader()) as response:
            assert response.status == 200
            return await response.json()

    async def metric(self, name):
        async with self.session.get(f"{self.url}/metrics") as response:
            lines = (await response.text()).splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


@pytest.fixture
def bench(tmp_path):
    return CollectorBench(tmp_path)


@asynccontextmanager
async def replicas(bench: CollectorBench, url: str) -> AsyncIterator[tuple[Replica, Replica]]:
    """Two that start together, over an empty database the first time."""
    async with aiohttp.ClientSession() as session, contextlib.AsyncExitStack() as stack:
        both = [Replica(bench, bench.program(replica=name, database=url), session) for name in "12"]
        for each in both:
            each.program.start()
            stack.callback(each.program.kill)
        for each in both:
            each.url = f"http://127.0.0.1:{await each.program.listening()}"
        yield both[0], both[1]
        for each in both:
            if each.program.running:
                assert await each.program.stop() == 0


async def verified(bench, replica):
    where = ("--collector", replica.url, "--token-file", bench.reader_token_file())
    arguments = ["audit", "verify", *map(str, where)]
    result = await asyncio.to_thread(CliRunner().invoke, main, arguments)
    return result.exit_code, result.output


async def test_one_sidecar_in_turn_at_two(bench, postgres):
    """Each piece goes to whichever, some to both at once, some twice: one record comes of it."""
    made = Chain(boot=BOOT)
    made.boot_event()
    made.calls(60)
    dice = random.Random(5)
    async with replicas(bench, postgres.database()) as (one, other):
        for first in range(0, len(made.events), 11):
            piece = made.events[first : first + 11]
            at = (one, other) if dice.random() < 0.4 else (dice.choice((one, other)),) * 2
            acked = await asyncio.gather(*(each.deliver(piece) for each in at))
            assert acked == [first + len(piece)] * 2
        for each in (one, other):
            (boot,) = (await each.ask("/v1/sources"))["sources"]
            assert (boot["count"], boot["acked"], boot["head_hash"]) == (121, 121, made.head)
            assert (boot["gaps"], boot["breaks"]) == (0, 0)
            page = await each.ask("/v1/events?limit=1000&raw=1")
            assert [item["raw"].encode() for item in page["events"]] == made.events
        stored = sum(
            [
                await each.metric('valetkey_collector_events_total{result="stored"}')
                for each in (one, other)
            ]
        )
        assert stored == 121
        assert await verified(bench, other) == (0, (await verified(bench, one))[1])


async def test_a_gap_that_one_finds_and_the_other_fills(bench, postgres):
    made = Chain(boot=BOOT)
    made.boot_event()
    made.calls(10)
    forged = made.events[1].replace(b"tickets:read", b"tickets:rEad")
    async with replicas(bench, postgres.database()) as (one, other):
        assert await one.deliver(made.events[:3]) == 3
        assert await one.deliver(made.events[9:]) == 3
        assert await one.metric("valetkey_collector_gaps") == 1
        assert await other.deliver(made.events[3:9]) == 21
        (gap,) = (await one.ask("/v1/gaps"))["gaps"]
        assert (gap["first"], gap["last"], gap["state"]) == (4, 9, "filled")

        async def noticed():
            return await one.metric("valetkey_collector_gaps") == 0

        await until(noticed, "the one that found the gap says that it is over")
        async with other.session.post(
            f"{other.url}/v1/events", data=batch([forged]), headers=bench.sidecar("agent")
        ) as response:
            assert (await response.json(content_type=None))["code"] == "audit.conflict"
        assert len((await one.ask("/v1/gaps"))["conflicts"]) == 1
        async with one.session.post(
            f"{one.url}/v1/events", data=batch(made.events), headers=bench.sidecar("mallory")
        ) as response:
            assert (await response.json(content_type=None))["code"] == "audit.source_taken"


async def test_who_follows_the_cursor_misses_nothing(bench, postgres):
    """Sixteen sidecars write through both at once; a reader that goes on behind its last cursor sees all."""
    chains = [Chain(instance=f"agent-{number}").calls(40) for number in range(16)]
    seen: list[str] = []
    async with replicas(bench, postgres.database()) as both:

        async def write(number, made):
            for first in range(0, len(made.events), 8):
                at = both[(number + first) % 2]
                await at.deliver(made.events[first : first + 8], f"agent-{number}")

        async def follow():
            after = 0
            while len(seen) < 16 * 80:
                page = await both[0].ask(f"/v1/events?after={after}&limit=1000")
                after = page["next"]
                seen.extend(f"{item['source']} {item['seq']}" for item in page["events"])

        async with asyncio.timeout(60):
            await asyncio.gather(follow(), *(write(*each) for each in enumerate(chains)))
    assert len(seen) == len(set(seen)) == 16 * 80


async def test_one_that_is_killed_loses_nothing_that_it_acknowledged(bench, postgres):
    chains = [Chain(instance=f"agent-{number}").calls(300) for number in range(4)]
    acked = dict.fromkeys(range(4), 0)
    enough = asyncio.Event()
    async with replicas(bench, postgres.database()) as (one, other):

        async def deliver(number, made):
            """As a shipper behind a balancer: where one does not answer, the other gets it."""
            at = [one, other]
            while acked[number] < len(made.events):
                first = acked[number]
                piece = made.events[first : first + 25]
                try:
                    acked[number] = await at[0].deliver(piece, f"agent-{number}")
                except aiohttp.ClientError:
                    at.reverse()
                if sum(acked.values()) > 500:
                    enough.set()

        async def kill():
            await enough.wait()
            one.program.kill()
            before = dict(acked)
            boots = (await other.ask("/v1/sources"))["sources"]
            stored = {boot["source"]: boot["acked"] for boot in boots}
            assert all(stored[made.source] >= before[n] for n, made in enumerate(chains))

        async with asyncio.timeout(60):
            await asyncio.gather(kill(), *(deliver(*each) for each in enumerate(chains)))
        boots = (await other.ask("/v1/sources"))["sources"]
        assert [(boot["count"], boot["gaps"], boot["breaks"]) for boot in boots] == [
            (600, 0, 0)
        ] * 4
        assert {boot["source"]: boot["head_hash"] for boot in boots} == {
            made.source: made.head for made in chains
        }
        assert (await verified(bench, other))[0] == 0


async def test_a_backup_that_was_restored_lacks_what_came_after_it_and_says_so(
    bench, postgres: Postgres
):
    made = Chain(boot=BOOT)
    made.boot_event()
    made.calls(30)
    url = postgres.database()
    async with replicas(bench, url) as (one, _other):
        assert await one.deliver(made.events[:20]) == 20
    backup = postgres.database(template=url.rpartition("/")[2])
    async with replicas(bench, url) as (one, _other):
        assert await one.deliver(made.events[20:40]) == 40  # and so they leave the spool
    async with replicas(bench, backup) as (one, other):
        assert await one.deliver(made.events[40:50]) == 20
        (gap,) = (await other.ask("/v1/gaps"))["gaps"]
        assert (gap["first"], gap["last"], gap["state"]) == (21, 40, "open")
        status, output = await verified(bench, other)
        assert (status, "events 21 to 40 are missing" in output) == (1, True)
        made.gap(BOOT, 21, 40)  # what a sidecar states that does not have them any more
        assert await other.deliver(made.events[50:]) == 62
        (gap,) = (await one.ask("/v1/gaps"))["gaps"]
        assert (gap["lost"], gap["state"]) == (20, "declared")
        status, output = await verified(bench, one)
        assert (status, "20 were declared lost" in output) == (0, True)


async def test_a_database_that_is_away_refuses_batches_and_takes_them_later(bench, postgres):
    made = Chain(boot=BOOT).calls(4)
    async with replicas(bench, postgres.database()) as (one, _other):
        headers = bench.sidecar("agent")
        with postgres.stopped():
            async with one.session.get(f"{one.url}/readyz") as response:
                assert (response.status, (await response.json())["status"]) == (503, "unready")
            async with one.session.post(
                f"{one.url}/v1/events", data=batch(made.events), headers=headers
            ) as response:
                assert (await response.json(content_type=None))["code"] == "service.unavailable"
        assert await one.deliver(made.events) == 8
