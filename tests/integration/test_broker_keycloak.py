"""A real Keycloak as the issuer of users' tokens, trusted by discovery (tests/support/keycloak.py)."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.integration.broker_support import BOT, IDP, World, claims_of, serving
from tests.support import keycloak as support
from tests.support.canaries import CANARIES
from tests.support.keycloak import CLIENT, Keycloak
from tests.support.ports import free_url


@pytest.mark.timeout(400)
async def test_a_user_of_keycloak_is_acted_for(tmp_path: Path) -> None:
    reason = await asyncio.to_thread(support.missing)
    if reason:
        pytest.skip(reason)
    world = World(tmp_path / "world", free_url())
    keycloak = Keycloak(tmp_path, audience=world.url)
    await asyncio.to_thread(keycloak.start)
    try:
        await _exchanges(world, keycloak)
    finally:
        await asyncio.to_thread(keycloak.stop)


async def _exchanges(world: World, keycloak: Keycloak) -> None:
    users = {
        "issuer": keycloak.issuer,
        "audience": world.url,
        "use": "user",
        "discovery": True,
        "claims": [{"azp": [CLIENT], "typ": ["Bearer"]}],
    }
    world.overrides["issuers"] = [*world.document()["issuers"], users]
    async with serving(world) as broker, aiohttp.ClientSession() as browser:

        async def signed_in(**changes: Any) -> dict[str, Any]:
            url = keycloak.issuer + "/protocol/openid-connect/token"
            async with browser.post(url, data=keycloak.form() | changes) as response:
                answer: dict[str, Any] = await response.json()
            if "access_token" in answer:
                CANARIES.add(answer["access_token"], name="token of Keycloak")
            return answer

        token = (await signed_in())["access_token"]
        world.clock.now = time.time()  # Keycloak's, which ran on while it started
        said = claims_of(token)
        assert (said["iss"], said["aud"], said["azp"]) == (keycloak.issuer, world.url, CLIENT)
        status, body, _ = await broker.exchange(world.user_form(world.workload(), token))
        assert status == 200, body
        issued = claims_of(body["access_token"])
        assert (issued["sub"], issued["sub_iss"]) == (said["sub"], keycloak.issuer)
        assert issued["act"] == {"sub": BOT, "iss": IDP}

        # Signed by the same realm, and no access token for us.
        opened = await signed_in(scope="openid")
        status, body, _ = await broker.exchange(
            world.user_form(world.workload(), opened["id_token"])
        )
        assert (status, body["code"]) == (400, "subject.invalid")
        # A user's token never authenticates a workload.
        status, body, _ = await broker.exchange(world.form(token))
        assert (status, body["code"]) == (401, "actor.invalid")
        head, payload, signature = token.split(".")
        forged = f"{head}.{payload}.{signature[:-6]}AAAAAA"
        status, body, _ = await broker.exchange(world.user_form(world.workload(), forged))
        assert (status, body["code"]) == (400, "subject.invalid")
