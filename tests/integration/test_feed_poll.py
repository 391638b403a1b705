"""The feed by polling (RFC 8936): long polls, acknowledgements, nothing missed, nobody else's."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import pytest

from tests.integration.broker_support import BOT, IDP, READER, USERS, Served, World, serving
from tests.integration.feed_support import Receiver, acknowledged, ended, feed_of, publish
from tests.integration.test_broker_replicas import identity_of, replicas, shared
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from valetkey.broker import feed as module
from valetkey.broker.api import ssf_poll
from valetkey.broker.store.streams import IDLE
from valetkey.contracts.errors import BrokerError
from valetkey.contracts.signals import Signal
from valetkey.proxy.feed_client import FeedClient


@pytest.fixture
async def served(tmp_path):
    async with serving(World(tmp_path, free_url())) as broker:
        yield broker


async def following(served: Served, **more) -> Receiver:
    receiver = Receiver(served.world, served, **more)
    await receiver.begin(description="agent-0")
    return receiver


def lags(served: Served) -> tuple[float, float]:
    """How many acknowledgements were measured, and their seconds together."""
    (family,) = served.broker.base.metrics.feed_acknowledge.collect()
    samples = {sample.name.rpartition("_")[2]: sample.value for sample in family.samples}
    return samples["count"], samples["sum"]


async def until_waiting(served: Served, count: int = 1) -> None:
    async with asyncio.timeout(10):
        while feed_of(served).waiting < count:
            await asyncio.sleep(0.005)


async def test_a_poll_waits_until_there_is_something(served: Served) -> None:
    receiver = await following(served)
    poll = asyncio.ensure_future(receiver.poll(wait=20))
    await until_waiting(served)
    begun = time.monotonic()
    await publish(served, ended("t-1", txn="inc-1"))
    answer = await poll
    assert time.monotonic() - begun < 15  # and not when it would have ended anyhow
    assert await receiver.events(answer) == [ended("t-1", txn="inc-1")]
    assert answer["moreAvailable"] is False


async def test_a_poll_waits_no_longer_than_is_preferred(served: Served) -> None:
    receiver = await following(served)
    begun = time.monotonic()
    assert await receiver.poll(wait=1) == {"sets": {}, "moreAvailable": False}
    assert 0.9 < time.monotonic() - begun < 15


async def test_what_is_not_acknowledged_is_sent_again(served: Served) -> None:
    receiver = await following(served)
    await publish(served, ended("t-1"), ended("t-2"))
    first, again = await receiver.poll(), await receiver.poll()
    assert first == again
    one, two = first["sets"]
    rest = await receiver.poll(ack=[two, "never-heard-of"])
    assert list(rest["sets"]) == [one]
    assert await receiver.poll(ack=[one]) == {"sets": {}, "moreAvailable": False}


async def test_so_many_at_a_time_and_whether_there_are_more(served: Served) -> None:
    receiver = await following(served)
    await publish(served, *(ended(f"t-{n}") for n in range(5)))
    some = await receiver.poll(maxEvents=2)
    assert (len(some["sets"]), some["moreAvailable"]) == (2, True)
    assert (await receiver.poll(ack=list(some["sets"]), maxEvents=0)) == {
        "sets": {},
        "moreAvailable": True,
    }
    rest = await receiver.poll(maxEvents=3)
    assert (len(rest["sets"]), rest["moreAvailable"]) == (3, False)
    assert [one.value for one in await receiver.events(rest)] == ["t-2", "t-3", "t-4"]


async def test_acknowledged_is_durable_and_known_by_name(served: Served) -> None:
    receiver, other = await following(served), await following(served)
    await publish(served, ended("t-1", txn="inc-1"))
    assert await acknowledged(served, "inc-1") == {receiver.id: None, other.id: None}
    answer = await receiver.poll()
    await receiver.poll(ack=list(answer["sets"]))
    await feed_of(served).flush()
    found = await acknowledged(served, "inc-1")
    assert found == {receiver.id: served.world.clock(), other.id: None}


async def test_how_long_an_acknowledgement_took_is_measured_once_it_is_there(
    served: Served,
) -> None:
    receiver, other = await following(served), await following(served)
    event = ended("t-1", txn="inc-1", at=served.world.clock() - 3)
    await publish(served, event)
    answer = await receiver.poll()
    assert lags(served) == (0, 0)
    await receiver.poll(ack=list(answer["sets"]))
    assert lags(served) == (1, 3)
    (jti,) = (await other.poll())["sets"]
    await other.poll(setErrs={jti: {"err": "invalid_key", "description": "unknown"}})
    assert lags(served) == (1, 3)


async def test_an_event_that_a_receiver_refuses_is_not_called_acknowledged(served: Served) -> None:
    receiver = await following(served)
    await publish(served, ended("t-1", txn="inc-1"))
    (jti,) = (await receiver.poll())["sets"]
    answer = await receiver.poll(setErrs={jti: {"err": "invalid_key", "description": "unknown"}})
    assert answer["sets"] == {}
    await feed_of(served).flush()
    assert await acknowledged(served, "inc-1") == {receiver.id: None}


async def test_a_newer_poll_of_the_same_stream_ends_the_older(served: Served) -> None:
    receiver = await following(served)
    older = asyncio.ensure_future(receiver.poll(wait=20))
    await until_waiting(served)
    newer = asyncio.ensure_future(receiver.poll(wait=20))
    assert (await older)["sets"] == {}
    await publish(served, ended("t-1"))
    assert len((await newer)["sets"]) == 1


async def test_another_workload_is_not_told_whose_sidecar_was_contained(served: Served) -> None:
    bot, reader = await following(served), await following(served, subject=READER)
    own = Signal(kind="subject", value=BOT, issuer=IDP, at=2, epoch=1)
    user = Signal(kind="subject", value="alice", issuer=USERS, at=3, epoch=1)
    await publish(served, own, user)
    assert await bot.take() == [own, user]
    assert await reader.take() == [user]


async def test_sidecars_are_not_told_why(served: Served) -> None:
    receiver = await following(served)
    await publish(served, ended("t-1", reason="found in a public repository"))
    (event,) = await receiver.take()
    assert event.reason == ""


async def test_a_stream_is_its_owners_and_its_keys(served: Served) -> None:
    receiver = await following(served)
    same_identity = Receiver(served.world, served, stream=receiver.stream)
    other_identity = Receiver(served.world, served, subject=READER, stream=receiver.stream)
    for thief in (same_identity, other_identity):
        status, body = await thief.ask("POST", receiver.path, {"returnImmediately": True})
        assert (status, body["code"]) == (404, "feed.no_stream")
        status, _ = await thief.ask("DELETE", f"/ssf/streams?stream_id={receiver.id}")
        assert status == 404
    assert (await receiver.poll())["sets"] == {}


async def test_a_stream_that_is_gone_is_said_to_be_gone(served: Served) -> None:
    """Never an empty answer: that would read as if nothing had happened."""
    receiver = await following(served)
    poll = asyncio.ensure_future(receiver.ask("POST", receiver.path, {}))
    await until_waiting(served)
    served.world.clock.advance(IDLE + 1)
    await served.broker.sweep()
    await served.broker.base.changes.catch_up()
    status, body = await poll
    assert (status, body["code"]) == (404, "feed.no_stream")
    assert (await receiver.ask("POST", receiver.path, {"returnImmediately": True}))[0] == 404


async def test_behind_the_window_it_comes_from_the_database(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 4)
    monkeypatch.setattr(module, "_PAGE", 3)
    async with serving(World(tmp_path, free_url())) as served:
        receiver = await following(served)
        for n in range(11):
            await publish(served, ended(f"t-{n}"))
        seen = []
        while answer := await receiver.take():
            seen += [event.value for event in answer]
        assert seen == [f"t-{n}" for n in range(11)]


async def test_after_a_restart_the_stream_goes_on(tmp_path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as served:
        receiver = await following(served)
        await publish(served, ended("t-1"))
        assert [one.value for one in await receiver.take()] == ["t-1"]
        await publish(served, ended("t-2"))
        await feed_of(served).flush()
    async with serving(world) as served:
        receiver.served = served
        await publish(served, ended("t-3"))
        assert [one.value for one in await receiver.take()] == ["t-2", "t-3"]


async def test_a_broker_that_stops_lets_go_of_who_waits(tmp_path) -> None:
    async with serving(World(tmp_path, free_url())) as served:
        receiver = await following(served)
        poll = asyncio.ensure_future(receiver.poll(wait=30))
        await until_waiting(served)
        await served.broker.app.shutdown()
        async with asyncio.timeout(15):
            assert (await poll)["sets"] == {}


async def test_many_wait_and_all_are_told(served: Served) -> None:
    receivers = [await following(served) for _ in range(50)]
    polls = [asyncio.ensure_future(one.poll(wait=20)) for one in receivers]
    await until_waiting(served, 50)
    await publish(served, ended("t-1"), ended("t-2"))
    for poll in polls:
        assert len((await poll)["sets"]) == 2


# --- who calls ------------------------------------------------------------------------------------

BAD_CALLERS = {
    "nobody": ({"Authorization": ""}, "service.unauthenticated"),
    "basic": ({"Authorization": "Basic YTpi"}, "service.unauthenticated"),
    "a token of nobody": ({"Authorization": "Bearer a.b.c"}, "actor.invalid"),
    "no proof": ({"DPoP": None}, "dpop.missing"),
    "no good proof": ({"DPoP": "a.b.c"}, "dpop.invalid"),
}


@pytest.mark.parametrize(("change", "code"), BAD_CALLERS.values(), ids=BAD_CALLERS)
async def test_who_is_not_let_in(served: Served, change, code: str) -> None:
    headers = {
        "Authorization": f"Bearer {served.world.workload()}",
        "DPoP": served.world.proof(path="/ssf/streams"),
        **change,
    }
    async with served.client.post(
        served.where + "/ssf/streams",
        json={},
        headers={name: value for name, value in headers.items() if value is not None},
    ) as response:
        body = await response.json(content_type="application/problem+json")
        assert (response.status, body["code"]) == (401, code)
        assert "WWW-Authenticate" in response.headers


async def test_a_proof_for_another_method_does_not_count(served: Served) -> None:
    receiver = await following(served)
    nonce = receiver._nonces[served.where]
    proof = receiver.key.proof(
        method="GET", url=served.world.url + "/ssf/streams", jti="x" * 20,
        now=int(served.world.clock()), nonce=nonce,
    )  # fmt: skip
    headers = {"Authorization": f"Bearer {served.world.workload()}", "DPoP": proof}
    async with served.client.post(
        served.where + "/ssf/streams", json={}, headers=headers
    ) as response:
        assert (await response.json(content_type=None))["code"] == "dpop.invalid"


async def test_a_users_token_follows_nothing(served: Served) -> None:
    receiver = Receiver(served.world, served, token=served.world.user())
    status, body = await receiver.ask("POST", "/ssf/streams", {})
    assert (status, body["code"]) == (401, "actor.invalid")


async def test_a_self_signed_assertion_is_good_for_one_request(served: Served) -> None:
    receiver = Receiver(served.world, served, token=served.world.assertion(), key=None)
    assert (await receiver.ask("POST", "/ssf/streams", {}))[0] == 201
    status, body = await receiver.ask("POST", "/ssf/streams", {})
    assert (status, body["code"]) == (401, "actor.replayed")


@pytest.mark.parametrize(
    "body",
    [[], {"ack": "x"}, {"maxEvents": -1}, {"maxEvents": "2"}, {"setErrs": []},
     {"setErrs": {"a": "b"}}, {"returnImmediately": "yes"}],
)  # fmt: skip
async def test_polls_that_can_not_be_understood(served: Served, body) -> None:
    receiver = await following(served)
    status, answer = await receiver.ask("POST", receiver.path, body)
    assert (status, answer["code"]) == (400, "service.bad_request")


# --- two replicas -----------------------------------------------------------------------------------


async def test_what_one_replica_published_wakes_polls_at_the_other(
    tmp_path, postgres: Postgres
) -> None:
    async with replicas(shared(tmp_path, postgres)) as (one, other):
        receiver = await following(one)
        receiver.served = other
        poll = asyncio.ensure_future(receiver.poll(wait=20))
        await until_waiting(other)
        begun = time.monotonic()
        await publish(one, ended("t-1"))
        assert len((await poll)["sets"]) == 1
        assert time.monotonic() - begun < 15


async def test_a_receiver_that_changes_replicas_misses_nothing(
    tmp_path, postgres: Postgres
) -> None:
    world = shared(tmp_path, postgres)
    async with serving(world) as one:
        receiver = await following(one)
        async with serving(world, free_url()) as other:
            seen: list[str] = []
            for n in range(6):
                await publish(one if n % 3 else other, ended(f"t-{n}"))
                receiver.served = (one, other)[n % 2]
                # What is not acknowledged comes again at once, before a replica may have heard.
                async with asyncio.timeout(30):
                    while f"t-{n}" not in seen:
                        answer = await receiver.poll(wait=5)
                        seen += [event.value for event in await receiver.events(answer)]
                if n % 2:  # every other time the acknowledgement is lost with its replica
                    await receiver.poll(ack=list(answer["sets"]), maxEvents=0)
            assert set(seen) == {f"t-{n}" for n in range(6)}
            assert list(dict.fromkeys(seen)) == [f"t-{n}" for n in range(6)]


async def test_who_comes_from_a_replica_that_is_gone_is_not_refused_first(
    tmp_path, postgres: Postgres, monkeypatch
) -> None:
    world = shared(tmp_path, postgres)
    identity = await asyncio.to_thread(identity_of, world, tmp_path / "receiver.token")
    answered = []
    once = FeedClient._send_once

    async def noting(self, *arguments, **named):
        answer = await once(self, *arguments, **named)
        answered.append(answer[0])
        return answer

    monkeypatch.setattr(FeedClient, "_send_once", noting)
    client = FeedClient(world.url, identity, ca_file=None, timeout=5.0)

    async def poll() -> None:
        await client.poll(stream, ack=[], errors={}, wait=0)

    try:
        async with serving(world):
            stream = await client.create("agent-0")
            await poll()
            assert answered == [401, 201, 200]
        with pytest.raises(BrokerError):
            await poll()
        async with serving(world):  # another process, as far as nonces go
            answered.clear()
            await poll()
            await poll()
            assert answered == [200, 200]
            client._nonce = client._standby
            await poll()  # it is good for more than one proof
            assert answered == [200, 200, 200]
    finally:
        await client.close()


async def test_a_stream_ended_at_one_replica_is_gone_at_the_other(
    tmp_path, postgres: Postgres
) -> None:
    async with replicas(shared(tmp_path, postgres)) as (one, other):
        receiver = await following(one)
        at_other = dataclasses.replace(receiver, served=other)
        poll = asyncio.ensure_future(at_other.ask("POST", receiver.path, {}))
        await until_waiting(other)
        status, _ = await receiver.ask("DELETE", f"/ssf/streams?stream_id={receiver.id}")
        assert status == 204
        assert (await poll)[0] == 404


async def test_connections_end_now_and_then(tmp_path, monkeypatch):
    """A replica that came back gets its share of the sidecars, which stay where they are."""
    world = World(tmp_path, free_url())
    world.overrides["feed"] = {"connection_age": "2s"}
    monkeypatch.setattr(ssf_poll.random, "random", lambda: 0.4)
    async with serving(world) as served:
        receiver = await following(served)
        await receiver.poll()
        assert not receiver.closed
        await receiver.poll(wait=1)
        assert receiver.closed
        await receiver.poll()
        assert not receiver.closed
