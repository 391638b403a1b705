"""What works, and what is refused with which code, while something is away."""

from __future__ import annotations

import asyncio
import time

import jwt
import pytest

from tests.support.fleet import Fleet, token_of


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path)


async def expect(fleet, code, path="/api/1", method="GET", **more):
    """The call is refused with this code, and nothing reaches the target."""
    before = len(fleet.received)
    async with fleet.client.request(method, fleet.url + path, **more) as response:
        body = await response.json(content_type="application/problem+json")
        assert body["code"] == code, body
        assert body["status"] == response.status
        assert len(fleet.received) == before
        return response.status, response.headers


# --- the broker ----------------------------------------------------------------------------------


async def test_broker_down_cached_works_until_it_expires_then_503(fleet):
    fleet.broker_changes = {"token_ttl": "3s"}
    async with fleet.running(collector=False):
        assert (await fleet.call("/api/1"))[0] == 200
        fleet.broker.kill()
        status, headers = await expect(fleet, "broker.unavailable", method="POST")  # a new key
        assert status == 503
        assert int(headers["Retry-After"]) > 0

        async def ended():
            return (await fleet.call("/api/1"))[0] != 200

        await fleet.until(ended, "the end of what is cached")
        token = token_of(fleet.received[-1])
        claims = jwt.decode(token, options={"verify_signature": False})
        # 3 s less a tenth, from when it was asked for; that may have been in the second before `iat`.
        assert time.time() >= claims["iat"] + 1.7
        status, headers = await expect(fleet, "broker.unavailable")
        assert status == 503
        assert (await fleet.readyz())[0] == 200  # other routes may still have their credentials
        fleet.broker.start()
        await fleet.broker.ready(f"{fleet.broker_url}/readyz")
        assert (await fleet.call("/api/1"))[0] == 200


async def test_broker_down_does_not_bring_back_what_the_policy_refused(fleet):
    async with fleet.running(collector=False):
        await expect(fleet, "grant.scope", "/refused/1")
        fleet.broker.kill()

        async def forgotten():
            status, _ = await fleet.call("/refused/1")
            assert status in {403, 503}
            return status == 503

        await fleet.until(forgotten, "a second")
        await expect(fleet, "broker.unavailable", "/refused/1")


async def test_refreshed_ahead_nobody_waits_for_the_broker(fleet):
    """The credential is renewed at 80 %: calls go on with old and new, without a pause."""
    fleet.broker_changes = {"token_ttl": "4s"}
    async with fleet.running(collector=False):
        assert (await fleet.call("/api/1"))[0] == 200
        misses = await fleet.metric("valetkey_cache_misses_total")

        async def refreshed():
            assert (await fleet.call("/api/1"))[0] == 200
            return await fleet.metric("valetkey_cache_refreshes_total") >= 2

        await fleet.until(refreshed, "two refreshes")
        assert await fleet.metric("valetkey_cache_misses_total") == misses
        assert await fleet.metric("valetkey_exchanges_total", result="ok") <= 4


# --- the identity --------------------------------------------------------------------------------


async def test_an_identity_that_expires_and_comes_back(fleet):
    async with fleet.running(collector=False):
        assert (await fleet.call("/api/1"))[0] == 200
        fleet.renew(ttl=2)

        async def expired():
            return (await fleet.readyz())[0] == 503

        await fleet.until(expired, "the expiry")
        status, headers = await expect(fleet, "identity.unavailable")
        assert status == 503
        assert int(headers["Retry-After"]) > 0
        _, ready = await fleet.readyz()
        assert ready["reason"] == "no workload identity: the token has expired"
        fleet.renew()

        async def back():
            return (await fleet.readyz())[0] == 200

        await fleet.until(back, "the new token")
        assert (await fleet.call("/api/1"))[0] == 200


async def test_started_without_a_token_it_waits_for_one(fleet):
    fleet.token_file.unlink()
    async with fleet.running(collector=False, sidecar=False):
        fleet.sidecar.start()
        await fleet.sidecar.event("ready")
        await expect(fleet, "identity.unavailable")
        status, ready = await fleet.readyz()
        assert status == 503
        assert "can't be read" in ready["reason"]
        fleet.renew()
        await fleet.up()
        assert (await fleet.call("/api/1"))[0] == 200


# --- the record ----------------------------------------------------------------------------------


async def test_durable_waits_for_the_commit_before_a_byte_goes_upstream(fleet):
    """With an interval of two seconds, calls on a durable route one after the other show it.

    The order itself is shown in tests/unit/proxy/audit/test_durable.py.
    """
    fleet.sidecar_changes["spool"] = {"dir": str(fleet.spool), "commit_every": "2s"}
    arrived = []
    answer = fleet.target

    async def target(request):
        arrived.append(time.monotonic())
        return await answer(request)

    fleet.target = target
    async with fleet.running(collector=False):
        assert (await fleet.call("/api/1", "POST"))[0] == 200  # the same scopes, not durable
        for method in ("POST", "POST", "DELETE", "DELETE"):
            assert (await fleet.call("/api/1", method))[0] == 200
        # Between two commits there is an interval, however late a busy machine is with a call.
        assert arrived[-1] - arrived[-2] > 1, arrived
        assert arrived[2] - arrived[1] < 1.5, arrived


async def test_calls_of_a_killed_workload_end(fleet):
    """A client that goes away while its call waits for the broker leaves nothing behind."""
    async with fleet.running(collector=False):
        assert (await fleet.call("/api/1"))[0] == 200
        fleet.broker.kill()
        _reader, writer = await asyncio.open_connection("127.0.0.1", fleet.port)
        writer.write(b"POST /api/1 HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n")
        await writer.drain()
        writer.transport.abort()

        async def gone():
            return await fleet.metric("valetkey_connections") <= 1

        await fleet.until(gone, "no connection but ours")
        assert (await fleet.call("/api/1"))[0] == 200
