"""The shipper against a collector that misbehaves: nothing is lost for what it answers."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace

import pytest
from aiohttp import web

from tests.support.idp import Idp
from tests.unit.proxy.audit.conftest import KIB
from valetkey.contracts import events
from valetkey.contracts.errors import AuditError, ConfigError
from valetkey.contracts.settings import parse
from valetkey.proxy.audit import reader, shipper
from valetkey.proxy.audit.reader import segments
from valetkey.proxy.audit.recorder import Recorder
from valetkey.proxy.audit.segment import HEADER_SIZE
from valetkey.proxy.audit.shipper import CollectorRefused, Shipper
from valetkey.proxy.identity.file import FileIdentity
from valetkey.proxy.metrics import Metrics
from valetkey.proxy.settings import CollectorSettings


class Collector:
    """Keeps what it takes; ``answer`` may be replaced to misbehave."""

    def __init__(self) -> None:
        self.batches: list[list[dict]] = []
        self.acked: dict[str, int] = {}
        self.answer = self.take
        self.url = ""

    async def take(self, batch: list[dict]) -> web.Response:
        boot = batch[0]["boot"]
        self.acked[boot] = max(self.acked.get(boot, 0), int(batch[-1]["sequence"]))
        return web.json_response({"boot": boot, "acked": self.acked[boot]})

    async def post(self, request: web.Request) -> web.StreamResponse:
        assert request.headers["Content-Type"] == events.CONTENT_TYPE_BATCH
        batch = json.loads(await request.read())
        assert len({event["boot"] for event in batch}) == 1
        answer = await self.answer(batch)
        if answer.status == 200:
            self.batches.append(batch)
        return answer

    @property
    def ids(self) -> list[str]:
        return [event["id"] for batch in self.batches for event in batch]


@pytest.fixture
async def collector(aiohttp_server):
    made = Collector()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/events", made.post)
    server = await aiohttp_server(app)
    made.url = str(server.make_url("")).rstrip("/")
    return made


class Ship:
    """A spool with its recorder and shipper."""

    def __init__(self, bench, collector, tmp_path, **settings) -> None:
        self.bench = bench
        Idp(tmp_path / "idp").token_file(tmp_path / "token", "bot", "https://collector.example")
        self.identity = FileIdentity(tmp_path / "token")
        self.identity.refresh()
        self.metrics = Metrics()
        self.settings = parse(
            CollectorSettings,
            json.dumps({"url": collector.url, "timeout": "5s"} | settings),
            name="test",
            program="proxy",
        )
        self.spool = bench.spool()
        self.boot()

    def boot(self) -> None:
        self.recorder = Recorder(self.spool, "agent-0")
        self.shipper = Shipper(
            self.settings, self.spool, self.recorder, self.identity, self.metrics
        )

    def restart(self) -> None:
        import os

        self.spool._current.close()
        os.close(self.spool._lock)
        self.spool = self.bench.spool()
        self.boot()

    def write(self, count: int, *, size: int = 0) -> None:
        for _ in range(count):
            self.bench.append(self.spool, size=size)

    async def all(self) -> None:
        """Ship until there is nothing more."""
        async with asyncio.timeout(10):
            while await self.shipper.ship_some() or self.spool.seq > self.spool.kept:
                self.spool.keep()  # no loop runs the spool here

    def ids(self, first: int, last: int, boot: str = "") -> list[str]:
        return [f"{boot or self.spool.boot}-{seq}" for seq in range(first, last + 1)]


@pytest.fixture
async def ship(bench, collector, tmp_path):
    made = await asyncio.to_thread(Ship, bench, collector, tmp_path)
    yield made
    await made.shipper.close()


async def listed(ship):
    return await asyncio.to_thread(segments, ship.bench.directory)


async def test_in_order_in_batches_and_deleted_behind_the_acknowledgement(ship, collector):
    ship.write(100, size=3000)
    assert len(await listed(ship)) == 5
    await ship.all()
    assert collector.ids == ship.ids(1, 100)
    assert await listed(ship) == [ship.spool.current_path]
    assert ship.spool.disk == 64 * KIB
    assert ship.shipper.acked == 100
    ship.write(3)
    await ship.all()
    assert collector.ids == ship.ids(1, 103)


async def test_older_boots_first_each_in_batches_of_its_own(ship, collector):
    boots = []
    for _ in range(3):
        ship.write(10)
        boots.append(ship.spool.boot)
        await asyncio.to_thread(ship.restart)
    ship.write(1)
    await ship.all()
    expected = [event for boot in boots for event in ship.ids(1, 10, boot)]
    assert collector.ids == [*expected, *ship.ids(1, 1)]
    assert await listed(ship) == [ship.spool.current_path]


async def test_batches_have_the_size_of_the_settings(bench, collector, tmp_path):
    ship = await asyncio.to_thread(lambda: Ship(bench, collector, tmp_path, batch=7))
    ship.write(30)
    await ship.all()
    assert [len(batch) for batch in collector.batches] == [7, 7, 7, 7, 2]
    await ship.shipper.close()


async def test_a_batch_is_bounded_in_bytes_too(ship, collector, monkeypatch):
    """What is in memory at a time is one piece of a segment, however large the events are."""
    monkeypatch.setattr(reader, "_CHUNK", 10_000)
    ship.write(20, size=3000)
    await ship.all()
    assert collector.ids == ship.ids(1, 20)
    assert max(map(len, collector.batches)) == 3


ANSWERS = {
    "401": (401, b"{}"),
    "403": (403, b"{}"),
    "409": (409, b"{}"),
    "429": (429, b"{}"),
    "500": (500, b"{}"),
    "503": (503, b"{}"),
    "a redirect": (302, b""),
    "not JSON": (200, b"ok"),
    "nothing": (200, b""),
    "a list": (200, b"[]"),
    "another boot": (200, b'{"boot":"00000000000000ff","acked":99}'),
    "without acked": (200, b'{"boot":"00000000000000ff"}'),
    "acked as text": (200, b'{"boot":"00000000000000ff","acked":"99"}'),
    "more than we keep": (200, b" " * (1 << 20)),
}


@pytest.mark.parametrize(("status", "body"), ANSWERS.values(), ids=ANSWERS)
async def test_an_answer_that_is_none_deletes_nothing(ship, collector, status, body):
    async def bad(_batch):
        return web.Response(status=status, body=body, headers={"Location": "/v1/other"})

    ship.write(50, size=3000)
    collector.answer = bad
    before = await listed(ship)
    for _ in range(3):
        with pytest.raises(CollectorRefused):
            await ship.all()
    assert await listed(ship) == before
    assert ship.shipper.acked == 0
    collector.batches.clear()
    collector.answer = collector.take
    await ship.all()
    assert collector.ids == ship.ids(1, 50)


async def test_an_acknowledgement_of_what_was_never_sent(ship, collector):
    async def lying(batch):
        return web.json_response({"boot": batch[0]["boot"], "acked": 10_000})

    ship.write(5)
    collector.answer = lying
    with pytest.raises(CollectorRefused, match="never sent"):
        await ship.all()
    collector.batches.clear()
    collector.answer = collector.take
    ship.write(5)
    await ship.all()
    assert collector.ids == ship.ids(1, 10)


async def test_a_batch_that_is_too_large_is_halved(ship, collector):
    async def small(batch):
        return web.Response(status=413) if len(batch) > 20 else await collector.take(batch)

    collector.answer = small
    ship.write(100)
    await ship.all()
    assert collector.ids == ship.ids(1, 100)
    assert max(map(len, collector.batches)) <= 20


async def test_an_event_that_is_too_large_alone_stays(ship, collector):
    async def never(_batch):
        return web.Response(status=413)

    collector.answer = never
    ship.write(3)
    with pytest.raises(CollectorRefused, match="413"):
        await ship.all()
    collector.answer = collector.take
    await ship.all()
    assert collector.ids == ship.ids(1, 3)


async def test_a_lost_answer_means_sending_again(ship, collector):
    async def lost(batch):
        await collector.take(batch)
        collector.batches.append(batch)
        return web.Response(status=500)

    ship.write(5)
    collector.answer = lost
    with pytest.raises(CollectorRefused):
        await ship.all()
    collector.answer = collector.take
    await ship.all()
    assert collector.ids == ship.ids(1, 5) * 2  # at least once


async def test_a_damaged_record_is_declared_lost_and_the_rest_is_delivered(ship, collector):
    ship.write(5)
    await asyncio.to_thread(_damage, ship.spool.current_path, HEADER_SIZE + 100)
    await ship.all()
    # The declaration is the boot's sixth event.
    assert collector.ids == [*ship.ids(2, 5), *ship.ids(6, 6)]
    stated = collector.batches[-1][-1]["data"]["unmapped"]
    assert (stated["boot"], stated["first"], stated["last"]) == (ship.spool.boot, 1, 1)
    assert stated["reason"].startswith("corrupt")
    assert ship.recorder.lost == 1


async def test_a_torn_tail_is_no_loss_but_in_the_middle_it_is(ship, collector):
    ship.write(40, size=3000)
    boot = ship.spool.boot
    first, *_, last = await listed(ship)
    for path in (first, last):
        await asyncio.to_thread(_damage_last, path)
    await asyncio.to_thread(ship.restart)
    assert ship.spool.previous.torn
    await ship.all()
    declared = [
        (event["data"]["unmapped"]["first"], event["data"]["unmapped"]["last"])
        for batch in collector.batches
        for event in batch
        if event["type"] == events.TYPE_GAP
    ]
    held = {event for event in collector.ids if event.startswith(boot)}
    missing = [seq for seq in range(1, 41) if f"{boot}-{seq}" not in held]
    assert len(missing) == 2
    assert declared == [(missing[0], missing[0])]
    assert missing[1] == 40


def _damage(path, at):
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0xFF]))


def _damage_last(path):
    _damage(path, len(path.read_bytes().rstrip(b"\0")) - 5)


async def test_what_the_collector_lost_is_sent_again_or_declared(ship, collector):
    ship.write(60, size=3000)
    await ship.all()
    kept = (await asyncio.to_thread(_first, ship.spool.current_path)) - 1
    collector.acked.clear()  # a backup from before everything was restored
    collector.batches.clear()

    async def contiguous(batch):
        """Acknowledges what is contiguous or declared, as the collector does."""
        boot = batch[0]["boot"]
        for event in batch:
            seq = int(event["sequence"])
            if event["type"] == events.TYPE_GAP:
                held.update(
                    range(event["data"]["unmapped"]["first"], event["data"]["unmapped"]["last"] + 1)
                )
            held.add(seq)
        acked = 0
        while acked + 1 in held:
            acked += 1
        return web.json_response({"boot": boot, "acked": acked})

    held: set[int] = set()
    collector.answer = contiguous
    ship.write(2)
    await ship.all()
    assert held == set(range(1, ship.spool.seq + 1))
    assert ship.shipper.acked == ship.spool.seq
    (gap,) = [
        event["data"]["unmapped"]
        for batch in collector.batches
        for event in batch
        if event["type"] == events.TYPE_GAP
    ]
    assert (gap["first"], gap["last"], gap["reason"]) == (1, kept, "the collector lost it")
    assert set(ship.ids(kept + 1, 62)) <= set(collector.ids)


def _first(path):
    from valetkey.proxy.audit.reader import SegmentTail

    return SegmentTail.open(path).next


async def test_a_loss_that_finds_no_room_is_declared_later_and_delivery_goes_on(
    ship, collector, monkeypatch
):
    ship.write(5)
    await asyncio.to_thread(_damage, ship.spool.current_path, HEADER_SIZE + 100)
    append = ship.spool.append

    def full(raw, *, decision):
        from valetkey.contracts import codes

        raise AuditError(codes.AUDIT_UNAVAILABLE, "full")

    monkeypatch.setattr(ship.spool, "append", full)
    await ship.all()
    assert collector.ids == ship.ids(2, 5)
    monkeypatch.setattr(ship.spool, "append", append)
    await ship.all()
    assert collector.ids == ship.ids(2, 6)
    assert collector.batches[-1][-1]["type"] == events.TYPE_GAP


async def test_declared_ranges_take_no_memory(ship):
    ship.shipper._declare_lost("00000000000000a1", 1, 10**15, "the collector lost it")
    assert ship.shipper._is_declared("00000000000000a1", 10**14)
    ship.shipper._declare_lost("00000000000000a1", 10**14, 10**14, "again")
    assert ship.spool.seq == 1


async def test_drain_ends_when_nothing_more_can_be_sent(ship, collector):
    async def holding(batch):
        return web.json_response({"boot": batch[0]["boot"], "acked": 2})

    collector.answer = holding  # it waits for an event that it never gets
    ship.write(5)
    await asyncio.wait_for(ship.shipper.drain(60.0), 15)
    assert collector.ids[:5] == ship.ids(1, 5)


async def test_drain_gives_up_after_its_time(ship, collector):
    release = asyncio.Event()

    async def hanging(batch):
        await release.wait()
        return await collector.take(batch)

    collector.answer = hanging
    ship.write(5)
    begun = time.monotonic()
    await ship.shipper.drain(0.1)
    release.set()
    assert time.monotonic() - begun < 4  # before the collector's time is up
    assert ship.metrics.ship_failures == 1


async def test_the_age_is_that_of_the_oldest_event_that_waits(ship, collector, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(shipper, "time", SimpleNamespace(monotonic=lambda: now))
    assert ship.shipper.age == 0
    ship.write(1)
    assert ship.shipper.age == 0
    now += 60
    ship.write(1)
    assert ship.shipper.age == 60
    await ship.all()
    assert ship.shipper.age == 0
    now += 60
    ship.write(1)  # steady traffic: something always waits, but never for long
    assert ship.shipper.age == 0


async def test_marks_are_bounded(ship):
    for _ in range(1500):
        ship.write(1)
        ship.shipper._mark()
    assert len(ship.shipper._marks) <= 1024
    assert ship.shipper._marks[0][0] == 1


async def test_run_survives_failures_and_says_each_once(ship, collector, caplog):
    async def refusing(_batch):
        return web.Response(status=503)

    collector.answer = refusing
    ship.write(5)
    task = asyncio.ensure_future(ship.shipper.run())
    async with asyncio.timeout(15):
        while ship.metrics.ship_failures < 3:
            await asyncio.sleep(0.01)
    collector.answer = collector.take
    async with asyncio.timeout(10):
        while ship.shipper.acked < 5:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    said = [record for record in caplog.records if record.getMessage() == "collector_unavailable"]
    assert [record.fields["reason"] for record in said] == ["it answered 503"]


async def test_without_identity_nothing_is_sent_and_nothing_deleted(ship, collector, tmp_path):
    ship.identity._expires = 0.0
    ship.write(50, size=3000)
    before = await listed(ship)
    task = asyncio.ensure_future(ship.shipper.run())
    async with asyncio.timeout(15):
        while not ship.metrics.ship_failures:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await listed(ship) == before
    assert collector.batches == []


async def test_a_ca_file_that_can_not_be_used(bench, collector, tmp_path):
    collector.url = "https://127.0.0.1:1"
    with pytest.raises(ConfigError, match=r"collector\.ca_file"):
        await asyncio.to_thread(
            lambda: Ship(bench, collector, tmp_path, ca_file=str(tmp_path / "none.pem"))
        )
