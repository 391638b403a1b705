"""Grants made by API, as a workload behind its sidecar has them: uses are calls, an end is at once."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import jwt
import pytest

from tests.support.fleet import USER, WORKLOAD, Fleet
from valetkey.contracts import events


@pytest.fixture
def fleet(tmp_path):
    fleet = Fleet(tmp_path)
    fleet.broker_changes["admin"] = {
        "issuers": [fleet.people.trust(fleet.broker_url, "admin")],
        "roles": [{"role": "operator", "issuer": fleet.people.issuer, "subjects": [USER]}],
    }
    # What happens here, the feed did: credentials are not asked about.
    fleet.sidecar_changes["broker"] = {
        "url": fleet.broker_url, "timeout": "2s", "revalidate": "1h",
    }  # fmt: skip
    return fleet


async def manage(fleet: Fleet, path: str, document: dict[str, Any]) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {fleet.user_token()}"}
    async with fleet.client.post(
        fleet.broker_url + path, json=document, headers=headers
    ) as response:
        body = await response.json()
        assert response.status in {200, 201}, body
        return body


async def give(fleet: Fleet, **bounds: Any) -> None:
    """A grant for the route that no grant of the file is for."""
    await manage(fleet, "/v1/grants", {
        "id": "jit", "workload": WORKLOAD, "issuer": fleet.workloads.issuer, "target": "tickets",
        "scopes": ["t:never"], "reason": "once", **bounds,
    })  # fmt: skip


async def call(fleet: Fleet) -> tuple[int, str]:
    status, body = await fleet.call("/refused/1")
    return status, body.get("code", "")


async def first_call(fleet: Fleet) -> None:
    """Denials are remembered for up to a second."""

    async def through() -> bool:
        return (await call(fleet))[0] == 200

    await fleet.until(through, "a call that goes through")


async def test_uses_are_calls_and_the_record_names_the_grant(fleet):
    async with fleet.running():
        assert await call(fleet) == (403, "grant.scope")
        await give(fleet, max_uses=3)
        await first_call(fleet)
        assert [await call(fleet) for _ in range(3)] == [
            (200, ""), (200, ""), (403, "grant.used_up"),
        ]  # fmt: skip
        tokens = {request.headers["Authorization"] for request in fleet.received}
        assert len(tokens) == len(fleet.received) == 3
        await fleet.delivered()
        allowed = [
            event["data"]["unmapped"]["grants"]
            for event in fleet.events(events.TYPE_DECISION)
            if event["data"]["action_id"] == 1
        ]
        assert allowed == [["jit"]] * 3


async def test_of_many_calls_at_once_as_many_get_through_as_may(fleet):
    async with fleet.running(collector=False):
        await give(fleet, max_uses=5)
        answers = await asyncio.gather(*(call(fleet) for _ in range(20)))
        assert answers.count((200, "")) == 5
        assert len(fleet.received) == 5
        assert {answer for answer in answers if answer[0] != 200} == {(403, "grant.used_up")}


async def test_a_revoked_grant_ends_the_cached_credential_at_once(fleet):
    async with fleet.running(collector=False):
        await give(fleet)
        await first_call(fleet)
        assert await call(fleet) == (200, "")
        bearer = {request.headers["Authorization"] for request in fleet.received}
        assert len(bearer) == 1, "it is cached"
        await manage(fleet, "/v1/grants/jit/revoke", {"reason": "done"})

        async def ended() -> bool:
            answer = await call(fleet)
            assert answer in {(200, ""), (403, "grant.ended")}
            return answer[0] == 403

        await fleet.until(ended, "the end")  # the credential is good for two minutes
        arrived = len(fleet.received)
        for _ in range(20):
            assert (await call(fleet))[0] == 403
        assert len(fleet.received) == arrived


async def refused(fleet: Fleet) -> bool:
    return (await fleet.call())[0] == 403


async def test_a_grant_that_is_narrowed_in_the_file_ends_the_cached_credential(fleet):
    async with fleet.running(collector=False):
        assert not await refused(fleet)
        await fleet.granted("t:write")
        await fleet.until(lambda: refused(fleet), "what the grant gives no more is refused")


async def test_so_does_one_that_was_narrowed_while_no_broker_ran(fleet):
    async with fleet.running(collector=False):
        assert not await refused(fleet)
        fleet.broker.kill()
        fleet.grant("t:write")
        fleet.broker.start()
        await fleet.broker.ready(f"{fleet.broker_url}/readyz")
        await fleet.until(lambda: refused(fleet), "what the grant gives no more is refused")


async def test_no_token_outlives_a_deadline(fleet):
    async with fleet.running(collector=False):
        ends = int(time.time()) + 6
        await give(fleet, not_after=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ends)))
        await first_call(fleet)
        while time.time() < ends + 1:
            asked = time.time()
            status, code = await call(fleet)
            assert status == 200 or code == "grant.ended", code
            # What is asked past its end does not go through, however long that takes.
            assert status == 403 or asked < ends
            await asyncio.sleep(0.05)
        for request in fleet.received:
            token = request.headers["Authorization"].removeprefix("Bearer ")
            claims = jwt.decode(token, options={"verify_signature": False})
            assert claims["exp"] <= ends
