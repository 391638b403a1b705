"""A credential that the broker revoked stops working here, long before it expires."""

from __future__ import annotations

import asyncio

import jwt
import pytest

from tests.support.fleet import Fleet, token_of
from valetkey.contracts import events


@pytest.fixture
def fleet(tmp_path):
    fleet = Fleet(tmp_path)
    fleet.sidecar_changes["broker"] = {"url": fleet.broker_url, "revalidate": "200ms"}
    return fleet


async def test_a_revoked_credential_is_not_used_again(fleet):
    async with fleet.running(collector=False):
        for _ in range(2):
            assert (await fleet.call())[0] == 200
        first, same = map(token_of, fleet.received)
        assert first == same
        await fleet.revoke(first)

        async def evicted():
            # Only what is in use is asked about, so it is used.
            await fleet.call()
            return await fleet.metric("valetkey_credentials_revoked_total") == 1

        await fleet.until(evicted, "evicted")
        fleet.received.clear()
        assert (await fleet.call())[0] == 200
        assert token_of(fleet.received[0]) != first


async def test_a_call_that_was_decided_on_but_not_sent_yet_gets_another_one(fleet):
    """Its decision takes seconds to come to disk, in which the credential is revoked."""
    fleet.sidecar_changes["broker"]["feed"] = None  # so that only asking can find it out
    fleet.sidecar_changes["spool"] = {**fleet.tree()["spool"], "commit_every": "5s"}
    async with fleet.running(collector=False):
        assert (await fleet.call(method="DELETE"))[0] == 200
        first = token_of(fleet.received.pop())
        written = await fleet.metric("valetkey_events_written_total")
        call = asyncio.ensure_future(fleet.call(method="DELETE"))

        async def decided():
            return await fleet.metric("valetkey_events_written_total") > written

        await fleet.until(decided, "decided")
        asked = await fleet.metric("valetkey_credentials_revalidated_total")

        async def asked_since():
            return await fleet.metric("valetkey_credentials_revalidated_total") > asked + 1

        await fleet.until(asked_since, "asked about while it waits, however often")
        await fleet.revoke(first)

        async def ended():
            return await fleet.metric("valetkey_cache_revocations_total") == 1

        await fleet.until(ended, "ended")
        assert not fleet.received, "it was too quick to test anything"
        assert (await call)[0] == 200
        second = token_of(fleet.received[0])
        assert second != first
        outcome = (await fleet.spooled(events.TYPE_OUTCOME))[-1]["data"]["unmapped"]
        assert [one["jti"] for one in outcome["credentials"]] == [
            jwt.decode(second, options={"verify_signature": False})["jti"]
        ]


async def test_a_good_credential_survives_being_asked_about(fleet):
    async with fleet.running(collector=False):
        await fleet.call()

        async def asked():
            await fleet.call()
            return await fleet.metric("valetkey_credentials_revalidated_total") >= 2

        await fleet.until(asked, "asked about twice")
        assert len({token_of(request) for request in fleet.received}) == 1
        assert await fleet.metric("valetkey_credentials_revoked_total") == 0


async def test_a_broker_that_is_gone_revokes_nothing(fleet):
    async with fleet.running(collector=False):
        await fleet.call()
        fleet.broker.kill()

        async def noticed():
            assert (await fleet.call())[0] == 200
            return any(line["event"] == "not_revalidated" for line in fleet.sidecar.log())

        await fleet.until(noticed, "the broker was asked and did not answer")
        assert (await fleet.call())[0] == 200
        assert len({token_of(request) for request in fleet.received}) == 1
