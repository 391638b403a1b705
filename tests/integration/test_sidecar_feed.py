"""The feed between a real broker and a real sidecar: revoked there, refused here, at once.

Credentials are not asked about in these tests (``revalidate: 1h``): what happens, the feed did.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack

import aiohttp
import pytest

from tests.support.fleet import WORKLOAD, Fleet, token_of
from tests.support.idp import Idp
from tests.support.streaming import Source, stream


@pytest.fixture
def fleet(tmp_path):
    fleet = Fleet(tmp_path)
    follow(fleet)
    return fleet


def follow(fleet, **feed):
    fleet.sidecar_changes["broker"] = {
        "url": fleet.broker_url, "timeout": "2s", "revalidate": "1h", "feed": feed,
    }  # fmt: skip


async def events(fleet):
    return await fleet.metric("valetkey_feed_events_total")


async def current_token(fleet):
    fleet.received.clear()
    assert (await fleet.call())[0] == 200
    return token_of(fleet.received[-1])


async def no_more(fleet, token):
    """The token is not sent any more, long before it would expire, and from then on.

    How soon, `make bench-revocation` measures.
    """

    async def another():
        return await current_token(fleet) != token

    await fleet.until(another, "another token")
    for _ in range(20):
        assert await current_token(fleet) != token


async def test_a_revoked_token_is_dropped_at_once(fleet):
    async with fleet.running(collector=False):
        assert (await fleet.readyz())[1]["feed"] == "connected"
        first = await current_token(fleet)
        await fleet.revoke(first)
        await no_more(fleet, first)
        assert await fleet.metric("valetkey_cache_revocations_total") == 1
        assert await fleet.metric("valetkey_feed_lag_seconds_count") >= 1
        assert await fleet.metric("valetkey_feed_afresh_total") == 1  # the start


async def test_what_happened_while_the_sidecar_could_not_hear_it(fleet):
    async with fleet.running(collector=False):
        first = await current_token(fleet)
        os.kill(fleet.sidecar.pid, signal.SIGSTOP)
        await fleet.revoke(first)
        os.kill(fleet.sidecar.pid, signal.SIGCONT)
        await no_more(fleet, first)


async def test_what_happened_around_a_restart_of_the_broker(fleet):
    """The stream goes on where it was: nothing missed, and nothing dropped that need not be."""
    async with fleet.running(collector=False):
        first = await current_token(fleet)
        seen = await events(fleet)
        fleet.broker.kill()
        assert await current_token(fleet) == first
        fleet.broker.start()
        await fleet.broker.ready(f"{fleet.broker_url}/readyz")
        await fleet.revoke(first)

        async def told():
            return await events(fleet) > seen

        await fleet.until(told, "told")
        await no_more(fleet, first)
        assert await fleet.metric("valetkey_feed_afresh_total") == 1


async def test_a_broker_that_knows_no_stream_of_ours(fleet):
    """Its database is another one: everything is dropped, since nobody knows what was ended."""
    async with fleet.running(collector=False):
        first = await current_token(fleet)
        fleet.broker.kill()
        for file in fleet.directory.glob("broker.db*"):
            file.unlink()
        fleet.broker.start()
        await fleet.broker.ready(f"{fleet.broker_url}/readyz")
        await no_more(fleet, first)

        async def afresh():
            # The start, the end of the first stream, the begin of the second one.
            return await fleet.metric("valetkey_feed_afresh_total") >= 3

        await fleet.until(afresh, "another stream")


async def test_after_an_incident_the_very_next_calls_are_refused(fleet):
    """By the broker, for the subject is contained; and never again by what was cached."""
    operations = Idp(fleet.directory / "operations", issuer="https://operations.test.example")
    role = {"role": "operator", "issuer": operations.issuer, "subjects": ["olga"]}
    fleet.broker_changes = {
        "admin": {"issuers": [operations.trust(fleet.broker_url, "admin")], "roles": [role]}
    }
    async with fleet.running(collector=False):
        await current_token(fleet)
        async with fleet.client.post(
            f"{fleet.broker_url}/v1/incidents",
            json={
                "reason": "seen elsewhere",
                "subject": {"issuer": fleet.workloads.issuer, "subject": WORKLOAD},
            },
            headers={"Authorization": f"Bearer {operations.mint('olga', fleet.broker_url)}"},
        ) as response:
            assert response.status == 201, await response.text()
            incident = (await response.json())["id"]
        fleet.received.clear()

        async def contained():
            return (await fleet.call())[0] == 403

        await fleet.until(contained, "contained")
        fleet.received.clear()
        for path in ("/api/1", "/once/1", "/api/2"):
            status, body = await fleet.call(path)
            assert (status, body["code"]) == (403, "subject.contained")
        assert fleet.received == []

        async def acknowledged():
            async with fleet.client.get(
                f"{fleet.broker_url}/v1/incidents/{incident}",
                headers={"Authorization": f"Bearer {operations.mint('olga', fleet.broker_url)}"},
            ) as response:
                sidecars = (await response.json())["containment"]["sidecars"]
            # A stream whose first answer was lost was begun again: nobody follows that one.
            return any(one["acknowledged_at"] is not None for one in sidecars)

        await fleet.until(acknowledged, "the sidecar has said so")


async def test_a_stream_is_cut_whose_credential_was_revoked_and_is_not_to_be_had_again(fleet):
    source = Source(fleet)
    async with fleet.running(collector=False), AsyncExitStack() as opened:
        response = await opened.enter_async_context(stream(fleet, "/api/long"))
        source.send(response.url.path, b"data: x\n\n")
        await response.content.readexactly(9)
        token = token_of(fleet.received[0])
        await fleet.granted("t:write")  # so that nobody permits it again
        await fleet.revoke(token)
        async with asyncio.timeout(15):
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.content.read()
        assert await fleet.metric("valetkey_stream_rechecks_total", result="grant.scope") == 1
        assert (await fleet.call())[0] == 403


async def test_lost_it_asks_the_broker_for_every_short_life(fleet):
    follow(fleet, tolerance="3s", short_lived="1s")
    async with fleet.running(collector=False):
        first = await current_token(fleet)
        fleet.broker.kill()

        async def lost():
            return await fleet.metric("valetkey_feed_lost") == 1

        await fleet.until(lost, "lost")

        async def refused():
            status, body = await fleet.call()
            assert status in {200, 503}
            return status == 503 and body["code"] == "broker.unavailable"

        await fleet.until(refused, "the short life is over")
        assert (await fleet.readyz())[1]["feed"].startswith("lost (short-lived credentials)")
        fleet.broker.start()
        await fleet.broker.ready(f"{fleet.broker_url}/readyz")

        async def back():
            return await fleet.metric("valetkey_feed_lost") == 0 and (await fleet.call())[0] == 200

        await fleet.until(back, "back")
        assert await current_token(fleet) != first


async def test_lost_a_stream_of_a_credential_per_request_is_cut_after_the_short_life(fleet):
    follow(fleet, tolerance="3s", short_lived="1s")
    source = Source(fleet)
    async with fleet.running(collector=False), AsyncExitStack() as opened:
        response = await opened.enter_async_context(stream(fleet, "/once/long"))
        source.send(response.url.path, b"data: x\n\n")
        await response.content.readexactly(9)
        fleet.broker.kill()
        async with asyncio.timeout(25):  # its credential is good for two minutes
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.content.read()
        assert await fleet.metric("valetkey_feed_lost") == 1


async def test_lost_no_call_leaves_where_settings_say_so(fleet):
    follow(fleet, tolerance="3s", lost="deny")
    async with fleet.running(collector=False):
        await current_token(fleet)
        fleet.broker.kill()

        async def refused():
            status, body = await fleet.call()
            assert status in {200, 503}
            return status == 503 and body["code"] == "feed.lost"

        await fleet.until(refused, "refused", 25)  # its credential is good for two minutes
        for path in ("/api/1", "/once/1"):
            status, body = await fleet.call(path)
            assert (status, body["code"]) == (503, "feed.lost")
        fleet.broker.start()
        await fleet.broker.ready(f"{fleet.broker_url}/readyz")

        async def back():
            return (await fleet.call())[0] == 200

        await fleet.until(back, "back")


async def test_without_a_feed_it_is_as_it_was(fleet):
    fleet.sidecar_changes["broker"] = {"url": fleet.broker_url, "feed": None}
    async with fleet.running(collector=False):
        assert (await fleet.call())[0] == 200
        assert (await fleet.readyz())[1]["feed"] == "off"
        assert await fleet.metric("valetkey_feed_connected") == 0
