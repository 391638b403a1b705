"""The feed by pushing (RFC 8935): to the place in settings alone, in order, until it is taken."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from tests.integration.broker_support import IDP, Served, World, serving
from tests.integration.feed_support import Receiver, acknowledged, ended, feed_of, publish
from tests.integration.test_broker_replicas import replicas
from tests.support.canaries import CANARIES
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from valetkey.broker import push as module
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.signals import Signal

SIEM = "spiffe://demo.example/ns/security/sa/siem"
AUDIENCE = "https://siem.example"
SECRET = "Bearer canary-of-the-siem"


class Siem:
    """A receiver of pushed events on loopback; ``answers`` are given first, then 202."""

    def __init__(self) -> None:
        self.url = free_url()
        self.answers: list[web.Response] = []
        self.requests: list[tuple[str, str, str]] = []

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.text()
        self.requests.append(
            (request.headers["Content-Type"], request.headers.get("Authorization", ""), body)
        )
        return self.answers.pop(0) if self.answers else web.Response(status=202)

    @asynccontextmanager
    async def listening(self):
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", self._take)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", int(self.url.rpartition(":")[2])).start()
        try:
            yield self
        finally:
            await runner.cleanup()

    async def has(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.requests) < count:
                await asyncio.sleep(0.01)

    @property
    def bodies(self) -> list[str]:
        return [body for _, _, body in self.requests]


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(module, "_LOOK", 0.2)


def world_of(tmp_path: Path, siem: Siem, **more) -> World:
    receiver = {
        "issuer": IDP, "subject": SIEM, "audience": AUDIENCE, "bearer": True,
        "push": [f"{siem.url}/events"],
    }  # fmt: skip
    return World(tmp_path, free_url(), overrides={"feed": {"receivers": [receiver]}, **more})


async def pushed_to(served, siem: Siem, **more) -> Receiver:
    receiver = Receiver(served.world, served, subject=SIEM, key=None)
    delivery = {"method": "urn:ietf:rfc:8935", "endpoint_url": f"{siem.url}/events", **more}
    await receiver.begin(delivery=delivery)
    return receiver


async def values(receiver: Receiver, siem: Siem) -> list[str]:
    sets = {str(n): body for n, body in enumerate(siem.bodies)}
    return [event.value for event in await receiver.events({"sets": sets}, AUDIENCE)]


async def has_acknowledged(served, receiver: Receiver, txn: str) -> bool:
    async with asyncio.timeout(10):
        while (await acknowledged(served, txn))[receiver.id] is None:
            await asyncio.sleep(0.02)
    return True


async def test_events_are_pushed_in_order_with_the_receivers_header(tmp_path: Path) -> None:
    siem = Siem()
    async with siem.listening(), serving(world_of(tmp_path, siem)) as served:
        receiver = await pushed_to(served, siem, authorization_header=SECRET)
        assert "authorization_header" not in str(receiver.stream)
        await publish(served, ended("t-1", txn="inc-1", reason="why"), ended("t-2"))
        await siem.has(2)
        assert {kind for kind, _, _ in siem.requests} == {"application/secevent+jwt"}
        assert {header for _, header, _ in siem.requests} == {SECRET}
        assert await values(receiver, siem) == ["t-1", "t-2"]
        assert await has_acknowledged(served, receiver, "inc-1")
        # What is pushed is not for polling as well.
        assert (await receiver.ask("POST", f"/ssf/poll/{receiver.id}", {}))[0] == 404


async def test_the_receivers_secret_is_sealed_in_the_database(tmp_path: Path) -> None:
    siem = Siem()
    async with serving(world_of(tmp_path, siem)) as served:
        await pushed_to(served, siem, authorization_header=SECRET)
    CANARIES.add(SECRET, name="push authorization")
    assert SECRET.encode() not in (tmp_path / "broker.db").read_bytes()


async def test_a_receiver_that_fails_gets_it_again(tmp_path: Path) -> None:
    siem = Siem()
    siem.answers = [web.Response(status=503), web.Response(status=500)]
    async with siem.listening(), serving(world_of(tmp_path, siem)) as served:
        receiver = await pushed_to(served, siem)
        await publish(served, ended("t-1"), ended("t-2"))
        await siem.has(4)
        assert await values(receiver, siem) == ["t-1", "t-1", "t-1", "t-2"]


async def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    """The answer of a receiver must not choose where events go."""
    siem = Siem()
    elsewhere = Siem()
    async with siem.listening(), elsewhere.listening():
        siem.answers = [web.Response(status=307, headers={"Location": elsewhere.url + "/x"})]
        async with serving(world_of(tmp_path, siem)) as served:
            await pushed_to(served, siem, authorization_header=SECRET)
            await publish(served, ended("t-1"))
            await siem.has(2)
    assert elsewhere.requests == []


async def test_an_event_that_is_refused_makes_room_for_the_next(tmp_path: Path) -> None:
    siem = Siem()
    siem.answers = [web.json_response({"err": "invalid_request"}, status=400)]
    async with siem.listening(), serving(world_of(tmp_path, siem)) as served:
        receiver = await pushed_to(served, siem)
        await publish(served, ended("t-1", txn="inc-1"), ended("t-2", txn="inc-2"))
        await siem.has(2)
        assert await values(receiver, siem) == ["t-1", "t-2"]
        assert await has_acknowledged(served, receiver, "inc-2")
        assert await acknowledged(served, "inc-1") == {receiver.id: None}


def counted(served: Served) -> dict[str, float]:
    """Pushes by result."""
    (family,) = served.broker.base.metrics.pushes.collect()
    return {
        sample.labels["result"]: sample.value
        for sample in family.samples
        if sample.name.endswith("_total")
    }


@pytest.mark.parametrize(
    "answer",
    [
        {"body": b'{"err": "invalid_key"}'},
        {"body": b'{"err": "invalid_issuer"}'},
        {"body": b'{"err": "invalid_audience"}'},
        {"body": b'{"err": "nonsense"}'},
        {"body": b'{"error": "invalid_request"}'},
        {"body": b"<html>Bad Request</html>"},
        {"body": b""},
    ],
    ids=lambda answer: answer["body"].decode() or "nothing",
)
async def test_a_receiver_that_does_not_believe_an_event_gets_it_again(
    tmp_path: Path, answer: dict[str, bytes]
) -> None:
    """Its JWK Set may be from before the key that signs now; what ended must end there too."""
    siem = Siem()
    siem.answers = [web.Response(status=400, **answer), web.Response(status=400, **answer)]
    async with siem.listening(), serving(world_of(tmp_path, siem)) as served:
        receiver = await pushed_to(served, siem)
        await publish(served, ended("t-1", txn="inc-1"), ended("t-2", txn="inc-2"))
        await siem.has(4)
        assert await values(receiver, siem) == ["t-1", "t-1", "t-1", "t-2"]
        assert await has_acknowledged(served, receiver, "inc-1")
        assert await has_acknowledged(served, receiver, "inc-2")
        assert counted(served) == {"disbelieved": 2.0, "delivered": 2.0}


async def test_a_receiver_that_does_not_know_us_gets_it_again(tmp_path: Path) -> None:
    siem = Siem()
    siem.answers = [web.json_response({"err": "authentication_failed"}, status=400)]
    async with siem.listening(), serving(world_of(tmp_path, siem)) as served:
        receiver = await pushed_to(served, siem)
        await publish(served, ended("t-1"))
        await siem.has(2)
        assert await values(receiver, siem) == ["t-1", "t-1"]


async def test_what_happened_while_the_receiver_and_the_broker_were_away(tmp_path: Path) -> None:
    siem = Siem()
    world = world_of(tmp_path, siem)
    async with serving(world) as served:
        receiver = await pushed_to(served, siem)
        await publish(served, ended("t-1"), ended("t-2"))
        await feed_of(served).flush()
    async with siem.listening(), serving(world) as served:
        receiver.served = served
        await siem.has(2)
        assert await values(receiver, siem) == ["t-1", "t-2"]


async def test_of_two_replicas_one_pushes(tmp_path: Path, postgres: Postgres) -> None:
    siem = Siem()
    world = world_of(tmp_path, siem, database=postgres.database())
    async with siem.listening(), replicas(world) as (one, other):
        receiver = await pushed_to(one, siem)
        for n in range(5):
            await publish(other, Signal(kind="txn", value=f"t-{n}", at=1.0))
        await siem.has(5)
        await asyncio.sleep(0.5)
        assert await values(receiver, siem) == [f"t-{n}" for n in range(5)]


@pytest.mark.parametrize(
    "url",
    ["http://siem.example/events", "ftp://siem.example/", "https:///events", "events",
     "https://user@siem.example/", "https://siem.example/#x", "http://10.0.0.1/events"],
)  # fmt: skip
def test_places_that_settings_can_not_name(tmp_path: Path, url: str) -> None:
    siem = Siem()
    world = world_of(tmp_path, siem)
    world.overrides["feed"]["receivers"][0]["push"] = [url]
    with pytest.raises(ConfigError, match="push"):
        world.settings()


def test_a_receiver_of_an_unknown_issuer(tmp_path: Path) -> None:
    siem = Siem()
    world = world_of(tmp_path, siem)
    world.overrides["feed"]["receivers"][0]["issuer"] = "https://nobody.example"
    with pytest.raises(ConfigError, match="no issuer of workloads"):
        world.settings()
