"""Streams are decided on again, and cut where the answer is no.

Bounds: the sweep looks four times a second; the broker reads its grants once a second. What
depends on the order of such moments is in tests/unit/proxy/test_streams.py.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import aiohttp
import jwt
import pytest

from tests.support.fleet import USER, Fleet, token_of
from tests.support.streaming import Source, outcome, stream

TTL = 2.0  # used for 1.8 s, refreshed from 1.44 s on


@pytest.fixture
def fleet(tmp_path):
    fleet = Fleet(tmp_path)
    fleet.broker_changes = {"token_ttl": "2s"}
    return fleet


async def flows(response, source):
    """An event gets through, still."""
    source.send(response.url.path, b"data: x\n\n")
    async with asyncio.timeout(15):
        assert await response.content.readexactly(9)


async def is_cut(response):
    """The answer ends, without its end; it would go on for much longer."""
    async with asyncio.timeout(15):
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.read()


async def rechecks(fleet, result):
    return await fleet.metric("valetkey_stream_rechecks_total", result=result)


async def test_streams_live_on_while_they_are_granted_and_no_longer(fleet):
    """Beyond the lifetimes of their credentials, until the grant is taken away."""

    async def slow(_request):
        await asyncio.sleep(30)

    fleet.target = slow  # for the long poll
    source = Source(fleet)
    async with fleet.running(collector=False), AsyncExitStack() as opened:
        begun = time.monotonic()
        token = fleet.people.mint(USER, fleet.broker_url, 3)
        once, user, same, last = [
            await opened.enter_async_context(stream(fleet, path, headers=headers))
            for path, headers in (
                ("/once/long", {}),
                ("/api/user", {"X-Valetkey-Subject": token}),
                ("/api/same", {}),
                ("/api/last", {}),
            )
        ]
        poll = asyncio.ensure_future(fleet.call("/api/poll"))
        while time.monotonic() - begun < 2 * TTL or await rechecks(fleet, "permitted") < 6:
            await flows(last, source)
            await asyncio.sleep(0.1)
        await is_cut(user)  # with the user's own token, which a credential can't outlive
        assert (await outcome(fleet, "/api/user"))["code"] == "subject.invalid"
        # Three streams twice, and that of the user. There are three keys, each with its first
        # exchange; streams of one key share the later ones.
        exchanged = await fleet.metric("valetkey_exchanges_total", result="ok")
        assert exchanged < await rechecks(fleet, "permitted") + 3
        fleet.grant("t:write")
        for lost in (last, same, once):
            await is_cut(lost)
        status, problem = await poll
        assert (status, problem["code"]) == (403, "grant.scope")
        for path in ("/api/last", "/api/same", "/once/long"):
            ended = await outcome(fleet, path)
            assert (ended["outcome"], ended["code"], ended["status"]) == ("cut", "grant.scope", 200)
            assert ended["stream"]["rechecks"] >= 1
            assert ended["stream"]["jti"]
        assert (await outcome(fleet, "/api/poll"))["outcome"] == "denied"
        assert await rechecks(fleet, "grant.scope") == 4


async def test_without_a_broker_a_stream_ends_with_its_credential_and_not_before(fleet):
    """Not even when settings change elsewhere, and with them the digest in the key."""
    fleet.routes += [fleet.route("other", methods=["GET"], path="/other/{id}")]
    source = Source(fleet)
    async with fleet.running(collector=False), stream(fleet, "/api/long") as response:
        await flows(response, source)
        issued = jwt.decode(source.token("/api/long"), options={"verify_signature": False})["iat"]
        fleet.broker.kill()
        fleet.routes.pop()
        fleet.write()
        await fleet.reload()

        async def postponed():
            return await rechecks(fleet, "postponed") >= 1

        await fleet.until(postponed, "asked in vain")
        await flows(response, source)
        await is_cut(response)
        assert time.time() >= issued + TTL * 0.9 - 1  # asked for in the second before, maybe
        ended = await outcome(fleet, "/api/long")
        assert (ended["outcome"], ended["code"]) == ("cut", "broker.unavailable")


async def test_changed_settings_count_for_open_streams(fleet):
    fleet.broker_changes = {"token_ttl": "60s"}
    fleet.routes += [fleet.route("other", methods=["GET"], path="/other/{id}")]
    source = Source(fleet)
    async with fleet.running(collector=False):
        async with (
            stream(fleet, "/other/doomed") as doomed,
            stream(fleet, "/api/long") as response,
        ):
            fleet.routes.pop()
            fleet.write()
            await fleet.reload()
            await is_cut(doomed)
            await flows(response, source)
            assert (await outcome(fleet, "/other/doomed"))["code"] == "route.no_match"
            # The credential in hand is not what the route needs now, and there is no other.
            fleet.broker.kill()
            fleet.routes[0]["scopes"] = ["t:read", "t:write"]
            fleet.write()
            await fleet.reload()
            await is_cut(response)
            assert (await outcome(fleet, "/api/long"))["code"] == "broker.unavailable"
        fleet.broker.start()
        await fleet.broker.ready(f"{fleet.broker_url}/readyz")
        # Another place for the same call: a connection can't be moved.
        async with stream(fleet, "/api/moved") as response:
            await flows(response, source)
            tree = fleet.tree()["targets"]["tickets"]
            fleet.sidecar_changes["targets"] = {
                "tickets": tree | {"url": f"http://localhost:{fleet.target_port}"}
            }
            fleet.write()
            await fleet.reload()
            await is_cut(response)
        ended = await outcome(fleet, "/api/moved")
        assert (ended["outcome"], ended["code"]) == ("cut", "stream.rerouted")


async def test_another_identity_must_be_granted_the_same(fleet):
    fleet.broker_changes = {"token_ttl": "60s"}
    source = Source(fleet)
    async with fleet.running(collector=False), stream(fleet, "/api/long") as response:
        await flows(response, source)
        fleet.renew("system:serviceaccount:agents:other")
        await is_cut(response)
        assert (await outcome(fleet, "/api/long"))["code"] == "grant.missing"


async def test_a_revoked_credential_is_noticed_though_only_a_stream_rests_on_it(fleet):
    fleet.broker_changes = {"token_ttl": "60s"}
    fleet.sidecar_changes["broker"] = {"url": fleet.broker_url, "revalidate": "200ms"}
    source = Source(fleet)
    async with fleet.running(collector=False), stream(fleet, "/api/long") as response:
        await flows(response, source)
        await fleet.revoke(source.token("/api/long"))

        async def permitted():
            return await rechecks(fleet, "permitted") == 1

        await fleet.until(permitted, "a new credential")
        await flows(response, source)
        # The same with a grant that is gone by then. The new credential is learned from a call.
        await fleet.call("/api/learn")
        token = token_of(fleet.received[-1])
        await fleet.granted("t:write")
        await fleet.revoke(token)
        await is_cut(response)
        assert (await outcome(fleet, "/api/long"))["code"] == "grant.scope"
